package delivery

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func (f *fixture) superuser() *pgx.Conn {
	f.t.Helper()
	conn, err := pgx.Connect(context.Background(), f.data.AdminURL)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// model is one delivery as the rules of the design have it.
type model struct {
	state   State
	attempt int
	inHand  bool // deferred, and in the batch of its attempt
}

// takes applies an outcome by the rules, in words: sent is final and always true; anything else counts for the attempt under way only, and replaces nothing
// but the absence of an outcome or unknown.
func (m *model) takes(o Outcome) bool {
	switch {
	case m.state == "":
		*m = model{o.State, o.Attempt, false}
	case m.state == Sent:
		return false
	case o.State == Sent:
		*m = model{Sent, max(m.attempt, o.Attempt), false}
	case o.Attempt != m.attempt:
		return false
	case m.state == Unknown && o.State != Unknown, m.inHand:
		*m = model{o.State, o.Attempt, false}
	default:
		return false
	}
	return true
}

// Under any order and any repeats of outcomes, retries, resends and takeovers, the rows are what the rules say, facts are told once, and the counts of a batch
// that is closed are those of its rows.
func TestOutcomesOnlyMoveUp(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	rapid.Check(t, func(rt *rapid.T) {
		const n = 4
		pgtest.Exec(t, f.db, f.tenant, "UPDATE batch SET state = 'closed' WHERE state = 'open'") // of the case before
		b := f.plan(n)[0]
		l := f.take(false)
		if l == nil || l.Batch != b.ID {
			rt.Fatalf("leased %+v, want batch %d", l, b.ID)
		}
		f.advance(l, n)
		ms := make([]model, n)
		sent := make([]int, n)
		closed := false
		check := func(step string) {
			got := map[int64]model{}
			f.in(func(ctx context.Context, tx *postgres.Tx) error {
				rows, err := tx.Query(ctx, "SELECT id, state, attempt, state = 'deferred' AND retry_at IS NULL FROM delivery WHERE id >> 9 = $1", b.ID)
				if err != nil {
					return err
				}
				var id int64
				var m model
				_, err = pgx.ForEachRow(rows, []any{&id, &m.state, &m.attempt, &m.inHand}, func() error { got[id] = m; return nil })
				return err
			})
			counts := map[State]int32{}
			for i, m := range ms {
				if d := cmp.Diff(m, got[ID(b.ID, i+1)], cmp.AllowUnexported(model{})); d != "" {
					rt.Fatalf("%s: delivery %d (-rules +row):\n%s", step, i+1, d)
				}
				counts[m.state]++
			}
			if !closed {
				return
			}
			want := []int32{counts[Sent], counts[Deferred], counts[Failed], counts[Suppressed], counts[Unknown]}
			if d := cmp.Diff(want, f.counts(b.ID)); d != "" {
				rt.Fatalf("%s: counts of the closed batch (-rows +batch):\n%s", step, d)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"record": func(rt *rapid.T) {
				var some []Outcome
				for range rapid.IntRange(1, 5).Draw(rt, "outcomes") {
					i := rapid.IntRange(0, n-1).Draw(rt, "delivery")
					o := Outcome{Delivery: ID(b.ID, i+1), Contact: int64(i + 1), State: rapid.SampledFrom([]State{Sent, Deferred, Failed, Suppressed, Unknown}).Draw(rt, "state")}
					o.Attempt = 1
					if ms[i].attempt > 1 {
						o.Attempt = rapid.IntRange(1, ms[i].attempt).Draw(rt, "attempt")
					}
					switch o.State {
					case Deferred:
						o.RetryAt = time.Now().Add(-time.Hour)
					case Suppressed:
						o.Reason = NoConsent
					case Unknown:
						o.Resend = rapid.Bool().Draw(rt, "resend")
					default: // Sent and Failed need no more
					}
					some = append(some, o)
				}
				want := 0
				for _, round := range rounds(some) { // a statement has a delivery once
					for _, o := range round {
						i := Number(o.Delivery) - 1
						if !ms[i].takes(o) {
							continue
						}
						want++
						if o.State == Sent {
							sent[i]++
						}
						if o.Resend {
							ms[i] = model{Deferred, o.Attempt + 1, true}
						}
					}
				}
				if changed := f.record(some...); len(changed) != want {
					rt.Fatalf("%d changes, want %d, of %+v", len(changed), want, some)
				}
				check("record")
			},
			"repeat what stands": func(rt *rapid.T) {
				i := rapid.IntRange(0, n-1).Draw(rt, "delivery")
				m := ms[i]
				if m.state == "" || m.inHand {
					return
				}
				o := Outcome{Delivery: ID(b.ID, i+1), Contact: int64(i + 1), Attempt: m.attempt, State: m.state}
				if m.state == Deferred {
					o.RetryAt = time.Now()
				}
				if changed := f.record(o); len(changed) != 0 {
					rt.Fatalf("repeating %+v changed %+v", o, changed)
				}
				check("repeat")
			},
			"retry what is due": func(rt *rapid.T) {
				f.in(func(ctx context.Context, tx *postgres.Tx) error { _, err := Regroup(ctx, tx, Bulk); return err })
				for i := range ms {
					if ms[i].state == Deferred && !ms[i].inHand {
						ms[i] = model{Deferred, ms[i].attempt + 1, true}
					}
				}
				check("retry")
			},
			"close": func(rt *rapid.T) {
				done := true
				for _, m := range ms {
					done = done && m.state != ""
				}
				if got := f.close(l); got != (done && !closed) {
					rt.Fatalf("closed %v with %+v", got, ms)
				}
				closed = closed || done
				check("close")
			},
		})
		for i, s := range sent {
			told := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM fact WHERE kind = 'email.sent' AND $1 = ANY (deliveries)", ID(b.ID, i+1))
			if s > 1 || told != s {
				rt.Fatalf("delivery %d was sent %d times and told %d times", i+1, s, told)
			}
		}
	})
}

// Two recorders and a closer at once: none waits for another for ever, and the counts are right.
func TestRecordingAndClosingAtOnce(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	const n = 60
	b := f.plan(n)[0]
	l := f.take(false)
	f.advance(l, n)
	const writers = 4
	errs := make(chan error, writers)
	for w := range writers {
		go func() {
			for i := range n {
				k := (i*7+w*13)%n + 1
				s := []State{Unknown, Sent, Failed, Sent}[w]
				err := f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
					_, err := Record(ctx, tx, "send", Outcome{Delivery: ID(b.ID, k), Contact: int64(k), State: s},
						Outcome{Delivery: ID(b.ID, k%n+1), Contact: int64(k%n + 1), State: s})
					return err
				})
				if err == nil && i%5 == 0 {
					err = f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
						_, err := l.Close(ctx, tx, "send")
						return err
					})
				}
				if err != nil {
					errs <- fmt.Errorf("writer %d: %w", w, err)
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	f.close(l)
	if d := cmp.Diff([]int32{n, 0, 0, 0, 0}, f.counts(b.ID)); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
}

// What comes of a mail whose recipient was erased while it was on its way is stored without the words that it was refused with: they may name the recipient.
func TestLateOutcomesOfErasedContactsNameNobody(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(4)[0]
	f.advance(f.take(false), 4)
	pgtest.Exec(t, f.db, f.tenant, "INSERT INTO contact (id, erased_at) OVERRIDING SYSTEM VALUE SELECT n, CASE WHEN n < 4 THEN onda.now() END FROM generate_series(1, 4) n ON CONFLICT (id) DO UPDATE SET erased_at = excluded.erased_at")
	refused := func(k int) Outcome {
		return Outcome{Delivery: ID(b.ID, k), Contact: int64(k), Attempt: 1, State: Failed, Class: "hard", Code: 550, Detail: "no such user ada"}
	}
	later := refused(2)
	later.State, later.Class, later.RetryAt = Deferred, "soft", time.Now().Add(time.Hour)
	f.record(refused(1))                                                                       // all alike
	f.record(later, Outcome{Delivery: ID(b.ID, 3), Contact: 3, State: Sent, Detail: "queued"}) // mixed
	f.record(refused(4))
	got := pgtest.All[string](t, f.db, f.tenant, "SELECT concat_ws(' ', contact, state, code, detail) FROM delivery ORDER BY id")
	if d := cmp.Diff([]string{"1 failed 550", "2 deferred 550", "3 sent queued", "4 failed 550 no such user ada"}, got); d != "" {
		t.Error(d)
	}
}

// Who is merged while a mail to it is on its way: what becomes of the mail is known of whom it became part of.
func TestOutcomesOfWhoWasMerged(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(3)[0]
	ids := make([]int64, 3)
	for i := range ids {
		ids[i] = pgtest.One[int64](t, f.db, f.tenant, "SELECT contacts[$2] FROM batch WHERE id = $1", b.ID, i+1)
		pgtest.Exec(t, f.db, f.tenant, "INSERT INTO contact (id) OVERRIDING SYSTEM VALUE VALUES ($1) ON CONFLICT DO NOTHING", ids[i])
	}
	pgtest.Exec(t, f.db, f.tenant, "UPDATE contact SET merged_into = $2 WHERE id = $1", ids[0], ids[2])
	f.record(Outcome{Delivery: ID(b.ID, 1), Contact: ids[0], Attempt: 1, State: Sent}, Outcome{Delivery: ID(b.ID, 2), Contact: ids[1], Attempt: 1, State: Failed, Class: "hard"})
	pgtest.Exec(t, f.db, f.tenant, "UPDATE contact SET merged_into = $2 WHERE id = $1", ids[1], ids[2])
	f.record(Outcome{Delivery: ID(b.ID, 2), Contact: ids[1], Attempt: 1, State: Sent})
	f.record(Outcome{Delivery: ID(b.ID, 3), Contact: ids[2], Attempt: 1, State: Sent})
	if diff := cmp.Diff([]int64{ids[2], ids[1], ids[2]}, pgtest.All[int64](t, f.db, f.tenant, "SELECT contact FROM delivery ORDER BY id")); diff != "" { // the second's row was there when it was merged, and moves with the merge
		t.Error(diff)
	}
}

// However many were merged or erased, to store outcomes reads the rows of their contacts alone.
func TestOutcomesReadTheirContactsAlone(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	pgtest.Exec(t, f.db, f.tenant, "INSERT INTO contact (email) SELECT n || '@example.com' FROM generate_series(1, 3000) n")
	explain := func() {
		t.Helper()
		pgtest.In(t, f.db, f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			ids := make([]int64, 100)
			for i := range ids {
				ids[i] = int64(i + 1)
			}
			rows, err := tx.Query(ctx, "EXPLAIN "+upsertAlike, ids, ids, make([]string, 100), 1, "failed", "", "hard", 550, "", "", time.Now())
			if err != nil {
				return err
			}
			lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
			plan := strings.Join(lines, "\n")
			if strings.Contains(plan, "contact_merged") || strings.Contains(plan, "contact_erased") || strings.Contains(plan, "Join") {
				t.Error(plan)
			}
			return err
		})
	}
	explain()
	pgtest.Exec(t, f.db, f.tenant, "UPDATE contact SET merged_into = CASE id % 3 WHEN 0 THEN 1 END, erased_at = CASE id % 3 WHEN 1 THEN onda.now() END")
	explain()
	pgtest.In(t, f.db, f.tenant, func(ctx context.Context, tx *postgres.Tx) error { return tx.UpdateStatistics(ctx) })
	explain()
}
