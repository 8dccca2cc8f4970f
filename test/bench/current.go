package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// stream writes facts at a pace, as track does: commits of a hundred, a doorbell with each, posted to the function of segments once a second at most.
type stream struct {
	l     *lab
	to    string // where segment listens
	facts int    // a second
	make  func(n int) postgres.Fact
	data  func(items []event.Hit) event.Data

	// at is when each commit was over.
	at []time.Time
}

// commitFacts are how many are in a commit.
const commitFacts = 100

// run writes n facts.
func (s *stream) run(ctx context.Context, n int) error {
	began := time.Now()
	for from := 0; from < n; from += commitFacts {
		due := began.Add(time.Duration(float64(from) / float64(s.facts) * float64(time.Second)))
		if err := waitUntil(ctx, due); err != nil {
			return err
		}
		err := s.l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			var facts []postgres.Fact
			var items []event.Hit
			for i := from; i < min(from+commitFacts, n); i++ {
				f := s.make(i)
				facts, items = append(facts, f), append(items, event.Hit{Contact: f.Contact, Verdict: "human"})
			}
			if err := tx.AddFacts(ctx, facts...); err != nil {
				return err
			}
			e, err := event.New(tenant, "track", "", event.DeriveID("bench", strconv.FormatInt(tx.Now().UnixNano(), 10), strconv.Itoa(from)), s.data(items))
			if err != nil {
				return err
			}
			return tx.Publish(ctx, "track", e)
		})
		if err != nil {
			return err
		}
		s.at = append(s.at, time.Now())
	}
	return nil
}

// ring posts what was published until done is closed, and once more.
func (s *stream) ring(ctx context.Context, done <-chan struct{}) error {
	for {
		last := false
		select {
		case <-done:
			last = true
		case <-time.After(10 * time.Millisecond):
		}
		if err := s.l.db.DrainPending(ctx, s.post); err != nil || last {
			return err
		}
	}
}

func (s *stream) post(ctx context.Context, _ string, e cloudevents.Event) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an event: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.to+"/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", cloudevents.ApplicationCloudEventsJSON)
	// A broker does not wait for one before it delivers the next.
	go func() {
		if a, err := http.DefaultClient.Do(r.WithContext(context.WithoutCancel(ctx))); err == nil {
			_ = a.Body.Close()
		}
	}()
	return nil
}

func waitUntil(ctx context.Context, at time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(at)):
		return nil
	}
}

// lags are how far behind the segments are, seen every so often.
type lags struct{ seconds []float64 }

func (g *lags) at(share float64) float64 {
	if len(g.seconds) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(g.seconds))
	return s[min(int(share*float64(len(s))), len(s)-1)]
}

// unread is SQL: how old the oldest fact is that the cursor of segments has not passed, in microseconds; 0 for none.
const unread = `SELECT coalesce((SELECT (extract(epoch FROM clock_timestamp() - f.at) * 1000000)::bigint FROM fact f WHERE (f.xid, f.id) > (c.xid, c.id) AND f.kind NOT LIKE 'segment.%'
	ORDER BY f.xid, f.id LIMIT 1), 0) FROM cursor c WHERE c.name = 'segment'`

// watchLag looks at the lag until done is closed and nothing is left to do.
func (l *lab) watchLag(ctx context.Context, done <-chan struct{}) (*lags, error) {
	g := &lags{}
	over := false
	for {
		n, err := l.one(ctx, unread)
		if err != nil || over && n == 0 {
			return g, err
		}
		g.seconds = append(g.seconds, float64(n)/1e6)
		select {
		case <-done:
			over = true
		default:
		}
		if err := waitUntil(ctx, time.Now().Add(50*time.Millisecond)); err != nil {
			return g, err
		}
	}
}

// prepareClicks measures how soon 10,000 contacts who click within one second are in a segment of those who clicked within 30 days, each from when its click was committed.
func prepareClicks(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.withSegments(ctx, len(examples())); err != nil {
		return r, err
	}
	to, err := l.side.ask(task{Listen: true})
	if err != nil {
		return r, err
	}
	half, most, scans := &limit{name: "median", unit: "s", goal: 2}, &limit{name: "last", unit: "s", goal: 5}, &limit{name: "full scans", unit: "", goal: 0}
	r.limits = []*limit{half, most, scans}
	const clicks = 10_000
	round := 0
	r.ours = func(ctx context.Context) (float64, error) {
		// Those who are not in it, spread over all.
		ids, err := l.ids(ctx, `SELECT c.id FROM contact c WHERE NOT EXISTS (SELECT FROM member m JOIN entity e ON e.id = m.segment WHERE e.kind = 'Segment' AND e.name = 'clicked' AND m.contact = c.id)
			ORDER BY md5(c.id::text) LIMIT `+strconv.Itoa(clicks))
		if err != nil {
			return 0, err
		}
		if len(ids) < clicks {
			return 0, fmt.Errorf("%d contacts are left to click, want %d: take more -contacts, or fewer -rounds", len(ids), clicks)
		}
		round++
		s := &stream{l: l, to: to.Address, facts: clicks, data: func(h []event.Hit) event.Data { return event.EmailClicked{Hits: event.Hits{Items: h}} }, make: func(n int) postgres.Fact {
			return postgres.Fact{Kind: "email.clicked", Contact: ids[n], Data: fmt.Appendf(nil, `{"hit": %d, "link": 1}`, 3_000_000_000+round*clicks+n)}
		}}
		before, err := l.fullScans(ctx)
		if err != nil {
			return 0, err
		}
		was, err := l.one(ctx, "SELECT s.members FROM segment s JOIN entity e ON e.id = s.entity WHERE e.name = 'clicked'")
		if err != nil {
			return 0, err
		}
		began, done := time.Now(), make(chan struct{})
		var seen []arrival
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { defer close(done); return s.run(ctx, clicks) })
		g.Go(func() error { return s.ring(ctx, done) })
		g.Go(func() (err error) {
			seen, err = l.watchMembers(ctx, was, clicks)
			return err
		})
		if err := g.Wait(); err != nil {
			return 0, err
		}
		took := time.Since(began)
		var g2 lags
		for i, at := range s.at {
			j := slices.IndexFunc(seen, func(a arrival) bool { return a.members >= int64((i+1)*commitFacts) })
			g2.seconds = append(g2.seconds, seen[j].at.Sub(at).Seconds())
		}
		after, err := l.fullScans(context.WithoutCancel(ctx))
		half.values, most.values, scans.values = append(half.values, g2.at(0.5)), append(most.values, g2.at(1)), append(scans.values, float64(after-before))
		return clicks / took.Seconds(), err
	}
	r.reference = func(ctx context.Context) (float64, error) { return clicks, ctx.Err() } // as many as come
	return r, nil
}

// arrival is how many more members there are than before, at a time.
type arrival struct {
	at      time.Time
	members int64
}

// watchMembers looks until there are so many more in the segment of those who clicked.
func (l *lab) watchMembers(ctx context.Context, was int64, want int) (seen []arrival, err error) {
	for until := time.Now().Add(time.Minute); time.Now().Before(until); {
		n, err := l.one(ctx, "SELECT s.members FROM segment s JOIN entity e ON e.id = s.entity WHERE e.name = 'clicked'")
		if err != nil {
			return nil, err
		}
		seen = append(seen, arrival{time.Now(), n - was})
		if n-was >= int64(want) {
			return seen, nil
		}
		if err := waitUntil(ctx, time.Now().Add(5*time.Millisecond)); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("those who clicked are not in the segment after a minute")
}

// fullScans is how often contacts, facts or members were read from end to end. Whoever reads tells it late.
func (l *lab) fullScans(ctx context.Context) (int64, error) {
	if err := waitUntil(ctx, time.Now().Add(11*time.Second)); err != nil { // PGSTAT_IDLE_INTERVAL is 10 s
		return 0, err
	}
	return superOne[int64](ctx, l, "SELECT sum(seq_scan)::bigint FROM pg_stat_user_tables WHERE schemaname = '"+tenant+"' AND (relname ~ '^(fact|delivery|member)' OR relname = 'contact') AND n_live_tup > 10000")
}

// prepareHundred measures a hundred segments kept current under 2,000 facts a second: how far behind they are, and what it takes of the machine's processors. The reference writes the same facts
// and nobody follows them.
func prepareHundred(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.withSegments(ctx, 100); err != nil {
		return r, err
	}
	to, err := l.side.ask(task{Listen: true})
	if err != nil {
		return r, err
	}
	half, most := &limit{name: "lag, median", unit: "s", goal: 2}, &limit{name: "lag, p99", unit: "s", goal: 5}
	function, server := &limit{name: "CPU of segment", unit: "% of one", goal: 50}, &beside{name: "CPU of Postgres", unit: "of one", goal: 20}
	r.limits, r.beside = []*limit{half, most, function}, []*beside{server}
	const rate, seconds = 2000, 20
	n := 0
	write := func(ctx context.Context, to string) (*lags, used, time.Duration, error) {
		n++
		s := &stream{l: l, to: to, facts: rate, data: func(h []event.Hit) event.Data { return event.EmailClicked{Hits: event.Hits{Items: h}} }, make: func(i int) postgres.Fact {
			id := int64((i*7919+n*104729)%l.contacts) + 1
			switch i % 4 {
			case 0:
				return postgres.Fact{Kind: "email.opened", Contact: id, Data: []byte(`{"hit": 2000000000, "link": 0}`)}
			case 1:
				return postgres.Fact{Kind: "email.clicked", Contact: id, Data: []byte(`{"hit": 2000000000, "link": 1}`)}
			case 2:
				return postgres.Fact{Kind: "page.viewed", Contact: id, Data: []byte(`{"url": "https://example.com/pricing"}`)}
			default:
				return postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: id, Data: []byte(`{"total": 120}`)}
			}
		}}
		costs, err := l.costs(ctx, l.side.cmd.Process.Pid)
		if err != nil {
			return nil, used{}, 0, err
		}
		began, done := time.Now(), make(chan struct{})
		var lag *lags
		g, inner := errgroup.WithContext(ctx)
		g.Go(func() error { defer close(done); return s.run(inner, rate*seconds) })
		if to != "" {
			g.Go(func() error { return s.ring(inner, done) })
			g.Go(func() (err error) { lag, err = l.watchLag(inner, done); return err })
		}
		if err := g.Wait(); err != nil {
			return nil, used{}, 0, err
		}
		took := time.Since(began)
		u, err := costs()
		return lag, u, took, err
	}
	r.ours = func(ctx context.Context) (float64, error) {
		lag, u, took, err := write(ctx, to.Address)
		if err != nil {
			return 0, err
		}
		half.values, most.values = append(half.values, lag.at(0.5)), append(most.values, lag.at(0.99))
		function.values, server.ours = append(function.values, 100*u.process/took.Seconds()), append(server.ours, u.postgres/took.Seconds())
		return rate * seconds / took.Seconds(), nil
	}
	r.reference = func(ctx context.Context) (float64, error) {
		_, u, took, err := write(ctx, "")
		server.reference = append(server.reference, u.postgres/took.Seconds())
		if err == nil { // nobody follows these
			err = l.exec(ctx, "DELETE FROM outbox", "UPDATE cursor SET (xid, id) = (SELECT xid, id FROM fact ORDER BY xid DESC, id DESC LIMIT 1) WHERE name = 'segment'")
		}
		return rate * seconds / took.Seconds(), err
	}
	return r, nil
}

// prepareTogether measures sending at full speed while six segments are computed in full, against sending alone; beside it, the rebuild against a rebuild alone.
func prepareTogether(ctx context.Context, l *lab) (r rounds, err error) {
	to, err := startSinkProcess(ctx)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, to.close)
	if err := prepareMails(ctx, l); err != nil {
		return r, err
	}
	send, err := l.startSide(ctx, "send", "ONDA_LANE=bulk", "ONDA_SMTP_URL=smtp://127.0.0.1:"+strconv.Itoa(to.port)+"?tls=none", "ONDA_SMTP_CONNECTIONS="+strconv.Itoa(connections))
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, func() error { _, err := send.end(); return err })
	if err := l.withSegments(ctx, len(examples())); err != nil {
		return r, err
	}
	rebuilt := &beside{name: "rebuild", unit: "s", goal: 2}
	r.beside = []*beside{rebuilt}
	// mails sends until done is closed, at least once.
	mails := func(ctx context.Context, done <-chan struct{}) (float64, error) {
		var took time.Duration
		for n := 1; ; n++ {
			t, _, err := l.blast(ctx, send, to.ask)
			if err != nil {
				return 0, err
			}
			took += t
			select {
			case <-done:
				return float64(n*l.mails) / took.Seconds(), nil
			default:
			}
		}
	}
	r.ours = func(ctx context.Context) (rate float64, err error) {
		if err := l.forgetMembers(ctx); err != nil {
			return 0, err
		}
		done := make(chan struct{})
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			defer close(done)
			took, err := l.rebuild(ctx)
			rebuilt.ours = append(rebuilt.ours, took.Seconds())
			return err
		})
		g.Go(func() (err error) { rate, err = mails(ctx, done); return err })
		return rate, g.Wait()
	}
	r.reference = func(ctx context.Context) (float64, error) {
		if err := l.forgetMembers(ctx); err != nil {
			return 0, err
		}
		took, err := l.rebuild(ctx)
		if err != nil {
			return 0, err
		}
		rebuilt.reference = append(rebuilt.reference, took.Seconds())
		done := make(chan struct{})
		close(done)
		return mails(ctx, done)
	}
	return r, nil
}

// ids reads ids of the tenant.
func (l *lab) ids(ctx context.Context, sql string) (ids []int64, err error) {
	err = l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, "SELECT array("+sql+")").Scan(&ids)
	})
	return ids, err
}
