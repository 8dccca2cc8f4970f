package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

const (
	batchSize  = 100
	batchCount = 400 // of a round of either side
	batchUsers = 1_000
	batchConns = 8 // more would wait for each other's commits for longer than track lets anybody wait, on a slow machine
)

// prepareBatch measures events of programs, a hundred a request over loopback, each with an id of its own and about one of a thousand contacts, as Segment's SDKs send them. They are
// stored, in a transaction that is committed, before they are answered. The reference is COPY of the same rows into the same table, a hundred a transaction, on as many connections as
// track may use.
func prepareBatch(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.apply(ctx, mailDocuments()); err != nil {
		return r, err
	}
	if err := l.exec(ctx, fmt.Sprintf("INSERT INTO contact (external_id) SELECT 'user-' || n FROM generate_series(0, %d) n", batchUsers-1)); err != nil {
		return r, err
	}
	if err := l.refresh(ctx); err != nil {
		return r, err
	}
	key, err := l.programKey(ctx)
	if err != nil {
		return r, err
	}
	if err := l.start(ctx, "track", "ONDA_SERVE=http", fmt.Sprintf("ONDA_DATABASE_MAX_CONNS=%d", trackConns)); err != nil {
		return r, err
	}
	to, err := l.side.ask(task{Listen: true})
	if err != nil {
		return r, err
	}
	const properties = `{"total":120,"currency":"NOK","lines":[{"sku":"a-1","quantity":2}]}`
	// Of both: what the process and Postgres take, whatever else runs on the machine.
	cpu := &beside{name: "CPU of track", unit: "ms a 1,000", goal: 1}
	server := &beside{name: "CPU of Postgres", unit: "ms a 1,000", goal: 2}
	r.beside = []*beside{cpu, server}
	var sent atomic.Int64
	r.ours = func(ctx context.Context) (float64, error) {
		const done = "SELECT count(*) FROM fact WHERE kind = 'event.tracked' AND data->>'total' = '120'"
		before, err := l.one(ctx, done)
		if err != nil {
			return 0, err
		}
		cost, err := l.costs(ctx, l.side.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		_, err = load(ctx, to.Address, batchConns, batchCount, http.StatusOK, func(int) string {
			var b strings.Builder
			for i := range batchSize {
				n := sent.Add(1)
				fmt.Fprintf(&b, `%s{"type":"track","messageId":"message-%d","userId":"user-%d","event":"Order Placed","timestamp":%q,"properties":%s}`,
					[2]string{"", ","}[min(i, 1)], n, n%batchUsers, began.Format(time.RFC3339Nano), properties)
			}
			return fmt.Sprintf("POST /v1/batch HTTP/1.1\r\nHost: %s\r\nAuthorization: Basic %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{\"batch\":[%s]}",
				to.Address, base64.StdEncoding.EncodeToString([]byte(key+":")), b.Len()+len(`{"batch":[]}`), b.String())
		})
		rate := batchSize * batchCount / time.Since(began).Seconds()
		if err != nil {
			return 0, err
		}
		took, err := cost()
		if err != nil {
			return 0, err
		}
		cpu.ours = append(cpu.ours, took.process*1e6/(batchSize*batchCount))
		server.ours = append(server.ours, took.postgres*1e6/(batchSize*batchCount))
		after, err := l.one(ctx, done)
		if err == nil && after-before != batchSize*batchCount {
			err = fmt.Errorf("%d events are stored of %d that were answered", after-before, batchSize*batchCount)
		}
		return rate, err
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
	r.reference = func(ctx context.Context) (float64, error) {
		cost, err := l.costs(ctx, os.Getpid())
		if err != nil {
			return 0, err
		}
		began := time.Now()
		err = together(ctx, trackConns, batchCount, func(ctx context.Context, n int) error {
			_, err := pool.CopyFrom(ctx, pgx.Identifier{tenant, "fact"}, []string{"kind", "name", "contact", "data", "at"}, pgx.CopyFromSlice(batchSize, func(i int) ([]any, error) {
				return []any{"event.tracked", "Order Placed", (n*batchSize+i)%batchUsers + 1, properties, began}, nil
			}))
			return err
		})
		rate := batchSize * batchCount / time.Since(began).Seconds()
		if err != nil {
			return 0, err
		}
		took, err := cost()
		cpu.reference = append(cpu.reference, took.process*1e6/(batchSize*batchCount))
		server.reference = append(server.reference, took.postgres*1e6/(batchSize*batchCount))
		return rate, err
	}
	return r, nil
}

// programKey makes a secret key of a program.
func (l *lab) programKey(ctx context.Context) (key string, err error) {
	err = l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		k, err := token.NewProgramKey(token.SecretKey, tx.Tenant.Number)
		if err != nil {
			return err
		}
		key = k.Reveal()
		hash := k.Hash()
		_, err = tx.Exec(ctx, "INSERT INTO key (kind, secret, name) VALUES ('sk', $1, 'bench')", hash[:])
		return err
	})
	if err != nil {
		return "", fmt.Errorf("store a key: %w", err)
	}
	return key, nil
}
