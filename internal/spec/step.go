package spec

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Step is one step of a campaign, or one action of a form. Exactly one of its
// actions is set.
type Step struct {
	ID    string // given by the author; "" when not
	Path  string // where it stands: "3", "3.then.0"
	Send  *Send
	Wait  *Wait
	If    *Predicate
	Tag   *TagChange
	Score *ScoreChange
	Stage string       // the contact moves to it; "" for no such step
	Set   []Assignment // of update, sorted by field
	Goto  *Goto
	Exit  *Exit
	Enter *Enter // of a form's campaign: {enter: NAME}
	Then  []Step // of if, and of wait for an event or match
	Else  []Step
}

// Node is the id of the step's node in a Flow: the given id, else the path.
func (s *Step) Node() string {
	if s.ID != "" {
		return s.ID
	}
	return s.Path
}

// Action names the step's action: send, wait, if, tag, score, stage, update, goto, exit or campaign.
func (s *Step) Action() string {
	switch {
	case s.Send != nil:
		return "send"
	case s.Wait != nil:
		return "wait"
	case s.If != nil:
		return "if"
	case s.Tag != nil:
		return "tag"
	case s.Score != nil:
		return "score"
	case s.Stage != "":
		return "stage"
	case s.Goto != nil:
		return "goto"
	case s.Exit != nil:
		return "exit"
	case s.Enter != nil:
		return "campaign"
	}
	return "update"
}

// Send sends an email to the contact.
type Send struct {
	Email string
}

// TagChange adds and removes tags.
type TagChange struct {
	Add    []string
	Remove []string
}

// ScoreChange adds points to the contact's score of a group.
type ScoreChange struct {
	Group string // MainScore unless given
	Add   int    // may be below zero
}

// Assignment gives a field a value. Value is nil to empty it, else a string,
// float64, bool or []string, as the field's type wants it.
type Assignment struct {
	Field string
	Value any
}

// Goto goes to another step, at most so often in one run of the campaign.
type Goto struct {
	Step   string
	AtMost int // 0: as often as it comes
}

// Exit ends the contact's run.
type Exit struct {
	Reason string
}

// Enter puts the contact into a campaign.
type Enter struct {
	Campaign string
}

// Wait waits for a length of time, until a point in time, for an event or for a
// predicate to become true. Exactly one of For, Until, Event and Match is set.
type Wait struct {
	For       Duration
	Until     *Until
	Event     *WaitEvent
	Match     *Predicate
	Timeout   Duration // of Event and Match
	Untracked string   // then or else: what is taken when a mail's opens and clicks cannot be seen; else unless given
}

// TakesTime says whether the wait surely lasts: a wait for an event, a match or
// a window may be over at once.
func (w *Wait) TakesTime() bool { return !w.For.IsZero() }

// WaitEvent is an event that a wait waits for.
type WaitEvent struct {
	Event string
	Of    string // of email.*: the id of a send step, or the name of an email; of form.*: a form; of consent.*: a topic
	Where []Property
}

// OnMissing says what a wait until a field's date does for a contact without one, or with one that is over.
type OnMissing string

// What such a wait may do.
const (
	Continue OnMissing = "continue"
	Leave    OnMissing = "exit"
)

// Until is a point in time to wait for. Exactly one of Window, Date and Field is set.
type Until struct {
	Window  *Window
	Date    *Moment   // absolute
	Field   string    // a field of type date or datetime
	Offset  Duration  // from the field's date; may be negative
	At      *Clock    // the time of day, on the day that the offset gives
	Missing OnMissing // the contact has no date: continue unless given
	Past    OnMissing // the date is over: continue unless given
}

// Next gives the first time at or after t that a window or a date lets through,
// by the clocks of loc. For a Field, use OfField.
func (u Until) Next(t time.Time, loc *time.Location) time.Time {
	switch {
	case u.Window != nil:
		return u.Window.Next(t, loc)
	case u.Date != nil:
		if at := u.Date.In(t, loc); at.After(t) {
			return at
		}
	}
	return t
}

// OfField gives the time to wait for when the field's value is this (for a date
// its midnight in loc). It may be past.
func (u Until) OfField(value time.Time, loc *time.Location) time.Time {
	t := u.Offset.AddTo(value, loc)
	if u.At != nil {
		t = u.At.On(t, loc)
	}
	return t
}

func laterSteps() []string {
	return []string{
		"split", "webhook", "call", "subscribe", "unsubscribe", "segment", "notify",
		"deleteContact", "owner", "first",
	}
}

// stepRule is one step; its place in the tree is given by numberSteps afterwards.
func stepRule(inForm bool) rule[Step] {
	id := func(o *object, s *Step) {
		get(o, "id", scalar("an id of small letters, digits and -, not beginning with a digit", stepIDPattern, asText), &s.ID, optional)
	}
	self := rule[Step]{
		read:   func(d *decoder, n *node) (Step, bool) { return stepRule(inForm).read(d, n) },
		schema: func(b *schemaBuilder) schema { return stepRule(inForm).schema(b) },
	}
	branches := func(o *object, s *Step) {
		get(o, "then", list(self, 0), &s.Then, optional)
		get(o, "else", list(self, 0), &s.Else, optional)
	}
	tag := variant[Step]{"tag", func(o *object, s *Step) {
		id(o, s)
		s.Tag = &TagChange{}
		get(o, "tag", tagChangeRule(), s.Tag, required)
	}}
	update := variant[Step]{"update", func(o *object, s *Step) {
		id(o, s)
		get(o, "update", updateRule(), &s.Set, required)
	}}
	score := variant[Step]{"score", func(o *object, s *Step) {
		id(o, s)
		s.Score = &ScoreChange{}
		get(o, "score", shape("scoreChange", func(o *object, c *ScoreChange) {
			c.Group = MainScore
			get(o, "add", pointsRule(), &c.Add, required)
			get(o, "group", scoreGroupRule(), &c.Group, optional)
		}), s.Score, required)
	}}
	stage := variant[Step]{"stage", func(o *object, s *Step) {
		id(o, s)
		get(o, "stage", stageRule(), &s.Stage, required)
		o.check(func(d *decoder, n *node) {
			if s.Stage != "" {
				d.later(func(c *checker) { c.stage(n.get("stage").position, s.Stage) })
			}
		})
	}}
	if inForm {
		return variants("action", "action", append(laterSteps(), "send", "wait", "if", "goto", "exit"),
			tag, update, score, stage,
			variant[Step]{"campaign", func(o *object, s *Step) {
				id(o, s)
				s.Enter = &Enter{}
				get(o, "campaign", shape("enter", func(o *object, e *Enter) {
					get(o, "enter", reference(KindCampaign), &e.Campaign, required)
				}), s.Enter, required)
			}})
	}
	return variants("step", "step", append(laterSteps(), "campaign"),
		variant[Step]{"send", func(o *object, s *Step) {
			id(o, s)
			s.Send = &Send{}
			get(o, "send", shape("send", func(o *object, s *Send) {
				get(o, "email", reference(KindEmail), &s.Email, required)
			}), s.Send, required)
		}},
		variant[Step]{"wait", func(o *object, s *Step) {
			id(o, s)
			s.Wait = &Wait{}
			get(o, "wait", waitRule(), s.Wait, required)
			branches(o, s)
			o.check(func(d *decoder, n *node) {
				if s.Wait.Event != nil || s.Wait.Match != nil {
					return
				}
				for _, key := range o.have("then", "else") {
					d.fail(n.at(key), "this wait has one way out: %q is for a wait for an event or a match", key)
				}
			})
		}},
		variant[Step]{"if", func(o *object, s *Step) {
			id(o, s)
			get(o, "if", pointer(predicateRule()), &s.If, required)
			branches(o, s)
			o.atLeastOne("then", "else")
		}},
		tag, update, score, stage,
		variant[Step]{"goto", func(o *object, s *Step) {
			id(o, s)
			s.Goto = &Goto{}
			get(o, "goto", shape("goto", func(o *object, g *Goto) {
				get(o, "step", scalar("the id of a step", stepIDPattern, asText), &g.Step, required)
				get(o, "atMost", whole(1, 1000), &g.AtMost, optional)
			}), s.Goto, required)
		}},
		variant[Step]{"exit", func(o *object, s *Step) {
			id(o, s)
			s.Exit = &Exit{}
			get(o, "exit", scalar("a reason such as finished", namePattern, asText), &s.Exit.Reason, required)
		}},
	)
}

func tagChangeRule() rule[TagChange] {
	return shape("tagChange", func(o *object, t *TagChange) {
		get(o, "add", list(tagRule(), 1), &t.Add, optional)
		get(o, "remove", list(tagRule(), 1), &t.Remove, optional)
		o.atLeastOne("add", "remove")
		o.check(func(d *decoder, n *node) {
			for i, name := range t.Remove {
				if slices.Contains(t.Add, name) {
					d.fail(n.get("remove").items[i].position, "the tag %q is both added and removed", name)
				}
			}
		})
	})
}

// updateRule is {field: value}; null empties the field.
func updateRule() rule[[]Assignment] {
	value := rule[any]{
		read: func(d *decoder, n *node) (any, bool) {
			switch n.kind {
			case nullNode:
				return nil, true
			case listNode:
				vs, ok := list(scalar("text", `^[\s\S]+$`, asText), 0).read(d, n)
				return vs, ok
			default:
				v, ok := valueRule().read(d, n)
				return v.Any(), ok
			}
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{
				schema{"type": "null"},
				valueRule().schema(b),
				schema{"type": "array", "items": schema{"type": "string", "minLength": 1}},
			}}
		},
	}
	name := scalar("the name of a field", fieldNamePattern, asText)
	key := func(d *decoder, p position, s string) bool {
		_, ok := name.read(d, &node{position: p, kind: textNode, text: s})
		return ok
	}
	return mapped(dictionary(key, fieldNamePattern, value), func(d *decoder, n *node, m map[string]any) ([]Assignment, bool) {
		if len(m) == 0 {
			d.fail(n.position, "the update has no fields")
			return nil, false
		}
		out := make([]Assignment, 0, len(m))
		for _, k := range sortedKeys(m) {
			out = append(out, Assignment{Field: k, Value: m[k]})
		}
		d.later(func(c *checker) { c.assignments(n, out) })
		return out, true
	})
}

func waitRule() rule[Wait] {
	waits := variants("wait", "wait", []string{"first"},
		variant[Wait]{"until", func(o *object, w *Wait) {
			u := &Until{Missing: Continue, Past: Continue}
			w.Until = u
			get(o, "until", untilRule(), u, required)
			onMissing := choice(Continue, Leave)
			// until gives the whole struct: what follows must come after it
			if u.Missing == "" {
				u.Missing, u.Past = Continue, Continue
			}
			get(o, "missing", onMissing, &u.Missing, optional)
			get(o, "past", onMissing, &u.Past, optional)
			o.check(func(d *decoder, n *node) {
				if u.Field == "" && n.get("missing") != nil {
					d.fail(n.at("missing"), "missing is for a wait until a field's date")
				}
				if u.Window != nil && n.get("past") != nil {
					d.fail(n.at("past"), "past is for a wait until a date: a window always comes again")
				}
			})
		}},
		variant[Wait]{"event", func(o *object, w *Wait) {
			w.Event = &WaitEvent{}
			get(o, "event", eventName(), &w.Event.Event, required)
			get(o, "of", text(), &w.Event.Of, optional)
			get(o, "where", propertiesRule(), &w.Event.Where, optional)
			get(o, "timeout", durationRule(), &w.Timeout, required)
			w.Untracked = "else"
			get(o, "untracked", choice("then", "else"), &w.Untracked, optional)
		}},
		variant[Wait]{"match", func(o *object, w *Wait) {
			get(o, "match", pointer(predicateRule()), &w.Match, required)
			get(o, "timeout", durationRule(), &w.Timeout, required)
		}},
	)
	return rule[Wait]{
		read: func(d *decoder, n *node) (Wait, bool) {
			if n.kind == objectNode {
				return waits.read(d, n)
			}
			length, ok := durationRule().read(d, n)
			return Wait{For: length}, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{durationRule().schema(b), waits.schema(b)}}
		},
	}
}

func untilRule() rule[Until] {
	ofField := shape("untilField", func(o *object, u *Until) {
		get(o, "field", dateFieldReference(), &u.Field, required)
		get(o, "offset", offsetRule(), &u.Offset, optional)
		get(o, "at", pointer(clockRule()), &u.At, optional)
	})
	window := windowRule()
	return rule[Until]{
		read: func(d *decoder, n *node) (Until, bool) {
			switch {
			case n.kind == objectNode && n.get("field") != nil:
				return ofField.read(d, n)
			case n.kind == objectNode:
				w, ok := window.read(d, n)
				return Until{Window: &w}, ok
			}
			m, ok := absoluteRule().read(d, n)
			return Until{Date: m}, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{absoluteRule().schema(b), window.schema(b), ofField.schema(b)}}
		},
	}
}

// numberSteps gives each step its path.
func numberSteps(steps []Step, prefix string) {
	for i := range steps {
		s := &steps[i]
		s.Path = prefix + strconv.Itoa(i)
		numberSteps(s.Then, s.Path+".then.")
		numberSteps(s.Else, s.Path+".else.")
	}
}

// eachStep calls f for every step with its node, in order, parents first.
func eachStep(steps []Step, n *node, f func(*Step, *node)) {
	for i := range steps {
		if i >= len(n.items) {
			return
		}
		s, at := &steps[i], n.items[i]
		f(s, at)
		if branch := at.get("then"); branch != nil {
			eachStep(s.Then, branch, f)
		}
		if branch := at.get("else"); branch != nil {
			eachStep(s.Else, branch, f)
		}
	}
}

// emailEvent says whether an event is about a mail.
func emailEvent(name string) bool { return strings.HasPrefix(name, "email.") }
