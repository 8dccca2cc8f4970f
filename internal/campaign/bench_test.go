package campaign

import (
	"context"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

const benchPeople = 50_000

// Who would get it, of 50,000: one look.
func BenchmarkPreflight(b *testing.B) {
	w := newWorld(b)
	w.people(pgtest.Acme, benchPeople)
	w.exec("UPDATE subscription SET state = 'withdrawn' WHERE contact % 10 = 0")
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return tx.UpdateStatistics(ctx) })
	w.broadcast("news", toEveryone)
	for b.Loop() {
		w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			p, err := GetPreflight(ctx, tx, "news")
			if p.Recipients != benchPeople*9/10 {
				b.Errorf("%+v", p)
			}
			return err
		})
	}
}

// All batches of a broadcast to 50,000.
func BenchmarkPlan(b *testing.B) {
	w := newWorld(b)
	w.people(pgtest.Acme, benchPeople)
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return tx.UpdateStatistics(ctx) })
	w.broadcast("news", toEveryone)
	for b.Loop() {
		b.StopTimer()
		w.exec("UPDATE run SET state = 'cancelled'")
		w.exec("DELETE FROM batch")
		w.start("news", Options{Again: true})
		b.StartTimer()
		w.everything()
	}
	b.ReportMetric(benchPeople/(b.Elapsed().Seconds()/float64(b.N)), "recipients/s")
}

// 10,000 contacts enter, get a mail and come to a wait; then the wait is over for all, unanswered.
func BenchmarkJourneys(b *testing.B) {
	w := newWorld(b)
	const people = 10_000
	w.people(pgtest.Acme, people)
	w.campaign("welcome", welcome)
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return tx.UpdateStatistics(ctx) })
	for b.Loop() {
		b.StopTimer()
		w.exec("UPDATE run SET state = 'cancelled'")
		w.exec("UPDATE journey SET state = 'cancelled', due_at = 'infinity'")
		w.start("welcome")
		b.StartTimer()
		w.everything()
		b.StopTimer()
		w.deliver()
		w.pass(3*24*time.Hour + time.Minute)
		b.StartTimer()
		w.everything()
	}
	b.ReportMetric(4*people/(b.Elapsed().Seconds()/float64(b.N)), "steps/s")
}
