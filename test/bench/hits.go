package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

const (
	clients    = 64
	hitCount   = 20_000 // of a round of either side
	hitSlowest = 50     // ms that the 99th percentile of answers may take at most
	trackConns = 4      // what a function has by default
	agent      = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
	// answerEnv is the file with what the reference of a hit answers.
	answerEnv = "ONDA_BENCH_ANSWER"
)

// recorded is an answer of ours that the reference gives too.
type recorded struct {
	Status int
	Header http.Header
	Body   []byte
}

// prepareHits measures pixels or clicks over loopback, asked for by many clients at once on connections that stay: each is stored, in a transaction that is committed, before
// it is answered. The reference is the same server with a handler that answers the same bytes and stores nothing.
func prepareHits(purpose token.Purpose, at int) func(ctx context.Context, l *lab) (rounds, error) {
	return func(ctx context.Context, l *lab) (r rounds, err error) {
		sent, err := l.sentMails(ctx, purpose)
		if err != nil {
			return r, err
		}
		if err := l.start(ctx, "track", "ONDA_SERVE=http", fmt.Sprintf("ONDA_DATABASE_MAX_CONNS=%d", trackConns)); err != nil {
			return r, err
		}
		ours, err := l.side.ask(task{Listen: true})
		if err != nil {
			return r, err
		}
		file, err := l.record(ctx, "http://"+ours.Address+sent.targets[0])
		if err != nil {
			return r, err
		}
		reference, err := l.startReference(ctx, answerEnv+"="+file)
		if err != nil {
			return r, err
		}
		slowest := &limit{name: "slowest in 100", unit: "ms", goal: hitSlowest}
		r.limits = []*limit{slowest}
		ask := func(to string) ([]time.Duration, float64, error) {
			began := time.Now()
			took, err := load(ctx, to, at, hitCount, sent.status, func(n int) string { return sent.hitOf(n, to) })
			return took, hitCount / time.Since(began).Seconds(), err
		}
		r.ours = func(ctx context.Context) (float64, error) {
			before, err := l.one(ctx, "SELECT count(*) FROM hit WHERE contact IS NOT NULL")
			if err != nil {
				return 0, err
			}
			took, rate, err := ask(ours.Address)
			if err != nil {
				return 0, err
			}
			slices.Sort(took)
			slowest.values = append(slowest.values, float64(took[len(took)*99/100])/float64(time.Millisecond))
			after, err := l.one(ctx, "SELECT count(*) FROM hit WHERE contact IS NOT NULL")
			if err == nil && after-before != hitCount {
				err = fmt.Errorf("%d hits are stored of %d that were answered", after-before, hitCount)
			}
			return rate, err
		}
		r.reference = func(context.Context) (float64, error) {
			_, rate, err := ask(reference)
			return rate, err
		}
		return r, nil
	}
}

// sentMails are mails that were sent: each one's delivery, the path of its pixel or link, and the status of the answer there.
type sentMails struct {
	deliveries []int64
	targets    []string
	status     int
}

// sentMails makes 10,000 mails that were sent.
func (l *lab) sentMails(ctx context.Context, purpose token.Purpose) (s sentMails, err error) {
	if err := l.apply(ctx, mailDocuments()); err != nil {
		return s, err
	}
	err = l.exec(ctx,
		`INSERT INTO contact (email) SELECT 'u' || n || '@example.org' FROM generate_series(1, 10000) n`,
		`INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, p, 'granted', 0, onda.now() FROM contact, unnest('{news,tracking.email}'::text[]) p`,
		`INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', e.id, e.current, 'running' FROM entity e WHERE e.kind = 'Email'`)
	if err != nil {
		return s, err
	}
	return l.moreMails(ctx, purpose, 10_000)
}

// moreMails sends so many mails, or somewhat more, to the contacts that there are.
func (l *lab) moreMails(ctx context.Context, purpose token.Purpose, n int) (s sentMails, err error) {
	last, err := l.one(ctx, "SELECT coalesce(max(id), 0)::bigint FROM batch")
	if err != nil {
		return s, err
	}
	err = l.exec(ctx,
		fmt.Sprintf(`INSERT INTO batch (run, step, email, contacts, state) SELECT r.id, 'send', r.document, c.ids, 'closed'
			FROM run r, (SELECT array_agg(id ORDER BY id) AS ids FROM contact GROUP BY id / 500) c, generate_series(1, %d)`, (n+9_999)/10_000),
		fmt.Sprintf(`INSERT INTO delivery (id, contact, state, tracking) SELECT b.id << 9 | u.n, u.id, 'sent', 'full' FROM batch b, unnest(b.contacts) WITH ORDINALITY u (id, n) WHERE b.id > %d`, last))
	if err != nil {
		return s, err
	}
	if err := l.refresh(ctx); err != nil {
		return s, err
	}
	s.status = http.StatusOK
	if purpose == token.Click {
		s.status = http.StatusFound
	}
	err = l.db.InTenant(ctx, l.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "SELECT d.id, (SELECT min(id) FROM link)::bigint FROM delivery d WHERE d.id >= ($1::bigint + 1) << 9 ORDER BY d.id", last)
		if err != nil {
			return fmt.Errorf("read deliveries: %w", err)
		}
		var delivery, link int64
		_, err = pgx.ForEachRow(rows, []any{&delivery, &link}, func() error {
			c := token.Claims{Purpose: purpose, Key: keys.Signing.ID, Tenant: tx.Tenant.Number, Delivery: delivery}
			path := "/o/%s.gif"
			if purpose == token.Click {
				c.Link, path = link, "/c/%s"
			}
			tok, err := token.Sign(keys.Signing, c)
			s.deliveries, s.targets = append(s.deliveries, delivery), append(s.targets, fmt.Sprintf(path, tok))
			return err
		})
		return err
	})
	return s, err
}

// hitOf is the request of a mail's pixel or link.
func (s sentMails) hitOf(n int, to string) string {
	return fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: 192.0.2.%d\r\nUser-Agent: %s\r\n\r\n", s.targets[n%len(s.targets)], to, n%250+1, agent)
}

// record writes what is answered at a URL into a file.
func (l *lab) record(ctx context.Context, url string) (file string, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return "", fmt.Errorf("ask for an answer: %w", err)
	}
	body, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return "", fmt.Errorf("read an answer: %w", err)
	}
	res.Header.Del("Date")
	b, err := json.Marshal(recorded{res.StatusCode, res.Header, body})
	if err != nil {
		return "", fmt.Errorf("encode an answer: %w", err)
	}
	dir, err := os.MkdirTemp("", "onda-bench-")
	if err != nil {
		return "", fmt.Errorf("make a directory: %w", err)
	}
	l.closers = append(l.closers, func() error { return os.RemoveAll(dir) })
	file = filepath.Join(dir, "answer")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return "", fmt.Errorf("write an answer: %w", err)
	}
	return file, nil
}

// answerRecorded is the handler of the reference.
func answerRecorded(file string) (http.Handler, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	var a recorded
	if err := json.Unmarshal(b, &a); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		for k, v := range a.Header {
			h[k] = v
		}
		w.WriteHeader(a.Status)
		_, _ = w.Write(a.Body)
	}
	mux.HandleFunc("GET /o/{file}", answer)
	mux.HandleFunc("GET /c/{token}", answer)
	return mux, nil
}

// together calls f for 0 to n-1, by as many at once.
func together(ctx context.Context, at, n int, f func(ctx context.Context, n int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range at {
		g.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := f(ctx, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}
