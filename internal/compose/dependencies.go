package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/liquid"
	"github.com/onda-run/onda/internal/spec"
)

// with gives the email with what it depends on. stored has the documents that changed since e was made; e itself is not touched.
func (e *Email) with(on versions, stored map[string][]byte) (*Email, error) {
	made := *e
	made.on = on
	if on.preproduction != e.on.preproduction { // its mails have other header fields
		made.laid = newLayouts()
	}
	var err error
	if b := stored[spec.KindTopic]; b != nil {
		if made.topic, err = spec.DecodeAs[*spec.Topic](spec.KindTopic, b); err != nil {
			return nil, err
		}
	}
	if b := stored[spec.KindSettings]; b != nil {
		if made.Settings, err = spec.DecodeAs[*spec.Settings](spec.KindSettings, b); err != nil {
			return nil, err
		}
	}
	switch {
	case e.Topic != "" && on.topic == 0:
		return nil, fmt.Errorf("its topic %q is not there", e.Topic)
	case on.settings == 0:
		made.Settings = spec.DefaultSettings()
	}
	if made.ownTopic = nil; made.topic != nil {
		made.ownTopic = made.topicVars(made.Settings.Locale)
	}
	return &made, nil
}

// readNames notes which of the recipient's fields and of the data the texts name.
func (e *Email) readNames() {
	names := map[string]liquid.Name{}
	for _, p := range e.compiled.Parts() {
		for _, t := range []*liquid.Template{p.Subject, p.HTML, p.Text} {
			for _, n := range t.Names() {
				names[n.String()] = n
			}
		}
	}
	e.fields, e.needs, e.forms, e.whole, e.own, e.useData = []string{spec.LocaleField, spec.ZoneField}, nil, nil, false, false, false
	for _, text := range slices.Sorted(maps.Keys(names)) {
		switch n := names[text]; {
		case n.Path[0] == spec.VarContact && len(n.Path) == 1:
			e.whole = true
		case n.Path[0] == spec.VarContact && slices.Contains([]string{"external_id", "tags", "created", spec.MainScore}, n.Path[1]):
			e.own = true
		case n.Path[0] == spec.VarContact && (n.Path[1] == "id" || n.Path[1] == "email"): // always there
		case n.Path[0] == spec.VarContact:
			e.fields = append(e.fields, n.Path[1])
		case n.Path[0] == spec.VarData:
			e.useData = true
			if len(n.Path) > 1 {
				e.needs = append(e.needs, strings.Join(n.Path[1:], "."))
			}
		case n.Path[0] == spec.VarFormURL:
			e.forms = append(e.forms, n.Path[1])
		case n.Path[0] == spec.VarConfirmURL:
			e.needs = append(e.needs, spec.VarConfirmURL)
		}
	}
	slices.Sort(e.fields)
	e.fields = slices.Compact(e.fields)
}
