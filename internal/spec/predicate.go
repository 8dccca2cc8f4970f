package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Predicate is a question about one contact. Exactly one of its fields is set.
// A missing value satisfies only isNot, notIn, hasNone and exists: false; Not is
// the set difference; text ignores case.
type Predicate struct {
	All       []Predicate   // at least one
	Any       []Predicate   // at least one
	Not       *Predicate    //
	Field     *FieldTest    // of a Field, or a built-in one: email, external_id, created, tags, score
	Tag       string        // has this tag
	Stage     string        // is at this stage
	Topic     *TopicTest    //
	Reachable string        // the gate would let a mail of this topic through
	Segment   string        // is a member
	Event     *EventTest    //
	Campaign  *CampaignTest //
	Sample    *SampleTest   //
}

// FieldTest asks about one field of the contact.
type FieldTest struct {
	Field string
	Test
}

// Test is an operator with what it is asked with.
type Test struct {
	Op       Op
	Values   []Value        // is isNot gt gte lt lte contains startsWith endsWith matches before after: one; between: two; in notIn hasAny hasAll hasNone: any number
	Duration Duration       // inLast, inNext, olderThan; of yearly too
	Yearly   Op             // inLast or inNext, when Op is yearly
	Exists   bool           // of exists
	Pattern  *regexp.Regexp // of matches: RE2, ignoring case
}

// ValueKind is the kind of a scalar in a document.
type ValueKind int

// The kinds of values.
const (
	TextValue ValueKind = iota
	NumberValue
	BoolValue
)

// Value is a scalar of a document. Text is how it was written, whatever the
// kind: a number compared with a text field is compared as it was written.
type Value struct {
	Kind   ValueKind
	Text   string
	Number float64
	Bool   bool
}

// String gives the value as it was written.
func (v Value) String() string { return v.Text }

// Moment reads the value as a date.
func (v Value) Moment() (Moment, error) { return ParseMoment(v.Text) }

// Any gives the value as string, float64 or bool.
func (v Value) Any() any {
	switch v.Kind {
	case NumberValue:
		return v.Number
	case BoolValue:
		return v.Bool
	default:
		return v.Text
	}
}

// TopicState is how a contact stands to a topic.
type TopicState string

// The states of a topic.
const (
	StateSubscribed   TopicState = "subscribed"
	StatePending      TopicState = "pending"
	StateUnsubscribed TopicState = "unsubscribed"
	StateNever        TopicState = "never"
)

// TopicTest asks how the contact stands to a topic.
type TopicTest struct {
	Topic string
	State TopicState
}

// EventTest asks how often something happened to a contact or was done by it.
type EventTest struct {
	Event   string     // such as email.clicked, or an event of the tenant's own
	Of      string     // the email of an email.*, the form of a form.*, the topic of a consent.*
	Where   []Property // all of them; sorted by name
	Within  *Duration  // counted back from now
	Between *[2]Value  // two moments, both included
	Count   Test       // is, gt, gte, lt, lte or between, on the number of events; gte 1 when not given
}

// Property tests a property of an event.
type Property struct {
	Name string // a.b for a property within a property
	Test
}

// CampaignState is how a contact stands to a campaign.
type CampaignState string

// The states of a contact in a campaign.
const (
	CampaignActive CampaignState = "active"
	CampaignDone   CampaignState = "done"
	CampaignGoal   CampaignState = "goal"
	CampaignLeft   CampaignState = "left"
	CampaignNever  CampaignState = "never"
)

// CampaignTest asks how the contact stands to a campaign.
type CampaignTest struct {
	Campaign string
	State    CampaignState
}

// SampleTest takes a share of contacts by a hash of contact and seed.
type SampleTest struct {
	Percent float64 // above 0, at most 100
	Seed    string
}

// ParsePredicate reads one predicate in YAML or JSON, checked for its form but
// not against other documents: for tests and for the command line.
func ParsePredicate(src string) (*Predicate, error) {
	docs, problems := parseYAML("", []byte(src))
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(docs) != 1 {
		return nil, Problem{Msg: "there must be exactly one predicate"}
	}
	d := &decoder{doc: &Document{}}
	p, _ := predicateRule().read(d, docs[0])
	if err := d.problems.Err(); err != nil {
		return nil, err
	}
	return &p, nil
}

// Walk calls f for the predicate and everything in it, parents first.
func (p *Predicate) Walk(f func(*Predicate)) {
	f(p)
	for i := range p.All {
		p.All[i].Walk(f)
	}
	for i := range p.Any {
		p.Any[i].Walk(f)
	}
	if p.Not != nil {
		p.Not.Walk(f)
	}
}

// Segments gives the names of the segments asked about, sorted.
func (p *Predicate) Segments() []string {
	var names []string
	p.Walk(func(q *Predicate) {
		if q.Segment != "" {
			names = append(names, q.Segment)
		}
	})
	slices.Sort(names)
	return slices.Compact(names)
}

func predicateRule() rule[Predicate] {
	// a rule of its own in each place where predicates nest, made when it is needed
	self := rule[Predicate]{
		read:   func(d *decoder, n *node) (Predicate, bool) { return predicateRule().read(d, n) },
		schema: func(b *schemaBuilder) schema { return predicateRule().schema(b) },
	}
	return variants("predicate", "predicate", []string{"device", "location"},
		variant[Predicate]{"all", func(o *object, p *Predicate) { get(o, "all", list(self, 1), &p.All, optional) }},
		variant[Predicate]{"any", func(o *object, p *Predicate) { get(o, "any", list(self, 1), &p.Any, optional) }},
		variant[Predicate]{"not", func(o *object, p *Predicate) { get(o, "not", pointer(self), &p.Not, optional) }},
		variant[Predicate]{"field", func(o *object, p *Predicate) { p.Field = fieldTestKeys(o) }},
		variant[Predicate]{"tag", func(o *object, p *Predicate) { get(o, "tag", tagRule(), &p.Tag, optional) }},
		variant[Predicate]{"stage", func(o *object, p *Predicate) {
			get(o, "stage", stageRule(), &p.Stage, optional)
			o.check(func(d *decoder, n *node) {
				if p.Stage != "" {
					d.later(func(c *checker) { c.stage(n.get("stage").position, p.Stage) })
				}
			})
		}},
		variant[Predicate]{"topic", func(o *object, p *Predicate) {
			p.Topic = &TopicTest{}
			get(o, "topic", reference(KindTopic), &p.Topic.Topic, required)
			get(o, "state", choice(StateSubscribed, StatePending, StateUnsubscribed, StateNever), &p.Topic.State, required)
		}},
		variant[Predicate]{"reachable", func(o *object, p *Predicate) {
			get(o, "reachable", reference(KindTopic), &p.Reachable, optional)
		}},
		variant[Predicate]{"segment", func(o *object, p *Predicate) {
			get(o, "segment", segmentReference(), &p.Segment, optional)
		}},
		variant[Predicate]{"event", func(o *object, p *Predicate) { p.Event = eventTestKeys(o) }},
		variant[Predicate]{"campaign", func(o *object, p *Predicate) {
			p.Campaign = &CampaignTest{}
			get(o, "campaign", reference(KindCampaign), &p.Campaign.Campaign, required)
			get(o, "state", choice(CampaignActive, CampaignDone, CampaignGoal, CampaignLeft, CampaignNever), &p.Campaign.State, required)
		}},
		variant[Predicate]{"sample", func(o *object, p *Predicate) {
			p.Sample = &SampleTest{}
			get(o, "sample", percent(), &p.Sample.Percent, required)
			get(o, "seed", nameRule(), &p.Sample.Seed, required)
		}},
	)
}

func percent() rule[float64] {
	return rule[float64]{
		read: func(d *decoder, n *node) (float64, bool) {
			v, err := strconv.ParseFloat(n.text, 64)
			if n.kind != numberNode || err != nil || v <= 0 || v > 100 {
				d.wrong(n, "a number above 0, at most 100")
				return 0, false
			}
			return v, true
		},
		schema: func(*schemaBuilder) schema {
			return schema{"type": "number", "exclusiveMinimum": 0, "maximum": 100}
		},
	}
}

func fieldTestKeys(o *object) *FieldTest {
	f := &FieldTest{}
	named := get(o, "field", fieldReference(), &f.Field, required)
	tested := testKeys(o, &f.Test, nil)
	o.check(func(d *decoder, n *node) {
		if named && tested {
			d.later(func(c *checker) { c.fieldTest(n, f) })
		}
	})
	return f
}

// testKeys reads the one operator of a test.
func testKeys(o *object, t *Test, only []Op) bool {
	names := operatorNames()
	if only != nil {
		names = nil
		for _, op := range only {
			names = append(names, string(op))
		}
	}
	if o.n == nil {
		for _, name := range names {
			op, _ := findOperator(Op(name))
			o.properties[name] = op.takes.schema(o.builder)
		}
		o.oneOf(names...)
		return false
	}
	var found *entry
	good := true
	for _, e := range o.n.entries {
		switch {
		case slices.Contains(o.keys, e.key):
		case !slices.Contains(names, e.key):
			o.d.fail(e.position, "%s", unknown("operator", e.key, names))
			good = false
		case found != nil:
			o.d.fail(e.position, "there is %q already: one operator at a time, the others in all: [...]", found.key)
			good = false
		default:
			found = e
		}
	}
	o.elsewhere = true
	if found == nil {
		if good {
			o.d.fail(o.n.position, "an operator is missing, such as is, in or exists")
		}
		return false
	}
	op, _ := findOperator(Op(found.key))
	t.Op = op.op
	return op.takes.read(o.d, found.value, t) && good
}

func valueRule() rule[Value] {
	return rule[Value]{
		read: func(d *decoder, n *node) (Value, bool) {
			v := Value{Text: n.text}
			switch n.kind {
			case textNode:
				return v, true
			case boolNode:
				v.Kind, v.Bool = BoolValue, n.text == "true"
				return v, true
			case numberNode:
				f, err := strconv.ParseFloat(n.text, 64)
				if err != nil {
					d.fail(n.position, "the number %s is too large", n.text)
					return v, false
				}
				v.Kind, v.Number = NumberValue, f
				return v, true
			default:
				d.wrong(n, "a text, a number, true or false")
				return v, false
			}
		},
		schema: func(*schemaBuilder) schema { return schema{"type": []string{"string", "number", "boolean"}} },
	}
}

// orderedRule is a number or a moment.
func orderedRule() rule[Value] {
	return rule[Value]{
		read: func(d *decoder, n *node) (Value, bool) {
			v, ok := valueRule().read(d, n)
			if ok && v.Kind == BoolValue {
				d.wrong(n, "a number or a date")
				return v, false
			}
			if ok && v.Kind == TextValue {
				return momentRule().read(d, n)
			}
			return v, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{schema{"type": "number"}, momentRule().schema(b)}}
		},
	}
}

const momentPattern = `^([0-9]{4}-[0-9]{2}-[0-9]{2}([T ].+)?|now|today|[+-].+)$`

func momentRule() rule[Value] {
	return scalar("a date such as 2026-06-30, today or -30d", momentPattern, func(s string) (Value, error) {
		_, err := ParseMoment(s)
		return Value{Text: s}, err
	})
}

func wordsRule() rule[Value] {
	return rule[Value]{
		read: func(d *decoder, n *node) (Value, bool) {
			v, ok := valueRule().read(d, n)
			if ok && (v.Kind == BoolValue || v.Text == "") {
				d.wrong(n, "text")
				return v, false
			}
			v.Kind, v.Number = TextValue, 0
			return v, ok
		},
		schema: func(*schemaBuilder) schema {
			return schema{"anyOf": []any{schema{"type": "string", "minLength": 1}, schema{"type": "number"}}}
		},
	}
}

// maxPattern bounds an expression of matches, in bytes.
const maxPattern = 200

func patternRule() rule[*regexp.Regexp] {
	return scalar("a regular expression of at most 200 characters", `^.{1,200}$`, func(s string) (*regexp.Regexp, error) {
		re, err := regexp.Compile("(?i:" + s + ")")
		if err != nil || len(s) > maxPattern {
			return nil, Problem{Msg: fmt.Sprintf("not a regular expression: %s", strings.TrimPrefix(fmt.Sprint(err), "error parsing regexp: "))}
		}
		return re, nil
	})
}

type yearly struct {
	op     Op
	within Duration
}

func yearlyRule() rule[yearly] {
	return shape("yearly", func(o *object, y *yearly) {
		if get(o, "inNext", durationRule(), &y.within, optional) {
			y.op = OpInNext
		}
		if get(o, "inLast", durationRule(), &y.within, optional) {
			y.op = OpInLast
		}
		o.oneOf("inNext", "inLast")
	})
}

func twoRule() rule[[]Value] {
	return rule[[]Value]{
		read: func(d *decoder, n *node) ([]Value, bool) {
			if n.kind != listNode || len(n.items) != 2 {
				d.fail(n.position, "must be a list of two, the lowest and the highest, such as [50, 100]")
				return nil, false
			}
			vs, ok := list(orderedRule(), 2).read(d, n)
			if !ok {
				return nil, false
			}
			if vs[0].Kind != vs[1].Kind {
				d.fail(n.position, "both must be numbers, or both dates")
				return nil, false
			}
			if vs[0].Kind == NumberValue && vs[0].Number > vs[1].Number {
				d.fail(n.position, "the lowest comes first: %s is above %s", vs[0], vs[1])
				return nil, false
			}
			if vs[0].Kind == TextValue {
				a, _ := vs[0].Moment()
				b, _ := vs[1].Moment()
				if !a.relative && !b.relative && a.date.After(b.date) {
					d.fail(n.position, "the first comes first: %s is after %s", vs[0], vs[1])
					return nil, false
				}
			}
			return vs, true
		},
		schema: func(b *schemaBuilder) schema {
			// mixed kinds are for the decoder; an editor hardly meets them
			pair := func(s schema) schema { return schema{"type": "array", "items": s, "minItems": 2, "maxItems": 2} }
			return schema{"anyOf": []any{pair(schema{"type": "number"}), pair(momentRule().schema(b))}}
		},
	}
}

func (k operand) read(d *decoder, n *node, t *Test) bool {
	ok := false
	one := func(r rule[Value]) {
		var v Value
		if v, ok = r.read(d, n); ok {
			t.Values = []Value{v}
		}
	}
	switch k {
	case oneValue:
		one(valueRule())
	case ordered:
		one(orderedRule())
	case moment:
		one(momentRule())
	case words:
		one(wordsRule())
	case values:
		t.Values, ok = list(valueRule(), 1).read(d, n)
	case twoValues:
		t.Values, ok = twoRule().read(d, n)
	case length:
		t.Duration, ok = durationRule().read(d, n)
	case presence:
		t.Exists, ok = boolean().read(d, n)
	case pattern:
		t.Pattern, ok = patternRule().read(d, n)
		t.Values = []Value{{Text: n.text}}
	case anniversary:
		var y yearly
		y, ok = yearlyRule().read(d, n)
		t.Yearly, t.Duration = y.op, y.within
	}
	return ok
}

func (k operand) schema(b *schemaBuilder) schema {
	switch k {
	case ordered:
		return orderedRule().schema(b)
	case moment:
		return momentRule().schema(b)
	case words:
		return wordsRule().schema(b)
	case values:
		return list(valueRule(), 1).schema(b)
	case twoValues:
		return twoRule().schema(b)
	case length:
		return durationRule().schema(b)
	case presence:
		return boolean().schema(b)
	case pattern:
		return patternRule().schema(b)
	case anniversary:
		return yearlyRule().schema(b)
	default:
		return valueRule().schema(b)
	}
}

// Matches applies a test of text or number that has no need of a field's type:
// for the number of events. It is false for operators that are not about numbers.
func (t Test) Matches(n float64) bool {
	in := func(i int) float64 { return t.Values[i].Number }
	switch t.Op {
	case OpIs:
		return n == in(0)
	case OpIsNot:
		return n != in(0)
	case OpGt:
		return n > in(0)
	case OpGte:
		return n >= in(0)
	case OpLt:
		return n < in(0)
	case OpLte:
		return n <= in(0)
	case OpBetween:
		return n >= in(0) && n <= in(1)
	default:
		return false
	}
}
