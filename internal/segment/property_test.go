package segment

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/track"
)

// asked are the segments of the property test, each with the documents that it has in turn. What a segment asks about is before it.
var asked = []struct {
	name      string
	documents []string
}{
	{"text", []string{`{"field": "plan", "is": "paid"}`, `{"field": "plan", "isNot": "PAID"}`, `{"field": "plan", "matches": "^(paid|free)$"}`, `{"field": "plan", "contains": "RE"}`}},
	{"number", []string{`{"field": "level", "between": [3, 7]}`, `{"field": "level", "gt": 5}`, `{"field": "level", "isNot": 3}`}},
	{"boolean", []string{`{"field": "agreed", "is": true}`, `{"field": "agreed", "exists": false}`}},
	{"date", []string{`{"field": "trial", "inNext": "3d"}`, `{"field": "trial", "before": "today"}`, `{"field": "trial", "between": ["-5d", "+5d"]}`, `{"not": {"field": "trial", "olderThan": "1w"}}`}},
	{"datetime", []string{`{"field": "seen", "inLast": "2d"}`, `{"field": "seen", "olderThan": "36h"}`, `{"not": {"field": "seen", "after": "-1d"}}`}},
	{"birthday", []string{`{"field": "birthday", "yearly": {"inNext": "7d"}}`, `{"field": "birthday", "yearly": {"inLast": "5d"}}`}},
	{"created", []string{`{"field": "created", "inLast": "3d"}`, `{"field": "created", "olderThan": "2d"}`}},
	{"list", []string{`{"field": "interests", "hasAny": ["ski", "sail"]}`, `{"field": "interests", "hasNone": ["SKI"]}`, `{"field": "interests", "hasAll": ["ski", "sail"]}`}},
	{"country", []string{`{"field": "country", "in": ["NO", "SE"]}`, `{"field": "country", "notIn": ["NO"]}`}},
	{"select", []string{`{"field": "shirt", "in": ["small", "Large"]}`, `{"field": "shirt", "isNot": "large"}`, `{"field": "shirt", "exists": false}`}},
	{"language", []string{`{"field": "speaks", "is": "PT"}`, `{"field": "speaks", "startsWith": "pt"}`, `{"field": "speaks", "notIn": ["nb", "pt-br"]}`}},
	{"timezone", []string{`{"field": "lives", "startsWith": "europe/"}`, `{"not": {"field": "lives", "is": "Europe/Oslo"}}`}},
	{"url", []string{`{"field": "site", "startsWith": "https://example.com/"}`, `{"field": "site", "matches": "/[0-9]+$"}`, `{"field": "site", "endsWith": "/A"}`}},
	{"phone", []string{`{"field": "mobile", "startsWith": "+47"}`, `{"field": "mobile", "isNot": "+4721000000"}`, `{"field": "mobile", "exists": true}`}},
	{"stage", []string{`{"stage": "hot"}`, `{"not": {"stage": "cold"}}`, `{"any": [{"stage": "cold"}, {"field": "shirt", "is": "small"}]}`}},
	{"address", []string{`{"field": "email", "endsWith": ".no"}`, `{"field": "email", "exists": true}`}},
	{"tags", []string{`{"tag": "VIP"}`, `{"field": "tags", "hasNone": ["vip", "gold"]}`}},
	{"score", []string{`{"field": "score", "gte": 50}`, `{"field": "score.fit", "lte": 0}`}},
	{"topic", []string{`{"topic": "news", "state": "subscribed"}`, `{"topic": "news", "state": "never"}`, `{"topic": "news", "state": "unsubscribed"}`}},
	{"reach", []string{`{"reachable": "news"}`, `{"not": {"reachable": "news"}}`}},
	{"clicked", []string{`{"event": "email.clicked", "within": "3d"}`, `{"event": "email.clicked", "within": "10d", "count": {"gte": 2}}`, `{"not": {"event": "email.clicked"}}`}},
	{"ordered", []string{
		`{"event": "order.placed", "within": "30d", "where": {"total": {"gte": 100}}}`, `{"event": "order.placed", "between": ["-10d", "today"]}`,
		`{"event": "order.placed", "count": {"lt": 2}}`, `{"event": "order.placed", "within": "2d", "count": {"is": 0}}`,
	}},
	{"changed", []string{`{"event": "tag.changed", "within": "2d"}`, `{"event": "contact.changed", "within": "5d", "count": {"gte": 3}}`, `{"event": "tag.changed", "count": {"lte": 1}}`}},
	{"mailed", []string{`{"event": "email.sent", "within": "5d"}`, `{"not": {"event": "email.sent"}}`}},
	{"journey", []string{`{"campaign": "onboarding", "state": "active"}`, `{"campaign": "onboarding", "state": "never"}`, `{"campaign": "onboarding", "state": "done"}`}},
	{"sample", []string{`{"sample": 30, "seed": "beta"}`}},
	{"kept", []string{
		`{"field": "plan", "is": "paid"}, "keep": {"in": ["x1", "P2@example.no", "p3@example.com"], "out": ["x4", "p5@example.no"]}`, `{"tag": "vip"}, "keep": {"out": ["p1@example.no", "x2"]}`,
	}},
	{"inside", []string{
		`{"all": [{"segment": "text"}, {"segment": "number"}]}`, `{"any": [{"segment": "text"}, {"not": {"segment": "clicked"}}]}`, `{"all": [{"any": [{"segment": "datetime"}, {"segment": "kept"}]}, {"sample": 50, "seed": "half"}]}`,
	}},
	{"outside", []string{`{"not": {"segment": "inside"}}`, `{"all": [{"segment": "inside"}, {"not": {"segment": "journey"}}, {"field": "level", "exists": true}]}`}},
}

// ring are segments that ask about one another, one way or the other.
var ring = []string{"ring-a", "ring-b", "ring-c"}

var fieldTypes = map[string]spec.FieldType{
	"plan": spec.TypeText, "level": spec.TypeNumber, "agreed": spec.TypeBoolean, "trial": spec.TypeDate, "birthday": spec.TypeDate, "seen": spec.TypeDatetime,
	"interests": spec.TypeMultiselect, "country": spec.TypeCountry, "shirt": spec.TypeSelect, "speaks": spec.TypeLanguage, "lives": spec.TypeTimezone, "site": spec.TypeURL, "mobile": spec.TypePhone,
}

// choices are values of fields, and their options.
var choices = map[string][]string{
	"plan": {"paid", "free", "Free trial"}, "interests": {"ski", "sail", "read"}, "country": {"NO", "SE", "DK"}, "shirt": {"small", "medium", "large"}, "speaks": {"nb", "pt", "pt-BR"},
	"lives": {"Europe/Oslo", "Europe/Lisbon", "America/St_Johns"}, "site": {"https://example.com/a", "https://example.com/7", "http://example.org/a"}, "mobile": {"+4721000000", "+351210000000"},
}

// lab is the world of the property test: of each tenant the keeper's rows, and who does things to them.
type lab struct {
	*world
	admin  *postgres.Admin
	track  *track.Tracker
	zones  map[string]*time.Location
	merged map[string][]int64 // who was merged into another, of each tenant, unless that was undone
	now    time.Time          // of the tenant that is at hand
}

func newLab(t *testing.T) *lab {
	t.Helper()
	w := newWorld(t)
	p := &lab{world: w, admin: w.pg.Admin(t), zones: map[string]*time.Location{}, merged: map[string][]int64{}}
	p.track = track.New(track.Config{OriginKeep: 30 * 24 * time.Hour, Slots: 1, EventsPerSecond: 1, Proxies: 1, Compose: compose.Config{LinkURL: "https://links.example"}}, w.db, zap.NewNop())
	for tenant, zone := range map[string]string{"acme": "Europe/Oslo", "brava": "America/St_Johns"} {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		p.zones[tenant] = loc
		w.apply(tenant, "Settings", "settings", `{"zone": "`+zone+`", "retention": {"facts": "20d", "deliveries": "15d", "hits": "7d"}}`)
		for name, typ := range fieldTypes {
			options := ""
			if typ == spec.TypeMultiselect || typ == spec.TypeSelect {
				options = `, "options": ["` + strings.Join(choices[name], `", "`) + `"]`
			}
			w.apply(tenant, "Field", name, `{"type": "`+string(typ)+`"`+options+`}`)
		}
		w.apply(tenant, "Campaign", "onboarding", `{}`)
		w.apply(tenant, "Email", "welcome", `{}`)
		pgtest.Exec(t, w.db, tenant, "INSERT INTO run (entity, document, kind, state, starts_at) SELECT id, current, 'campaign', 'running', onda.now() FROM entity WHERE name = 'onboarding'")
	}
	return p
}

// empty takes everything away that a run of the test before has left.
func (p *lab) empty(t *rapid.T, tenant string) {
	for _, table := range []string{"contact", "fact", "hit", "subscription", "consent", "suppression", "journey", "delivery", "batch", "member", "segment", "outbox"} {
		p.exec(t, tenant, "DELETE FROM "+table)
	}
	p.exec(t, tenant, "UPDATE entity SET current = NULL WHERE kind = 'Segment'")
	p.merged[tenant] = nil
}

func (p *lab) in(t *rapid.T, tenant string, f func(ctx context.Context, tx *postgres.Tx) error) {
	if err := p.db.InTenant(context.Background(), tenant, f); err != nil {
		t.Fatal(err)
	}
}

func (p *lab) exec(t *rapid.T, tenant, sql string, args ...any) {
	p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
}

// some draws contacts that are there.
func (p *lab) some(t *rapid.T, tenant string, least, most int) []int64 {
	ids := pgtest.All[int64](p, p.db, tenant, "SELECT id FROM contact WHERE erased_at IS NULL AND merged_into IS NULL ORDER BY id")
	if len(ids) == 0 {
		return nil
	}
	out := []int64{}
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, len(ids)-1), min(least, len(ids)), min(most, len(ids)), rapid.ID[int]).Draw(t, "contacts") {
		out = append(out, ids[i])
	}
	slices.Sort(out)
	return out
}

// ago draws how long before now something was; below 0: it is to come. All are whole hours, so that nothing is about to change just after it was computed.
func (p *lab) ago(t *rapid.T) time.Time {
	hours := rapid.SampledFrom([]int{0, 0, 0, 1, 24, 47, 72, 9 * 24, 10 * 24, 14 * 24, 19 * 24, 30 * 24, -2, -48}).Draw(t, "hours ago")
	return p.now.Add(-time.Duration(hours) * time.Hour)
}

func (p *lab) value(t *rapid.T, field string) any {
	if rapid.IntRange(0, 4).Draw(t, "remove") == 0 {
		return nil
	}
	day := func() string {
		return p.now.AddDate(0, 0, rapid.IntRange(-12, 12).Draw(t, "day")).Format(time.DateOnly)
	}
	switch field {
	case "level":
		return float64(rapid.IntRange(0, 9).Draw(t, field))
	case "agreed":
		return rapid.Bool().Draw(t, field)
	case "trial":
		return day()
	case "birthday":
		return "1984" + day()[4:]
	case "seen":
		return p.ago(t).UTC().Truncate(time.Second).Format(time.RFC3339)
	case "interests":
		return rapid.SliceOfNDistinct(rapid.SampledFrom(choices[field]), 1, 3, rapid.ID[string]).Draw(t, field)
	}
	return rapid.SampledFrom(choices[field]).Draw(t, field)
}

// document draws a document for one of the segments.
func (p *lab) document(t *rapid.T, tenant string, i int) {
	d := asked[i].documents
	p.apply(tenant, "Segment", asked[i].name, `{"where": `+d[rapid.IntRange(0, len(d)-1).Draw(t, asked[i].name)]+`}`)
}

// turn draws who of the ring asks about whom: each about those before it, of any order.
func (p *lab) turn(t *rapid.T, tenant string) {
	var before []string
	for i, name := range rapid.Permutation(ring).Draw(t, "ring") {
		q := []string{`{"tag": "vip"}`, `{"field": "plan", "is": "paid"}`, `{"not": {"field": "level", "gt": 4}}`}[rapid.IntRange(0, 2).Draw(t, name)]
		before = append(before, q)
		if i > 0 {
			q = `{"` + rapid.SampledFrom([]string{"any", "all"}).Draw(t, "of those before") + `": [` + strings.Join(before, ", ") + `]}`
		}
		p.apply(tenant, "Segment", name, `{"where": `+q+`}`)
		before[i] = `{"segment": "` + name + `"}`
	}
}

// all are the names of the segments that there may be.
func (p *lab) all() (names []string) {
	for _, s := range asked {
		names = append(names, s.name)
	}
	return append(names, ring...)
}

// actions are what happens to a tenant, with how often each is drawn.
func (p *lab) actions() map[string]func(t *rapid.T, tenant string) {
	fact := func(t *rapid.T, tenant string, f postgres.Fact) {
		p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error { return tx.AddFacts(ctx, f) })
	}
	return map[string]func(t *rapid.T, tenant string){
		"new contacts": func(t *rapid.T, tenant string) {
			n := pgtest.One[int](p, p.db, tenant, "SELECT coalesce(max(substr(external_id, 2)::int), 0) FROM contact")
			var rows []contact.Row
			for i := range rapid.IntRange(1, 3).Draw(t, "how many") {
				r := contact.Row{ExternalID: fmt.Sprintf("x%d", n+i+1), Fields: map[string]any{"plan": p.value(t, "plan")}}
				if rapid.IntRange(0, 5).Draw(t, "address") > 0 {
					r.Email = fmt.Sprintf("p%d@example.%s", n+i+1, rapid.SampledFrom([]string{"no", "com"}).Draw(t, "domain"))
				}
				if rapid.IntRange(0, 3).Draw(t, "expires") == 0 {
					r.Expires = p.now.Add(24 * time.Hour)
				}
				rows = append(rows, r)
			}
			p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := contact.Upsert(ctx, tx, "campaign", rows, "test")
				return err
			})
		},
		"fields": func(t *rapid.T, tenant string) {
			c := contact.Change{Fields: map[string]any{}}
			for _, f := range rapid.SliceOfNDistinct(rapid.SampledFrom(slices.Sorted(keys(fieldTypes))), 1, 4, rapid.ID[string]).Draw(t, "fields") {
				c.Fields[f] = p.value(t, f)
			}
			p.change(t, tenant, c)
		},
		"tags": func(t *rapid.T, tenant string) {
			tags := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"vip", "gold", "Vip"}), 1, 2, rapid.ID[string]).Draw(t, "tags")
			if rapid.Bool().Draw(t, "add") {
				p.change(t, tenant, contact.Change{AddTags: tags})
			} else {
				p.change(t, tenant, contact.Change{RemoveTags: tags})
			}
		},
		"stage": func(t *rapid.T, tenant string) {
			ids, stage := p.some(t, tenant, 1, 4), rapid.SampledFrom([]string{"cold", "hot"}).Draw(t, "stage")
			p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
				return contact.SetStage(ctx, tx, "campaign", ids, stage, "test")
			})
		},
		"points": func(t *rapid.T, tenant string) {
			var points []contact.Points
			for _, id := range p.some(t, tenant, 1, 5) {
				points = append(points, contact.Points{Contact: id, Group: rapid.SampledFrom([]string{"score", "fit"}).Draw(t, "group"), Add: int64(rapid.IntRange(-40, 60).Draw(t, "points"))})
			}
			p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
				return contact.AddPoints(ctx, tx, "campaign", points, "test")
			})
		},
		"event": func(t *rapid.T, tenant string) { // late ones, and of clocks that are ahead, too
			for _, id := range p.some(t, tenant, 1, 3) {
				fact(t, tenant, postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: id, At: p.ago(t), Data: fmt.Appendf(nil, `{"total": %d}`, rapid.SampledFrom([]int{20, 100, 300}).Draw(t, "total"))})
			}
		},
		"click": func(t *rapid.T, tenant string) {
			for _, id := range p.some(t, tenant, 1, 3) {
				at := p.ago(t)
				hit := pgtest.One[int64](p, p.db, tenant, "INSERT INTO hit (kind, delivery, contact, verdict, at) VALUES ('click', $1, $1, 'human', $2) RETURNING id", id, at)
				fact(t, tenant, postgres.Fact{Kind: "email.clicked", Name: "welcome", Contact: id, At: at, Data: fmt.Appendf(nil, `{"hit": %d, "link": 1}`, hit)})
			}
		},
		"reclassified": func(t *rapid.T, tenant string) { // as track does it: the mark and the correction in one commit
			facts := pgtest.All[int64](p, p.db, tenant, "SELECT id FROM fact WHERE kind = 'email.clicked' AND contact IS NOT NULL ORDER BY id")
			if len(facts) == 0 {
				return
			}
			which := facts[rapid.IntRange(0, len(facts)-1).Draw(t, "click")]
			p.exec(t, tenant, `WITH f AS (UPDATE fact SET data = CASE WHEN data ? 'taken' THEN data - 'taken' ELSE data || '{"taken": true}' END WHERE id = $1 RETURNING name, contact, data, at),
				h AS (UPDATE hit SET verdict = CASE WHEN f.data ? 'taken' THEN 'machine' ELSE 'human' END FROM f WHERE hit.id = (f.data->>'hit')::bigint)
				INSERT INTO fact (kind, name, contact, data, at) SELECT 'hit.reclassified', name, contact, data - 'taken', at FROM f`, which)
		},
		"mail": func(t *rapid.T, tenant string) {
			ids := p.some(t, tenant, 1, 4)
			if ids == nil {
				return
			}
			p.exec(t, tenant, `WITH b AS (INSERT INTO batch (run, email, contacts, state, closed_at, mark, sent) SELECT r.id, e.current, $1::bigint[], 'closed', onda.now(), cardinality($1::bigint[]), cardinality($1::bigint[])
					FROM run r, entity e WHERE e.name = 'welcome' RETURNING id),
				d AS (INSERT INTO delivery (id, contact, state, at) SELECT (b.id << 9) + n, c, 'sent', $2 FROM b, unnest($1::bigint[]) WITH ORDINALITY u(c, n) RETURNING id)
				INSERT INTO fact (kind, name, deliveries, at) SELECT 'email.sent', 'welcome', array_agg(id), $2 FROM d`, ids, p.ago(t))
		},
		"consent": func(t *rapid.T, tenant string) {
			state := rapid.SampledFrom([]contact.State{contact.Granted, contact.Granted, contact.Withdrawn, contact.Pending}).Draw(t, "state")
			var all []contact.Consent
			for _, id := range p.some(t, tenant, 1, 5) {
				all = append(all, contact.Consent{Contact: id, Purpose: "news", State: state, Basis: "api"})
			}
			p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := contact.Record(ctx, tx, "campaign", all...)
				return err
			})
		},
		"suppression": func(t *rapid.T, tenant string) {
			var all []contact.Suppression
			until := p.now.Add(time.Duration(rapid.SampledFrom([]int{1, 48}).Draw(t, "hours")) * time.Hour)
			for _, id := range p.some(t, tenant, 1, 3) {
				all = append(all, contact.Suppression{Contact: id, Reason: contact.Bounce, Until: until})
			}
			p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := contact.Suppress(ctx, tx, "campaign", all...)
				return err
			})
		},
		"enter": func(t *rapid.T, tenant string) {
			ids := p.some(t, tenant, 1, 5)
			p.exec(t, tenant, `WITH j AS (INSERT INTO journey (run, contact, document, step) SELECT r.id, c, r.document, 'first' FROM run r, unnest($1::bigint[]) c ON CONFLICT DO NOTHING RETURNING contact)
				INSERT INTO fact (kind, name, contacts) SELECT 'journey.entered', 'onboarding', array_agg(contact) FROM j HAVING count(*) > 0`, ids)
		},
		"end": func(t *rapid.T, tenant string) {
			state := rapid.SampledFrom([]string{"done", "goal", "cancelled"}).Draw(t, "state")
			p.exec(t, tenant, `WITH j AS (UPDATE journey SET state = $2 WHERE state = 'active' AND contact = ANY ($1) RETURNING contact)
				INSERT INTO fact (kind, name, contacts, data) SELECT 'journey.left', 'onboarding', array_agg(contact), jsonb_build_object('state', $2::text) FROM j HAVING count(*) > 0`, p.some(t, tenant, 1, 5), state)
		},
		"expire": func(t *rapid.T, tenant string) {
			p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := contact.Expire(ctx, tx, "campaign", 100)
				return err
			})
		},
		"erase": func(t *rapid.T, tenant string) {
			for _, id := range p.some(t, tenant, 1, 1) {
				if _, err := contact.Erase(context.Background(), p.db, tenant, "campaign", id, nil); err != nil {
					t.Fatal(err)
				}
			}
		},
		"merge":   p.merge,
		"unmerge": p.unmerge,
		"forget": func(t *rapid.T, tenant string) { // all have read of all, but segment perhaps not
			if rapid.Bool().Draw(t, "later") {
				p.settled(tenant)
				p.move(t, tenant, 12*24*time.Hour)
			}
			p.exec(t, tenant, "UPDATE cursor SET xid = pg_current_xact_id(), id = 9223372036854775807 WHERE name IN ('campaign', 'track')")
			if err := p.track.Sweep(context.Background(), tenant, nil, func(context.Context, string, cloudevents.Event) error { return nil }); err != nil {
				t.Fatal(err)
			}
		},
		"clock": func(t *rapid.T, tenant string) {
			p.move(t, tenant, time.Duration(rapid.SampledFrom([]int{1, 3, 13, 24, 47, 12 * 24}).Draw(t, "hours"))*time.Hour)
		},
		"document": func(t *rapid.T, tenant string) {
			p.document(t, tenant, rapid.IntRange(0, len(asked)-1).Draw(t, "segment"))
		},
		"turned round": func(t *rapid.T, tenant string) { // and somebody changes while they are computed anew
			p.settled(tenant)
			p.turn(t, tenant)
			for range rapid.IntRange(0, 6).Draw(t, "pieces") {
				p.piece(t, tenant)
			}
			p.change(t, tenant, contact.Change{Fields: map[string]any{"plan": p.value(t, "plan"), "level": p.value(t, "level")}})
			p.facts(t, tenant)
		},
		"taken away": func(t *rapid.T, tenant string) {
			p.exec(t, tenant, "UPDATE entity SET current = NULL WHERE kind = 'Segment' AND name = $1", rapid.SampledFrom(p.all()).Draw(t, "segment"))
		},
		"requested": func(t *rapid.T, tenant string) {
			p.rebuild(t, tenant, rapid.SampledFrom(p.all()).Draw(t, "segment"))
		},
		"facts": p.facts,
		"piece": p.piece,
		"killed": func(_ *rapid.T, tenant string) { // somewhere
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			_, _ = p.another().work(ctx, tenant)
		},
		"several": func(t *rapid.T, tenant string) {
			errs := make([]error, 3)
			var all sync.WaitGroup
			for i := range errs {
				all.Go(func() { _, errs[i] = p.another().work(context.Background(), tenant) })
			}
			all.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// merge has a contact stand for another from now on, which takes what happened to it; what was told of many at once stays.
func (p *lab) merge(t *rapid.T, tenant string) {
	two := p.some(t, tenant, 2, 2)
	if len(two) < 2 {
		return
	}
	if rapid.Bool().Draw(t, "the other way") {
		slices.Reverse(two)
	}
	prefer := rapid.SampledFrom([]contact.Prefer{contact.PreferWinner, contact.PreferLoser}).Draw(t, "prefer")
	p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Merge(ctx, tx, "campaign", two[0], two[1], prefer, "test")
		return err
	})
	p.merged[tenant] = append(p.merged[tenant], two[0])
}

// unmerge undoes a merge, unless the one or the other is nobody by now, or its winner was merged on.
func (p *lab) unmerge(t *rapid.T, tenant string) {
	n := len(p.merged[tenant])
	if n == 0 {
		return
	}
	i := rapid.IntRange(0, n-1).Draw(t, "merge")
	err := p.db.InTenant(context.Background(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Unmerge(ctx, tx, "campaign", p.merged[tenant][i], "test")
		return err
	})
	switch {
	case err == nil:
		p.merged[tenant] = slices.Delete(p.merged[tenant], i, i+1)
	case !errors.Is(err, contact.ErrErased) && !errors.Is(err, contact.ErrMergedOn) && !errors.Is(err, contact.ErrGone) && !errors.Is(err, contact.ErrTaken):
		t.Fatal(err)
	}
}

func keys[V any](m map[string]V) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (p *lab) another() *keeper { return &keeper{db: p.db, docs: &documents{}, log: zap.NewNop()} }

// facts reads some, and dies after it.
func (p *lab) facts(t *rapid.T, tenant string) {
	if _, err := p.another().facts(context.Background(), tenant, map[string]bool{}); err != nil {
		t.Fatal(err)
	}
}

// piece does the next of a sweep or a rebuild, and dies after it.
func (p *lab) piece(t *rapid.T, tenant string) {
	if _, err := p.another().rebuild(context.Background(), tenant, new(rapid.IntRange(1, 8).Draw(t, "size")), map[string]bool{}); err != nil {
		t.Fatal(err)
	}
}

func (p *lab) change(t *rapid.T, tenant string, c contact.Change) {
	ids := p.some(t, tenant, 1, 6)
	p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return contact.Update(ctx, tx, "campaign", ids, c, "test")
	})
}

func (p *lab) move(t *rapid.T, tenant string, d time.Duration) {
	if _, err := p.admin.MoveClock(context.Background(), tenant, d); err != nil {
		t.Fatal(err)
	}
}

// rebuild asks for segments to be computed in full, those that there are.
func (p *lab) rebuild(t *rapid.T, tenant string, names ...string) {
	p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		for _, name := range names {
			if err := Request(ctx, tx, name); err != nil && !errors.Is(err, ErrUnknown) {
				return err
			}
		}
		return nil
	})
}

// settled works until nothing is left at the tenant's clock.
func (p *lab) settled(tenant string) {
	p.until("nothing is left to do", func() bool {
		all, err := p.keeper.work(context.Background(), tenant)
		if err != nil {
			p.Fatal(err)
		}
		left := true
		pgtest.In(p, p.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			at, err := p.keeper.next(ctx, tx)
			left = !at.After(tx.Now())
			return err
		})
		return all && !left
	})
}

// compare says how the members differ from the oracle's.
func (p *lab) compare(t *rapid.T, tenant string) string {
	got, want := map[string][]int64{}, map[string][]int64{}
	p.in(t, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		o, err := readOracle(ctx, tx, p.zones[tenant], fieldTypes)
		if err != nil {
			return err
		}
		for _, name := range p.all() {
			if want[name] = o.members(name); len(want[name]) == 0 {
				delete(want, name)
			}
		}
		rows, err := tx.Query(ctx, "SELECT e.name, array_agg(m.contact ORDER BY m.contact) FROM member m JOIN entity e ON e.id = m.segment WHERE m.kept <> 'out' GROUP BY 1")
		if err != nil {
			return err
		}
		for rows.Next() {
			var name string
			var ids []int64
			if err := rows.Scan(&name, &ids); err != nil {
				return err
			}
			got[name] = ids
		}
		return rows.Err()
	})
	return cmp.Diff(want, got)
}

// written is all rows of members, with the transactions that wrote them.
func (p *lab) written(tenant string) string {
	return strings.Join(pgtest.All[string](p, p.db, tenant, "SELECT concat_ws(' ', segment, contact, kept, xmin) FROM member ORDER BY segment, contact"), "\n")
}

func (p *lab) check(t *rapid.T, tenant string) {
	p.settled(tenant)
	// What passes while this looks is due within a tick, or as long after it as the machine is slow.
	for range 3 {
		if p.compare(t, tenant) == "" {
			break
		}
		p.settled(tenant)
	}
	if diff := p.compare(t, tenant); diff != "" {
		t.Fatalf("%s: the oracle (-) says otherwise than the members (+):\n%s", tenant, diff)
	}
	before := p.written(tenant)
	p.rebuild(t, tenant, p.all()...)
	p.settled(tenant)
	if after := p.written(tenant); after != before {
		t.Fatalf("%s: to compute all anew wrote rows: %s", tenant, cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
	}
}

// enough is how long the test goes on in the suite; with -rapid.checks it goes on for as many as are asked for.
const enough = 15 * time.Second

// Whatever happens, in whatever order and by whomever the work is done, the members of all kinds of segments are those that a reading of all rows by the words of the language gives, and to
// compute all anew writes nothing.
func TestMembersAreThoseOfTheLanguage(t *testing.T) {
	t.Parallel()
	p := newLab(t)
	actions := p.actions()
	names := slices.Sorted(keys(actions))
	for range 4 { // as often as all others together
		names = append(names, "fields", "tags", "event", "click", "reclassified", "clock", "document", "turned round", "facts", "forget")
	}
	deep := false
	flag.Visit(func(f *flag.Flag) { deep = deep || strings.HasPrefix(f.Name, "rapid.") })
	began, done, failed := time.Now(), 0, false
	rapid.Check(t, func(t *rapid.T) {
		if !deep && !failed && time.Since(began) > enough {
			return
		}
		was := failed
		failed = true // until it is over: what fails is made smaller, for as long as that takes
		for _, tenant := range []string{"acme", "brava"} {
			p.empty(t, tenant)
			for i := range asked {
				p.document(t, tenant, i)
			}
			p.turn(t, tenant)
			p.now = pgtest.One[time.Time](p, p.db, tenant, "SELECT onda.now()")
			for range 5 {
				actions["new contacts"](t, tenant)
			}
		}
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			tenant := rapid.SampledFrom([]string{"acme", "acme", "brava"}).Draw(t, "tenant")
			for range rapid.IntRange(1, 12).Draw(t, "actions") {
				p.now = pgtest.One[time.Time](p, p.db, tenant, "SELECT onda.now()")
				actions[rapid.SampledFrom(names).Draw(t, "action")](t, tenant)
			}
			p.check(t, tenant)
		}
		failed = was
		done++
	})
	t.Logf("%d runs", done)
}
