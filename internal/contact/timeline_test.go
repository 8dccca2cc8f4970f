package contact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func timeline(t *testing.T, db *postgres.DB, tenant string, id int64, since time.Time, limit int) (out *Timeline) {
	t.Helper()
	pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		out, err = GetTimeline(ctx, tx, id, since, limit)
		return err
	})
	return out
}

// lines are what happened, without times.
func lines(tl *Timeline) (out []string) {
	for _, h := range tl.Happened {
		line := strings.Join(strings.Fields(h.Kind+" "+h.Name+" "+h.Detail+" "+h.Link), " ")
		if h.Counted != nil {
			line += fmt.Sprintf(" counted=%v", *h.Counted)
		}
		if len(h.Data) > 0 {
			line += " " + string(h.Data)
		}
		out = append(out, line)
	}
	return out
}

// storied is a contact who was made ten days ago and to whom each thing happened that a timeline tells, the second after the first; and one more merged into it, long before.
func storied(t *testing.T, db *postgres.DB, tenant, mark string) (id int64) {
	t.Helper()
	id = populate(t, db, tenant, mark)
	for _, sql := range []string{
		"UPDATE contact SET created_at = onda.now() - interval '10 days' WHERE id = $1 AND $2 <> ''",
		"UPDATE entity e SET current = d.id FROM document d WHERE d.entity = e.id AND e.name = 'segment-' || $2::text AND $1::bigint > 0",
		"UPDATE delivery SET at = onda.now() - interval '5 hours', delivered_at = onda.now() - interval '4 hours', complained_at = onda.now() - interval '1 hour' WHERE contact = $1 AND $2 <> ''",
		"UPDATE hit SET at = onda.now() - interval '3 hours', verdict = 'human' WHERE contact = $1 AND $2 <> ''",
		"INSERT INTO hit (kind, delivery, contact, verdict, reason, at) SELECT 'open', delivery, contact, 'machine', 'scanner', at - interval '30 minutes' FROM hit WHERE contact = $1 AND $2 <> ''",
		"UPDATE consent SET at = onda.now() - interval '9 days', proof = '{\"form\": 1}' WHERE contact = $1 AND $2 <> ''",
		"UPDATE submission SET at = (SELECT at FROM consent WHERE contact = $1), confirmed_at = onda.now() - interval '8 days' WHERE contact = $1 AND $2 <> ''",
		"UPDATE journey SET entered_at = onda.now() - interval '6 hours', ended_at = onda.now() - interval '2 hours', state = 'done', outcome = 'finished' WHERE contact = $1 AND $2 <> ''",
		"UPDATE step SET at = onda.now() - interval '6 hours', branch = 'then' WHERE journey IN (SELECT id FROM journey WHERE contact = $1) AND $2 <> ''",
		"UPDATE fact SET at = onda.now() - interval '20 minutes' WHERE contact = $1 AND $2 <> ''",
		// Those of a hit, a mail and a form that are forgotten are told, and others but once.
		`INSERT INTO fact (kind, name, contact, deliveries, data, at) SELECT kind, name, $1, ARRAY[delivery], data::jsonb, onda.now() - ago FROM (VALUES
			('email.clicked', 'old-' || $2::text, 1, '{"hit": 999999, "link": 999999}', interval '10 minutes'), ('email.opened', 'old-' || $2::text, 1, '{"hit": 999998, "link": 0, "taken": true}', interval '11 minutes'),
			('email.bounced', 'old-' || $2::text, 1, '{"class": "hard"}', interval '12 minutes'), ('form.submitted', 'old-' || $2::text, NULL, '{"submission": 999999}', interval '13 minutes'),
			('suppression.added', 'bounce', NULL, NULL, interval '9 minutes'), ('page.viewed', '/shoes', NULL, '{"q": 1}', interval '8 minutes')) v(kind, name, delivery, data, ago)`,
		"INSERT INTO fact (kind, name, contact, deliveries, data, at) SELECT 'email.clicked', 'x' || $2::text, contact, ARRAY[delivery], jsonb_build_object('hit', id, 'link', link), at FROM hit WHERE contact = $1 AND kind = 'click'",
		"INSERT INTO fact (kind, name, contact, deliveries, at) SELECT 'email.complained', 'x' || $2::text, contact, ARRAY[id], at FROM delivery WHERE contact = $1",
		"INSERT INTO fact (kind, name, contact, data) SELECT 'form.submitted', 'x' || $2::text, contact, jsonb_build_object('submission', id) FROM submission WHERE contact = $1",
		// Of many at once: all at one moment, so that their order is that of how they came.
		`INSERT INTO fact (kind, name, contacts, data, at) SELECT kind, name, ARRAY[0, $1::bigint, 999999], data::jsonb, onda.now() - interval '1 minute' FROM (VALUES ('contact.changed', '', '{"fields": ["country"]}'), ('tag.changed', 'vip-' || $2::text, '{"added": true}'),
			('score.changed', 'fit', NULL), ('stage.changed', 'hot', NULL), ('segment.joined', 'nordic', NULL), ('segment.left', 'others', NULL)) v(kind, name, data)`,
		"INSERT INTO fact (kind, name, contacts) SELECT 'tag.changed', 'nobodys', ARRAY[999999::bigint] WHERE $1::bigint > 0 AND $2::text <> ''",
		"INSERT INTO contact (email, merged_into, created_at) VALUES ('old.' || $2::text || '@example.com', $1, onda.now() - interval '99 days')",
	} {
		pgtest.Exec(t, db, tenant, sql, id, mark)
	}
	return id
}

// All that happened to a contact is told once, newest first, and nothing of others or of another tenant.
func TestTimeline(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	storied(t, db, pgtest.Brava, "mallory")
	storied(t, db, pgtest.Acme, "bob")
	ada := storied(t, db, pgtest.Acme, "ada")
	tl := timeline(t, db, pgtest.Acme, ada, time.Time{}, 100)
	want := []string{
		"segment.left others",
		"segment.joined nordic",
		"stage.changed hot",
		"score.changed fit",
		`tag.changed vip-ada {"added": true}`,
		`contact.changed {"fields": ["country"]}`,
		`page.viewed /shoes {"q": 1}`,
		"suppression.added bounce",
		"email.clicked old-ada counted=true",
		"email.opened old-ada counted=false",
		"email.bounced old-ada hard",
		"form.submitted old-ada",
		`event.tracked order.placed {"note": "ada"}`,
		"email.complained news-ada",
		"journey.ended campaign-ada done, finished",
		"email.clicked news-ada https://example.com/ counted=true",
		"email.opened news-ada scanner counted=false",
		"email.delivered news-ada",
		"email.sent news-ada",
		"journey.step campaign-ada s -> then",
		"journey.entered campaign-ada",
		"form.confirmed form-ada",
		`consent.granted news form {"form": 1}`,
		"form.submitted form-ada",
		"contact.created",
		"contact.created",
	}
	if diff := cmp.Diff(want, lines(tl)); diff != "" {
		t.Errorf("what happened (-want +got):\n%s", diff)
	}
	if tl.More || tl.ChangesSince == nil || len(tl.Merged) != 1 {
		t.Errorf("more %v, changes since %v, merged %v: want all, of which changes since 90 days, and one merged", tl.More, tl.ChangesSince, tl.Merged)
	}
	p := tl.Person
	if p.Email != "ada@example.com" || p.ExternalID != "ada" || string(p.Fields["plan"]) != `"pro"` || !slices.Equal(p.Tags, []string{"vip"}) || len(p.Subscriptions) != 1 || p.Subscriptions[0].State != Granted ||
		len(p.Segments) != 1 || p.Segments[0].Segment != "segment-ada" {
		t.Errorf("who it is: %+v", p)
	}

	// The newest of all, however many are asked for; and those since a time, of which none is left out.
	for limit := 1; limit < len(want); limit += 3 {
		if part := timeline(t, db, pgtest.Acme, ada, time.Time{}, limit); !part.More || !slices.Equal(lines(part), want[:limit]) {
			t.Errorf("the newest %d, more %v: %s", limit, part.More, cmp.Diff(want[:limit], lines(part)))
		}
	}
	since := tl.Happened[12].At // the moment of an event
	part := timeline(t, db, pgtest.Acme, ada, since, 100)
	if part.More || part.ChangesSince != nil || !slices.Equal(lines(part), want[:13]) {
		t.Errorf("since then, more %v, changes since %v: %s", part.More, part.ChangesSince, cmp.Diff(want[:13], lines(part)))
	}

	// JSON has times of RFC 3339, and lists where there is nothing.
	var nobody int64
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, "INSERT INTO contact (email, created_at) VALUES ('new@example.com', '2026-01-02 03:04:05Z') RETURNING id").Scan(&nobody)
	})
	text, err := json.Marshal(timeline(t, db, pgtest.Acme, nobody, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), 100))
	if err != nil {
		t.Fatal(err)
	}
	bare := fmt.Sprintf(`{"contact":%d,"email":"new@example.com","fields":{},"tags":[],"scores":{},"createdAt":"2026-01-02T03:04:05Z","subscriptions":[],"suppressions":[],"segments":[],"merged":[],`+
		`"happened":[{"at":"2026-01-02T03:04:05Z","kind":"contact.created"}],"more":false}`, nobody)
	if diff := cmp.Diff(bare, string(text)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

// Of an erased contact, one that is part of another and one that never was there is no timeline.
func TestNoTimelineOfNobody(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ada := storied(t, db, pgtest.Acme, "ada")
	merged := pgtest.One[int64](t, db, pgtest.Acme, "SELECT id FROM contact WHERE merged_into = $1", ada)
	brava := storied(t, db, pgtest.Brava, "ada")
	erase(t, db, pgtest.Acme, ada)
	for _, id := range []int64{ada, merged, 424242} {
		err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := GetTimeline(ctx, tx, id, time.Time{}, 100)
			return err
		})
		if !errors.Is(err, ErrGone) {
			t.Errorf("contact %d: %v, want ErrGone", id, err)
		}
	}
	if n := len(timeline(t, db, pgtest.Brava, brava, time.Time{}, 100).Happened); n != 26 {
		t.Errorf("of another tenant's contact %d things are told, want 26", n)
	}
}

// Of facts about many contacts at most so many are read of a kind, and how far is said.
func TestTimelineReadsSoManySets(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ada := populate(t, db, pgtest.Acme, "ada")
	populate(t, db, pgtest.Brava, "ada")
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE contact SET created_at = onda.now() - interval '30 days' WHERE id = $1", ada)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contacts, at) SELECT 'tag.changed', n::text, ARRAY[CASE WHEN n IN (0, 100, $2) THEN $1::bigint ELSE 0 END], onda.now() - n * interval '1 minute' FROM generate_series(0, $2::bigint) n",
		ada, setsMost+100)
	tags := func(tl *Timeline) (out []string) {
		for _, h := range tl.Happened {
			if h.Kind == "tag.changed" {
				out = append(out, h.Name)
			}
		}
		return out
	}
	tl := timeline(t, db, pgtest.Acme, ada, time.Time{}, 100)
	if got := tags(tl); !slices.Equal(got, []string{"0", "100"}) || tl.ChangesSince == nil || !tl.ChangesSince.Equal(pgtest.One[time.Time](t, db, pgtest.Acme, "SELECT at FROM fact WHERE name = $1", fmt.Sprint(setsMost))) {
		t.Errorf("tags %q, changes since %v", got, tl.ChangesSince)
	}
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM fact WHERE kind = 'tag.changed' AND name::integer BETWEEN 1 AND 99")
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM fact WHERE kind = 'tag.changed' AND name::integer BETWEEN 200 AND 300")
	if tl = timeline(t, db, pgtest.Acme, ada, time.Time{}, 100); len(tags(tl)) != 3 || tl.ChangesSince != nil {
		t.Errorf("tags %q, changes since %v: want all", tags(tl), tl.ChangesSince)
	}
}

// Every part of a timeline is found by an index: of no table all is read.
func TestTimelineReadsByIndex(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ada := storied(t, db, pgtest.Acme, "ada")
	storied(t, db, pgtest.Brava, "ada")
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = off"); err != nil { // the tables are small: where there is an index it is taken
			return err
		}
		floors := slices.Repeat([]time.Time{tx.Now().Add(-time.Hour)}, len(setKinds()))
		for sql, args := range map[string][]any{timelineSQL: {[]int64{ada}, time.Time{}, 10, setKinds(), floors}, setFloorsSQL: {setKinds(), []int64{ada}, tx.Now(), setsMost, time.Time{}}} {
			rows, err := tx.Query(ctx, "EXPLAIN "+sql, args...)
			if err != nil {
				return err
			}
			var plan []string
			for rows.Next() {
				var line string
				if err := rows.Scan(&line); err != nil {
					return err
				}
				plan = append(plan, line)
			}
			if err := rows.Err(); err != nil {
				return err
			}
			text := strings.Join(plan, "\n")
			if strings.Contains(text, "Seq Scan") || !strings.Contains(text, "kind_at_idx") {
				t.Errorf("a table is read from end to end, or sets by another index than theirs:\n%s", text)
			}
		}
		return nil
	})
}
