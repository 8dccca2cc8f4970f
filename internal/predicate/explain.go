package predicate

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Part is one part of a predicate, and how it stands for one contact.
type Part struct {
	// Text is the part in words; of all, any and not that word alone.
	Text string `json:"text"`
	// Holds is what Compile's SQL says of it.
	Holds bool `json:"holds"`
	// Because is what is known of the contact that decides it. It may be personal.
	Because []string `json:"because,omitempty"`
	// Until is when time alone may change it, at the earliest; postgres.Never: it stays until something happens.
	Until time.Time `json:"-"`
	Parts []Part    `json:"parts,omitempty"`
}

// MarshalJSON leaves until out where it is never.
func (p Part) MarshalJSON() ([]byte, error) {
	type plain Part
	out := struct {
		plain
		Until *time.Time `json:"until,omitempty"`
	}{plain: plain(p)}
	if p.Until.Before(postgres.Never) {
		out.Until = &p.Until
	}
	return json.Marshal(out)
}

// Explain tells of each part of the predicate whether it holds for a contact, because of what, and until when. The whole holds as Compile says. A contact that is not there
// is an error that matches pgx.ErrNoRows.
func Explain(ctx context.Context, tx *postgres.Tx, p *spec.Predicate, env Env, contact int64) (Part, error) {
	env.Scope = "= $1::bigint"
	e := &explainer{c: &compiler{env: env, first: 2}}
	root, err := e.part(p)
	if err != nil {
		return Part{}, err
	}
	into := make([]any, 0, 2*len(e.leaves))
	for _, l := range e.leaves {
		into = append(into, &l.part.Holds, &l.found)
	}
	if err := tx.QueryRow(ctx, "SELECT "+strings.Join(e.columns, ", ")+" FROM contact c WHERE c.id = $1::bigint", append([]any{contact}, e.c.args...)...).Scan(into...); err != nil {
		return Part{}, fmt.Errorf("explain contact %d: %w", contact, err)
	}
	env.Scope = ""
	for _, l := range e.leaves {
		l.part.Because = because(l.of, l.found)
		if l.part.Until, err = NextChange(ctx, tx, l.of, env, []int64{contact}); err != nil {
			return Part{}, err
		}
	}
	conclude(p, root)
	return *root, nil
}

type explainer struct {
	c       *compiler
	columns []string
	leaves  []*leaf
}

// leaf is a part without parts, and what was found for it.
type leaf struct {
	of    *spec.Predicate
	part  *Part
	found []*string
}

func (e *explainer) part(p *spec.Predicate) (*Part, error) {
	of := func(text string, ps []spec.Predicate) (*Part, error) {
		out := &Part{Text: text, Parts: make([]Part, len(ps))}
		for i := range ps {
			part, err := e.part(&ps[i])
			if err != nil {
				return nil, err
			}
			out.Parts[i] = *part
			for _, l := range e.leaves { // the parts are kept by value: the leaf is the one that stays
				if l.part == part {
					l.part = &out.Parts[i]
				}
			}
		}
		return out, nil
	}
	switch {
	case len(p.All) > 0:
		return of("all", p.All)
	case len(p.Any) > 0:
		return of("any", p.Any)
	case p.Not != nil:
		return of("not", []spec.Predicate{*p.Not})
	}
	sql, err := e.c.predicate(p, true)
	if err != nil {
		return nil, err
	}
	evidence, err := e.evidence(p)
	if err != nil {
		return nil, err
	}
	part := &Part{Text: words(p)}
	e.columns = append(e.columns, "coalesce("+sql+", false)", evidence)
	e.leaves = append(e.leaves, &leaf{of: p, part: part})
	return part, nil
}

// conclude makes the whole of its parts.
func conclude(p *spec.Predicate, part *Part) {
	if len(part.Parts) == 0 {
		return
	}
	ps := p.All
	switch {
	case len(p.Any) > 0:
		ps = p.Any
	case p.Not != nil:
		ps = []spec.Predicate{*p.Not}
	}
	part.Holds, part.Until = len(p.All) > 0, postgres.Never
	for i := range part.Parts {
		child := &part.Parts[i]
		conclude(&ps[i], child)
		switch {
		case len(p.All) > 0:
			part.Holds = part.Holds && child.Holds
		case len(p.Any) > 0:
			part.Holds = part.Holds || child.Holds
		default:
			part.Holds = !child.Holds
		}
		if child.Until.Before(part.Until) {
			part.Until = child.Until
		}
	}
}

func utc(at string) string { return "to_char(" + at + " AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI')" }

// evidence is SQL of an array of texts: what decides the part.
func (e *explainer) evidence(p *spec.Predicate) (string, error) {
	c := e.c
	switch {
	case p.Tag != "", p.Field != nil && p.Field.Field == "tags":
		return "ARRAY[array_to_string(c.tags, ', ')]", nil
	case p.Field != nil:
		var value string
		group, isScore := spec.ScoreGroup(p.Field.Field)
		switch {
		case p.Field.Field == "email" || p.Field.Field == "external_id":
			value = "c." + p.Field.Field
		case p.Field.Field == "created":
			value = utc("c.created_at")
		case isScore && c.env.NoScores:
			value = "'0'"
		case isScore:
			value = "(" + contact.ScoreSQL("c", c.text(group)) + ")::text"
		default:
			value = "c.fields->>" + c.text(p.Field.Field)
		}
		return "ARRAY[" + value + "]", nil
	case p.Stage != "" && !c.env.NoStages:
		return "ARRAY[c.stage]", nil
	case p.Topic != nil:
		return "(SELECT ARRAY[s.state, " + utc("s.at") + "] FROM subscription s WHERE s.contact = c.id AND s.purpose = " + c.text(p.Topic.Topic) + ")", nil
	case p.Reachable != "":
		return "ARRAY[" + contact.GateSQL("c", c.text(p.Reachable)) + "]", nil
	case p.Segment != "":
		return "(SELECT ARRAY[m.kept, " + utc("m.since") + "] FROM member m JOIN entity me ON me.id = m.segment WHERE m.contact = c.id AND me.kind = 'Segment' AND me.name = " + c.text(p.Segment) + ")", nil
	case p.Event != nil:
		at := "f.at"
		if _, ok := deliveryState(p.Event.Event); ok {
			at = "d.at"
		}
		from, err := c.happened(p.Event, func(column string) string { return column + " = c.id" + c.scope(column) })
		return "(SELECT ARRAY[count(*)::text, " + utc("max("+at+")") + "] " + from + ")", err
	case p.Campaign != nil:
		return "(SELECT ARRAY[j.state, " + utc("coalesce(j.ended_at, j.entered_at)") + "] FROM journey j JOIN run r ON r.id = j.run JOIN entity je ON je.id = r.entity WHERE j.contact = c.id AND je.kind = 'Campaign' AND je.name = " +
			c.text(p.Campaign.Campaign) + " ORDER BY j.id DESC LIMIT 1)", nil
	}
	return "ARRAY[]::text[]", nil
}

// because puts what was found into words.
func because(p *spec.Predicate, found []*string) []string {
	at := func(i int) string {
		if i < len(found) && found[i] != nil {
			return *found[i]
		}
		return ""
	}
	switch {
	case p.Tag != "", p.Field != nil && p.Field.Field == "tags":
		if at(0) == "" {
			return []string{"it has no tags"}
		}
		return []string{"its tags: " + at(0)}
	case p.Field != nil && (len(found) == 0 || found[0] == nil):
		return []string{p.Field.Field + " has no value"}
	case p.Field != nil:
		return []string{p.Field.Field + " is " + at(0)}
	case p.Stage != "" && at(0) == "":
		return []string{"it is at no stage"}
	case p.Stage != "":
		return []string{"its stage is " + at(0)}
	case p.Topic != nil && len(found) == 0:
		return []string{"it never subscribed"}
	case p.Topic != nil:
		return []string{at(0) + " since " + at(1)}
	case p.Reachable != "" && at(0) == "":
		return []string{"a mail would get through"}
	case p.Reachable != "":
		return []string{"refused: " + strings.ReplaceAll(at(0), "_", " ")}
	case p.Segment != "" && (len(found) == 0 || at(0) == "out"):
		return []string{"it is no member"}
	case p.Segment != "":
		return []string{"member since " + at(1)}
	case p.Event != nil && at(0) == "0":
		return []string{"it did not happen"}
	case p.Event != nil && at(0) == "1":
		return []string{"it happened once, at " + at(1)}
	case p.Event != nil:
		return []string{"it happened " + at(0) + " times, last at " + at(1)}
	case p.Campaign != nil && len(found) == 0:
		return []string{"it was never in it"}
	case p.Campaign != nil:
		return []string{at(0) + " since " + at(1)}
	}
	return nil
}

// mostWords are so many values of a list that are told: there may be thousands.
const mostWords = 10

// words says a part that has no parts as its document does.
func words(p *spec.Predicate) string {
	test := func(t spec.Test) string {
		values := make([]string, min(len(t.Values), mostWords))
		for i := range values {
			values[i] = t.Values[i].Text
		}
		if more := len(t.Values) - len(values); more > 0 {
			values = append(values, fmt.Sprintf("and %d more", more))
		}
		switch t.Op {
		case spec.OpInLast, spec.OpInNext, spec.OpOlderThan:
			return fmt.Sprintf("%s %s", t.Op, length(t.Duration))
		case spec.OpYearly:
			return fmt.Sprintf("yearly %s %s", t.Yearly, length(t.Duration))
		case spec.OpExists:
			return fmt.Sprintf("exists %t", t.Exists)
		default:
			return fmt.Sprintf("%s %s", t.Op, strings.Join(values, ", "))
		}
	}
	switch {
	case p.Field != nil:
		return p.Field.Field + " " + test(p.Field.Test)
	case p.Tag != "":
		return "tag " + p.Tag
	case p.Stage != "":
		return "stage " + p.Stage
	case p.Topic != nil:
		return fmt.Sprintf("topic %s %s", p.Topic.Topic, p.Topic.State)
	case p.Reachable != "":
		return "reachable " + p.Reachable
	case p.Segment != "":
		return "segment " + p.Segment
	case p.Campaign != nil:
		return fmt.Sprintf("campaign %s %s", p.Campaign.Campaign, p.Campaign.State)
	case p.Sample != nil:
		return fmt.Sprintf("sample %g %% by %s", p.Sample.Percent, p.Sample.Seed)
	case p.Event == nil:
		return "?"
	}
	t := p.Event
	out := "event " + t.Event
	if t.Of != "" {
		out += " of " + t.Of
	}
	for _, w := range t.Where {
		out += ", " + w.Name + " " + test(w.Test)
	}
	if t.Within != nil {
		out += " within " + length(*t.Within)
	}
	if t.Between != nil {
		out += " between " + t.Between[0].Text + " and " + t.Between[1].Text
	}
	if !(t.Count.Op == spec.OpGte && len(t.Count.Values) == 1 && t.Count.Values[0].Number == 1) {
		out += ", count " + test(t.Count)
	}
	return out
}

// length is a duration as people write it: in days, where its shortest form is of weeks and days.
func length(d spec.Duration) string {
	if d.Days%7 != 0 && d.Months == 0 && d.Minutes == 0 {
		return fmt.Sprintf("%dd", d.Days)
	}
	return d.String()
}
