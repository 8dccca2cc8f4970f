package contact_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestNormalise(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"ada@example.com":                  "ada@example.com",
		"  Ada.Lovelace@Example.COM\t":     "ada.lovelace@example.com",
		"zoë@bücher.example":               "zoë@xn--bcher-kva.example",
		"zoe\u0308@bu\u0308cher.example":   "zoë@xn--bcher-kva.example",
		"ZOE\u0308@BÜCHER.example":         "zoë@xn--bcher-kva.example",
		"\u212be@example.com":              "åe@example.com",
		"a+b_c'd=e@sub-domain.example.org": "a+b_c'd=e@sub-domain.example.org",
		"":                                 "",
		"ada":                              "",
		"ada@":                             "",
		"@example.com":                     "",
		"ada@localhost":                    "",
		"ada@example.com.":                 "",
		"ada@-example.com":                 "",
		"ada@[127.0.0.1]":                  "",
		"ada@exa mple.com":                 "",
		"a da@example.com":                 "",
		"ada@b@example.com":                "",
		".ada@example.com":                 "",
		"a..da@example.com":                "",
		`"ada"@example.com`:                "",
		"Ada <ada@example.com>":            "",
		"ada@example.com\r\nBcc: x@y.zz":   "",
		"ada\x00@example.com":              "",
		"ad\u200ba@example.com":            "",
		"ad\xe9@example.com":               "",
		"ada@example_.com":                 "",
		"a123456789a123456789a123456789a123456789a123456789a123456789a1234@example.com": "",
	} {
		got, err := contact.Normalise(in)
		if got != want || (want == "") != errors.Is(err, contact.ErrAddress) {
			t.Errorf("Normalise(%q) = %q, %v, want %q", in, got, err, want)
		}
		if err == nil {
			if again, err := contact.Normalise(got); again != got || err != nil {
				t.Errorf("Normalise(%q) = %q, %v: not the one form", got, again, err)
			}
			if err := mail.CheckAddress(got); err != nil {
				t.Errorf("%q is let in and cannot be mailed: %v", got, err)
			}
		}
	}
}

func TestEnsureFindsOrMakes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ensure := func(tenant, address string) (id int64, made bool) {
		pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			id, made, err = contact.Ensure(ctx, tx, address)
			return err
		})
		return id, made
	}
	a, made := ensure("acme", "Ada@Example.com")
	if !made || a == 0 {
		t.Fatalf("made %v %d", made, a)
	}
	if again, made := ensure("acme", "ada@example.com "); again != a || made {
		t.Errorf("again: %d made %v, want %d", again, made, a)
	}
	if n := pgtest.One[int](t, db, "brava", "SELECT count(*) FROM contact"); n != 0 {
		t.Errorf("brava has %d contacts of acme", n)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM fact WHERE kind = 'contact.changed'"); n != 1 {
		t.Errorf("%d facts, want 1", n)
	}
	b, _ := ensure("acme", "countess@example.com")
	pgtest.Exec(t, db, "acme", "UPDATE contact SET merged_into = $1 WHERE id = $2", b, a)
	if got, made := ensure("acme", "ada@example.com"); got != b || made {
		t.Errorf("after the merge: %d made %v, want %d", got, made, b)
	}
	err := db.InTenant(context.Background(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, _, err := contact.Ensure(ctx, tx, "nonsense")
		return err
	})
	if !errors.Is(err, contact.ErrAddress) {
		t.Errorf("nonsense: %v", err)
	}
}

// facts counts facts by kind and name.
func facts(t *testing.T, db *postgres.DB, tenant string) map[string]int {
	t.Helper()
	out := map[string]int{}
	for _, s := range pgtest.All[string](t, db, tenant, "SELECT kind || ' ' || name FROM fact ORDER BY id") {
		out[s]++
	}
	return out
}

func TestUpdateTellsWhatReallyChanged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ids := pgtest.All[int64](t, db, "acme", `INSERT INTO contact (email, fields, tags)
		SELECT 'c' || n || '@example.com', jsonb_build_object('plan', CASE WHEN n % 2 = 0 THEN 'paid' ELSE 'free' END, 'n', n), '{old}' FROM generate_series(1, 1200) n RETURNING id`)
	update := func(c contact.Change) {
		t.Helper()
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			return contact.Update(ctx, tx, "campaign", append(ids, ids...), c, "test")
		})
	}
	update(contact.Change{Fields: map[string]any{"plan": "paid", "n": nil}, AddTags: []string{"vip", "old"}, RemoveTags: []string{"never"}})
	if n := pgtest.One[int](t, db, "acme", `SELECT count(*) FROM contact WHERE fields = '{"plan": "paid"}' AND tags = '{old,vip}'`); n != 1200 {
		t.Errorf("%d of 1200 are as told", n)
	}
	if n := pgtest.One[int](t, db, "acme", `SELECT sum(cardinality(contacts)) FROM fact WHERE kind = 'contact.changed' AND data->'fields' @> '["n", "plan"]'`); n != 1200 {
		t.Errorf("contact.changed tells of %d", n)
	}
	want := map[string]int{"contact.changed ": 3, "tag.changed vip": 3}
	if d := cmp.Diff(want, facts(t, db, "acme")); d != "" {
		t.Error(d)
	}
	events := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox")
	update(contact.Change{Fields: map[string]any{"plan": "paid", "n": nil}, AddTags: []string{"vip"}})
	if d := cmp.Diff(want, facts(t, db, "acme")); d != "" {
		t.Errorf("nothing changed, yet: %s", d)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox"); n != events || events == 0 {
		t.Errorf("%d events, then %d", events, n)
	}
	pgtest.Exec(t, db, "acme", "UPDATE contact SET merged_into = $1 WHERE id = $2", ids[0], ids[1])
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		return contact.Update(ctx, tx, "campaign", ids[1:2], contact.Change{RemoveTags: []string{"vip"}}, "test")
	})
	if got := pgtest.All[int64](t, db, "acme", "SELECT id FROM contact WHERE NOT tags @> '{vip}'"); !cmp.Equal(got, ids[:1]) {
		t.Errorf("a change to a merged contact went to %v, want %v", got, ids[:1])
	}
}

func TestUpsert(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	upsert := func(rows ...contact.Row) (out []contact.RowResult) {
		t.Helper()
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) (err error) {
			out, err = contact.Upsert(ctx, tx, "campaign", rows, "test")
			return err
		})
		return out
	}
	out := upsert(
		contact.Row{Email: "A@example.com", ExternalID: "1", Fields: map[string]any{"x": 1}, AddTags: []string{"b", "a", "b"}},
		contact.Row{ExternalID: "2"},
		contact.Row{Email: "a@example.com", Fields: map[string]any{"x": 2}},
		contact.Row{Email: "b@example.com", ExternalID: "2"},
		contact.Row{},
		contact.Row{Email: "bad"},
	)
	if !out[0].Made || !out[1].Made || out[2].Made || !out[2].Changed || out[2].Contact != out[0].Contact || out[3].Contact != out[1].Contact || !out[3].Changed ||
		!errors.Is(out[4].Err, contact.ErrNobody) || !errors.Is(out[5].Err, contact.ErrAddress) {
		t.Errorf("%+v", out)
	}
	if got := pgtest.All[string](t, db, "acme", "SELECT concat_ws(' ', email, external_id, fields, tags) FROM contact ORDER BY id"); !cmp.Equal(got,
		[]string{`a@example.com 1 {"x": 2} {a,b}`, `b@example.com 2 {} {}`}) {
		t.Errorf("%q", got)
	}
	// Both are there, and are not one.
	out = upsert(contact.Row{Email: "a@example.com", ExternalID: "2"})
	out = append(out, upsert(contact.Row{Email: "a@example.com", ExternalID: "3"})...)
	out = append(out, upsert(contact.Row{Email: "d@example.com", ExternalID: "1"})...)
	if !errors.Is(out[0].Err, contact.ErrTwoContacts) || !errors.Is(out[1].Err, contact.ErrTwoContacts) || out[2].Err != nil || !out[2].Changed {
		t.Errorf("%+v", out)
	}
}

func TestExpire(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	made := map[string]int64{}
	for _, tenant := range []string{"acme", "brava"} {
		for _, name := range []string{"silent", "agreed", "early"} {
			if id := person(t, db, tenant, name+"@example.com"); tenant == "acme" {
				made[name] = id
			}
		}
	}
	record(t, db, "acme", contact.Consent{Contact: made["silent"], Purpose: "news", State: contact.Pending, Basis: "form"})
	record(t, db, "acme", contact.Consent{Contact: made["agreed"], Purpose: "news", State: contact.Granted, Basis: "form"})
	pgtest.Exec(t, db, "acme", "UPDATE contact SET expires_at = onda.now() + CASE email WHEN 'early@example.com' THEN interval '1 hour' ELSE '0' END")
	pgtest.Exec(t, db, "acme", "INSERT INTO visitor (key, contact) VALUES ('v', $1)", made["silent"])
	expire := func() (n int) {
		t.Helper()
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) (err error) {
			n, err = contact.Expire(ctx, tx, "campaign", 500)
			return err
		})
		return n
	}
	if n := expire(); n != 2 {
		t.Errorf("it looked at %d contacts, want 2", n)
	}
	if n := expire(); n != 0 {
		t.Errorf("it looked at %d contacts again", n)
	}
	got := pgtest.All[string](t, db, "acme", "SELECT email || ' ' || (expires_at IS NOT NULL) FROM contact ORDER BY id")
	if diff := cmp.Diff([]string{"agreed@example.com false", "early@example.com true"}, got); diff != "" {
		t.Error(diff)
	}
	for what, sql := range map[string]string{
		"consent":      "SELECT count(*) FROM consent WHERE contact = $1",
		"subscription": "SELECT count(*) FROM subscription WHERE contact = $1",
		"visitor":      "SELECT count(*) FROM visitor WHERE contact = $1",
	} {
		if n := pgtest.One[int](t, db, "acme", sql, made["silent"]); n != 0 {
			t.Errorf("%s: %d rows are left", what, n)
		}
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM fact WHERE kind = 'contact.erased' AND contacts = ARRAY[$1::bigint]", made["silent"]); n != 1 {
		t.Errorf("%d facts tell of it", n)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox WHERE type = 'onda.contact.erased.v1'"); n != 1 {
		t.Errorf("%d doorbells are rung", n)
	}
	if n := pgtest.One[int](t, db, "brava", "SELECT count(*) FROM contact"); n != 3 {
		t.Error("another tenant's contacts are gone")
	}
}

func TestUpsertOfOnlyNewContacts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for i, made := range []bool{true, false} {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			out, err := contact.Upsert(ctx, tx, "campaign", []contact.Row{{Email: "a@example.com", Fields: map[string]any{"n": i}, AddTags: []string{fmt.Sprint("t", i)}, OnlyNew: true}}, "test")
			if err == nil && (out[0].Made != made || out[0].Changed || out[0].Contact == 0) {
				t.Errorf("time %d: %+v", i+1, out[0])
			}
			return err
		})
	}
	if got := pgtest.One[string](t, db, "acme", "SELECT fields::text || tags::text FROM contact"); got != `{"n": 0}{t0}` {
		t.Errorf("the contact is %s", got)
	}
}

// Each contact gets fields of its own, and one that is as it was is not told of; one that a form makes is to expire from the start.
// What steps give is stored in the one form of its field, so that predicates read it; what does not fit it any more changes nothing.
func TestAssign(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for name, f := range map[string]string{
		"country": `{"type": "country"}`, "seen": `{"type": "datetime"}`, "likes": `{"type": "multiselect", "options": ["ski", "sail"]}`, "plan": `{"type": "select", "options": ["paid"]}`,
		"phone": `{"type": "phone"}`, "level": `{"type": "number"}`, "old": `{"type": "text"}`,
	} {
		pgtest.Exec(t, db, pgtest.Acme, `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Field', $1) RETURNING id)
			INSERT INTO document (entity, version, spec, hash) SELECT id, 1, jsonb_build_object('apiVersion', 'onda/v1', 'kind', 'Field', 'metadata', jsonb_build_object('name', $1::text), 'spec', $2::jsonb), '' FROM e`, name, f)
	}
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE entity e SET current = d.id FROM document d WHERE d.entity = e.id")
	pgtest.Exec(t, db, pgtest.Acme, `INSERT INTO contact (email, fields) VALUES ('a@example.com', '{"plan": "free", "old": "x"}'), ('b@example.com', '{}')`)
	pgtest.Exec(t, db, pgtest.Brava, `INSERT INTO contact (email) VALUES ('a@example.com')`)
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		return contact.Assign(ctx, tx, "campaign", []int64{1}, []spec.Assignment{
			{Field: "country", Value: "no"},
			{Field: "seen", Value: "2026-11-24T15:04+02:00"},
			{Field: "seen", Value: "2026-11-24"}, {Field: "likes", Value: []string{"ski", "sail"}},
			{Field: "plan", Value: "gone"}, {Field: "phone", Value: "+47 21 00 00 00"}, {Field: "level", Value: 2.0}, {Field: "nowhere", Value: "x"}, {Field: "old", Value: nil},
		}, "")
	})
	want := []string{`{"plan": "free", "seen": "2026-11-24T00:00:00Z", "level": 2, "likes": ["sail", "ski"], "phone": "+4721000000", "country": "NO"}`, `{}`}
	if d := cmp.Diff(want, pgtest.All[string](t, db, pgtest.Acme, "SELECT fields::text FROM contact ORDER BY id")); d != "" {
		t.Error(d)
	}
	if got := pgtest.One[string](t, db, pgtest.Brava, "SELECT fields::text FROM contact"); got != "{}" {
		t.Errorf("brava: %s", got)
	}
}

func TestSetFields(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	in := func(f func(ctx context.Context, tx *postgres.Tx) error) { pgtest.In(t, db, "acme", f) }
	until := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	var made []contact.RowResult
	in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		made, err = contact.Upsert(ctx, tx, "campaign", []contact.Row{
			{Email: "a@example.com", Fields: map[string]any{"n": 1}}, {Email: "b@example.com", OnlyNew: true, Expires: until}, {Email: "c@example.com", Fields: map[string]any{"n": 1, "gone": true}},
		}, "test")
		return err
	})
	in(func(ctx context.Context, tx *postgres.Tx) error {
		return contact.SetFields(ctx, tx, "campaign", map[int64]map[string]any{made[0].Contact: {"n": 1}, made[1].Contact: {"n": 2}, made[2].Contact: {"n": 3, "gone": nil}}, "test")
	})
	got := pgtest.All[string](t, db, "acme", "SELECT concat_ws(' ', email, fields, expires_at AT TIME ZONE 'UTC') FROM contact ORDER BY email")
	if diff := cmp.Diff([]string{`a@example.com {"n": 1}`, `b@example.com {"n": 2} 2040-01-01 00:00:00`, `c@example.com {"n": 3}`}, got); diff != "" {
		t.Error(diff)
	}
	told := pgtest.One[[]int64](t, db, "acme", "SELECT contacts FROM fact WHERE kind = 'contact.changed' ORDER BY id DESC LIMIT 1")
	if diff := cmp.Diff([]int64{made[1].Contact, made[2].Contact}, told); diff != "" {
		t.Error(diff)
	}
}
