package renderform

import (
	"encoding/json"
	"net/url"
	"time"

	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// ifInput begins the names under which a view finds the conditions of inputs: they are put in as a page is shown, since days pass.
const ifInput = "onda_if."

// conditions are what decides whether inputs are shown, by their keys, as it is at a moment. One that does not fit the fields any more is left out: its input is shown.
func (f *form) conditions(now time.Time) map[string]predicate.Condition {
	env := predicate.Env{Fields: map[string]spec.FieldType{}, Zone: f.settings.Location(), Now: now}
	for name, fd := range f.fields {
		env.Fields[name] = fd.Type
	}
	all := map[string]predicate.Condition{}
	for _, in := range f.Inputs {
		if in.ShowIf == nil || in.Field == "email" {
			continue
		}
		if c, err := env.Condition(in.ShowIf); err == nil {
			all[in.Key()] = c
		}
	}
	return all
}

// setConditions puts the conditions among the values that a view is made of.
func (f *form) setConditions(values url.Values, now time.Time) {
	for key, c := range f.conditions(now) {
		text, err := json.Marshal(c)
		if err != nil { // it is texts
			panic(err)
		}
		values.Set(ifInput+key, string(text))
	}
}

// shows tells whether an input could be seen by who gave the answers so far.
func (f *form) shows(c predicate.Condition, e *entry, who *recognised) bool {
	return c.Holds(func(field string) any {
		for _, in := range f.Inputs {
			if in.Field == field && who.hides(in) {
				return who.fields[field]
			}
		}
		if field == "email" {
			return e.email
		}
		return e.Fields[field]
	})
}
