package renderform

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/spec"
)

// maxShort is how many characters an input of one line may have unless its form says otherwise.
const maxShort = 500

// given is a consent that was ticked, with the text that was shown.
type given struct {
	Purpose string `json:"purpose"`
	Text    string `json:"text"`
	SHA256  string `json:"sha256"`
}

// entry is what was sent in, checked. It is kept as the submission's data.
type entry struct {
	Lang string `json:"lang"`
	// Fields are of the contact, Values of the submission only.
	Fields   map[string]any    `json:"fields,omitempty"`
	Values   map[string]string `json:"values,omitempty"`
	Consents []given           `json:"consents,omitempty"`
	Files    map[string][]file `json:"files,omitempty"`
	// Until are the seconds (of Unix) after which a value is forgotten, and Keep the one after which all is; 0 for never, and where there are no others.
	Until map[string]int64 `json:"until,omitempty"`
	Keep  int64            `json:"keep,omitempty"`
	// Visitor is the key by which the page of another site knows its visitor.
	Visitor string `json:"visitor,omitempty"`

	email    string
	contents [][]byte // of Files, by their numbers
}

// answers are what an entry says, without whose it is and where that was asked.
func (e *entry) answers() ([]byte, error) {
	b, err := json.Marshal(entry{Fields: e.Fields, Values: e.Values, Consents: e.Consents, Files: e.Files})
	if err != nil {
		return nil, fmt.Errorf("encode answers: %w", err)
	}
	return b, nil
}

// failed is a problem with one input, or with none where Key is empty: the key of a text, and what fills it in.
type failed struct {
	Key, Text string
	Max       int
	File      string // that something is wrong with
}

// check reads and checks all inputs of a form; the problems are in the order of the inputs. What showIf says is as it is at now; who is
// the contact it is of, where that is known already.
func (f *form) check(values url.Values, files map[string][]upload, lang string, now time.Time, who *recognised) (entry, []failed) {
	e := entry{Lang: lang, Fields: map[string]any{}, Values: map[string]string{}, Visitor: values.Get(visitorInput)}
	if len(e.Visitor) > 100 || strings.ContainsFunc(e.Visitor, func(c rune) bool { return c <= ' ' || c > '~' }) {
		e.Visitor = ""
	}
	var problems []failed
	conditions := f.conditions(now)
	for _, in := range f.Inputs {
		// The address is needed whatever the form says of it: without it a submission would be of nobody.
		if in.Field == "email" {
			in.Required, in.ShowIf = true, nil
		}
		if who.hides(in) {
			if in.Field == "email" {
				e.email = who.email
			}
			continue
		}
		if in.ShowIf != nil {
			c, ok := conditions[in.Key()]
			ok = ok && !f.unknowable(who, c.Fields())
			if ok && !f.shows(c, &e, who) {
				continue // nobody could see it
			}
			in.Required = in.Required && ok
		}
		p := failed{Key: in.Key()}
		if in.As == spec.InputFile {
			p.Text, p.File = checkFiles(in, files[in.Name], &e)
		} else {
			p.Text, p.Max = f.checkInput(in, values, &e)
		}
		if p.Text != "" {
			problems = append(problems, p)
		}
		_, given := e.Values[in.Key()]
		if (given || e.Files[in.Name] != nil) && !in.Keep.IsZero() {
			if e.Until == nil {
				e.Until = map[string]int64{}
			}
			e.Until[in.Key()] = in.Keep.AddTo(now, f.settings.Location()).Unix()
		}
	}
	return e, problems
}

// forgetting is when something of an entry that is kept until a time is to be forgotten first, be it all of it; nil for never.
func (e *entry) forgetting(keep *time.Time) *time.Time {
	first := keep
	for key, second := range e.Until {
		t := time.Unix(second, 0)
		if keep != nil && !t.Before(*keep) {
			delete(e.Until, key) // it goes with the rest
			continue
		}
		if first == nil || t.Before(*first) {
			first = &t
		}
	}
	if keep != nil && len(e.Until) > 0 {
		e.Keep = keep.Unix()
	}
	return first
}

// checkInput reads one input into the entry, or gives the key of what is wrong.
func (f *form) checkInput(in spec.Input, values url.Values, e *entry) (text string, limit int) {
	key := in.Key()
	value := strings.TrimSpace(values.Get(key))
	limit = in.MaxLength
	if limit == 0 {
		limit = maxShort
		if in.As == spec.InputTextarea {
			limit = fieldvalue.MaxText
		}
	}
	switch {
	case in.Consent != "":
		if !isTicked(value) {
			if in.Required {
				return "form.problem.consent", 0
			}
			return "", 0
		}
		shown := f.Text(e.Lang, in.Label)
		sum := sha256.Sum256([]byte(shown))
		e.Consents = append(e.Consents, given{in.Consent, shown, hex.EncodeToString(sum[:])})
		return "", 0
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return "form.problem.text", 0
	case in.Hidden != "":
		if value != "" {
			e.Values[in.Hidden] = string([]rune(value)[:min(len([]rune(value)), maxShort)])
		}
		return "", 0
	case value == "" && in.Required:
		return "form.problem.required", 0
	case value == "" && in.Field != "" && f.fields[in.Field] != nil && f.fields[in.Field].Type == spec.TypeBoolean && in.As != spec.InputSelect && in.As != spec.InputRadio:
		e.Fields[in.Field] = false // a box that was left empty is an answer
		return "", 0
	case value == "":
		return "", 0 // what was not answered stays as it is
	case utf8.RuneCountInString(value) > limit:
		return "form.problem.long", limit
	case in.Name != "":
		return checkValue(in, value, e), 0
	case in.Field == "email":
		return f.checkEmail(value, e), 0
	}
	return f.checkField(in, values[key], e), 0
}

func isTicked(v string) bool { return v == "on" || v == "true" || v == "1" }

// checkValue checks what is of the submission only, by the type that the input was shown as.
func checkValue(in spec.Input, value string, e *entry) string {
	types := map[spec.InputType]spec.FieldType{
		spec.InputNumber: spec.TypeNumber, spec.InputDate: spec.TypeDate, spec.InputURL: spec.TypeURL, spec.InputPhone: spec.TypePhone,
	}
	switch {
	case in.As == spec.InputEmail:
		address, err := contact.Normalise(value)
		if err != nil {
			return "form.problem.email"
		}
		value = address
	case (in.As == spec.InputSelect || in.As == spec.InputRadio) && !slices.Contains(in.Options, value):
		return "form.problem.option"
	case types[in.As] != "":
		if _, err := fieldvalue.Parse(&spec.Field{Type: types[in.As]}, value); err != nil {
			return problemText(err)
		}
	}
	e.Values[in.Name] = value
	return ""
}

func (f *form) checkEmail(value string, e *entry) string {
	address, err := contact.Normalise(value)
	if err != nil {
		return "form.problem.email"
	}
	_, domain, _ := strings.Cut(address, "@")
	for _, blocked := range f.Protect.BlockDomains {
		if domain == blocked || strings.HasSuffix(domain, "."+blocked) {
			return blockedDomain
		}
	}
	e.email = address
	return ""
}

const (
	// blockedDomain is the one problem that is kept as a rejection.
	blockedDomain = "form.problem.domain"
	// otherAnswers is of a page that was sent before with others.
	otherAnswers = "form.problem.sent"
)

func (f *form) checkField(in spec.Input, values []string, e *entry) string {
	fd := f.fields[in.Field]
	if fd == nil { // taken away since the form was applied: nobody would read it
		return ""
	}
	if fd.Type != spec.TypeMultiselect {
		values = values[:1] // it was sent once, or by a program
	}
	value := strings.Join(values, ",")
	if fd.Type == spec.TypeDatetime { // a browser sends a time without its zone
		for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05"} {
			if t, err := time.ParseInLocation(layout, strings.TrimSpace(value), f.settings.Location()); err == nil {
				value = t.Format(time.RFC3339)
			}
		}
	}
	v, err := fieldvalue.Parse(fd, value)
	if err != nil {
		return problemText(err)
	}
	e.Fields[in.Field] = v
	return ""
}

// problemText is the key of the text for what fieldvalue found.
func problemText(err error) string {
	var p *fieldvalue.Problem
	if !errors.As(err, &p) {
		return "form.problem.text"
	}
	switch p.Reason {
	case "number", "date", "url", "phone", "text":
		return "form.problem." + p.Reason
	case "long":
		return "form.problem.text"
	}
	return "form.problem.option"
}
