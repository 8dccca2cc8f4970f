package spec

import (
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/fieldvalue"
)

// Known are documents that there are already, beside those of a Set: those a
// tenant has stored. A *Set is one, and so is *Stored.
type Known interface {
	// Document gives a document by kind and name.
	Document(kind, name string) (Doc, bool)
	// Names gives the names of the documents of a kind.
	Names(kind string) []string
}

// Stored is a Known made of documents that were decoded.
type Stored struct {
	docs map[ref]Doc
	gone map[ref]Doc
}

// NewStored makes a Known of decoded documents.
func NewStored(docs ...Doc) *Stored {
	s := &Stored{docs: map[ref]Doc{}}
	for _, d := range docs {
		s.docs[ref{d.Kind(), d.Head().Name}] = d
	}
	return s
}

// TakenAway adds documents that are no longer in force, for what stays fixed all the same.
func (s *Stored) TakenAway(docs ...Doc) *Stored {
	s.gone = map[ref]Doc{}
	for _, d := range docs {
		s.gone[ref{d.Kind(), d.Head().Name}] = d
	}
	return s
}

// Document gives a document by kind and name.
func (s *Stored) Document(kind, name string) (Doc, bool) {
	d, ok := s.docs[ref{kind, name}]
	return d, ok
}

// Names gives the names of the documents of a kind, sorted.
func (s *Stored) Names(kind string) []string {
	var names []string
	for r := range s.docs {
		if r.kind == kind {
			names = append(names, r.name)
		}
	}
	slices.Sort(names)
	return names
}

// Check finds what is wrong between the documents of the set, and between them
// and those that are known already; a document of the set takes the place of a
// known one of its kind and name. known may be nil. Emails are put together
// with compile, those of the set and those that a layout of the set is of; where
// it is nil they are not, and cannot be stored.
func (s *Set) Check(known Known, compile Compile) Problems {
	if known == nil {
		known = NewStored()
	}
	s.Remade, s.Warnings = nil, nil
	c := &checker{set: s, known: known, compile: compile, docs: map[ref]*Document{}, broken: map[ref]bool{}}
	for _, doc := range s.Documents {
		r := ref{doc.Kind, doc.Name}
		if doc.broken {
			c.broken[r] = true
		}
		if c.docs[r] == nil {
			c.docs[r] = doc
		}
	}
	for _, r := range s.broken {
		c.broken[r] = true
	}
	for _, doc := range s.Documents {
		c.doc = doc
		c.immutable(doc)
		for _, check := range doc.checks {
			check(c)
		}
		if layout, ok := doc.Doc.(*Layout); ok && compile != nil && !doc.broken {
			c.remake(doc, layout)
		}
	}
	s.Warnings = s.Warnings.sorted()
	return c.problems.sorted()
}

type checker struct {
	set      *Set
	known    Known
	compile  Compile // may be nil
	docs     map[ref]*Document
	broken   map[ref]bool
	doc      *Document    // whose checks run
	refers   map[Ref]bool // to what that document refers; nil for nobody wants to know
	problems Problems
}

func (c *checker) note(kind, name string) {
	if c.refers != nil {
		c.refers[Ref{kind, name}] = true
	}
}

func (c *checker) fail(p position, format string, args ...any) {
	c.problems = append(c.problems, p.problem(format, args...))
}

// find gives a document of the set or a known one. It gives nil and true when
// the document is there and cannot be read, which has been said.
func (c *checker) find(kind, name string) (Doc, bool) {
	r := ref{kind, name}
	if c.broken[r] {
		return nil, true
	}
	if d := c.docs[r]; d != nil {
		return d.Doc, true
	}
	return c.known.Document(kind, name)
}

func (c *checker) names(kind string) []string {
	names := append(c.set.Names(kind), c.known.Names(kind)...)
	slices.Sort(names)
	return slices.Compact(names)
}

func found[T Doc](c *checker, kind, name string) (T, bool) {
	var zero T
	doc, ok := c.find(kind, name)
	if !ok || doc == nil {
		return zero, false
	}
	t, ok := doc.(T)
	return t, ok
}

// reference is the name of a document of a kind, which must be there.
func reference(kind string) rule[string] {
	return mapped(nameRule(), func(d *decoder, n *node, name string) (string, bool) {
		d.later(func(c *checker) { c.mustHave(n.position, kind, name) })
		return name, true
	})
}

func (c *checker) mustHave(p position, kind, name string) bool {
	c.note(kind, name)
	_, ok := c.find(kind, name)
	if !ok {
		names := c.names(kind)
		msg := unknown(strings.ToLower(kind), name, names)
		if len(names) == 0 {
			msg += ": there is none yet"
		}
		c.fail(p, "%s", msg)
	}
	return ok
}

// segmentReference is a reference that may close a circle; segmentCycle looks for those.
func segmentReference() rule[string] { return reference(KindSegment) }

// fieldReference is the name of a field, a document's or a built-in one.
func fieldReference() rule[string] {
	name := scalar("the name of a field", fieldTestPattern, asText)
	return mapped(name, func(d *decoder, n *node, name string) (string, bool) {
		d.later(func(c *checker) { c.field(n.position, name) })
		return name, true
	})
}

func (c *checker) fieldNames() []string {
	names := c.names(KindField)
	for _, f := range BuiltinFields() {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	return names
}

// field gives a field; nil when it is not there, which it says, or cannot be read.
func (c *checker) field(p position, name string) *Field {
	if f, ok := builtinField(name); ok {
		return f
	}
	c.note(KindField, name)
	doc, ok := c.find(KindField, name)
	if !ok {
		c.fail(p, "%s", unknown("field", name, c.fieldNames()))
		return nil
	}
	f, _ := doc.(*Field)
	return f
}

// quietField is field for a name that is reported elsewhere.
func (c *checker) quietField(name string) *Field {
	if f, ok := builtinField(name); ok {
		return f
	}
	f, _ := found[*Field](c, KindField, name)
	return f
}

func dateFieldReference() rule[string] {
	return mapped(fieldReference(), func(d *decoder, n *node, name string) (string, bool) {
		d.later(func(c *checker) {
			if f := c.quietField(name); f != nil && f.Type != TypeDate && f.Type != TypeDatetime {
				c.fail(n.position, "the field %q is a %s: it must be a date or a datetime", name, f.Type)
			}
		})
		return name, true
	})
}

// fieldTest checks that operator and values fit the field's type.
func (c *checker) fieldTest(n *node, t *FieldTest) {
	f := c.quietField(t.Field)
	if f == nil {
		return
	}
	op, at := string(t.Op), n.at(string(t.Op))
	if !t.Op.Fits(f.Type) {
		c.fail(at, "%s does not fit the field %q, a %s: use one of %s", op, f.Name, f.Type, strings.Join(operatorsFor(f.Type), ", "))
		return
	}
	value := n.get(op)
	for i, v := range t.Values {
		place := value.position
		if value.kind == listNode && i < len(value.items) {
			place = value.items[i].position
		}
		c.fits(place, f, t.Op, v)
	}
}

// fits checks one value that a field of this type is compared with.
func (c *checker) fits(p position, f *Field, op Op, v Value) {
	switch f.Type {
	case TypeNumber:
		if v.Kind != NumberValue {
			c.fail(p, "the field %q is a number: %q is none, write one such as 5 or 2.5", f.Name, v.Text)
		}
	case TypeBoolean:
		if v.Kind != BoolValue {
			c.fail(p, "the field %q is true or false: %q is neither", f.Name, v.Text)
		}
	case TypeDate, TypeDatetime:
		if _, err := v.Moment(); err != nil || v.Kind != TextValue {
			c.fail(p, "the field %q is a %s: %q is no date", f.Name, f.Type, v.Text)
		}
	case TypeSelect, TypeMultiselect:
		if f.Name == "tags" || op == OpContains || op == OpStartsWith || op == OpEndsWith || op == OpMatches {
			return
		}
		same := func(o string) bool { return strings.EqualFold(o, v.Text) }
		if !slices.ContainsFunc(f.Options, same) {
			c.fail(p, "%s of the field %q", unknown("option", v.Text, f.Options), f.Name)
		}
	case TypeCountry:
		if len(v.Text) != 2 || v.Kind != TextValue {
			c.fail(p, "the field %q is a country: %q is no code such as NO or FR", f.Name, v.Text)
		}
	default:
		if v.Kind == BoolValue {
			c.fail(p, "the field %q is a %s: put %s in quotes if that is meant", f.Name, f.Type, v.Text)
		}
	}
}

// assignments checks what an update gives to fields: what does not fit a field would be stored and then count as missing.
func (c *checker) assignments(n *node, all []Assignment) {
	for _, a := range all {
		f := c.field(n.at(a.Field), a.Field)
		if f == nil {
			continue
		}
		if builtin, ok := builtinField(a.Field); ok {
			c.fail(n.at(a.Field), "the field %q cannot be updated by a step", builtin.Name)
			continue
		}
		value := n.get(a.Field)
		if f.Unique && a.Value != nil {
			c.fail(value.position, "the field %q is unique: a step cannot give all the same value", f.Name)
			continue
		}
		switch v := a.Value.(type) {
		case nil:
		case []string:
			if f.Type != TypeMultiselect {
				c.fail(value.position, "the field %q is a %s: it takes one value, not a list", f.Name, f.Type)
				continue
			}
			for i, option := range v {
				if !slices.Contains(f.Options, option) {
					c.fail(value.items[i].position, "%s of the field %q", unknown("option", option, f.Options), f.Name)
				}
			}
		default:
			switch _, err := fieldvalue.FromJSON(f, v); {
			case f.Type == TypeMultiselect:
				c.fail(value.position, "the field %q is a multiselect: it takes a list", f.Name)
			case f.Type == TypeSelect && !slices.Contains(f.Options, value.text):
				c.fail(value.position, "%s of the field %q", unknown("option", value.text, f.Options), f.Name)
			case err != nil:
				c.fail(value.position, "the field %q %v, not %q", f.Name, err, value.text)
			}
		}
	}
}

// eventOf checks the of of a test or a wait for an event. steps are the ids of
// a campaign's steps, for the did-you-mean.
func (c *checker) eventOf(n *node, event, of string, steps map[string]bool) {
	at := n.get("of").position
	entity, _, _ := strings.Cut(event, ".")
	switch entity {
	case "email":
		if !steps[of] {
			c.note(KindEmail, of)
		}
		if _, ok := c.find(KindEmail, of); ok {
			return
		}
		names := append(c.names(KindEmail), sortedKeys(steps)...)
		what := "email"
		if steps != nil {
			what = "step or email"
		}
		c.fail(at, "%s", unknown(what, of, names))
	case "form":
		c.mustHave(at, KindForm, of)
	case "consent":
		if of != ConsentTrackingEmail && of != ConsentTrackingWeb {
			c.mustHave(at, KindTopic, of)
		}
	default:
		c.fail(at, "the event %q has no of: use where, for its properties", event)
	}
}

// window warns of one that looks back to what is forgotten.
func (c *checker) window(within *node, e *EventTest) {
	keep := DefaultRetention()
	if s, ok := found[*Settings](c, KindSettings, "settings"); ok {
		keep = s.Retention
	}
	what, kept := "facts", keep.Facts
	if slices.Contains([]string{"email.sent", "email.deferred", "email.failed", "email.suppressed"}, e.Event) {
		what, kept = "deliveries", keep.Deliveries
	}
	if !kept.IsZero() && e.Within.Approx() > kept.Approx() {
		c.set.Warnings = append(c.set.Warnings, within.problem("%s is longer than what happens is kept: retention.%s of Settings says %s, and what is older does not count", within.text, what, kept))
	}
}

// topicOf checks that a mail of a campaign with a topic is of that topic.
func (c *checker) topicOf(n *node, email, topic string) {
	if n == nil {
		return
	}
	e, ok := found[*Email](c, KindEmail, email)
	if ok && !e.Transactional && e.Topic != topic {
		c.fail(n.position, "the email %q is of the topic %q, the campaign of %q: leave the campaign's topic out to mix them", email, e.Topic, topic)
	}
}

// marketing checks that a broadcast's email has a topic.
func (c *checker) marketing(n *node, email string) {
	if e, ok := found[*Email](c, KindEmail, email); ok && e.Transactional {
		c.fail(n.position, "the email %q is transactional: a broadcast needs one with a topic, which people can leave", email)
	}
}

// confirmEmail checks the email of a double opt-in.
func (c *checker) confirmEmail(n *node, email string) {
	if n == nil {
		return
	}
	e, ok := found[*Email](c, KindEmail, email)
	if !ok {
		return
	}
	if !e.Transactional {
		c.fail(n.position, "the email %q must be transactional: nobody has consented before it is confirmed", email)
	}
	if !e.uses("confirm_url") {
		c.fail(n.position, "the email %q has no {{ confirm_url }} in it: nobody could confirm", email)
	}
}

// copyEmail checks the email by which a person gets a copy of what is stored of it.
func (c *checker) copyEmail(n *node, email string) {
	e, ok := found[*Email](c, KindEmail, email)
	if !ok {
		return
	}
	if !e.Transactional {
		c.fail(n.position, "the email %q must be transactional: who asks for a copy gets it without having consented to mails", email)
	}
	if !e.uses("data", "url") {
		c.fail(n.position, "the email %q has no {{ data.url }} in it: nobody could get the copy", email)
	}
}

// optIn checks that a topic with double opt-in is confirmed by the form.
func (c *checker) optIn(n *node, purpose string, confirmed bool) {
	t, ok := found[*Topic](c, KindTopic, purpose)
	if ok && t.OptIn == OptInDouble && !confirmed {
		c.fail(n.position, "the topic %q has double opt-in: the form needs a confirm with an email", purpose)
	}
}

// inputField checks that a visitor may write a field, and that it can be shown so.
func (c *checker) inputField(n *node, name string, as InputType) {
	f := c.quietField(name)
	if f == nil {
		return
	}
	if !f.VisitorWritable {
		c.fail(n.get("field").position, "the field %q is not visitorWritable: a form cannot ask for it", name)
	}
	if as == "" || n.get("as") == nil {
		return
	}
	fits := map[FieldType][]InputType{
		TypeText:        {InputText, InputTextarea},
		TypeNumber:      {InputNumber, InputText},
		TypeBoolean:     {InputCheckbox, InputSelect, InputRadio},
		TypeDate:        {InputDate},
		TypeDatetime:    {InputDate},
		TypeSelect:      {InputSelect, InputRadio},
		TypeMultiselect: {InputCheckbox},
		TypeCountry:     {InputSelect},
		TypeLanguage:    {InputSelect},
		TypeTimezone:    {InputSelect},
		TypeURL:         {InputURL, InputText},
		TypePhone:       {InputPhone, InputText},
	}[f.Type]
	if name == "email" {
		fits = []InputType{InputEmail}
	}
	if !slices.Contains(fits, as) {
		words := make([]string, len(fits))
		for i, w := range fits {
			words[i] = string(w)
		}
		c.fail(n.get("as").position, "the field %q, a %s, cannot be shown as %s: use %s", name, f.Type, as, strings.Join(words, " or "))
	}
}

// showIf checks that what decides on an input is asked for before it: nothing else is known of a visitor.
func (c *checker) showIf(n *node, p *Predicate, before []string) {
	p.Walk(func(q *Predicate) {
		if len(q.All)+len(q.Any) > 0 || q.Not != nil || q.Field != nil && slices.Contains(before, q.Field.Field) {
			return
		}
		c.fail(n.position, "showIf can only ask about fields that the form asks for before this input")
	})
}

// immutable refuses to change what is fixed once it is stored.
func (c *checker) immutable(doc *Document) {
	f, ok := doc.Doc.(*Field)
	if !ok || doc.broken {
		return
	}
	stored, ok := c.known.Document(KindField, doc.Name)
	if s, is := c.known.(*Stored); !ok && is {
		stored, ok = s.gone[ref{KindField, doc.Name}]
	}
	if !ok {
		return
	}
	if old, ok := stored.(*Field); ok && old.Type != f.Type {
		c.fail(position{doc.File, doc.Line, doc.Col}, "the type of the field %q is %s and cannot become %s: values of it are stored; make a field of another name", f.Name, old.Type, f.Type)
	}
}

// segmentCycle refuses segments that are made of each other.
func (c *checker) segmentCycle(name string, at position) {
	seen := map[string]bool{}
	var search func(of string) []string
	search = func(of string) []string {
		if seen[of] {
			return nil
		}
		seen[of] = true
		s, ok := found[*Segment](c, KindSegment, of)
		if !ok || s.Where == nil {
			return nil
		}
		for _, next := range s.Where.Segments() {
			if next == name {
				return []string{of, next}
			}
			if rest := search(next); rest != nil {
				return append([]string{of}, rest...)
			}
		}
		return nil
	}
	if path := search(name); path != nil {
		c.fail(at, "the segment is made of itself: %s; take it out of one of them", strings.Join(path, " → "))
	}
}
