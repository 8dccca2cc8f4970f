// Package predicate makes SQL of the predicate language (language.md): a boolean expression over the rows of contact c, whose values are all
// parameters, and that is never NULL.
//
// Invariants: a missing value satisfies only isNot, notIn, hasNone and exists: false; not is the set difference; text ignores case. Everything that depends
// on time is computed from Env.Now and Env.Zone, so that the same Env gives the same answer.
package predicate

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Env is what a predicate is read with.
type Env struct {
	// Fields are the types of the tenant's fields by name; the built-in ones need not be in it.
	Fields map[string]spec.FieldType
	// Zone is in which dates are read: the tenant's, or the contact's where a campaign says so.
	Zone *time.Location
	// Now is the tenant's clock.
	Now time.Time
	// First is the number of the first parameter, when the statement has others before; 0 and 1 are the same.
	First int
	// NoScores is set of a tenant whose schema has none yet: all are 0.
	NoScores bool
	// Scope, when the statement looks at some contacts only, is the condition that it has on c.id, as it stands behind the column: BETWEEN $1 AND $2, or
	// = ANY ($1::bigint[]). It is repeated wherever other tables are asked, so that these are read by range and once, and not once a contact.
	Scope string
	// AskHits is set of a tenant whose schema is before postgres.TakenSchema.
	AskHits bool
	// Members are FROM items, by segment, that have the contacts of it in a column contact: of segments whose members are asked for as they would be, and not as
	// they are stored.
	Members map[string]string

	zoneRead *bool // set when Zone is asked for; nil for nobody wants to know
}

// Load reads the tenant's Env: its fields, the zone of its settings, its clock.
func Load(ctx context.Context, tx *postgres.Tx) (Env, error) {
	env := Env{Fields: map[string]spec.FieldType{}, Zone: time.UTC, Now: tx.Now(), NoScores: tx.Tenant.Schema < contact.ScoresSchema, AskHits: tx.Tenant.Schema < postgres.TakenSchema}
	rows, err := tx.Query(ctx, `SELECT e.kind, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind IN ('Field', 'Settings')`)
	if err != nil {
		return env, fmt.Errorf("read fields: %w", err)
	}
	var kind string
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&kind, &stored}, func() error {
		doc, err := spec.Decode(kind, stored)
		if err != nil {
			return err
		}
		switch d := doc.(type) {
		case *spec.Field:
			env.Fields[d.Name] = d.Type
		case *spec.Settings:
			env.Zone = d.Location()
		}
		return nil
	})
	if err != nil {
		return env, fmt.Errorf("read fields: %w", err)
	}
	return env, nil
}

func (env Env) fieldType(name string) (spec.FieldType, bool) {
	if _, ok := spec.ScoreGroup(name); ok {
		return spec.TypeNumber, true
	}
	for _, f := range spec.BuiltinFields() {
		if f.Name == name {
			return f.Type, true
		}
	}
	t, ok := env.Fields[name]
	return t, ok
}

func (env Env) zone() *time.Location {
	if env.zoneRead != nil {
		*env.zoneRead = true
	}
	if env.Zone == nil {
		return time.UTC
	}
	return env.Zone
}

// Query is a condition for WHERE: a boolean expression over contact c, in parentheses, that is true or false and never NULL.
type Query struct {
	SQL  string
	Args []any
}

// Compile makes the condition of a predicate. It fails where the predicate does not fit the fields (a field that was taken away) and for an expression of matches
// that Postgres cannot be asked.
//
//	q, err := predicate.Compile(p, env) // env.First: 2
//	tx.Query(ctx, "SELECT c.id FROM contact c WHERE c.id > $1 AND "+q.SQL, append([]any{after}, q.Args...)...)
func Compile(p *spec.Predicate, env Env) (Query, error) {
	c := &compiler{env: env, first: max(env.First, 1)}
	sql, err := c.predicate(p)
	if err != nil {
		return Query{}, err
	}
	return Query{SQL: sql, Args: c.args}, nil
}

// ReadsZone tells whether the predicate's answer depends on the zone that dates are read in. One that does not fit the fields counts as if.
func ReadsZone(p *spec.Predicate, env Env) bool {
	read := false
	env.zoneRead = &read
	_, err := Compile(p, env)
	return read || err != nil
}

type compiler struct {
	env   Env
	first int
	args  []any
}

// arg adds a parameter of a type of Postgres.
func (c *compiler) arg(v any, typ string) string {
	c.args = append(c.args, v)
	return "$" + strconv.Itoa(c.first+len(c.args)-1) + "::" + typ
}

// scope is Env.Scope of another table's column.
func (c *compiler) scope(column string) string {
	if c.env.Scope == "" {
		return ""
	}
	return " AND " + column + " " + c.env.Scope
}

func (c *compiler) text(s string) string { return c.arg(s, "text") }

func (c *compiler) predicate(p *spec.Predicate) (string, error) {
	switch {
	case len(p.All) > 0:
		return c.join(p.All, " AND ")
	case len(p.Any) > 0:
		return c.join(p.Any, " OR ")
	case p.Not != nil:
		sql, err := c.predicate(p.Not)
		return "(NOT " + sql + ")", err
	case p.Field != nil:
		return c.field(p.Field)
	case p.Tag != "":
		return "EXISTS (SELECT FROM unnest(c.tags) t WHERE lower(t) = lower(" + c.text(p.Tag) + "))", nil
	case p.Topic != nil:
		return c.topic(p.Topic)
	case p.Reachable != "":
		return "(" + contact.GateSQL("c", c.text(p.Reachable)) + " IS NULL)", nil
	case p.Segment != "" && c.env.Members[p.Segment] != "":
		return "(c.id IN (SELECT m.contact FROM " + c.env.Members[p.Segment] + " m))", nil
	case p.Segment != "":
		return "EXISTS (SELECT FROM member m WHERE m.contact = c.id" + c.scope("m.contact") + " AND m.kept <> 'out' AND m.segment = (SELECT e.id FROM entity e WHERE e.kind = 'Segment' AND e.name = " +
			c.text(p.Segment) + "))", nil
	case p.Event != nil:
		return c.event(p.Event)
	case p.Campaign != nil:
		return c.campaign(p.Campaign)
	case p.Sample != nil:
		// The first 32 bits of MD5: the same on every server and in every version, which Postgres's own hashes are not.
		return "(('x' || left(md5(" + c.text(p.Sample.Seed) + " || '/' || c.id), 8))::bit(32)::bigint < " +
			c.arg(int64(p.Sample.Percent/100*(1<<32)), "bigint") + ")", nil
	}
	return "", fmt.Errorf("an empty predicate")
}

func (c *compiler) join(ps []spec.Predicate, op string) (string, error) {
	parts := make([]string, len(ps))
	for i := range ps {
		var err error
		if parts[i], err = c.predicate(&ps[i]); err != nil {
			return "", err
		}
	}
	return "(" + strings.Join(parts, op) + ")", nil
}

func (c *compiler) topic(t *spec.TopicTest) (string, error) {
	row := "EXISTS (SELECT FROM subscription s WHERE s.contact = c.id" + c.scope("s.contact") + " AND s.purpose = " + c.text(t.Topic)
	switch t.State {
	case spec.StateSubscribed:
		return row + " AND s.state = 'granted')", nil
	case spec.StatePending:
		return row + " AND s.state = 'pending')", nil
	case spec.StateUnsubscribed:
		return row + " AND s.state = 'withdrawn')", nil
	case spec.StateNever:
		return "(NOT " + row + "))", nil
	}
	return "", fmt.Errorf("topic %s: %q is not a state", t.Topic, t.State)
}

func (c *compiler) campaign(t *spec.CampaignTest) (string, error) {
	row := "EXISTS (SELECT FROM journey j JOIN run r ON r.id = j.run WHERE j.contact = c.id" + c.scope("j.contact") + " AND r.entity = (SELECT e.id FROM entity e WHERE e.kind = 'Campaign' AND e.name = " +
		c.text(t.Campaign) + ")"
	switch t.State {
	case spec.CampaignNever:
		return "(NOT " + row + "))", nil
	case spec.CampaignActive, spec.CampaignDone, spec.CampaignGoal, spec.CampaignLeft:
		return row + " AND j.state = " + c.text(string(t.State)) + ")", nil
	}
	return "", fmt.Errorf("campaign %s: %q is not a state", t.Campaign, t.State)
}

// email is what the events are that have no fact with a contact: the states of deliveries.
func deliveryState(event string) (string, bool) {
	switch event {
	case "email.sent", "email.deferred", "email.failed", "email.suppressed":
		return strings.TrimPrefix(event, "email."), true
	}
	return "", false
}

// inSets are the facts about many contacts at once, which no index finds by contact.
func inSets(event string) bool { return event == "contact.changed" || event == "tag.changed" }

func (c *compiler) event(t *spec.EventTest) (string, error) {
	from, at, data := c.events(t)
	if t.Within != nil {
		from += " AND " + at + " >= " + c.arg(t.Within.Neg().AddTo(c.env.Now, c.env.zone()), "timestamptz") + " AND " + at + " <= " + c.arg(c.env.Now, "timestamptz")
	}
	if t.Between != nil {
		lo, err := t.Between[0].Moment()
		if err != nil {
			return "", err
		}
		hi, err := t.Between[1].Moment()
		if err != nil {
			return "", err
		}
		from += " AND " + c.instant(at, lo, spec.OpGte) + " AND " + c.instant(at, hi, spec.OpLte)
	}
	for _, p := range t.Where {
		sql, err := c.property(data, p)
		if err != nil {
			return "", fmt.Errorf("event %s, property %s: %w", t.Event, p.Name, err)
		}
		from += " AND " + sql
	}
	zero := t.Count.Matches(0)
	if inSets(t.Event) {
		// Computed once for all contacts: those whose number passes, or fails where also none passes.
		test, err := c.count("count(*)", t.Count)
		if err != nil {
			return "", err
		}
		if zero {
			return "(c.id NOT IN (SELECT u.contact " + from + " GROUP BY u.contact HAVING NOT " + test + "))", nil
		}
		return "(c.id IN (SELECT u.contact " + from + " GROUP BY u.contact HAVING " + test + "))", nil
	}
	if t.Count.Op == spec.OpGte && t.Count.Values[0].Number == 1 || t.Count.Op == spec.OpGt && t.Count.Values[0].Number == 0 {
		return "EXISTS (SELECT " + from + ")", nil
	}
	return c.count("(SELECT count(*) "+from+")", t.Count)
}

// events is where the events of a kind are: FROM and WHERE, without the conditions on time and data, and the expressions for these.
func (c *compiler) events(t *spec.EventTest) (from, at, data string) {
	if state, ok := deliveryState(t.Event); ok {
		from = "FROM delivery d" + c.deliveries(state, t.Of) + " AND d.contact = c.id" + c.scope("d.contact")
		return from, "d.at", "'{}'::jsonb"
	}
	kind, name := t.Event, t.Of
	if !isBuiltin(t.Event) {
		kind, name = "event.tracked", t.Event
	}
	if inSets(t.Event) {
		from = "FROM fact f CROSS JOIN LATERAL unnest(coalesce(f.contacts, ARRAY[f.contact])) u(contact) WHERE f.kind = " + c.text(kind) + " AND u.contact IS NOT NULL"
	} else {
		from = "FROM fact f WHERE f.contact = c.id" + c.scope("f.contact") + " AND f.kind = " + c.text(kind)
	}
	if name != "" {
		from += " AND f.name = " + c.text(name)
	}
	if isHit(kind) {
		schema := postgres.TakenSchema
		if c.env.AskHits {
			schema--
		}
		from += " AND " + postgres.StillHuman(schema)
	}
	return from, "f.at", "f.data"
}

// deliveries is the rest of FROM delivery d: those in a state, of an email where one is named.
func (c *compiler) deliveries(state, email string) string {
	if email == "" {
		return " WHERE d.state = " + c.text(state)
	}
	return " JOIN batch b ON b.id = d.id >> 9 WHERE d.state = " + c.text(state) +
		" AND b.email IN (SELECT doc.id FROM document doc JOIN entity e ON e.id = doc.entity WHERE e.kind = 'Email' AND e.name = " + c.text(email) + ")"
}

// isHit tells whether the facts of a kind tell what a person did, which later evidence may correct.
func isHit(kind string) bool { return kind == "email.opened" || kind == "email.clicked" }

func isBuiltin(event string) bool {
	for _, b := range spec.BuiltinEvents() {
		if b == event {
			return true
		}
	}
	return false
}

func (c *compiler) count(n string, t spec.Test) (string, error) {
	if t.Op == spec.OpBetween {
		return "(" + n + " BETWEEN " + c.numeric(t.Values[0]) + " AND " + c.numeric(t.Values[1]) + ")", nil
	}
	op, ok := map[spec.Op]string{spec.OpIs: "=", spec.OpGt: ">", spec.OpGte: ">=", spec.OpLt: "<", spec.OpLte: "<="}[t.Op]
	if !ok {
		return "", fmt.Errorf("%s does not fit a count", t.Op)
	}
	return "(" + n + " " + op + " " + c.numeric(t.Values[0]) + ")", nil
}
