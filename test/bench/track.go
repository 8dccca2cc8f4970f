package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

const (
	clients     = 64
	clickCount  = 20_000 // of a round of ours
	insertCount = 4_000  // of a round of the reference, which is slower
	trackConns  = 4      // what a function has by default
	agent       = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
)

// prepareTrack measures clicks: each is stored, in a transaction that is committed, before it is answered. The reference is one plain INSERT and commit a
// request, of the same row into a table with the same indexes, on as many connections as track may use. Both are called without a network between.
func prepareTrack(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.apply(ctx, mailDocuments()); err != nil {
		return r, err
	}
	err = l.exec(ctx,
		`INSERT INTO contact (email) SELECT 'u' || n || '@example.org' FROM generate_series(1, 10000) n`,
		`INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, p, 'granted', 0, onda.now() FROM contact, unnest('{news,tracking.email}'::text[]) p`,
		`INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', e.id, e.current, 'running' FROM entity e WHERE e.kind = 'Email'`,
		`INSERT INTO batch (run, step, email, contacts, state) SELECT r.id, 'send', r.document, c.ids, 'closed'
			FROM run r, (SELECT array_agg(id ORDER BY id) AS ids FROM contact GROUP BY id / 500) c`,
		`INSERT INTO delivery (id, contact, state, tracking) SELECT b.id << 9 | u.n, u.id, 'sent', 'full' FROM batch b, unnest(b.contacts) WITH ORDINALITY u (id, n)`)
	if err == nil {
		err = l.own(ctx, "CREATE TABLE plain_hit (LIKE hit INCLUDING ALL)")
	}
	if err != nil {
		return r, err
	}
	if err := l.refresh(ctx); err != nil {
		return r, err
	}
	if err := l.start(ctx, "track", "ONDA_SERVE=http", fmt.Sprintf("ONDA_DATABASE_MAX_CONNS=%d", trackConns)); err != nil {
		return r, err
	}
	r.ours = func(ctx context.Context) (float64, error) {
		before, err := l.one(ctx, "SELECT count(*) FROM hit WHERE contact IS NOT NULL")
		if err != nil {
			return 0, err
		}
		took, err := l.side.do(task{Clicks: clickCount, Clients: clients})
		if err != nil {
			return 0, err
		}
		after, err := l.one(ctx, "SELECT count(*) FROM hit WHERE contact IS NOT NULL")
		if err == nil && after-before != clickCount {
			err = fmt.Errorf("%d clicks are stored of %d that were answered", after-before, clickCount)
		}
		return clickCount / took.Seconds(), err
	}
	cfg, err := pgxpool.ParseConfig(l.url)
	if err != nil {
		return r, fmt.Errorf("ONDA_BENCH_DATABASE_URL: %w", err)
	}
	cfg.MaxConns = trackConns
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return r, fmt.Errorf("connect to postgres: %w", err)
	}
	l.closers = append(l.closers, func() error { pool.Close(); return nil })
	origin := make([]byte, 32)
	r.reference = func(ctx context.Context) (float64, error) {
		began := time.Now()
		err := together(ctx, clients, insertCount, func(ctx context.Context, n int) error {
			_, err := pool.Exec(ctx, `INSERT INTO `+tenant+`.plain_hit (kind, delivery, contact, link, run, step, agent, method, origin) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
				"click", 512+n, n, 1, 1, "send", agent, "GET", origin)
			return err
		})
		return insertCount / time.Since(began).Seconds(), err
	}
	return r, nil
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

// clicks is the task of track's process.
func (f *function) clicks(ctx context.Context, n, at int) (time.Duration, error) {
	if f.tokens == nil {
		if err := f.sign(ctx); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	err := together(ctx, at, n, func(ctx context.Context, n int) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/c/"+f.tokens[n%len(f.tokens)], http.NoBody)
		if err != nil {
			return err
		}
		r.Header.Set("User-Agent", agent)
		r.Header.Set("X-Forwarded-For", fmt.Sprintf("192.0.2.%d", n%250+1))
		w := newAnswer()
		f.in.ServeHTTP(w, r)
		if w.status != http.StatusFound {
			return fmt.Errorf("a click was answered with %d: %.200s", w.status, w.body.String())
		}
		return nil
	})
	return time.Since(began), err
}

// sign makes the token of a click for each delivery.
func (f *function) sign(ctx context.Context) error {
	return f.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		key, ok := keys.Tokens.Current()
		if !ok {
			return fmt.Errorf("tenant %s has no key", tenant)
		}
		rows, err := tx.Query(ctx, "SELECT d.id, (SELECT min(id) FROM link)::bigint FROM delivery d ORDER BY d.id")
		if err != nil {
			return fmt.Errorf("read deliveries: %w", err)
		}
		c := token.Claims{Purpose: token.Click, Key: key.ID, Tenant: tx.Tenant.Number}
		_, err = pgx.ForEachRow(rows, []any{&c.Delivery, &c.Link}, func() error {
			tok, err := token.Sign(key, c)
			f.tokens = append(f.tokens, tok)
			return err
		})
		return err
	})
}
