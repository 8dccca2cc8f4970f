package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/postgres"
)

// example is a segment, and the SQL that one would write by hand for its members: of contact c, all of whom are there.
type example struct{ name, where, byHand string }

// examples are six segments of rising difficulty. A fact that was taken back is marked.
func examples() []example {
	const gate = `c.email IS NOT NULL AND EXISTS (SELECT FROM subscription s WHERE s.contact = c.id AND s.purpose = 'news' AND s.state = 'granted')
		AND NOT EXISTS (SELECT FROM suppression s WHERE s.contact = c.id AND s.channel = 'email' AND s.until > onda.now())`
	return []example{
		{
			"paying", `{all: [{field: plan, is: paid}, {field: level, gte: 10}]}`,
			`lower(c.fields->>'plan') = 'paid' AND (c.fields->'level')::numeric >= 10`,
		},
		{
			"late", `{any: [{tag: vip}, {field: trial_ends, inLast: 10d}]}`,
			`c.tags @> '{vip}' OR (c.fields->>'trial_ends')::timestamptz BETWEEN onda.now() - interval '10 days' AND onda.now()`,
		},
		{
			"readers", `{all: [{reachable: news}, {field: city, in: [Lisbon, Oslo, Paris, Porto]}]}`,
			gate + ` AND lower(c.fields->>'city') IN ('lisbon', 'oslo', 'paris', 'porto')`,
		},
		{
			"clicked", `{event: email.clicked, within: 30d}`,
			`EXISTS (SELECT FROM fact f WHERE f.contact = c.id AND f.kind = 'email.clicked' AND f.at BETWEEN onda.now() - interval '30 days' AND onda.now() AND NOT f.data ? 'taken')`,
		},
		{
			"buyers", `{event: order.placed, within: 365d, where: {total: {gte: 100}}, count: {gte: 2}}`,
			`c.id IN (SELECT f.contact FROM fact f WHERE f.contact IS NOT NULL AND f.kind = 'event.tracked' AND f.name = 'order.placed'
				AND f.at BETWEEN onda.now() - interval '365 days' AND onda.now() AND (f.data->'total')::numeric >= 100 GROUP BY f.contact HAVING count(*) >= 2)`,
		},
		{
			"quiet", `{all: [{segment: readers}, {not: {segment: clicked}}, {not: {event: email.opened, within: 90d}}, {field: created, olderThan: 90d}]}`,
			`c.created_at < onda.now() - interval '90 days' AND EXISTS (SELECT FROM member m WHERE m.segment = %[3]d AND m.contact = c.id AND m.kept <> 'out')
				AND NOT EXISTS (SELECT FROM member m WHERE m.segment = %[4]d AND m.contact = c.id AND m.kept <> 'out')
				AND NOT EXISTS (SELECT FROM fact f WHERE f.contact = c.id AND f.kind = 'email.opened' AND f.at BETWEEN onda.now() - interval '90 days' AND onda.now() AND NOT f.data ? 'taken')`,
		},
	}
}

// byHand is the statement for the example of an index, which reads the members of those before it from a table.
func byHand(all []example, i int, table string) string {
	where := all[i].byHand
	if strings.Contains(where, "%[") {
		where = strings.ReplaceAll(fmt.Sprintf(where, 1, 2, 3, 4), "FROM member m", "FROM "+table+" m")
	}
	return fmt.Sprintf("SELECT %d, c.id FROM contact c WHERE c.erased_at IS NULL AND c.merged_into IS NULL AND (%s)", i+1, where)
}

// segments are so many of all kinds, the examples first; more of them are alike but for their numbers.
func segments(n int) []example {
	out := examples()
	for i := len(out); i < n; i++ {
		where := []string{
			`{all: [{field: level, gte: %[1]d}, {field: plan, is: free}]}`,
			`{event: page.viewed, within: %[1]dd, count: {gte: 2}}`,
			`{all: [{tag: beta}, {not: {event: email.clicked, within: %[1]dd}}]}`,
			`{field: birthday, yearly: {inNext: %[1]dd}}`,
			`{event: order.placed, where: {total: {gte: %[1]d0}}}`,
			`{all: [{segment: paying}, {event: email.opened, within: %[1]dd}]}`,
			`{any: [{field: trial_ends, inNext: %[1]dd}, {event: form.submitted, within: %[1]dd}]}`,
			`{all: [{topic: news, state: subscribed}, {field: city, startsWith: L}, {field: level, lt: %[1]d}]}`,
		}[i%8]
		out = append(out, example{name: fmt.Sprintf("more-%d", i), where: fmt.Sprintf(where, 3+i%37)})
	}
	return out[:n]
}

func segmentDocuments(of []example) string {
	var b strings.Builder
	for _, e := range of {
		fmt.Fprintf(&b, "---\napiVersion: onda/v1\nkind: Segment\nmetadata: {name: %s}\nspec: {where: %s}\n", e.name, e.where)
	}
	return strings.TrimPrefix(b.String(), "---\n")
}

// allCurrent is SQL: every segment has been computed in full, as its document says.
const allCurrent = "SELECT count(*) > 0 AND bool_and(s.document = e.current AND s.building IS NULL AND NOT s.requested) FROM entity e LEFT JOIN segment s ON s.entity = e.id WHERE e.kind = 'Segment'"

// withSegments applies so many segments and has a process of segment compute them.
func (l *lab) withSegments(ctx context.Context, n int) error {
	if err := l.apply(ctx, segmentDocuments(segments(n))); err != nil {
		return err
	}
	if err := l.index(ctx); err != nil {
		return err
	}
	if err := l.start(ctx, "segment"); err != nil {
		return err
	}
	if _, err := l.side.do(task{Until: allCurrent}); err != nil {
		return err
	}
	return l.refresh(ctx)
}

// index makes the indexes that documents want, as onda apply does.
func (l *lab) index(ctx context.Context) (err error) {
	admin, err := postgres.OpenAdmin(ctx, l.url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, admin.Close(context.Background())) }()
	_, _, err = fieldindex.Ensure(ctx, admin, l.tenant)
	return err
}

// rebuild has all segments computed in full, and gives how long it took.
func (l *lab) rebuild(ctx context.Context) (time.Duration, error) {
	if err := l.exec(ctx, "UPDATE segment SET requested = true"); err != nil {
		return 0, err
	}
	return l.side.do(task{Until: allCurrent})
}

// forgetMembers has every contact join again.
func (l *lab) forgetMembers(ctx context.Context) error {
	return errors.Join(l.own(ctx, "TRUNCATE member"), l.exec(ctx, "UPDATE segment SET members = 0"))
}

// prepareRebuild measures how long six segments take to be computed in full, with the facts of who joined. The reference is the SQL that one would write by hand to insert the same rows into
// a table like theirs. Beside it: the same when nothing has changed, against the SELECT alone.
func prepareRebuild(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.withSegments(ctx, len(examples())); err != nil {
		return r, err
	}
	if err := l.own(ctx, "CREATE TABLE plain_member (LIKE member INCLUDING ALL)"); err != nil {
		return r, err
	}
	same := &beside{name: "nothing changed", unit: "s", goal: 1.2}
	r.beside = []*beside{same}
	all := examples()
	r.ours = func(ctx context.Context) (float64, error) {
		if err := l.forgetMembers(ctx); err != nil {
			return 0, err
		}
		took, err := l.rebuild(ctx)
		if err != nil {
			return 0, err
		}
		const changes = "SELECT coalesce(sum(cardinality(contacts)), 0) FROM fact WHERE kind IN ('segment.joined', 'segment.left')"
		before, err := l.one(ctx, changes)
		if err != nil {
			return 0, err
		}
		again, err := l.rebuild(ctx)
		if err != nil {
			return 0, err
		}
		after, err := l.one(ctx, changes)
		if n := after - before; err == nil && n*100 > int64(l.contacts) { // time goes on
			err = fmt.Errorf("%d joined or left though nothing had changed", n)
		}
		same.ours = append(same.ours, again.Seconds())
		return float64(l.contacts*len(all)) / took.Seconds(), err
	}
	r.reference = func(ctx context.Context) (float64, error) {
		if err := l.own(ctx, "TRUNCATE plain_member"); err != nil {
			return 0, err
		}
		var took, read time.Duration
		for i, e := range all {
			n, t, err := l.timed(ctx, "INSERT INTO plain_member (segment, contact) "+byHand(all, i, "plain_member"))
			if err != nil {
				return 0, fmt.Errorf("%s: %w", e.name, err)
			}
			took += t
			ours, err := l.one(ctx, "SELECT count(*) FROM member m JOIN entity e ON e.id = m.segment WHERE e.kind = 'Segment' AND e.name = $1", e.name)
			if err != nil {
				return 0, err
			}
			// Time goes on between the two.
			if diff := n - ours; diff*1000 > n || -diff*1000 > n {
				return 0, fmt.Errorf("%s has %d members, ours %d", e.name, n, ours)
			}
		}
		for i := range all {
			_, t, err := l.timed(ctx, "SELECT count(*) FROM ("+byHand(all, i, "plain_member")+" OFFSET 0) s")
			if err != nil {
				return 0, err
			}
			read += t
		}
		same.reference = append(same.reference, read.Seconds())
		return float64(l.contacts*len(all)) / took.Seconds(), nil
	}
	return r, nil
}

// prepareFollow measures how long twenty segments take to follow 500 contacts of whom each had something happen to it. The reference is their full rebuild.
func prepareFollow(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.withSegments(ctx, 20); err != nil {
		return r, err
	}
	took := &limit{name: "time", unit: "ms", goal: 150}
	r.limits = []*limit{took}
	round := 0
	r.ours = func(ctx context.Context) (float64, error) {
		round++
		changes := l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := tx.Exec(ctx, "UPDATE contact SET fields = fields || jsonb_build_object('level', (id + $1) % 100), tags = CASE WHEN id % 2 = 0 THEN '{vip}'::text[] ELSE '{}' END WHERE id % $2 = $1",
				round, l.contacts/500); err != nil {
				return err
			}
			var facts []postgres.Fact
			for i := range 500 {
				id := int64(i*(l.contacts/500) + round)
				switch i % 4 {
				case 0:
					facts = append(facts, postgres.Fact{Kind: "email.clicked", Contact: id, Data: []byte(`{"hit": 2000000000, "link": 1}`)})
				case 1:
					facts = append(facts, postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: id, Data: []byte(`{"total": 150}`)})
				case 2:
					facts = append(facts, postgres.Fact{Kind: "contact.changed", Contact: id, Data: []byte(`{"fields": ["level"]}`)})
				default:
					facts = append(facts, postgres.Fact{Kind: "tag.changed", Contact: id, Data: []byte(`{"added": ["vip"]}`)})
				}
			}
			return tx.AddFacts(ctx, facts...)
		})
		if changes != nil {
			return 0, changes
		}
		t, err := l.side.do(task{Until: "SELECT NOT EXISTS (SELECT FROM fact f, cursor c WHERE c.name = 'segment' AND (f.xid, f.id) > (c.xid, c.id) AND f.kind NOT LIKE 'segment.%')"})
		if err != nil {
			return 0, err
		}
		took.values = append(took.values, t.Seconds()*1000)
		return 1 / t.Seconds(), err
	}
	r.reference = func(ctx context.Context) (float64, error) {
		t, err := l.rebuild(ctx)
		return 1 / t.Seconds(), err
	}
	return r, nil
}
