package contact

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// impersonal are the columns of text, bytes or JSON in which there is nothing of a person, by what is in them.
var impersonal = map[string]string{
	"names and states of ours":                          `allowance.kind consent.basis consent.channel consent.state cursor.name delivery.bounce_class delivery.class delivery.reason delivery.state delivery.tracking entity.kind fact.kind failure.function feedback.class feedback.kind hit.kind hit.method hit.points hit.reason hit.verdict journey.outcome journey.state key.kind member.kept outbox.drainer outbox.type run.kind run.pass run.state stat.kind stat.verdict step.branch submission.reason submission.state subscription.state suppression.channel suppression.reason batch.state`,
	"what authors wrote":                                `attachment.content attachment.sha256 consent.purpose document.compiled document.hash entity.problems hit.step journey.step link.label link.url stat.step step.step subscription.purpose batch.step`,
	"events and commands":                               `journey.cause run.cause batch.cause`,
	"counts of what was erased, and names of documents": `contact.erasure`,
	"counts of an import, and its file's place":         `cursor.data`,
	"hashes of lists, pages and messages":               `cursor.lists message.id submission.once`,
	"an answer's code":                                  `delivery.status`,
	"keys of the tenant's":                              `key.name key.secret`,
	"gone with its row, which has the mark elsewhere":   `request.hash`,
	"errors of a segment, until it is made":             `segment.failed`,
	"receivers":                                         `throttle.domain throttle.provider throttle.why`,
}

// textColumns are every column of a tenant's that holds text, bytes or JSON, by table.
func textColumns(t *testing.T, db *postgres.DB, tenant string) (columns []string) {
	t.Helper()
	return pgtest.All[string](t, db, tenant, `SELECT format('%s.%s', k.relname, a.attname) FROM pg_class k JOIN pg_attribute a ON a.attrelid = k.oid JOIN pg_type y ON y.oid = a.atttypid LEFT JOIN pg_type z ON z.oid = y.typelem
		WHERE k.relnamespace = current_schema()::regnamespace AND k.relkind IN ('r', 'p') AND NOT k.relispartition AND a.attnum > 0 AND NOT a.attisdropped
		AND coalesce(nullif(z.typname, 'char'), y.typname) IN ('text', 'jsonb', 'json', 'bytea', 'uuid', 'varchar', 'name') ORDER BY 1`)
}

// marked are the columns of a tenant's in which a mark is, as text or as bytes.
func marked(t *testing.T, db *postgres.DB, tenant, mark string) (out []string) {
	t.Helper()
	for _, c := range textColumns(t, db, tenant) {
		table, column, _ := strings.Cut(c, ".")
		sql := fmt.Sprintf("SELECT EXISTS (SELECT FROM %s WHERE %[2]s::text ~* $1 OR %[2]s::text ~* $2)", pgx.Identifier{table}.Sanitize(), pgx.Identifier{column}.Sanitize())
		if pgtest.One[bool](t, db, tenant, sql, mark, fmt.Sprintf("%x", mark)) {
			out = append(out, c)
		}
	}
	return out
}

// scatter is populate with the mark in every column in which a person may be, of one who was merged with another.
func scatter(t *testing.T, db *postgres.DB, tenant, mark string) (id int64) {
	t.Helper()
	id = populate(t, db, tenant, mark)
	base := base64.StdEncoding.EncodeToString([]byte("to=" + mark + "@example.com"))
	for _, sql := range []string{
		"UPDATE contact SET tags = tags || $2::text, scores = jsonb_build_object($2::text, 1), frequency = $2, stage = $2, typed = $2 WHERE id = $1",
		"INSERT INTO contact (email, external_id, fields, merged_into, merge) VALUES ('old.' || $2::text || '@example.com', 'old ' || $2::text, jsonb_build_object('name', $2::text), $1, jsonb_build_object('loser', $2::text))",
		"UPDATE consent SET proof = jsonb_build_object('text', $2::text) WHERE contact = $1",
		"UPDATE delivery SET detail = '550 nobody is called ' || $2::text WHERE contact = $1",
		"UPDATE request SET attachments = jsonb_build_array(jsonb_build_object('name', $2::text || '.pdf')) WHERE key = $2 AND $1::bigint > 0",
		"UPDATE submission SET files = ARRAY[$2::text::bytea] WHERE contact = $1",
		"INSERT INTO fact (kind, name, visitor, data) SELECT 'page.viewed', $2::text, id, jsonb_build_object('note', $2::text) FROM visitor WHERE contact = $1",
		"INSERT INTO fact (kind, name, contacts) SELECT 'tag.changed', 'vip', ARRAY[$1::bigint, 0] WHERE $2::text <> ''",
		`INSERT INTO failure (function, event, error) VALUES ('send', jsonb_build_object('type', 'onda.email.requested.v1', 'data', jsonb_build_object('contact', $1::bigint, 'data', jsonb_build_object('note', $2::text))), 'no'),
			('track', jsonb_build_object('data', jsonb_build_object('mail', 'X <' || upper($2::text) || '@Example.com>')), 'no'), ('track', '{}', 'old.' || $2::text || '@example.com is no name'),
			('track', jsonb_build_object('data_base64', '` + base + `'), 'no')`,
		"INSERT INTO outbox (drainer, type, event) VALUES ('send', 'x', jsonb_build_object('data', jsonb_build_object('to', $2::text || '@example.com'), 'n', $1::bigint))",
	} {
		pgtest.Exec(t, db, tenant, sql, id, mark)
	}
	for version := 1; version <= 3; version++ {
		pgtest.Exec(t, db, tenant, `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Segment', 'vips-' || $1::bigint) ON CONFLICT (kind, name) DO UPDATE SET name = excluded.name RETURNING id),
			d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, $3, jsonb_build_object('keep', ARRAY['old.' || $2::text || '@example.com', 'n.' || $2::text || '@example.com', $2::text || '@example.com']), '' FROM e RETURNING id)
			SELECT FROM d`, id, mark, version)
	}
	pgtest.Exec(t, db, tenant, "UPDATE entity e SET current = d.id FROM document d WHERE d.entity = e.id AND d.version = 3 AND e.name = 'vips-' || $1::bigint", id)
	return id
}

// erase erases a contact.
func erase(t *testing.T, db *postgres.DB, tenant string, id int64) Receipt {
	t.Helper()
	r, err := Erase(t.Context(), db, tenant, "campaign", id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func rowsOf(r Receipt) map[string]int64 {
	out := map[string]int64{}
	for _, e := range r.Rows {
		out[e.Name] = e.Rows
	}
	return out
}

// An erased person is nowhere in what is stored, and the receipt says what was. Nothing of others is touched.
func TestErasedIsNowhere(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	const mark = "zq-marked"
	ada := scatter(t, db, pgtest.Acme, mark)
	scatter(t, db, pgtest.Acme, "bob")
	scatter(t, db, pgtest.Brava, mark)
	before := marked(t, db, pgtest.Acme, mark)
	var said []string
	for _, columns := range impersonal {
		said = append(said, strings.Fields(columns)...)
	}
	for _, c := range textColumns(t, db, pgtest.Acme) {
		if slices.Contains(before, c) == slices.Contains(said, c) {
			t.Errorf("%s: the test writes of a person into it (%v), or it is said why nothing of one is in it: either", c, slices.Contains(before, c))
		}
	}
	others := func() []string {
		return append(marked(t, db, pgtest.Acme, "bob"), pgtest.All[string](t, db, pgtest.Brava, "SELECT to_jsonb(c)::text FROM contact c ORDER BY id")...)
	}
	theirs := others()
	var plan Receipt
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		plan, err = ToErase(ctx, tx, ada)
		return err
	})
	r := erase(t, db, pgtest.Acme, ada)
	if diff := cmp.Diff(rowsOf(plan), rowsOf(r)); diff != "" {
		t.Errorf("what it would erase, and what it did: %s", diff)
	}
	if diff := cmp.Diff([]string{fmt.Sprintf("segment vips-%d", ada)}, r.Edit); diff != "" {
		t.Errorf("documents to be edited: %s", diff)
	}
	// Of another address, which ends in this one, and of what only its author can edit.
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE document d SET spec = replace(replace(d.spec::text, 'n.' || $1, ''), CASE WHEN d.version = 3 THEN $1 ELSE '' END, '')::jsonb WHERE d.spec ? 'keep'", mark)
	left := slices.DeleteFunc(marked(t, db, pgtest.Acme, mark), func(c string) bool {
		return c == "entity.name" || c == "suppression.hash" // of the test's own: they are no names of persons, and real hashes
	})
	if len(left) > 0 {
		t.Errorf("it is there still: %q", left)
	}
	if diff := cmp.Diff(theirs, others()); diff != "" {
		t.Errorf("others have changed: %s", diff)
	}
	text, err := json.Marshal(r)
	if err != nil || strings.Contains(string(text), mark) {
		t.Errorf("the receipt names whom it is about: %s (%v)", text, err)
	}
	want := map[string]int64{
		"browsed": 1, "consents": 1, "documents": 2, "facts": 1, "failures": 4, "hits": 1, "journeys": 1, "mails": 1, "outbox": 1, "requests": 1, "submissions": 1,
		"subscriptions": 1, "suppressions": 1, "visitors": 1,
	}
	if diff := cmp.Diff(want, rowsOf(r)); diff != "" || r.Contacts != 2 {
		t.Errorf("%d contacts, %s", r.Contacts, diff)
	}
	// Erasing once more gives the same receipt, by whatever is left to name it by.
	for _, who := range []string{fmt.Sprint(ada), fmt.Sprint(ada + 1), "ZQ-marked@example.com", "old." + mark + "@example.com"} {
		id, err := find(t, db, pgtest.Acme, who)
		if err != nil {
			t.Errorf("%s: %v", who, err)
			continue
		}
		again := erase(t, db, pgtest.Acme, id)
		if !again.Before {
			t.Errorf("%s: it was not erased before", who)
		}
		again.Before = false
		if diff := cmp.Diff(r, again); diff != "" {
			t.Errorf("%s: another receipt: %s", who, diff)
		}
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE kind = 'contact.erased' AND contacts = $1", []int64{ada, ada + 1}); n != 2 {
		t.Errorf("%d facts tell of it, want one at once and one at the end", n)
	}
	if data := pgtest.One[string](t, db, pgtest.Acme, "SELECT (data->'rows' = $1::jsonb)::text FROM fact WHERE kind = 'contact.erased' AND data IS NOT NULL", want); data != "true" {
		t.Errorf("the fact does not count as the receipt does")
	}
	err = db.InTenantSnapshot(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Export(ctx, tx, ada, io.Discard)
		return err
	})
	if !errors.Is(err, ErrGone) {
		t.Errorf("what was erased is exported: %v", err)
	}
}

func find(t *testing.T, db *postgres.DB, tenant, who string) (id int64, err error) {
	t.Helper()
	_ = db.InTenant(t.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if id, err = Find(ctx, tx, who); errors.Is(err, ErrUnknown) {
			id, err = FindErased(ctx, tx, who)
		}
		return err
	})
	return id, err
}

// Who was erased gets no mail, whoever brings the address back; that they agreed and withdrew is still in the ledger, and nothing is added to it.
func TestErasureHolds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var ada, again int64
	upsert := func(tenant string) (id int64) {
		pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			out, err := Upsert(ctx, tx, "campaign", []Row{{Email: "Ada@example.com", ExternalID: "nl-7"}}, "test")
			id = out[0].Contact
			return err
		})
		return id
	}
	agree := func(id int64, purpose string) {
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Record(ctx, tx, "campaign", Consent{Contact: id, Purpose: purpose, State: Granted, Basis: "form", Proof: map[string]any{"text": "yes"}, Origin: []byte("x")})
			return err
		})
	}
	gates := func(tenant string, id int64) string {
		return pgtest.One[string](t, db, tenant, "SELECT coalesce("+GateSQL("c", "'news'")+", '') || ' ' || coalesce("+GateSQL("c", "")+", '') FROM contact c WHERE id = $1", id)
	}
	ada = upsert(pgtest.Acme)
	upsert(pgtest.Brava)
	agree(ada, "news")
	erase(t, db, pgtest.Acme, ada)
	if got := gates(pgtest.Acme, ada); got != "erased erased" {
		t.Errorf("the gate says %q", got)
	}
	agree(ada, "other") // a form that was under way
	got := pgtest.All[string](t, db, pgtest.Acme, "SELECT concat_ws(' ', purpose, state, basis, proof, origin) FROM consent")
	if diff := cmp.Diff([]string{"news granted form {}"}, got); diff != "" {
		t.Errorf("the ledger: %s", diff)
	}
	again = upsert(pgtest.Acme)
	agree(again, "news")
	if got := gates(pgtest.Acme, again); again == ada || got != "suppressed suppressed" {
		t.Errorf("imported again, contact %d after %d: %q", again, ada, got)
	}
	if id, err := find(t, db, pgtest.Acme, "ada@example.com"); id != again || err != nil {
		t.Errorf("the address leads to %d (%v), want the one that has it now", id, err)
	}
	first := pgtest.One[time.Time](t, db, pgtest.Acme, "SELECT at FROM suppression")
	erase(t, db, pgtest.Acme, again)
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM suppression WHERE contact IS NULL AND at > $1", first); n != 1 {
		t.Errorf("erased once more: %d suppressions of now", n)
	}
	if got := gates(pgtest.Brava, 1); got != "no_consent " {
		t.Errorf("at another tenant: %q", got)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO contact (email, external_id, merged_into) VALUES ('ada@example.com', '3', NULL), ('old@example.com', 'nl-2', 1), ('bob@example.com', NULL, NULL)")
	for who, want := range map[string]any{
		"Ada@Example.com": int64(1), "old@example.com": int64(1), "nl-2": int64(1), "2": int64(1), "1": int64(1), "bob@example.com": int64(3),
		"3": ErrAmbiguous, "4": ErrUnknown, "": ErrUnknown, "nobody@example.com": ErrUnknown, "99999999999999999999": ErrUnknown, "x\x00": ErrUnknown,
	} {
		id, err := find(t, db, pgtest.Acme, who)
		if wrong, ok := want.(error); ok && !errors.Is(err, wrong) || !ok && (id != want || err != nil) {
			t.Errorf("%q is %d (%v), want %v", who, id, err, want)
		}
	}
	if _, err := find(t, db, pgtest.Brava, "ada@example.com"); !errors.Is(err, ErrUnknown) {
		t.Errorf("at another tenant: %v", err)
	}
}

// Killed in the middle, and asked for by two at once, an erasure comes to its end, and to the receipt that it would have had.
func TestErasureGoesOn(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	const many = 2*erasedAtOnce + 100
	person := func(mark string) int64 {
		id := scatter(t, db, pgtest.Acme, mark)
		pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contact, data) SELECT 'event.tracked', 'e', $1, '{}' FROM generate_series(1, $2::integer)", id, many)
		return id
	}
	calm := erase(t, db, pgtest.Acme, person("calm"))
	if got := rowsOf(calm)["facts"]; got != many+1 {
		t.Fatalf("%d facts", got)
	}
	for steps := 0; ; steps += 3 {
		id := person(fmt.Sprintf("killed-%d", steps))
		ctx, kill := context.WithCancel(t.Context())
		n := 0
		_, err := Erase(ctx, db, pgtest.Acme, "campaign", id, func(int64) {
			if n++; n > steps {
				kill()
			}
		})
		kill()
		if err == nil {
			if steps < 10 {
				t.Errorf("it was over after %d steps", steps)
			}
			break
		}
		if id, err := find(t, db, pgtest.Acme, fmt.Sprintf("killed-%d@example.com", steps)); err != nil || id == 0 {
			t.Errorf("what is left to be erased is not found: %v", err)
		}
		r := erase(t, db, pgtest.Acme, id)
		if diff := cmp.Diff(rowsOf(calm), rowsOf(r)); diff != "" || r.Before {
			t.Errorf("killed after %d steps: before %v, %s", steps, r.Before, diff)
		}
		if left := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE contact = $1", id); left > 0 {
			t.Errorf("killed after %d steps: %d facts are left", steps, left)
		}
	}
	id := person("twice")
	receipts := make([]Receipt, 2)
	var group sync.WaitGroup
	for i := range receipts {
		group.Go(func() { receipts[i] = erase(t, db, pgtest.Acme, id) })
	}
	group.Wait()
	for i, r := range receipts {
		if diff := cmp.Diff(rowsOf(calm), rowsOf(r)); diff != "" {
			t.Errorf("%d of two at once: %s", i+1, diff)
		}
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE kind = 'contact.erased' AND contacts @> ARRAY[$1::bigint]", id); n != 2 {
		t.Errorf("%d facts tell of it", n)
	}
}

// What was written of somebody while they were erased, or deleted since they never confirmed, is erased by who reads of it; of an erasure under way nothing, which counts.
func TestForget(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	const late = "late-comer"
	under, done, expired, there := populate(t, db, pgtest.Acme, "under"), populate(t, db, pgtest.Acme, "done"), populate(t, db, pgtest.Acme, late), populate(t, db, pgtest.Acme, "there")
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE contact SET expires_at = onda.now() WHERE id = $1", expired)
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM subscription WHERE contact = $1", expired)
	erase(t, db, pgtest.Acme, done)
	pgtest.Exec(t, db, pgtest.Acme, `UPDATE contact SET erased_at = onda.now(), erasure = '{"rows": {}}' WHERE id = $1`, under)
	for _, id := range []int64{under, done} {
		pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contact, data) SELECT 'event.tracked', 'order.placed', $1, '{}'", id)
	}
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := Expire(ctx, tx, "campaign", 10); err != nil {
			return err
		}
		return Forget(ctx, tx, []int64{under, done, expired, there})
	})
	for id, want := range map[int64]int{under: 2, done: 0, expired: 0, there: 1} {
		if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE contact = $1", id); n != want {
			t.Errorf("contact %d: %d facts, want %d", id, n, want)
		}
	}
	left := slices.DeleteFunc(marked(t, db, pgtest.Acme, late), func(c string) bool { return c == "entity.name" || c == "suppression.hash" || c == "visitor.key" })
	if len(left) > 0 {
		t.Errorf("of who never confirmed there is still %q", left)
	}
}

// What browsers did is erased also when a transaction of it gave way to others and is tried again.
func TestBrowsedIsErasedWhenTriedAgain(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	id := people(t, db, pgtest.Acme, "visitor")[0]
	pgtest.Exec(t, db, pgtest.Acme, "WITH v AS (INSERT INTO visitor (key, contact) VALUES ('k', $1) RETURNING id) INSERT INTO fact (kind, name, visitor) SELECT 'event.tracked', 'e', id FROM v, generate_series(1, 3)", id)
	e, gaveWay := &erasure{id: id, contacts: []int64{id}}, errors.New("gave way")
	err := e.browsed(func(do func(ctx context.Context, tx *postgres.Tx) (int64, error)) error {
		for _, end := range []error{gaveWay, nil} {
			err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := do(ctx, tx)
				return errors.Join(err, end)
			})
			if !errors.Is(err, end) {
				return err
			}
		}
		return nil
	})
	if left := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE visitor IS NOT NULL"); left > 0 || err != nil {
		t.Errorf("%d facts are left: %v", left, err)
	}
}

// An event that failed has the address as it was typed, which is not the form in which it is stored.
func TestErasedAsTyped(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var id int64
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		made, err := Upsert(ctx, tx, "campaign", []Row{{Email: "Ada@Bücher.example"}}, "")
		id = made[0].Contact
		return err
	})
	pgtest.Exec(t, db, pgtest.Acme, `INSERT INTO failure (function, event, error) VALUES ('send', '{"data": {"to": "ada@bücher.example"}}', ''), ('send', '{"data": {"to": "ada@bücher.example.org"}}', '')`)
	r := erase(t, db, pgtest.Acme, id)
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM failure"); n != 1 || rowsOf(r)["failures"] != 1 {
		t.Errorf("%d events are left, want the stranger's: %+v", n, r.Rows)
	}
}
