package spec

import "fmt"

// Campaign is a journey of steps that contacts go through, each at their own time.
type Campaign struct {
	Meta
	Topic      string // "" when not given; else every mail it sends is of this topic or transactional
	Enter      []Entry
	Exclude    *Predicate
	Reentry    Reentry
	Goal       *Predicate // at any time: leave, converted
	Leave      *Predicate // at any time: leave
	Zone       Zone       // contact unless given
	SendWindow *Window    // mails are sent only in it
	Late       *Late
	Steps      []Step
}

// Kind gives KindCampaign.
func (*Campaign) Kind() string { return KindCampaign }

// Entry is a way into a campaign: being in a segment, or an event.
type Entry struct {
	Segment string
	Event   string
	Where   []Property // of Event
	Key     string     // of Event: the property whose value tells runs apart; one run a value
}

// ReentryMode says whether a contact may enter again.
type ReentryMode string

// The modes of reentry.
const (
	ReentryNever  ReentryMode = "never"
	ReentryAlways ReentryMode = "always"
	ReentryAfter  ReentryMode = "after"
)

// Reentry says when a contact that was in the campaign may enter again: never
// unless given. Nobody is in a campaign twice at once, but for runs of different keys.
type Reentry struct {
	Mode  ReentryMode
	After Duration // since the last run ended, when Mode is after
}

// LateAction is what is done with a mail that is late.
type LateAction string

// What is done with mails that are late.
const (
	LateSend       LateAction = "send"
	LateSkip       LateAction = "skip"
	LateNextWindow LateAction = "nextWindow"
)

// Late is what is done with a mail that could not be sent for so long after it was due.
type Late struct {
	After Duration
	Do    LateAction
}

func campaignKeys(o *object, c *Campaign) {
	get(o, "topic", reference(KindTopic), &c.Topic, optional)
	get(o, "enter", listOrOne(entryRule()), &c.Enter, required)
	get(o, "exclude", pointer(predicateRule()), &c.Exclude, optional)
	c.Reentry = Reentry{Mode: ReentryNever}
	get(o, "reentry", reentryRule(), &c.Reentry, optional)
	get(o, "goal", pointer(predicateRule()), &c.Goal, optional)
	get(o, "leave", pointer(predicateRule()), &c.Leave, optional)
	c.Zone = ZoneContact
	get(o, "zone", zoneRule(), &c.Zone, optional)
	get(o, "sendWindow", pointer(windowRule()), &c.SendWindow, optional)
	get(o, "late", pointer(shape("late", func(o *object, l *Late) {
		get(o, "after", durationRule(), &l.After, required)
		get(o, "do", choice(LateSend, LateSkip, LateNextWindow), &l.Do, required)
	})), &c.Late, optional)
	sound := get(o, "steps", list(stepRule(false), 1), &c.Steps, required)
	numberSteps(c.Steps, "")
	o.check(func(d *decoder, n *node) {
		if c.Late != nil && c.Late.Do == LateNextWindow && n.get("sendWindow") == nil {
			d.fail(n.get("late").at("do"), "nextWindow needs a sendWindow")
		}
		if steps := n.get("steps"); steps != nil && steps.kind == listNode {
			d.steps(c, steps, sound)
		}
	})
}

func entryRule() rule[Entry] {
	return variants("entry", "way in", nil,
		variant[Entry]{"segment", func(o *object, e *Entry) {
			get(o, "segment", reference(KindSegment), &e.Segment, required)
		}},
		variant[Entry]{"event", func(o *object, e *Entry) {
			get(o, "event", eventName(), &e.Event, required)
			get(o, "where", propertiesRule(), &e.Where, optional)
			get(o, "key", scalar("the name of a property", propertyPattern, asText), &e.Key, optional)
		}},
	)
}

func reentryRule() rule[Reentry] {
	after := shape("reentryAfter", func(o *object, r *Reentry) {
		r.Mode = ReentryAfter
		get(o, "after", durationRule(), &r.After, required)
	})
	modes := choice(ReentryNever, ReentryAlways)
	return rule[Reentry]{
		read: func(d *decoder, n *node) (Reentry, bool) {
			if n.kind == objectNode {
				return after.read(d, n)
			}
			mode, ok := modes.read(d, n)
			return Reentry{Mode: mode}, ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{modes.schema(b), after.schema(b)}}
		},
	}
}

// steps checks what holds between the steps of one campaign: ids, jumps, loops,
// events of sends.
func (d *decoder) steps(c *Campaign, list *node, sound bool) {
	places := map[string]*node{}
	sends := map[string]bool{}
	count := 0
	eachStep(c.Steps, list, func(s *Step, n *node) {
		count++
		if s.ID == "" {
			return
		}
		if first := places[s.ID]; first != nil {
			d.fail(n.get("id").position, "the id %q is taken by the step in line %d", s.ID, first.line)
			sound = false
			return
		}
		places[s.ID] = n
		sends[s.ID] = s.Send != nil
	})
	if count > maxSteps {
		d.fail(list.position, "the campaign has %d steps: at most %d", count, maxSteps)
		return
	}
	eachStep(c.Steps, list, func(s *Step, n *node) {
		switch {
		case s.Goto != nil && s.Goto.Step != "" && places[s.Goto.Step] == nil:
			sound = false
			d.fail(n.get("goto").get("step").position, "%s", unknown("step", s.Goto.Step, sortedKeys(places)))
		case s.Wait != nil && s.Wait.Event != nil && s.Wait.Event.Of != "":
			w := s.Wait.Event
			if step, given := sends[w.Of]; given && emailEvent(w.Event) {
				if !step {
					d.fail(n.get("wait").get("of").position, "the step %q sends no mail", w.Of)
				}
				return
			}
			d.later(func(ch *checker) { ch.eventOf(n.get("wait"), w.Event, w.Of, sends) })
		case s.Send != nil && c.Topic != "":
			d.later(func(ch *checker) { ch.topicOf(n.get("send").get("email"), s.Send.Email, c.Topic) })
		}
	})
	if sound {
		for _, loop := range c.Flow().loops() {
			d.fail(places[loop.target].position, "%s", loop.msg)
		}
	}
}

// maxSteps bounds the steps of one campaign.
const maxSteps = 1000

func (l loop) String() string { return fmt.Sprintf("%s: %s", l.target, l.msg) }
