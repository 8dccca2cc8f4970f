package contact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Every table that has something of a contact in it is listed, or here with the reason why not; and every listing is erased, or here with the reason.
func TestAllThatIsStoredIsListed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	not := map[string]string{
		"allowance": "it counts mails that are listed, is gone after two months, and is not found by contact",
	}
	stays := map[string]string{
		"merged":   "they are emptied as the contact is",
		"segments": "segment takes it out of them, by the fact",
		"planned":  "numbers alone, and the gate refuses them",
		"feedback": "numbers alone",
		"shared":   "what they say is of others, too, and they name nobody but by number",
	}
	listed := []string{"contact"}
	for _, l := range listings {
		listed = append(listed, l.tables...)
		if (l.erase == "") != (stays[l.name] != "") || (l.erase == "") != (l.found == "") {
			t.Errorf("%s: it is erased by %q, found by %q, and stays for the reason %q", l.name, l.erase, l.found, stays[l.name])
		}
	}
	tables := pgtest.All[string](t, db, pgtest.Acme, `SELECT DISTINCT c.table_name FROM information_schema.columns c JOIN pg_class k ON k.oid = format('%I.%I', c.table_schema, c.table_name)::regclass
		WHERE c.table_schema = current_schema() AND NOT k.relispartition AND (c.column_name IN ('contact', 'contacts', 'delivery', 'deliveries', 'journey', 'submission', 'visitor', 'event') OR c.table_name IN ('contact', 'document'))`)
	if len(tables) < 10 {
		t.Fatalf("only %q have something of a contact", tables)
	}
	for _, name := range tables {
		if !slices.Contains(listed, name) && not[name] == "" {
			t.Errorf("the table %s has something of a contact, and Stored does not list it", name)
		}
	}
	for _, name := range listed {
		if !slices.Contains(tables, name) {
			t.Errorf("Stored lists %s, in which there is nothing of a contact", name)
		}
	}
}

// populate makes a contact with a row in every table, in which mark is what may not be told to others.
func populate(t *testing.T, db *postgres.DB, tenant, mark string) (id int64) {
	t.Helper()
	pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, `WITH
			entities AS (INSERT INTO entity (kind, name) VALUES ('Email', 'news-' || $1), ('Form', 'form-' || $1), ('Campaign', 'campaign-' || $1), ('Segment', 'segment-' || $1) RETURNING id, kind),
			documents AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}', '' FROM entities RETURNING id, entity),
			mail AS (SELECT d.id, d.entity FROM documents d JOIN entities e ON e.id = d.entity WHERE e.kind = 'Email'),
			form AS (SELECT d.id, d.entity FROM documents d JOIN entities e ON e.id = d.entity WHERE e.kind = 'Form'),
			flow AS (SELECT d.id, d.entity FROM documents d JOIN entities e ON e.id = d.entity WHERE e.kind = 'Campaign'),
			who AS (INSERT INTO contact (email, external_id, fields, tags) VALUES ($1 || '@example.com', $1, jsonb_build_object('name', $1::text, 'plan', 'pro'), '{vip}') RETURNING id),
			link AS (INSERT INTO link (document, url) SELECT id, 'https://example.com/' FROM mail RETURNING id),
			run AS (INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM mail RETURNING id),
			sent AS (INSERT INTO batch (run, email, contacts, state) SELECT run.id, mail.id, ARRAY[who.id], 'closed' FROM run, mail, who RETURNING id << 9 | 1 AS delivery),
			ahead AS (INSERT INTO batch (run, email, contacts) SELECT run.id, mail.id, ARRAY[who.id] FROM run, mail, who RETURNING id << 9 | 1 AS delivery),
			delivery AS (INSERT INTO delivery (id, contact, state) SELECT delivery, who.id, 'sent' FROM sent, who),
			request AS (INSERT INTO request (delivery, key, hash, data) SELECT delivery, $1, '', jsonb_build_object('note', $1::text) FROM ahead),
			told AS (INSERT INTO feedback (delivery, kind, at) SELECT delivery, 'delivered', now() FROM sent),
			hit AS (INSERT INTO hit (kind, delivery, contact, link, agent, origin) SELECT 'click', delivery, who.id, link.id, $1, $1::text::bytea FROM sent, who, link),
			journey AS (INSERT INTO journey (run, contact, document, step, key, data) SELECT run.id, who.id, flow.id, 's', $1, jsonb_build_object('note', $1::text) FROM run, who, flow RETURNING id),
			step AS (INSERT INTO step (journey, visit, step) SELECT id, 1, 's' FROM journey),
			submission AS (INSERT INTO submission (form, document, contact, state, data, origin) SELECT entity, form.id, who.id, 'done', jsonb_build_object('note', $1::text), $1::text::bytea FROM form, who),
			visitor AS (INSERT INTO visitor (key, contact) SELECT $1, id FROM who),
			fact AS (INSERT INTO fact (kind, name, contact, data) SELECT 'event.tracked', 'order.placed', id, jsonb_build_object('note', $1::text) FROM who),
			consent AS (INSERT INTO consent (contact, purpose, state, basis, origin) SELECT id, 'news', 'granted', 'form', $1::text::bytea FROM who RETURNING id, contact),
			subscription AS (INSERT INTO subscription (contact, purpose, state, consent, at) SELECT contact, 'news', 'granted', id, now() FROM consent),
			suppression AS (INSERT INTO suppression (hash, reason, contact) SELECT $1::text::bytea, 'bounce', id FROM who),
			member AS (INSERT INTO member (segment, contact) SELECT e.id, who.id FROM entities e, who WHERE e.kind = 'Segment')
			SELECT id FROM who`, mark).Scan(&id)
	})
	return id
}

// stored gives what is told, as text and read.
func stored(t *testing.T, db *postgres.DB, tenant string, id int64, mask *Mask) (string, map[string]json.RawMessage) {
	t.Helper()
	var b bytes.Buffer
	err := db.InTenantSnapshot(t.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) error { return Stored(ctx, tx, id, mask, &b) })
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]json.RawMessage
	if err := json.Unmarshal(b.Bytes(), &out); err != nil {
		t.Fatalf("%v: %s", err, b.String())
	}
	return b.String(), out
}

func TestStored(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ada := populate(t, db, pgtest.Acme, "ada")
	populate(t, db, pgtest.Acme, "bob")
	populate(t, db, pgtest.Brava, "mallory")
	text, all := stored(t, db, pgtest.Acme, ada, nil)
	for _, other := range []string{"bob", fmt.Sprintf("%x", "bob"), "mallory"} {
		if strings.Contains(text, other) {
			t.Errorf("something of another is told: %s in %s", other, text)
		}
	}
	masked, parts := stored(t, db, pgtest.Acme, ada, &Mask{Address: "a…@example.com", Fields: []string{"plan"}})
	names := strings.NewReplacer("news-ada", "", "form-ada", "", "campaign-ada", "", "segment-ada", "") // of documents, which are no secret
	for _, mark := range []string{"ada", fmt.Sprintf("%x", "ada")} {
		if strings.Contains(names.Replace(masked), mark) {
			t.Errorf("%s is told to whoever has the link: %s", mark, masked)
		}
	}
	for _, l := range listings {
		if _, told := all[l.name]; l.searched || l.name == "merged" {
			if told == l.searched {
				t.Errorf("%s is told, or not, to whoever has the link: %v", l.name, told)
			}
			continue
		}
		var rows, without []map[string]any
		if err := json.Unmarshal(all[l.name], &rows); err != nil || len(rows) != 1 {
			t.Errorf("%s: %d rows, want the one of the contact (%v): %s", l.name, len(rows), err, all[l.name])
			continue
		}
		if err := json.Unmarshal(parts[l.name], &without); err != nil || len(without) != 1 {
			t.Errorf("%s, masked: %s", l.name, parts[l.name])
			continue
		}
		for _, name := range l.private {
			if _, told := rows[0][name]; !told {
				t.Errorf("%s.%s is private and not there at all", l.name, name)
			}
			if _, told := without[0][name]; told {
				t.Errorf("%s.%s is told in spite of the mask", l.name, name)
			}
		}
	}
	for _, want := range []string{`"email": "ada@example.com"`, `"name": "ada"`, `"plan": "pro"`, `"url": "https://example.com/"`, `"campaign": "campaign-ada"`, `"steps": [{`, `"vip"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not told", want)
		}
	}
	for _, want := range []string{`"email": "a…@example.com"`, `"name": "…"`, `"plan": "pro"`, `"external_id": "…"`} {
		if !strings.Contains(masked, want) {
			t.Errorf("%s is not told to whoever has the link: %s", want, masked)
		}
	}
	for name, statement := range map[string]string{"erased": "UPDATE contact SET erased_at = now()", "merged": "UPDATE contact SET erased_at = NULL, merged_into = 99"} {
		pgtest.Exec(t, db, pgtest.Acme, statement)
		err := db.InTenantSnapshot(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return Stored(ctx, tx, ada, nil, io.Discard) })
		if !errors.Is(err, ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A snapshot sees one moment, and writes nothing.
func TestStoredIsOfOneMoment(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ada := populate(t, db, pgtest.Acme, "ada")
	err := db.InTenantSnapshot(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		var n int
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM fact").Scan(&n); err != nil {
			return err
		}
		pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contact) VALUES ('event.tracked', 'later', $1)", ada)
		var b bytes.Buffer
		if err := Stored(ctx, tx, ada, nil, &b); err != nil {
			return err
		}
		if strings.Contains(b.String(), "later") {
			t.Error("what came later is told")
		}
		_, err := tx.Exec(ctx, "DELETE FROM fact")
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("it may write: %v", err)
	}
}

// gauge is where a copy goes that is too long to be kept: it looks at what is in memory now and then.
type gauge struct {
	bytes, next int
	most        uint64
}

func (g *gauge) Write(b []byte) (int, error) {
	if g.bytes += len(b); g.bytes >= g.next {
		g.next += 4 << 20
		g.most = max(g.most, live())
	}
	return len(b), nil
}

// live is the memory that is in use.
func live() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A contact with very many facts takes no more memory than one with few.
//
//nolint:paralleltest // it measures memory
func TestStoredTakesBoundedMemory(t *testing.T) {
	db := pgtest.New(t).DB(t)
	ada := populate(t, db, pgtest.Acme, "ada")
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contact, data) SELECT 'event.tracked', 'e', $1, jsonb_build_object('note', repeat('x', 200)) FROM generate_series(1, 100000)", ada)
	before := live()
	var g gauge
	err := db.InTenantSnapshot(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return Stored(ctx, tx, ada, nil, &g) })
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MB were written, at most %d KB more in memory", g.bytes>>20, (max(g.most, before)-before)>>10)
	if g.bytes < 30<<20 || g.most > before+4<<20 {
		t.Errorf("%d bytes were written, and %d KB more were in memory", g.bytes, (g.most-before)>>10)
	}
}
