package spec

import (
	"slices"
	"strings"
)

// BuiltinEvents are the facts that Onda itself writes and that predicates and
// waits may ask about. An event of the tenant's own bears another entity's name.
func BuiltinEvents() []string {
	return []string{
		"email.sent", "email.delivered", "email.deferred", "email.failed", "email.bounced",
		"email.complained", "email.suppressed", "email.opened", "email.clicked",
		"consent.granted", "consent.pending", "consent.withdrawn",
		"suppression.added", "suppression.removed",
		"page.viewed", "contact.identified", "contact.changed", "contact.merged",
		"form.submitted", "form.rejected", "form.confirmed", "tag.changed",
	}
}

// ReservedEntities are the first parts of the names of Onda's own events: no
// event of the tenant's own may bear them, else a page could forge a click.
func ReservedEntities() []string {
	return []string{
		"campaign", "schedule", "email", "hit", "consent", "suppression", "page", "event",
		"contact", "form", "segment", "score", "stage", "tag", "usage",
	}
}

// eventName is the name of a built-in event or of one of the tenant's own.
func eventName() rule[string] { return eventNameOf(BuiltinEvents()) }

// eventNameOf is eventName with only some of the built-in ones.
func eventNameOf(builtin []string) rule[string] {
	return rule[string]{
		read: func(d *decoder, n *node) (string, bool) {
			s, ok := scalar("the name of an event such as email.clicked or order.placed", eventPattern, asText).read(d, n)
			if !ok {
				return "", false
			}
			entity, _, _ := strings.Cut(s, ".")
			if slices.Contains(ReservedEntities(), entity) && !slices.Contains(builtin, s) {
				d.fail(n.position, "%s", unknown("event", s, builtin))
				return "", false
			}
			return s, true
		},
		schema: func(*schemaBuilder) schema {
			reserved := strings.Join(ReservedEntities(), "|")
			return schema{"anyOf": []any{
				schema{"enum": builtin},
				schema{"type": "string", "pattern": eventPattern, "not": schema{"pattern": `^(` + reserved + `)(\.|$)`}},
			}}
		},
	}
}

func countOps() []Op { return []Op{OpIs, OpGt, OpGte, OpLt, OpLte, OpBetween} }

func eventTestKeys(o *object) *EventTest {
	e := &EventTest{}
	var within Duration
	var between []Value
	get(o, "event", eventName(), &e.Event, required)
	hasOf := get(o, "of", text(), &e.Of, optional)
	get(o, "where", propertiesRule(), &e.Where, optional)
	if get(o, "within", durationRule(), &within, optional) {
		e.Within = &within
	}
	if get(o, "between", twoMoments(), &between, optional) {
		e.Between = (*[2]Value)(between)
	}
	e.Count = Test{Op: OpGte, Values: []Value{{Kind: NumberValue, Text: "1", Number: 1}}}
	get(o, "count", countRule(), &e.Count, optional)
	o.atMostOne("within", "between")
	o.check(func(d *decoder, n *node) {
		if hasOf {
			d.later(func(c *checker) { c.eventOf(n, e.Event, e.Of, nil) })
		}
		if e.Within != nil {
			d.later(func(c *checker) { c.window(n.get("within"), e) })
		}
	})
	return e
}

func twoMoments() rule[[]Value] {
	return rule[[]Value]{
		read: func(d *decoder, n *node) ([]Value, bool) {
			vs, ok := twoRule().read(d, n)
			if ok && vs[0].Kind != TextValue {
				d.fail(n.position, "must be two dates, such as [2026-01-01, 2026-06-30]")
				return nil, false
			}
			return vs, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"type": "array", "items": momentRule().schema(b), "minItems": 2, "maxItems": 2}
		},
	}
}

// countRule is a number of events: a whole number, or a test of one.
func countRule() rule[Test] {
	tests := shape("count", func(o *object, t *Test) {
		if testKeys(o, t, countOps()) && slices.ContainsFunc(t.Values, func(v Value) bool { return v.Kind != NumberValue || v.Number < 0 }) {
			o.d.fail(o.n.position, "a count is compared with numbers")
		}
	})
	return rule[Test]{
		read: func(d *decoder, n *node) (Test, bool) {
			if n.kind != objectNode {
				v, ok := whole(0, 1_000_000).read(d, n)
				return Test{Op: OpIs, Values: []Value{{Kind: NumberValue, Text: n.text, Number: float64(v)}}}, ok
			}
			return tests.read(d, n)
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{whole(0, 1_000_000).schema(b), tests.schema(b)}}
		},
	}
}

const propertyPattern = `^[A-Za-z_][A-Za-z0-9_ -]*(\.[A-Za-z_][A-Za-z0-9_ -]*){0,5}$`

// propertiesRule is {name: {operator: value}}, or {name: value} for is.
func propertiesRule() rule[[]Property] {
	tests := shape("propertyTest", func(o *object, t *Test) { testKeys(o, t, nil) })
	one := rule[Test]{
		read: func(d *decoder, n *node) (Test, bool) {
			if n.kind == objectNode {
				return tests.read(d, n)
			}
			v, ok := valueRule().read(d, n)
			return Test{Op: OpIs, Values: []Value{v}}, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{valueRule().schema(b), tests.schema(b)}}
		},
	}
	name := scalar("the name of a property", propertyPattern, asText)
	key := func(d *decoder, p position, s string) bool {
		_, ok := name.read(d, &node{position: p, kind: textNode, text: s})
		return ok
	}
	return mapped(dictionary(key, propertyPattern, one), func(_ *decoder, _ *node, m map[string]Test) ([]Property, bool) {
		out := make([]Property, 0, len(m))
		for _, k := range sortedKeys(m) {
			out = append(out, Property{Name: k, Test: m[k]})
		}
		return out, true
	})
}
