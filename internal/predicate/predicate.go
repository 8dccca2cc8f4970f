// Package predicate makes SQL of the predicate language (language.md): a condition over the rows of contact c, whose values are all parameters.
//
// Invariants: a missing value satisfies only isNot, notIn, hasNone and exists: false; not is the set difference; text ignores case. Everything that depends
// on time is computed from Env.Now and Env.Zone, so that the same Env gives the same answer.
//
// The condition is true or, where the predicate is not, false or NULL, as WHERE takes it: a test stands in it bare, so that an index may answer it. To that end NOT
// is pushed down to the single tests, which are negated there so that NULL counts as false.
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
	// NoStages is set of a tenant whose schema has none yet: nobody is at any.
	NoStages bool
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
	env := Env{Fields: map[string]spec.FieldType{}, Zone: time.UTC}.At(tx)
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

// At gives the Env with what a transaction knows of the tenant: its clock, and what its schema has. For one that is kept from one transaction to the next.
func (env Env) At(tx *postgres.Tx) Env {
	schema := tx.Tenant.Schema
	env.Now, env.NoScores, env.NoStages, env.AskHits = tx.Now(), schema < contact.ScoresSchema, schema < contact.StageSchema, schema < postgres.TakenSchema
	return env
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

// Query is a condition for WHERE: a boolean expression over contact c, in parentheses, that is true where the predicate is. Where it is not, it is false or NULL: so whoever
// negates it, or needs a value, writes IS TRUE or IS NOT TRUE behind it.
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
	sql, err := c.predicate(p, true)
	if err != nil {
		return Query{}, err
	}
	if len(c.args) > maxArgs {
		return Query{}, fmt.Errorf("it compares with %d values, of at most %d in all: give those contacts a tag, or keep them by name", len(c.args), maxArgs)
	}
	return Query{SQL: sql, Args: c.args}, nil
}

// maxArgs leaves room for the other parameters of a statement, which has 65,535 at most.
const maxArgs = 60_000

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

// along is Env.Scope of the column of a table that is asked for each contact: of a list, which would be gone through for each, there is nothing to repeat.
func (c *compiler) along(column string) string {
	if !strings.HasPrefix(c.env.Scope, "BETWEEN") {
		return ""
	}
	return c.scope(column)
}

func (c *compiler) text(s string) string { return c.arg(s, "text") }

// predicate is a condition that is true where the predicate is, or with is = false where it is not; else it is false or NULL.
func (c *compiler) predicate(p *spec.Predicate, is bool) (string, error) {
	switch {
	case len(p.All) > 0:
		return c.join(p.All, is, is)
	case len(p.Any) > 0:
		return c.join(p.Any, is, !is)
	case p.Not != nil:
		return c.predicate(p.Not, !is)
	case p.Field != nil:
		return c.field(p.Field, is)
	case p.Tag != "":
		return whether("("+c.tagged([]spec.Value{{Text: p.Tag}})+")", is), nil
	case p.Stage != "":
		if c.env.NoStages {
			return whether("false", is), nil
		}
		return unless("(c.stage = "+c.text(p.Stage)+")", is), nil
	case p.Topic != nil:
		return c.topic(p.Topic, is)
	case p.Reachable != "":
		return whether(contact.OpenSQL("c", c.text(p.Reachable), c.along), is), nil
	case p.Segment != "" && c.env.Members[p.Segment] != "":
		return whether("(c.id IN (SELECT m.contact FROM "+c.env.Members[p.Segment]+" m))", is), nil
	case p.Segment != "":
		return whether("EXISTS (SELECT FROM member m WHERE m.contact = c.id"+c.along("m.contact")+
			" AND m.kept <> 'out' AND m.segment = (SELECT e.id FROM entity e WHERE e.kind = 'Segment' AND e.name = "+c.text(p.Segment)+"))", is), nil
	case p.Event != nil:
		return c.event(p.Event, is)
	case p.Campaign != nil:
		return c.campaign(p.Campaign, is)
	case p.Sample != nil:
		// The first 32 bits of MD5: the same on every server and in every version, which Postgres's own hashes are not.
		return whether("(('x' || left(md5("+c.text(p.Sample.Seed)+" || '/' || c.id), 8))::bit(32)::bigint < "+
			c.arg(int64(p.Sample.Percent/100*(1<<32)), "bigint")+")", is), nil
	}
	return "", fmt.Errorf("an empty predicate")
}

// whether is for a condition that is never NULL.
func whether(sql string, is bool) string {
	if is {
		return sql
	}
	return "(NOT " + sql + ")"
}

// unless is for a condition that may be NULL, which counts as false.
func unless(sql string, is bool) string {
	if is {
		return sql
	}
	return "(" + sql + " IS NOT TRUE)"
}

// join joins by AND or, with all = false, by OR.
func (c *compiler) join(ps []spec.Predicate, is, all bool) (string, error) {
	parts := make([]string, len(ps))
	for i := range ps {
		var err error
		if parts[i], err = c.predicate(&ps[i], is); err != nil {
			return "", err
		}
	}
	if all {
		return "(" + strings.Join(parts, " AND ") + ")", nil
	}
	return "(" + strings.Join(parts, " OR ") + ")", nil
}

func (c *compiler) topic(t *spec.TopicTest, is bool) (string, error) {
	row := "EXISTS (SELECT FROM subscription s WHERE s.contact = c.id" + c.along("s.contact") + " AND s.purpose = " + c.text(t.Topic)
	switch t.State {
	case spec.StateSubscribed:
		return whether(row+" AND s.state = 'granted')", is), nil
	case spec.StatePending:
		return whether(row+" AND s.state = 'pending')", is), nil
	case spec.StateUnsubscribed:
		return whether(row+" AND s.state = 'withdrawn')", is), nil
	case spec.StateNever:
		return whether(row+")", !is), nil
	}
	return "", fmt.Errorf("topic %s: %q is not a state", t.Topic, t.State)
}

func (c *compiler) campaign(t *spec.CampaignTest, is bool) (string, error) {
	row := "EXISTS (SELECT FROM journey j JOIN run r ON r.id = j.run WHERE j.contact = c.id" + c.along("j.contact") +
		" AND r.entity = (SELECT e.id FROM entity e WHERE e.kind = 'Campaign' AND e.name = " + c.text(t.Campaign) + ")"
	switch t.State {
	case spec.CampaignNever:
		return whether(row+")", !is), nil
	case spec.CampaignActive, spec.CampaignDone, spec.CampaignGoal, spec.CampaignLeft:
		return whether(row+" AND j.state = "+c.text(string(t.State))+")", is), nil
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

// inSets are the facts that may be about many contacts at once, whom no index finds.
func inSets(event string) bool { return event == "contact.changed" || event == "tag.changed" }

func (c *compiler) event(t *spec.EventTest, is bool) (string, error) {
	zero := t.Count.Matches(0)
	const many = 1e9
	switch {
	case t.Count.Matches(1) != zero && t.Count.Matches(many) != zero: // whether there is one, or none
		from, err := c.happened(t, func(column string) string { return column + " = c.id" + c.along(column) })
		return whether("EXISTS (SELECT "+from+")", is != zero), err
	case c.env.Scope == "" && !inSets(t.Event): // for each contact by itself
		from, err := c.happened(t, func(column string) string { return column + " = c.id" })
		if err != nil {
			return "", err
		}
		test, err := c.count("(SELECT count(*) "+from+")", t.Count)
		return whether(test, is), err
	}
	// Counted for all at once. Where also none would do, those are looked for whose number would not.
	column := "f.contact"
	from, err := c.happened(t, func(of string) string {
		column = of
		if c.env.Scope == "" {
			return of + " IS NOT NULL"
		}
		return of + " " + c.env.Scope
	})
	if err != nil {
		return "", err
	}
	test, err := c.count("count(*)", t.Count)
	return whether("EXISTS (SELECT FROM (SELECT "+column+" AS contact "+from+" GROUP BY 1 HAVING "+whether(test, !zero)+") n WHERE n.contact = c.id)", is != zero), err
}

// happened is what the event counts: FROM and WHERE. who makes the condition on the column that says whose it is.
func (c *compiler) happened(t *spec.EventTest, who func(column string) string) (string, error) {
	from, at, data := c.events(t, who)
	if t.Within != nil {
		from += " AND " + at + " BETWEEN " + c.arg(t.Within.Neg().AddTo(c.env.Now, c.env.zone()), "timestamptz") + " AND " + c.arg(c.env.Now, "timestamptz")
	}
	if t.Between != nil {
		between, err := c.instants(at, spec.Test{Op: spec.OpBetween, Values: t.Between[:]})
		if err != nil {
			return "", err
		}
		from += " AND " + between
	}
	for _, p := range t.Where {
		sql, err := c.property(data, p)
		if err != nil {
			return "", fmt.Errorf("event %s, property %s: %w", t.Event, p.Name, err)
		}
		from += " AND " + sql
	}
	return from, nil
}

// events is where the events of a kind are: FROM and WHERE, without the conditions on time and data, and the expressions for these.
func (c *compiler) events(t *spec.EventTest, who func(column string) string) (from, at, data string) {
	if state, ok := deliveryState(t.Event); ok {
		return "FROM delivery d" + c.deliveries(state, t.Of) + " AND " + who("d.contact"), "d.at", "'{}'::jsonb"
	}
	kind, name := factOf(t)
	of := " AND f.kind = " + c.text(kind)
	if name != "" {
		of += " AND f.name = " + c.text(name)
	}
	if isHit(kind) {
		schema := postgres.TakenSchema
		if c.env.AskHits {
			schema--
		}
		of += " AND " + postgres.StillHuman(schema)
	}
	if inSets(t.Event) {
		return "FROM (SELECT f.contact, f.at, f.data FROM fact f WHERE f.contact IS NOT NULL" + c.scope("f.contact") + of +
			" UNION ALL SELECT u.contact, f.at, f.data FROM fact f CROSS JOIN LATERAL unnest(f.contacts) u (contact) WHERE f.contacts IS NOT NULL" + c.scope("u.contact") + of +
			") f WHERE " + who("f.contact"), "f.at", "f.data"
	}
	return "FROM fact f WHERE " + who("f.contact") + of, "f.at", "f.data"
}

// factOf gives the kind and the name of the facts that an event has; any name when it is empty.
func factOf(t *spec.EventTest) (kind, name string) {
	if !isBuiltin(t.Event) {
		return "event.tracked", t.Event
	}
	return t.Event, t.Of
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
	op, ok := comparison(t.Op)
	if t.Op == spec.OpIs {
		op, ok = "=", true
	}
	if !ok {
		return "", fmt.Errorf("%s does not fit a count", t.Op)
	}
	return "(" + n + " " + op + " " + c.numeric(t.Values[0]) + ")", nil
}
