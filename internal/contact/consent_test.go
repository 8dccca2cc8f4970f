package contact_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func day(n int) time.Time { return time.Date(2026, 11, n, 12, 0, 0, 0, time.UTC) }

// person makes a contact.
func person(tb testing.TB, db *postgres.DB, tenant, email string) (id int64) {
	tb.Helper()
	pgtest.In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		id, _, err = contact.Ensure(ctx, tx, email)
		return err
	})
	return id
}

func record(tb testing.TB, db *postgres.DB, tenant string, entries ...contact.Consent) (out []contact.Recorded) {
	tb.Helper()
	pgtest.In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		out, err = contact.Record(ctx, tx, "track", entries...)
		return err
	})
	return out
}

func suppress(tb testing.TB, db *postgres.DB, tenant string, list ...contact.Suppression) (n int) {
	tb.Helper()
	pgtest.In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		n, err = contact.Suppress(ctx, tx, "campaign", list...)
		return err
	})
	return n
}

func TestRecord(t *testing.T) {
	t.Parallel()
	type entry struct {
		state contact.State
		basis string
		day   int
		proof string
	}
	type want struct {
		state   contact.State
		ledger  int
		refused string
	}
	for name, c := range map[string]struct {
		entries []entry
		want    want
	}{
		"granted":                                {[]entry{{"granted", "form", 1, ""}}, want{"granted", 1, ""}},
		"repeated":                               {[]entry{{"granted", "form", 1, ""}, {"granted", "form", 1, ""}}, want{"granted", 1, ""}},
		"repeated without a time":                {[]entry{{"withdrawn", "unsubscribe", 0, ""}, {"withdrawn", "unsubscribe", 0, ""}}, want{"withdrawn", 1, ""}},
		"new proof":                              {[]entry{{"granted", "form", 1, "a"}, {"granted", "form", 2, "b"}}, want{"granted", 2, ""}},
		"double opt-in":                          {[]entry{{"pending", "form", 1, ""}, {"granted", "form", 2, ""}}, want{"granted", 2, ""}},
		"a request does not take away":           {[]entry{{"granted", "form", 1, ""}, {"pending", "form", 2, ""}}, want{"granted", 2, ""}},
		"asked again":                            {[]entry{{"granted", "form", 1, ""}, {"withdrawn", "unsubscribe", 2, ""}, {"pending", "form", 3, ""}}, want{"pending", 3, ""}},
		"late withdrawal":                        {[]entry{{"granted", "form", 3, ""}, {"withdrawn", "unsubscribe", 2, ""}}, want{"granted", 2, ""}},
		"import":                                 {[]entry{{"granted", "import", 0, "a"}, {"granted", "import", 0, "a"}}, want{"granted", 1, ""}},
		"import over withdrawal":                 {[]entry{{"withdrawn", "unsubscribe", 1, ""}, {"granted", "import", 3, ""}}, want{"withdrawn", 1, "withdrawn"}},
		"import over request":                    {[]entry{{"pending", "form", 1, ""}, {"granted", "import", 3, ""}}, want{"granted", 2, ""}},
		"withdrawn before the import was told":   {[]entry{{"granted", "import", 3, ""}, {"withdrawn", "unsubscribe", 1, ""}}, want{"withdrawn", 2, ""}},
		"import of a withdrawal":                 {[]entry{{"withdrawn", "import", 0, ""}, {"withdrawn", "import", 0, ""}}, want{"withdrawn", 1, ""}},
		"of a withdrawal over a grant":           {[]entry{{"granted", "form", 1, ""}, {"withdrawn", "import", 0, ""}}, want{"granted", 1, "newer"}},
		"of a withdrawal over a request":         {[]entry{{"pending", "form", 1, ""}, {"withdrawn", "import", 0, ""}}, want{"pending", 2, "newer"}},
		"of a withdrawal over a withdrawal":      {[]entry{{"withdrawn", "unsubscribe", 1, ""}, {"withdrawn", "import", 0, ""}}, want{"withdrawn", 1, ""}},
		"of a withdrawal over an import":         {[]entry{{"granted", "import", 0, "a"}, {"withdrawn", "import", 0, ""}}, want{"withdrawn", 2, ""}},
		"import over that of a withdrawal":       {[]entry{{"withdrawn", "import", 0, ""}, {"granted", "import", 0, "a"}}, want{"withdrawn", 1, "withdrawn"}},
		"a grant told late, behind that":         {[]entry{{"withdrawn", "import", 0, ""}, {"granted", "form", 1, ""}}, want{"granted", 2, ""}},
		"both at one time: the withdrawal holds": {[]entry{{"withdrawn", "unsubscribe", 1, ""}, {"granted", "form", 1, ""}}, want{"withdrawn", 2, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t).DB(t)
			who := person(t, db, "acme", "ada@example.com")
			var last contact.Recorded
			for _, e := range c.entries {
				entry := contact.Consent{Contact: who, Purpose: "news", State: e.state, Basis: e.basis}
				if e.day > 0 {
					entry.At = day(e.day)
				}
				if e.proof != "" {
					entry.Proof = map[string]any{"text": e.proof}
				}
				last = record(t, db, "acme", entry)[0]
			}
			got := want{last.State, pgtest.One[int](t, db, "acme", "SELECT count(*) FROM consent"), last.Refused}
			if got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
			if state := pgtest.One[string](t, db, "acme", "SELECT state FROM subscription WHERE contact = $1", who); state != string(c.want.state) {
				t.Errorf("the projection says %s", state)
			}
			if n := pgtest.One[int](t, db, "brava", "SELECT (SELECT count(*) FROM consent) + (SELECT count(*) FROM subscription)"); n != 0 {
				t.Errorf("brava has %d rows of it", n)
			}
		})
	}
}

func TestRecordWritesFactsOfChangesOnly(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	a, b := person(t, db, "acme", "a@example.com"), person(t, db, "acme", "b@example.com")
	grant := func(c int64) contact.Consent {
		return contact.Consent{Contact: c, Purpose: "news", State: contact.Granted, Basis: "form"}
	}
	record(t, db, "acme", grant(a), grant(b), grant(a))
	record(t, db, "acme", grant(b))
	record(t, db, "acme", contact.Consent{Contact: a, Purpose: "news", State: contact.Withdrawn, Basis: "unsubscribe"})
	want := map[string]int{"contact.changed ": 2, "consent.granted news": 2, "consent.withdrawn news": 1}
	if d := cmp.Diff(want, facts(t, db, "acme")); d != "" {
		t.Error(d)
	}
	if n := pgtest.One[int](t, db, "acme", `SELECT count(*) FROM fact f JOIN consent c ON c.id = (f.data->>'consent')::bigint AND c.contact = f.contact AND f.kind = 'consent.' || c.state`); n != 3 {
		t.Errorf("%d of 3 facts name their entry", n)
	}
}

func TestComplaintEndsAllMarketing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	who := person(t, db, "acme", "ada@example.com")
	record(t, db, "acme",
		contact.Consent{Contact: who, Purpose: "news", State: contact.Granted, Basis: "form"},
		contact.Consent{Contact: who, Purpose: "offers", State: contact.Pending, Basis: "form"},
		contact.Consent{Contact: who, Purpose: contact.TrackingEmail, State: contact.Granted, Basis: "form"})
	if n := suppress(t, db, "acme", contact.Suppression{Contact: who, Reason: contact.Complaint, Delivery: 513}, contact.Suppression{Address: "Ada@example.com", Reason: contact.Complaint}); n != 1 {
		t.Errorf("%d added, want 1", n)
	}
	if n := suppress(t, db, "acme", contact.Suppression{Contact: who, Reason: contact.Complaint}); n != 0 {
		t.Errorf("%d added again", n)
	}
	states := func() []string {
		return pgtest.All[string](t, db, "acme", "SELECT purpose || ' ' || state FROM subscription ORDER BY 1")
	}
	if got := states(); !cmp.Equal(got, []string{"news withdrawn", "offers withdrawn", "tracking.email granted"}) {
		t.Errorf("%q", got)
	}
	for _, basis := range []string{"form", "import"} {
		got := record(t, db, "acme", contact.Consent{Contact: who, Purpose: "news", State: contact.Granted, Basis: basis})[0]
		if got.Refused != "complaint" || got.State != contact.Withdrawn || got.Changed {
			t.Errorf("%s: %+v", basis, got)
		}
	}
	var n int
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) (err error) {
		n, err = contact.Unsuppress(ctx, tx, "campaign", contact.Suppression{Address: "ada@example.com", Reason: contact.Complaint})
		return err
	})
	if got := states(); n != 1 || got[0] != "news withdrawn" {
		t.Errorf("%d removed, %q: what was withdrawn came back by itself", n, got)
	}
	if got := record(t, db, "acme", contact.Consent{Contact: who, Purpose: "news", State: contact.Granted, Basis: "form"})[0]; got.State != contact.Granted {
		t.Errorf("after it was lifted: %+v", got)
	}
}

func TestSuppressionOutlivesItsContact(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	suppress(t, db, "acme", contact.Suppression{Address: "ada@example.com", Reason: contact.Manual})
	who := person(t, db, "acme", "Ada@example.com")
	if got := gate(t, db, "acme", who, ""); got != "suppressed" {
		t.Errorf("made anew: %q", got)
	}
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Upsert(ctx, tx, "campaign", []contact.Row{{Email: "ada@example.com", ExternalID: "7"}}, "test")
		return err
	})
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Upsert(ctx, tx, "campaign", []contact.Row{{Email: "new@example.com", ExternalID: "7"}}, "test")
		return err
	})
	if got := gate(t, db, "acme", who, ""); got != "" {
		t.Errorf("with another address: %q", got)
	}
	if got := gate(t, db, "acme", person(t, db, "acme", "ada@example.com"), ""); got != "suppressed" {
		t.Errorf("the next who has the old address: %q", got)
	}
}

func gate(tb testing.TB, db *postgres.DB, tenant string, who int64, topic string) (reason string) {
	tb.Helper()
	pgtest.In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		args, param := []any{who}, ""
		if topic != "" {
			args, param = append(args, topic), "$2"
		}
		return tx.QueryRow(ctx, "SELECT coalesce("+contact.GateSQL("c", param)+", '') FROM contact c WHERE id = $1", args...).Scan(&reason)
	})
	return reason
}

func TestGate(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	ids := map[string]int64{}
	for _, name := range []string{"granted", "pending", "withdrawn", "never", "bounced", "complained", "manual", "erased", "merged", "soft"} {
		ids[name] = person(t, db, "acme", name+"@example.com")
		person(t, db, "brava", name+"@example.com") // has the same ids there, and none of this
		if state := contact.State(name); state == contact.Granted || state == contact.Pending || state == contact.Withdrawn {
			record(t, db, "acme", contact.Consent{Contact: ids[name], Purpose: "news", State: state, Basis: "form"})
		} else if name != "never" {
			record(t, db, "acme", contact.Consent{Contact: ids[name], Purpose: "news", State: contact.Granted, Basis: "form"})
		}
	}
	suppress(t, db, "acme", contact.Suppression{Contact: ids["bounced"], Reason: contact.Bounce}, contact.Suppression{Contact: ids["complained"], Reason: contact.Complaint},
		contact.Suppression{Address: "manual@example.com", Reason: contact.Manual},
		contact.Suppression{Contact: ids["soft"], Reason: contact.Bounce, Until: time.Now().Add(time.Hour)})
	pgtest.Exec(t, db, "acme", "UPDATE contact SET email = NULL, erased_at = now() WHERE id = $1", ids["erased"])
	pgtest.Exec(t, db, "acme", "UPDATE contact SET merged_into = $1 WHERE id = $2", ids["granted"], ids["merged"])
	ids["noaddress"] = pgtest.One[int64](t, db, "acme", "INSERT INTO contact (external_id) VALUES ('x') RETURNING id")
	check := func(tenant, topic string, want map[string]string) {
		t.Helper()
		got := map[string]string{}
		for name, id := range ids {
			got[name] = gate(t, db, tenant, id, topic)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s %q: %s", tenant, topic, d)
		}
	}
	news := map[string]string{
		"granted": "", "pending": "pending", "withdrawn": "no_consent", "never": "no_consent", "bounced": "suppressed", "complained": "suppressed", "manual": "suppressed",
		"erased": "erased", "merged": "duplicate", "soft": "suppressed", "noaddress": "bad_address",
	}
	check("acme", "news", news)
	check("acme", "", map[string]string{
		"granted": "", "pending": "", "withdrawn": "", "never": "", "bounced": "suppressed", "complained": "", "manual": "suppressed",
		"erased": "erased", "merged": "duplicate", "soft": "suppressed", "noaddress": "bad_address",
	})
	if got := gate(t, db, "brava", ids["bounced"], ""); got != "" {
		t.Errorf("a suppression of acme's holds in brava: %q", got)
	}
	if _, err := d.Admin(t).MoveClock(context.Background(), "acme", 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	news["soft"] = ""
	check("acme", "news", news)
}

func TestTracking(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	a, b, c := person(t, db, "acme", "a@example.com"), person(t, db, "acme", "b@example.com"), person(t, db, "acme", "c@example.com")
	record(t, db, "acme", contact.Consent{Contact: a, Purpose: contact.TrackingEmail, State: contact.Granted, Basis: "form"},
		contact.Consent{Contact: b, Purpose: contact.TrackingEmail, State: contact.Withdrawn, Basis: "form"})
	// Somebody sent in a form with b's address, which nobody has confirmed.
	if r := record(t, db, "acme", contact.Consent{Contact: b, Purpose: contact.TrackingEmail, State: contact.Pending, Basis: "form"}); r[0].State != contact.Withdrawn {
		t.Errorf("a request for tracking made a withdrawal %s", r[0].State)
	}
	check := func(want map[int64]contact.TrackingMode) {
		t.Helper()
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			got, err := contact.Tracking(ctx, tx, []int64{a, b, c})
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			return err
		})
	}
	check(map[int64]contact.TrackingMode{a: contact.Full, b: contact.Aggregate, c: contact.Aggregate})
	for byDefault, want := range map[string]map[int64]contact.TrackingMode{
		"full": {a: contact.Full, b: contact.Aggregate, c: contact.Full},
		"none": {a: contact.Full, b: contact.None, c: contact.None},
	} {
		pgtest.Exec(t, db, "acme", "INSERT INTO entity (kind, name) VALUES ('Settings', 'settings') ON CONFLICT DO NOTHING")
		pgtest.Exec(t, db, "acme", `WITH d AS (INSERT INTO document (entity, version, spec, hash) SELECT e.id, (SELECT count(*) + 1 FROM document),
			jsonb_build_object('apiVersion', 'onda/v1', 'kind', 'Settings', 'metadata', '{"name": "settings"}'::jsonb, 'spec', jsonb_build_object('tracking', $1::text)), ''
			FROM entity e RETURNING id) UPDATE entity SET current = d.id FROM d`, byDefault)
		check(want)
	}
}

// Any order and any repetition of the same calls ends in the same projection.
func TestProjectionDoesNotDependOnOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		type call struct {
			topic    string
			state    contact.State
			basis    string
			day      int
			complain bool
		}
		one := rapid.Custom(func(t *rapid.T) call {
			c := call{
				topic: rapid.SampledFrom([]string{"news", "offers", contact.TrackingEmail}).Draw(t, "topic"),
				state: rapid.SampledFrom([]contact.State{contact.Pending, contact.Granted, contact.Withdrawn}).Draw(t, "state"),
				basis: rapid.SampledFrom([]string{"form", "unsubscribe", contact.BasisImport}).Draw(t, "basis"),
				day:   rapid.IntRange(1, 5).Draw(t, "day"),
			}
			c.complain = rapid.IntRange(0, 9).Draw(t, "complain") == 0
			return c
		})
		calls := rapid.SliceOfN(one, 1, 7).Draw(t, "calls")
		repeated := append(append([]call{}, calls...), rapid.SliceOfN(rapid.SampledFrom(calls), 0, 4).Draw(t, "repeated")...)
		shuffled := rapid.Permutation(repeated).Draw(t, "shuffled")
		together := rapid.Bool().Draw(t, "together")
		end := func(tenant string, calls []call, together bool) string {
			n++
			var out []string
			var entries []contact.Consent
			err := db.InTenant(context.Background(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
				who, _, err := contact.Ensure(ctx, tx, fmt.Sprintf("p%d@example.com", n))
				if err != nil {
					return err
				}
				flush := func() error {
					_, err := contact.Record(ctx, tx, "track", entries...)
					entries = nil
					return err
				}
				for _, c := range calls {
					if c.complain {
						if err := flush(); err != nil {
							return err
						}
						if _, err := contact.Suppress(ctx, tx, "campaign", contact.Suppression{Contact: who, Reason: contact.Complaint, At: day(c.day)}); err != nil {
							return err
						}
						continue
					}
					entries = append(entries, contact.Consent{Contact: who, Purpose: c.topic, State: c.state, Basis: c.basis, At: day(c.day)})
					if !together {
						if err := flush(); err != nil {
							return err
						}
					}
				}
				if err := flush(); err != nil {
					return err
				}
				rows, err := tx.Query(ctx, "SELECT purpose || ' ' || state FROM subscription WHERE contact = $1 ORDER BY 1", who)
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var s string
					if err := rows.Scan(&s); err != nil {
						return err
					}
					out = append(out, s)
				}
				return rows.Err()
			})
			if err != nil {
				t.Fatal(err)
			}
			return strings.Join(out, ", ")
		}
		if a, b := end("acme", calls, false), end("brava", shuffled, together); a != b {
			t.Fatalf("in order: %s; shuffled and repeated: %s", a, b)
		}
	})
}
