package segment

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// rebuilt is when the segment was last computed in full.
func (w *world) rebuilt(name string) time.Time {
	w.Helper()
	return pgtest.One[time.Time](w, w.db, "acme", "SELECT s.rebuilt_at FROM segment s JOIN entity e ON e.id = s.entity WHERE e.name = $1", name)
}

// What time alone changes is found without computing all: by the day, over a jump of weeks, and for events, suppressions and anniversaries as well.
func TestTimeAloneIsSwept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(6)
	w.apply("acme", "Field", "birthday", `{"type": "date"}`)
	w.segment("lately", `{"field": "seen", "inLast": "2d"}`)
	w.segment("clicked", `{"event": "order.placed", "within": "30d"}`)
	w.segment("party", `{"field": "birthday", "yearly": {"inNext": "3d"}}`)
	w.segment("quiet", `{"not": {"any": [{"segment": "clicked"}, {"segment": "lately"}]}}`)
	now := pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")
	for i, id := range ids {
		w.update([]int64{id}, contact.Change{Fields: map[string]any{
			"seen": now.Add(-time.Duration(i) * 10 * time.Hour).UTC().Format(time.RFC3339), "birthday": now.UTC().AddDate(-30, 0, 5+i).Format(time.DateOnly),
		}})
	}
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		return tx.AddFacts(ctx, postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: ids[0], At: now.AddDate(0, 0, -29)},
			postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: ids[1], At: now.AddDate(0, 0, -10)},
			postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: ids[2], At: now.Add(time.Hour)}) // of a clock that is ahead
	})
	w.work()
	w.want("lately", ids[:5]...)
	w.want("clicked", ids[0], ids[1])
	first := map[string]time.Time{}
	for _, s := range []string{"lately", "clicked", "party", "quiet"} {
		first[s] = w.rebuilt(s)
	}
	check := func() {
		t.Helper()
		w.work()
		for name, sql := range map[string]string{
			"lately":  `SELECT id FROM contact WHERE (fields->>'seen')::timestamptz BETWEEN onda.now() - interval '2 days' AND onda.now() ORDER BY id`,
			"clicked": `SELECT DISTINCT contact FROM fact WHERE kind = 'event.tracked' AND at BETWEEN onda.now() - interval '30 days' AND onda.now() ORDER BY 1`,
			"quiet": `SELECT id FROM contact WHERE NOT (fields->>'seen')::timestamptz BETWEEN onda.now() - interval '2 days' AND onda.now()
				AND id NOT IN (SELECT contact FROM fact WHERE kind = 'event.tracked' AND at BETWEEN onda.now() - interval '30 days' AND onda.now() ) ORDER BY id`,
			"party": `SELECT id FROM contact WHERE (fields->>'birthday')::date + interval '30 years' BETWEEN (onda.now() AT TIME ZONE 'UTC')::date AND (onda.now() AT TIME ZONE 'UTC')::date + 3 ORDER BY id`,
		} {
			w.want(name, pgtest.All[int64](t, w.db, "acme", sql)...)
			w.told(name)
			if !w.rebuilt(name).Equal(first[name]) {
				t.Errorf("%s was computed in full", name)
			}
		}
	}
	check()
	for _, d := range []time.Duration{2 * time.Hour, 9 * time.Hour, 30 * time.Hour, 5 * 24 * time.Hour, 25 * 24 * time.Hour} {
		w.moveClock(d)
		check()
	}
}

// A clock that was moved back, and a segment that was never swept, are computed in full.
func TestAClockThatWasMovedBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(2)
	w.segment("lately", `{"field": "seen", "inLast": "2d"}`)
	now := pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")
	w.update(ids[:1], contact.Change{Fields: map[string]any{"seen": now.UTC().Format(time.RFC3339)}})
	w.work()
	w.want("lately", ids[0])
	w.moveClock(72 * time.Hour)
	w.work()
	w.want("lately")
	was := w.rebuilt("lately")
	w.pg.Own(t, "acme", `UPDATE onda.tenant SET "offset" = interval '1 hour' WHERE name = 'acme'`)
	w.work()
	w.want("lately", ids[0])
	if w.rebuilt("lately").Equal(was) {
		t.Error("it was not computed in full")
	}
	w.told("lately")
	pgtest.Exec(t, w.db, "acme", "UPDATE segment SET swept_at = NULL")
	w.moveClock(72 * time.Hour)
	w.work()
	w.want("lately")
	// One that is set aside until a time that is far off by now is tried again.
	w.trip("lately", "RAISE EXCEPTION 'no' USING ERRCODE = '22023'")
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET fields = fields || jsonb_build_object('seen', to_char(onda.now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')) WHERE id = $1", ids[0])
	if err := w.request("lately"); err != nil {
		t.Fatal(err)
	}
	w.work()
	w.untrip()
	if n := w.count("lately"); n.Failed == "" {
		t.Errorf("it is told as %+v", n)
	}
	w.pg.Own(t, "acme", `UPDATE onda.tenant SET "offset" = interval '1 hour' WHERE name = 'acme'`)
	if err := w.db.Recompute(context.Background(), "acme", "segment", w.keeper.next); err != nil {
		t.Fatal(err)
	}
	if !pgtest.One[bool](t, w.db, "acme", "SELECT at <= onda.now() FROM onda.wakeup WHERE function = 'segment' AND tenant = 'acme'") {
		t.Error("it does not wake now")
	}
	w.work()
	if n := w.count("lately"); n.Failed != "" || !n.Current {
		t.Errorf("it is told as %+v", n)
	}
}

// Many whom time changes at once are computed some at a time, also by keepers that are killed, or all are, where they are most.
func TestASweepOfMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.segment("lately", `{"all": [{"field": "plan", "is": "paid"}, {"field": "seen", "inLast": "2d"}]}`)
	more := func(n int) {
		pgtest.Exec(t, w.db, "acme", `INSERT INTO contact (fields) SELECT jsonb_build_object('plan', 'paid', 'seen', to_char((onda.now() - interval '1 day') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
			FROM generate_series(1, $1::int) n`, n)
	}
	more(900)
	w.work()
	all, first := w.members("lately"), w.rebuilt("lately")
	if len(all) != 900 {
		t.Fatalf("%d are in it", len(all))
	}
	piece := func(size int) (more bool) {
		t.Helper()
		k := &keeper{db: w.db, docs: &documents{}, log: zap.NewNop()}
		more, err := k.rebuild(context.Background(), "acme", new(size), map[string]bool{})
		if err != nil {
			t.Fatal(err)
		}
		return more
	}
	w.moveClock(30 * time.Hour)
	piece(300)
	if n := len(w.members("lately")); n != 600 {
		t.Errorf("after the first piece %d are left", n)
	}
	now := pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")
	w.update([]int64{all[0], all[899]}, contact.Change{Fields: map[string]any{"seen": now.UTC().Format(time.RFC3339)}}) // behind the mark and before it
	w.moveClock(time.Hour)                                                                                              // goes on to where the first was to go
	for piece(300) {
	}
	w.work()
	w.want("lately", all[0], all[899])
	if !w.rebuilt("lately").Equal(first) {
		t.Error("it was computed in full")
	}
	more(sweepMost + 1)
	if err := w.request("lately"); err != nil {
		t.Fatal(err)
	}
	w.work()
	first = w.rebuilt("lately")
	w.moveClock(60 * time.Hour)
	piece(chunkMost)
	w.work()
	w.want("lately")
	if w.rebuilt("lately").Equal(first) {
		t.Error("most of all contacts were swept")
	}
	w.told("lately")
}
