package delivery

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestFateOfATwin(t *testing.T) {
	t.Parallel()
	merged := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	before, after := merged.Add(-time.Hour), merged.Add(time.Hour)
	a, b := "order-1", "order-2"
	expires := after.Add(Life)
	own := twin{Person: 1, Planned: 1, Delivery: 10, Stands: twinWaits, PlannedAt: before, Expires: expires}
	lost := twin{Person: 1, Planned: 2, Delivery: 5, Stands: twinWaits, PlannedAt: before, MergedAt: &merged, Expires: expires}
	third := twin{Person: 1, Planned: 3, Delivery: 7, Stands: twinWaits, PlannedAt: before, MergedAt: &merged, Expires: expires}
	due := func(in time.Duration) func(*twin) {
		return func(t *twin) { at := after.Add(in); t.Begun, t.Due = true, &at }
	}
	with := func(t twin, change func(*twin)) twin { change(&t); return t }
	had, away, begun := func(t *twin) { t.Stands = twinHad }, func(t *twin) { t.Stands = twinAway }, func(t *twin) { t.Begun = true }
	keyed := func(key *string, at time.Time) func(*twin) { return func(t *twin) { t.Key, t.PlannedAt = key, at } }
	for name, test := range map[string]struct {
		of     twin
		others []twin
		want   Fate
	}{
		"the other is tried again before it expires":   {own, []twin{with(lost, due(time.Hour))}, Hangs},
		"the other is tried again when it is too late": {own, []twin{with(lost, due(Life))}, Goes},
		"the other is due, and it expires":             {with(own, func(t *twin) { t.Expires = after }), []twin{with(lost, due(0))}, Hangs},
		"it waited for the other, and is older":        {with(lost, due(time.Hour)), []twin{with(own, due(time.Minute))}, Goes},
		"alone":                                        {lost, nil, Goes},
		"the person's own waits":                       {lost, []twin{own}, Hangs},
		"it is the person's own":                       {own, []twin{lost, third}, Goes},
		"of two merged the first":                      {lost, []twin{third}, Goes},
		"of two merged the second":                     {third, []twin{lost}, Hangs},
		"the other was sent":                           {own, []twin{with(lost, had)}, Repeats},
		"the other is on its way":                      {own, []twin{with(lost, away)}, Hangs},
		"one was sent, another is on its way":          {own, []twin{with(lost, away), with(third, had)}, Repeats},
		"the other has taken what it may":              {own, []twin{with(lost, begun)}, Hangs},
		"it has taken what it may":                     {with(lost, begun), []twin{own}, Goes},
		"an earlier one of the same contact":           {own, []twin{with(own, func(t *twin) { t.Delivery, t.Stands = 3, twinHad })}, Goes},
		"another person's":                             {own, []twin{with(lost, func(t *twin) { t.Person, t.Stands = 9, twinHad })}, Goes},
		"journeys of one key":                          {with(lost, keyed(&a, before)), []twin{with(own, keyed(&a, before))}, Hangs},
		"journeys of two keys":                         {with(lost, keyed(&a, before)), []twin{with(own, keyed(&b, before))}, Goes},
		"a journey and none":                           {with(lost, keyed(&a, before)), []twin{own}, Goes},
		"the person goes through it again":             {with(own, keyed(&a, after)), []twin{with(with(lost, keyed(&a, before)), had)}, Goes},
		"planned while the merge was not over":         {with(own, keyed(&a, merged.Add(time.Second))), []twin{with(with(lost, keyed(&a, before)), had)}, Repeats},
		"its journey ended by the merge":               {with(lost, func(t *twin) { t.Ended = true }), nil, Repeats},
		"the other's journey ended by the merge":       {own, []twin{with(with(lost, begun), func(t *twin) { t.Ended = true })}, Goes},
	} {
		got, until := test.of.fate(append(test.others, test.of), after)
		if got != test.want {
			t.Errorf("%s: fate %d, want %d", name, got, test.want)
		}
		if got == Hangs && (!until.After(after) || len(test.others) == 1 && test.others[0].Due != nil && !until.After(*test.others[0].Due)) {
			t.Errorf("%s: it hangs until %v", name, until)
		}
	}
}

// Of a mail of a journey that a merge ended the person gets the one of its own journey, whenever that comes to it; others wait for who asks for the same person.
func TestTwinsAreReadOfJourneys(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	pgtest.Exec(t, f.db, f.tenant, `INSERT INTO contact (id, email) OVERRIDING SYSTEM VALUE VALUES (1, 'a@x.example'), (2, 'b@x.example'), (3, 'c@x.example')`)
	b := f.plan(3)[0]
	pgtest.Exec(t, f.db, f.tenant, "UPDATE contact SET merged_into = 1 WHERE id IN (2, 3)")
	pgtest.Exec(t, f.db, f.tenant, `WITH j AS (INSERT INTO journey (run, contact, document, state, outcome, step, key) SELECT $1, 1, $2, CASE c WHEN 2 THEN 'left' ELSE 'active' END, CASE c WHEN 2 THEN 'merged' ELSE '' END, 's',
			'k' || c / 3 FROM generate_series(1, 3) c RETURNING id, key, state)
		INSERT INTO step (journey, visit, step, delivery) SELECT id, 1, 'send', $3::bigint << 9 | CASE WHEN key = 'k1' THEN 3 WHEN state = 'left' THEN 2 ELSE 1 END FROM j`, f.run, f.email, b.ID)
	l := f.take(false)
	fates := func(ctx context.Context, tx *postgres.Tx) ([]Outcome, error) {
		open, ok, err := l.Advance(ctx, tx, 3)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		for i := range open {
			open[i].Contact = 1
		}
		return l.Fates(ctx, tx, 0, open)
	}
	f.in(func(ctx context.Context, tx *postgres.Tx) error {
		got, err := fates(ctx, tx)
		if diff := cmp.Diff([]Outcome{{Delivery: ID(b.ID, 2), Contact: 1, Attempt: 1, State: Suppressed, Reason: Duplicate}}, got); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
		waits := f.db.InTenant(ctx, f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '50ms'"); err != nil {
				return err
			}
			_, err := l.Fates(ctx, tx, 0, []Recipient{{Contact: 1}})
			return err
		})
		if waits == nil {
			t.Error("two at once asked for the mails of one person")
		}
		return err
	})
}
