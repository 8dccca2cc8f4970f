package spec

import (
	"strconv"
	"strings"
)

// MainScore is the group that points go to where none is named, and the built-in field of its score.
const MainScore = "score"

// ScoreGroup tells of which group a field is the score: score is of MainScore, score.fit of fit.
func ScoreGroup(field string) (group string, ok bool) {
	if field == MainScore {
		return MainScore, true
	}
	group, ok = strings.CutPrefix(field, MainScore+".")
	return group, ok && compiled(fieldNamePattern).MatchString(group)
}

// ScoreRule gives points for what a contact does. It counts for what happens while the version of Settings that it is in is in force.
type ScoreRule struct {
	Event string // one of ScoredEvents, or an event of the tenant's own
	Of    string // as of an EventTest
	Where []Property
	Add   int    // may be below zero
	Group string // MainScore unless given
}

// ScoredEvents are the built-in events that may give points: those that are about one contact each.
func ScoredEvents() []string {
	return []string{
		"email.opened", "email.clicked", "email.bounced", "email.complained", "consent.granted", "consent.withdrawn",
		"page.viewed", "contact.identified", "form.submitted", "form.confirmed",
	}
}

func scoreRule() rule[ScoreRule] {
	return shape("scoreRule", func(o *object, r *ScoreRule) {
		r.Group = MainScore
		get(o, "event", eventNameOf(ScoredEvents()), &r.Event, required)
		hasOf := get(o, "of", text(), &r.Of, optional)
		get(o, "where", propertiesRule(), &r.Where, optional)
		get(o, "add", pointsRule(), &r.Add, required)
		get(o, "group", scoreGroupRule(), &r.Group, optional)
		o.check(func(d *decoder, n *node) {
			if hasOf {
				d.later(func(c *checker) { c.eventOf(n, r.Event, r.Of, nil) })
			}
		})
	})
}

// maxPoints bounds the points given at once, so that no sum of them passes what Postgres counts with.
const maxPoints = 1_000_000

func pointsRule() rule[int] {
	return rule[int]{
		read: func(d *decoder, n *node) (int, bool) {
			v, err := strconv.Atoi(n.text)
			if n.kind != numberNode || err != nil || v == 0 || v < -maxPoints || v > maxPoints {
				d.wrong(n, "points such as 10 or -5, at most 1000000")
				return 0, false
			}
			return v, true
		},
		schema: func(*schemaBuilder) schema {
			return schema{"type": "integer", "minimum": -maxPoints, "maximum": maxPoints, "not": schema{"const": 0}}
		},
	}
}

func scoreGroupRule() rule[string] {
	return scalar("a group of small letters, digits and _", fieldNamePattern, asText)
}
