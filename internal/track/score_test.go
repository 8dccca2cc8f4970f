package track

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

// rules applies settings with rules of scores, in YAML.
func (w *world) rules(tenant, rules string) {
	w.t.Helper()
	applyTo(w.t, w.db, tenant, fstest.MapFS{"settings.yaml": {Data: []byte(`{apiVersion: onda/v1, kind: Settings, metadata: {name: settings}, spec: {zone: Europe/Oslo, scores: ` + rules + `}}`)}})
}

// settle judges and folds until every fact is read: a transaction that any test has open on the server holds facts back.
func (w *world) settle(tenant string) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		w.sweep(tenant)
		all := false
		pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			at, err := tx.FactsDue(ctx, "track")
			all = at.Equal(postgres.Never)
			return err
		})
		if all {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal("facts are held back for a minute")
		}
	}
}

func (w *world) scores(tenant string, id int64) string {
	w.t.Helper()
	return pgtest.One[string](w.t, w.db, tenant, "SELECT scores::text FROM contact WHERE id = $1", id)
}

func TestWhatContactsDoGivesPoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, d := w.sent("acme", "ada@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET external_id = 'u1'")
	click := func() {
		w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")}))
	}
	sk := w.programKey("acme", token.SecretKey)
	call := func(path, body string) {
		if a := w.call(path, sk, body); a.status != 200 {
			t.Fatalf("%s: %d %s", path, a.status, a.body)
		}
	}
	click() // before the first rule
	w.settle("acme")
	if got := w.scores("acme", ada); got != "{}" {
		t.Errorf("without rules: %s", got)
	}
	w.rules("acme", `[{event: email.clicked, of: news, add: 5}, {event: page.viewed, where: {path: {startsWith: /pricing}}, add: 2, group: fit}, {event: page.viewed, add: 1},
		{event: order.placed, where: {total: {gte: 100}}, add: 20}, {event: consent.withdrawn, of: newsletter, add: -30, group: fit}]`)
	click()
	call("/v1/page", `{"userId": "u1", "name": "Pricing", "properties": {"path": "/pricing/x"}}`)
	call("/v1/page", `{"userId": "u1", "name": "Home", "properties": {"path": "/"}}`)
	call("/v1/page", `{"anonymousId": "nobody", "name": "Home"}`)
	call("/v1/track", `{"userId": "u1", "event": "order.placed", "properties": {"total": 120}}`)
	call("/v1/track", `{"userId": "u1", "event": "order.placed", "properties": {"total": 99}}`)
	call("/v1/track", `{"userId": "u1", "event": "order.paid", "properties": {"total": 120}}`)
	types := w.sweep("acme")
	w.settle("acme")
	if got := w.scores("acme", ada); got != `{"fit": 2, "score": 27}` {
		t.Errorf("scores: %s", got)
	}
	w.consent("acme", contact.Consent{Contact: ada, Purpose: "newsletter", State: contact.Withdrawn, Basis: "form"})
	w.settle("acme")
	w.settle("acme") // again gives nothing
	if got := w.scores("acme", ada); got != `{"fit": -28, "score": 27}` {
		t.Errorf("scores: %s", got)
	}
	if !slices.Contains(types, "onda.email.clicked.v1") {
		t.Errorf("doorbells: %v", types)
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT name || ' ' || contacts::text FROM fact WHERE kind = 'score.changed' ORDER BY id DESC LIMIT 1")
	if diff := cmp.Diff([]string{fmt.Sprintf("fit {%d}", ada)}, got); diff != "" {
		t.Error(diff)
	}
	// Who has withdrawn tracking.email clicks without giving points.
	w.consent("acme", contact.Consent{Contact: ada, Purpose: contact.TrackingEmail, State: contact.Withdrawn, Basis: "form"})
	click()
	w.settle("acme")
	if got := w.scores("acme", ada); got != `{"fit": -28, "score": 27}` {
		t.Errorf("of a click that is only counted: %s", got)
	}
	// Without rules again, nothing is given, and the reader keeps up.
	w.rules("acme", "[]")
	call("/v1/page", `{"userId": "u1", "name": "Home"}`)
	w.settle("acme")
	if got := w.scores("acme", ada); got != `{"fit": -28, "score": 27}` {
		t.Errorf("scores: %s", got)
	}
}

// A click that turns out to be a machine's has its points taken back once, and one that is a person's after all has them given once.
func TestCorrectedHitsCorrectScores(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	w.scanners.dir, w.scanners.every = dir, 0
	ada, d := w.sent("acme", "ada@example.com", time.Hour)
	w.rules("acme", "[{event: email.clicked, add: 5}]")
	firefox, nobody := "bot all firefox/140\n", "bot all nobody\n"
	for i, c := range []struct{ agents, want string }{{nobody, `{"score": 5}`}, {firefox, `{"score": 0}`}, {firefox, `{"score": 0}`}, {nobody, `{"score": 20}`}, {firefox, `{"score": 0}`}} {
		put(t, dir, agentsFile, c.agents)
		w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")}))
		w.settle("acme")
		if got := w.scores("acme", ada); got != c.want {
			t.Errorf("after %d clicks: %s, want %s", i+1, got, c.want)
		}
		if i == 0 { // what is taken back is what was given, by whatever rule
			w.rules("acme", "[{event: email.clicked, add: 5}, {event: page.viewed, add: 1}]")
		}
	}
}

// However facts, their corrections and repeats are ordered and cut into transactions, whoever dies between, and whenever rules change: scores are what counting by hand gives.
func TestScoresAreOfWhatHappened(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t)
	var contacts []int64
	for i := range 3 {
		id, _ := w.sent("acme", fmt.Sprintf("p%d@example.com", i), time.Hour)
		contacts = append(contacts, id)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET merged_into = $1 WHERE id = $2", contacts[0], contacts[2])
	type act struct {
		kind, name string
		contact    int64
		hit        int64
		path       string
		at         time.Time
	}
	type since struct {
		at    time.Time
		click int64 // of email.clicked of news
		page  int64 // of page.viewed of /a, to the group fit
		order int64 // of order.placed
	}
	var versions []since
	apply := func() {
		v := since{click: r.Int64N(9) + 1, page: r.Int64N(9) - 10, order: r.Int64N(5) + 1}
		w.rules("acme", fmt.Sprintf(`[{event: email.clicked, of: news, add: %d}, {event: page.viewed, where: {path: /a}, group: fit, add: %d}, {event: order.placed, add: %d}]`, v.click, v.page, v.order))
		v.at = pgtest.One[time.Time](t, w.db, "acme", "SELECT max(d.applied_at) FROM document d JOIN entity e ON e.current = d.id AND e.kind = 'Settings'")
		versions = append(versions, v)
	}
	apply()
	told, human, others := map[int64]act{}, map[int64]bool{}, []act{}
	write := func(ctx context.Context, tx *postgres.Tx, a act) error {
		data := map[string]any{"path": a.path}
		if a.hit != 0 {
			data = map[string]any{"hit": a.hit, "link": 1}
		}
		b, err := json.Marshal(data)
		if err != nil {
			return err
		}
		return tx.AddFacts(ctx, postgres.Fact{Kind: a.kind, Name: a.name, Contact: a.contact, Data: b, At: a.at})
	}
	errKilled := errors.New("killed")
	var hits []act // also those that were not told yet
	for step := range 300 {
		contact := contacts[r.IntN(len(contacts))]
		err := w.db.InTenant(t.Context(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
			at := tx.Now()
			if r.IntN(4) == 0 { // late: while a version was in force, or before any
				at = versions[r.IntN(len(versions))].at.Add(time.Duration(r.IntN(3)-1) * time.Microsecond)
			}
			switch r.IntN(8) {
			case 0:
				a := act{kind: "page.viewed", contact: contact, path: []string{"/a", "/b"}[r.IntN(2)], at: at}
				others = append(others, a)
				return write(ctx, tx, a)
			case 1:
				a := act{kind: "event.tracked", name: []string{"order.placed", "order.paid"}[r.IntN(2)], contact: contact, at: at}
				others = append(others, a)
				return write(ctx, tx, a)
			case 2, 3: // a hit, told or not
				a := act{kind: "email.clicked", name: []string{"news", "news", "offer"}[r.IntN(3)], contact: contact, at: at}
				verdict := []string{"human", "machine"}[r.IntN(2)]
				if err := tx.QueryRow(ctx, "INSERT INTO hit (kind, delivery, contact, verdict, at) VALUES ('click', 5, $1, $2, $3) RETURNING id", contact, verdict, at).Scan(&a.hit); err != nil {
					return err
				}
				hits, human[a.hit] = append(hits, a), verdict == "human"
				if r.IntN(2) == 0 {
					told[a.hit] = a
					return write(ctx, tx, a)
				}
			case 4: // told late, or again
				if len(hits) > 0 {
					a := hits[r.IntN(len(hits))]
					told[a.hit] = a
					return write(ctx, tx, a)
				}
			case 5, 6: // corrected, told in whatever order, or twice
				if len(hits) > 0 {
					a := hits[r.IntN(len(hits))]
					human[a.hit] = !human[a.hit]
					if _, err := tx.Exec(ctx, "UPDATE hit SET verdict = $2 WHERE id = $1", a.hit, map[bool]string{true: "human", false: "machine"}[human[a.hit]]); err != nil {
						return err
					}
					a.kind = "hit.reclassified"
					if err := write(ctx, tx, a); err != nil || r.IntN(3) > 0 {
						return err
					}
					return write(ctx, tx, a)
				}
			case 7:
				if _, err := w.foldScores(ctx, tx); err != nil {
					return err
				}
				if r.IntN(2) == 0 {
					return errKilled
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, errKilled) {
			t.Fatalf("step %d: %v", step, err)
		}
		if step%70 == 69 {
			apply()
		}
	}
	w.settle("acme")
	want := map[int64]map[string]int64{contacts[0]: {}, contacts[1]: {}}
	give := func(a act, points func(since) (string, int64)) {
		for _, v := range slices.Backward(versions) {
			if !v.at.After(a.at) {
				group, n := points(v)
				who := a.contact
				if who == contacts[2] {
					who = contacts[0]
				}
				want[who][group] += n
				return
			}
		}
	}
	for id, a := range told {
		if human[id] && a.name == "news" {
			give(a, func(v since) (string, int64) { return "score", v.click })
		}
	}
	for _, a := range others {
		switch {
		case a.path == "/a":
			give(a, func(v since) (string, int64) { return "fit", v.page })
		case a.name == "order.placed":
			give(a, func(v since) (string, int64) { return "score", v.order })
		}
	}
	for who, groups := range want {
		for _, group := range []string{"score", "fit"} {
			if got := pgtest.One[int64](t, w.db, "acme", "SELECT coalesce((scores->>$2)::bigint, 0) FROM contact WHERE id = $1", who, group); got != groups[group] {
				t.Errorf("contact %d has %d of %s, want %d", who, got, group, groups[group])
			}
		}
	}
}

// Who reads facts is named where they are written, so that none waits for the next sweep.
func TestEveryScoredFactWakesTrack(t *testing.T) {
	t.Parallel()
	for _, kind := range scored() {
		if !slices.Contains(postgres.Readers(kind), "track") {
			t.Errorf("%s wakes %v", kind, postgres.Readers(kind))
		}
	}
	for _, kind := range spec.BuiltinEvents() {
		if slices.Contains(postgres.Readers(kind), "track") != slices.Contains(scored(), kind) {
			t.Errorf("%s wakes %v", kind, postgres.Readers(kind))
		}
	}
}

// On the schema before, rules give nothing, and nobody fails over them.
func TestNoScoresOnTheSchemaBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ada, d := w.sent("acme", "ada@example.com", time.Hour)
	w.rules("acme", "[{event: email.clicked, add: 5}]")
	w.d.Own(t, "acme", "ALTER TABLE contact DROP scores", "ALTER TABLE hit DROP points", "DELETE FROM cursor WHERE name = 'track'",
		fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", contact.ScoresSchema-1))
	w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")}))
	w.sweep("acme")
	if got := w.facts("acme", "email.%"); len(got) != 1 {
		t.Errorf("facts: %v", got)
	}
	err := w.db.InTenant(t.Context(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
		return contact.AddPoints(ctx, tx, "track", []contact.Points{{Contact: ada, Group: "score", Add: 1}}, "")
	})
	if !errors.Is(err, postgres.ErrSchemaTooOld) || !strings.Contains(err.Error(), "needs schema 14") {
		t.Errorf("points: %v", err)
	}
}
