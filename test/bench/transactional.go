package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Transactional mails of a round: so many, one each so often.
const (
	postsOfRound = 300
	postEvery    = 20 * time.Millisecond
)

// passwordDocument is the mail that cannot wait.
const passwordDocument = `
---
apiVersion: onda/v1
kind: Email
metadata: {name: password}
spec:
  transactional: true
  from: "Harbour <no-reply@harbour.example>"
  subject: "Your code"
  html: "<p>Your code is {{ data.code }}.</p>"
`

// arrivals are when mails came, by recipient.
type arrivals struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (a *arrivals) note(line []byte, at time.Time) {
	_, rest, _ := bytes.Cut(line, []byte("<"))
	to, domain, _ := bytes.Cut(rest, []byte("@"))
	if !bytes.HasPrefix(domain, []byte("now.example>")) {
		return // of the blast
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, before := a.at[string(to)]; !before {
		a.at[string(to)] = at
	}
}

// all waits until so many came.
func (a *arrivals) all(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		a.mu.Lock()
		have := len(a.at)
		a.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d transactional mails came: %w", have, n, ctx.Err())
		}
	}
}

// prepareTransactional measures how long a transactional mail takes, from the request over HTTP to the relay, while a blast runs at full speed; the reference is the same at rest,
// and the 250 ms that it may take longer. The rates are of the blast, with those mails beside it and without.
func prepareTransactional(ctx context.Context, l *lab) (r rounds, err error) {
	came := &arrivals{at: map[string]time.Time{}}
	to, err := startSink(ctx, nil, func(s *sink) { s.came = came.note })
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, to.close)
	if err := prepareMails(ctx, l, passwordDocument); err != nil {
		return r, err
	}
	key, err := l.programKey(ctx)
	if err != nil {
		return r, err
	}
	relay := "ONDA_SMTP_URL=smtp://" + to.addr().String() + "?tls=none"
	if err := l.start(ctx, "send", "ONDA_LANE=bulk", relay, "ONDA_SMTP_CONNECTIONS="+strconv.Itoa(connections)); err != nil {
		return r, err
	}
	api, err := l.startSide(ctx, "send", "ONDA_LANE=transactional", relay)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, func() error {
		_, err := api.end()
		return err
	})
	p99 := &beside{name: "p99 of a mail", unit: "ms (+250)", goal: 1}
	r.beside = []*beside{p99}
	// posts gives the p99 of a round, in milliseconds.
	posts := func() (float64, error) {
		came.mu.Lock()
		clear(came.at)
		came.mu.Unlock()
		asked, err := api.ask(task{Posts: postsOfRound, Every: postEvery, Key: key})
		if err != nil {
			return 0, err
		}
		var took []time.Duration
		if err := came.all(ctx, len(asked.Posted)); err != nil {
			return 0, err
		}
		came.mu.Lock()
		defer came.mu.Unlock()
		for who, at := range asked.Posted {
			took = append(took, came.at[who].Sub(time.Unix(0, at)))
		}
		slices.Sort(took)
		return float64(took[len(took)*99/100]) / float64(time.Millisecond), nil
	}
	taken := func() (counts, error) {
		_, _ = to.take()
		return counts{Mails: int64(l.mails)}, ctx.Err() // the blast's own are counted in the database
	}
	r.ours = func(ctx context.Context) (float64, error) {
		var during float64
		var wrong error
		done := make(chan struct{})
		go func() {
			defer close(done)
			during, wrong = posts()
		}()
		var mails, seconds float64
		for more := true; more; { // blast after blast, as long as there are posts
			took, _, err := l.blast(ctx, l.side, taken)
			if err != nil {
				return 0, err
			}
			mails, seconds = mails+float64(l.mails), seconds+took.Seconds()
			select {
			case <-done:
				more = false
			default:
			}
		}
		p99.ours = append(p99.ours, during)
		return mails / seconds, wrong
	}
	r.reference = func(ctx context.Context) (float64, error) {
		rest, err := posts()
		if err != nil {
			return 0, err
		}
		p99.reference = append(p99.reference, rest+250)
		took, _, err := l.blast(ctx, l.side, taken)
		return float64(l.mails) / took.Seconds(), err
	}
	return r, nil
}

// posts asks for transactional mails over HTTP, in a steady beat whatever the answers take, and tells when each was asked for.
func (f *function) posts(ctx context.Context, t task) (map[string]int64, error) {
	asked := make(map[string]int64, t.Posts)
	beat := time.NewTicker(t.Every)
	defer beat.Stop()
	var all sync.WaitGroup
	var mu sync.Mutex
	var first error
	for range t.Posts {
		<-beat.C
		f.events++
		to := "p" + strconv.Itoa(f.events)
		mu.Lock()
		asked[to] = time.Now().UnixNano()
		mu.Unlock()
		all.Go(func() {
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/v1/emails", bytes.NewReader([]byte(`{"to": "`+to+`@now.example", "email": "password", "data": {"code": "123"}}`)))
			if err == nil {
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Idempotency-Key", to)
				r.SetBasicAuth(t.Key, "")
				w := newAnswer()
				if f.in.ServeHTTP(w, r); w.status != http.StatusAccepted {
					err = fmt.Errorf("send answered %d to a transactional mail: %s", w.status, w.body.String())
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if first == nil {
				first = err
			}
		})
	}
	all.Wait()
	return asked, first
}
