package predicate

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Deps are what a predicate's answer for a contact depends on.
type Deps struct {
	Fields    []string // names of fields, built-in ones too
	Scores    []string // groups
	Tags      bool
	Stage     bool
	Topics    []string // whose subscriptions
	Gate      bool     // suppressions, and whether the contact has an address
	Segments  []string
	Events    []spec.EventTest
	Campaigns []string
}

// DepsOf finds what the predicate depends on.
func DepsOf(p *spec.Predicate) Deps {
	var d Deps
	p.Walk(func(q *spec.Predicate) {
		switch {
		case q.Field != nil:
			d.Fields = append(d.Fields, q.Field.Field)
			if group, ok := spec.ScoreGroup(q.Field.Field); ok {
				d.Scores = append(d.Scores, group)
			}
			d.Tags = d.Tags || q.Field.Field == "tags"
		case q.Tag != "":
			d.Tags = true
		case q.Stage != "":
			d.Stage = true
		case q.Topic != nil:
			d.Topics = append(d.Topics, q.Topic.Topic)
		case q.Reachable != "":
			d.Topics = append(d.Topics, q.Reachable)
			d.Gate = true
		case q.Segment != "":
			d.Segments = append(d.Segments, q.Segment)
		case q.Event != nil:
			d.Events = append(d.Events, *q.Event)
		case q.Campaign != nil:
			d.Campaigns = append(d.Campaigns, q.Campaign.Campaign)
		}
	})
	for _, names := range []*[]string{&d.Fields, &d.Scores, &d.Topics, &d.Segments, &d.Campaigns} {
		slices.Sort(*names)
		*names = slices.Compact(*names)
	}
	return d
}

// Remember tells whether the answer of a moment may go by facts (or by deliveries) from before another.
func (d Deps) Remember(deliveries bool, before, moment time.Time, zone *time.Location) bool {
	return slices.ContainsFunc(d.Events, func(e spec.EventTest) bool {
		if _, is := deliveryState(e.Event); is != deliveries {
			return false
		}
		from := time.Time{}
		if e.Within != nil {
			from = e.Within.Neg().AddTo(moment, zone)
		}
		if e.Between != nil {
			if m, err := e.Between[0].Moment(); err == nil {
				if m.In(moment, zone).After(from) {
					from = m.In(moment, zone)
				}
			}
		}
		return !from.After(before)
	})
}

// Touched tells whether the fact may have changed the answer for the contacts that it is about. Other segments are not looked at: their own joins and leaves are not read as facts.
func (d Deps) Touched(f postgres.Fact) bool {
	entity, _, _ := strings.Cut(f.Kind, ".")
	switch entity {
	case "contact":
		if f.Kind != "contact.changed" || d.fieldsOf(f.Data) {
			return true
		}
	case "tag":
		if d.Tags {
			return true
		}
	case "stage":
		if d.Stage {
			return true
		}
	case "score":
		if slices.Contains(d.Scores, f.Name) {
			return true
		}
	case "consent":
		if slices.Contains(d.Topics, f.Name) {
			return true
		}
	case "suppression":
		if d.Gate {
			return true
		}
	case "journey":
		if slices.Contains(d.Campaigns, f.Name) {
			return true
		}
	}
	return slices.ContainsFunc(d.Events, func(e spec.EventTest) bool { return touches(e, f) })
}

func touches(e spec.EventTest, f postgres.Fact) bool {
	if _, ok := deliveryState(e.Event); ok {
		// An outcome may replace another: a deferred mail is sent, a failed one had been sent after all.
		_, is := deliveryState(f.Kind)
		return is
	}
	kind, name := factOf(&e)
	return (f.Kind == kind || f.Kind == "hit.reclassified" && isHit(kind)) && (name == "" || f.Name == name)
}

// fieldsOf tells whether a change named a field of these; one that names none is of a contact that was made.
func (d Deps) fieldsOf(data []byte) bool {
	var change struct {
		Fields []string `json:"fields"`
	}
	if json.Unmarshal(data, &change) != nil || len(change.Fields) == 0 {
		return true
	}
	for _, f := range change.Fields {
		if slices.Contains(d.Fields, f) || d.Gate && f == "email" {
			return true
		}
	}
	return false
}
