package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The grammar is written once, as rules: a rule reads a node into a value and
// gives the JSON Schema of what it reads. So decoders and schema cannot drift
// apart key by key; a test holds the rest to the same verdict.

type schema = map[string]any

type rule[T any] struct {
	// read gives false when the node is not what the rule wants; it has said so then
	read   func(d *decoder, n *node) (T, bool)
	schema func(b *schemaBuilder) schema
}

// decoder collects what is wrong while trees become documents.
type decoder struct {
	doc      *Document
	problems Problems
	// files are those that documents may name; nil at run time, when all is inline
	files *sources
	// stored is set at run time: checks against other documents are not kept
	stored bool
}

func (d *decoder) fail(p position, format string, args ...any) {
	d.problems = append(d.problems, p.problem(format, args...))
}

func (p position) problem(format string, args ...any) Problem {
	return Problem{File: p.file, Line: p.line, Col: p.col, Msg: fmt.Sprintf(format, args...)}
}

// later keeps a check that needs the other documents.
func (d *decoder) later(check func(*checker)) {
	if !d.stored {
		d.doc.checks = append(d.doc.checks, check)
	}
}

// wrong says that a node is not what was wanted.
func (d *decoder) wrong(n *node, want string) {
	if n.said {
		return
	}
	switch n.kind {
	case nullNode:
		d.fail(n.position, "there is no value here: it must be %s", want)
	case listNode, objectNode:
		d.fail(n.position, "must be %s, not %s", want, n.kind)
	default:
		d.fail(n.position, "must be %s, not %s", want, quoted(n))
	}
}

func quoted(n *node) string {
	text := n.text
	if len(text) > 40 {
		text = strings.ToValidUTF8(text[:40], "") + "..."
	}
	if n.kind == textNode {
		return fmt.Sprintf("%q", text)
	}
	return text
}

// object is a map that a shape goes through, key by key. In schema mode there
// is no node, and the keys are only noted.
type object struct {
	d          *decoder
	n          *node
	builder    *schemaBuilder
	keys       []string
	properties schema
	required   []string
	rules      []schema // further conditions, for the schema only
	later      []string // keys of the language that this version does not have
	elsewhere  bool     // what is left over was dealt with by the shape itself
}

type keyOption int

const (
	optional keyOption = iota
	required
)

// get reads the value of a key into the variable, if it is there.
func get[T any](o *object, key string, r rule[T], into *T, need keyOption) bool {
	o.keys = append(o.keys, key)
	if o.n == nil {
		o.properties[key] = r.schema(o.builder)
		if need == required {
			o.required = append(o.required, key)
		}
		return false
	}
	value := o.n.get(key)
	if value == nil {
		if need == required {
			o.d.fail(o.n.position, "%q is missing", key)
		}
		return false
	}
	v, ok := r.read(o.d, value)
	if ok {
		*into = v
	}
	return ok
}

// oneOf demands exactly one of the keys.
func (o *object) oneOf(keys ...string) {
	if o.n == nil {
		var alternatives []any
		for _, k := range keys {
			alternatives = append(alternatives, schema{"required": []string{k}})
		}
		o.rules = append(o.rules, schema{"oneOf": alternatives})
		return
	}
	if have := o.have(keys...); len(have) != 1 {
		if len(have) == 0 {
			o.d.fail(o.n.position, "one of %s is missing", strings.Join(keys, ", "))
		} else {
			o.d.fail(o.n.at(have[1]), "there is %q already: only one of %s may be given", have[0], strings.Join(keys, ", "))
		}
	}
}

// atMostOne demands at most one of the keys.
func (o *object) atMostOne(keys ...string) {
	if o.n == nil {
		for i, a := range keys {
			for _, b := range keys[i+1:] {
				o.rules = append(o.rules, schema{"not": schema{"required": []string{a, b}}})
			}
		}
		return
	}
	if have := o.have(keys...); len(have) > 1 {
		o.d.fail(o.n.at(have[1]), "there is %q already: only one of %s may be given", have[0], strings.Join(keys, ", "))
	}
}

// atLeastOne demands one or more of the keys.
func (o *object) atLeastOne(keys ...string) {
	if o.n == nil {
		var alternatives []any
		for _, k := range keys {
			alternatives = append(alternatives, schema{"required": []string{k}})
		}
		o.rules = append(o.rules, schema{"anyOf": alternatives})
		return
	}
	if len(o.have(keys...)) == 0 {
		o.d.fail(o.n.position, "one of %s is missing", strings.Join(keys, ", "))
	}
}

func (o *object) have(keys ...string) []string {
	var have []string
	for _, k := range keys {
		if o.n.get(k) != nil {
			have = append(have, k)
		}
	}
	return have
}

// notYet names keys that the language has and this version has not.
func (o *object) notYet(keys ...string) { o.later = append(o.later, keys...) }

// done says which keys nobody asked for.
func (o *object) done() {
	if o.elsewhere {
		return
	}
	for _, e := range o.n.entries {
		switch {
		case slices.Contains(o.keys, e.key):
		case slices.Contains(o.later, e.key):
			o.d.fail(e.position, "this version does not have %q yet", e.key)
		default:
			o.d.fail(e.position, "%s", unknown("key", e.key, o.keys))
		}
	}
}

// check runs only when there is a node: for what a schema cannot say.
func (o *object) check(f func(d *decoder, n *node)) {
	if o.n != nil {
		f(o.d, o.n)
	}
}

// shape is the rule of an object. The name is its definition in the schema.
func shape[T any](name string, walk func(o *object, v *T)) rule[T] {
	return rule[T]{
		read: func(d *decoder, n *node) (T, bool) {
			var v T
			if n.kind != objectNode {
				d.wrong(n, "an object")
				return v, false
			}
			before := len(d.problems)
			o := &object{d: d, n: n}
			walk(o, &v)
			o.done()
			return v, len(d.problems) == before
		},
		schema: func(b *schemaBuilder) schema {
			return b.define(name, func() schema { return objectSchema(b, func(o *object) { walk(o, new(T)) }) })
		},
	}
}

func objectSchema(b *schemaBuilder, walk func(o *object)) schema {
	o := &object{builder: b, properties: schema{}}
	walk(o)
	s := schema{"type": "object", "properties": o.properties, "additionalProperties": false}
	if len(o.required) > 0 {
		s["required"] = o.required
	}
	if len(o.rules) > 0 {
		all := make([]any, len(o.rules))
		for i, r := range o.rules {
			all[i] = r
		}
		s["allOf"] = all
	}
	return s
}

// variant is one of the objects that may stand in a place, known by its key.
type variant[T any] struct {
	key  string
	walk func(o *object, v *T)
}

// variants is the rule of an object that is one of several, known by the one
// key that it has: a step, a predicate.
func variants[T any](name, what string, later []string, all ...variant[T]) rule[T] {
	keys := make([]string, len(all))
	for i, a := range all {
		keys[i] = a.key
	}
	return rule[T]{
		read: func(d *decoder, n *node) (T, bool) {
			var v T
			if n.kind != objectNode {
				d.wrong(n, "an object with a "+what)
				return v, false
			}
			before := len(d.problems)
			var found *variant[T]
			for i := range all {
				if n.get(all[i].key) == nil {
					continue
				}
				if found != nil {
					d.fail(n.at(all[i].key), "there is %q already: one %s at a time", found.key, what)
					continue
				}
				found = &all[i]
			}
			if found == nil {
				d.noVariant(n, what, keys, later)
				return v, false
			}
			o := &object{d: d, n: n}
			// another variant's key was named above already
			o.keys = slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return k == found.key })
			o.later = later
			walkKeys := len(o.keys)
			found.walk(o, &v)
			own := o.keys[walkKeys:]
			for _, e := range n.entries {
				switch {
				case slices.Contains(o.keys, e.key) || o.elsewhere:
				case slices.Contains(o.later, e.key):
					d.fail(e.position, "this version does not have %q yet", e.key)
				default:
					d.fail(e.position, "%s", unknown("key", e.key, own))
				}
			}
			return v, len(d.problems) == before
		},
		schema: func(b *schemaBuilder) schema {
			return b.define(name, func() schema {
				alternatives := make([]any, len(all))
				for i := range all {
					s := objectSchema(b, func(o *object) { all[i].walk(o, new(T)) })
					needs, _ := s["required"].([]string)
					if !slices.Contains(needs, all[i].key) {
						s["required"] = append(slices.Clone(needs), all[i].key)
					}
					alternatives[i] = s
				}
				return schema{"oneOf": alternatives}
			})
		},
	}
}

// noVariant says what is wrong with an object that has none of the keys.
func (d *decoder) noVariant(n *node, what string, keys, later []string) {
	for _, e := range n.entries {
		if slices.Contains(later, e.key) {
			d.fail(e.position, "this version does not have the %s %q yet", what, e.key)
			return
		}
	}
	// id, then and else accompany a step; the misspelt key is another one
	for _, e := range n.entries {
		if e.key != "id" && e.key != "then" && e.key != "else" {
			d.fail(e.position, "%s", unknown(what, e.key, keys))
			return
		}
	}
	d.fail(n.position, "a %s is missing: one of %s", what, strings.Join(keys, ", "))
}

// mapped turns what one rule reads into something else.
func mapped[A, B any](r rule[A], f func(d *decoder, n *node, a A) (B, bool)) rule[B] {
	return rule[B]{
		read: func(d *decoder, n *node) (B, bool) {
			a, ok := r.read(d, n)
			if !ok {
				var zero B
				return zero, false
			}
			return f(d, n, a)
		},
		schema: r.schema,
	}
}

// pointer makes a rule of a value one of a pointer to it.
func pointer[T any](r rule[T]) rule[*T] {
	return mapped(r, func(_ *decoder, _ *node, v T) (*T, bool) { return &v, true })
}

// list is a list of at least so many.
func list[T any](r rule[T], least int) rule[[]T] {
	return rule[[]T]{
		read: func(d *decoder, n *node) ([]T, bool) {
			if n.kind != listNode {
				d.wrong(n, "a list")
				return nil, false
			}
			if len(n.items) < least {
				d.fail(n.position, "the list must not be empty")
				return nil, false
			}
			out, good := make([]T, 0, len(n.items)), true
			for _, item := range n.items {
				v, ok := r.read(d, item)
				out, good = append(out, v), good && ok
			}
			return out, good
		},
		schema: func(b *schemaBuilder) schema {
			s := schema{"type": "array", "items": r.schema(b)}
			if least > 0 {
				s["minItems"] = least
			}
			return s
		},
	}
}

// listOrOne is a list, or its only element without the brackets.
func listOrOne[T any](r rule[T]) rule[[]T] {
	many := list(r, 1)
	return rule[[]T]{
		read: func(d *decoder, n *node) ([]T, bool) {
			if n.kind == listNode {
				return many.read(d, n)
			}
			v, ok := r.read(d, n)
			return []T{v}, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{r.schema(b), many.schema(b)}}
		},
	}
}

// dictionary is an object with keys of the author's choice.
func dictionary[T any](key func(d *decoder, p position, key string) bool, keyPattern string, r rule[T]) rule[map[string]T] {
	return rule[map[string]T]{
		read: func(d *decoder, n *node) (map[string]T, bool) {
			if n.kind != objectNode {
				d.wrong(n, "an object")
				return nil, false
			}
			out, good := make(map[string]T, len(n.entries)), true
			for _, e := range n.entries {
				if !key(d, e.position, e.key) {
					good = false
					continue
				}
				v, ok := r.read(d, e.value)
				out[e.key], good = v, good && ok
			}
			return out, good
		},
		schema: func(b *schemaBuilder) schema {
			return schema{
				"type": "object", "additionalProperties": false,
				"patternProperties": schema{keyPattern: r.schema(b)},
			}
		},
	}
}

// sortedKeys gives a dictionary's keys in order.
func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }
