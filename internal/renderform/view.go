package renderform

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/spec"
)

// Names of inputs that are ours.
const (
	onceInput    = "onda_once"
	langInput    = "onda_lang"
	visitorInput = "onda_visitor"
	momentInput  = "onda_moment"
	proofInput   = "onda_proof"
	honeypot     = "onda_website"
)

// view is what the template of a form shows.
type view struct {
	Action, Intro, Submit, Once, Moment, Token, Prefix string
	Honeypot, Conditional, Files                       bool
	Work                                               int    // the zero bits that a proof of work needs; 0 for none
	Notice                                             string // what is wrong with no single input
	Inputs                                             []inputView
	Problems                                           []inputView
}

// inputView is one input.
type inputView struct {
	ID, Name, Kind, Label, Help, Value, Autocomplete, Problem string
	Accept                                                    string // of files
	Required, Optional, Checked, Multiple                     bool
	ShowIf                                                    string // the condition for the script of the page; without scripts the input is shown, and not required
	Max                                                       int
	Options                                                   []optionView
}

type optionView struct {
	ID, Value, Label string
	Selected         bool
}

// view makes what is shown of a form, with what was sent and what was wrong with it. text gives our own texts.
func (f *form) view(lang string, values url.Values, problems []failed, text func(key string, pairs ...any) string) view {
	v := view{
		Submit: f.Text(lang, spec.TextSubmit), Intro: f.Text(lang, "intro"), Honeypot: f.Protect.Honeypot, Once: values.Get(onceInput), Moment: values.Get(momentInput),
		Token:  values.Get(tokenInput),
		Prefix: "onda-" + f.Name + "-",
	}
	if f.Protect.ProofOfWork {
		v.Work = workBits
	}
	wrong := map[string]string{}
	for _, p := range problems {
		if p.Key == "" {
			v.Notice = text(p.Text)
			continue
		}
		pairs := []any{"max", p.Max}
		if in, ok := f.fileInput(p.Key); ok {
			pairs = append(ofFiles(in, text), "file", p.File)
		}
		wrong[p.Key] = text(p.Text, pairs...)
	}
	for _, in := range f.Inputs {
		i := f.input(in, lang, values, text)
		i.ID = v.Prefix + strings.NewReplacer(".", "-").Replace(in.Key())
		for k := range i.Options {
			i.Options[k].ID = i.ID + "-" + strconv.Itoa(k+1) // an option may have spaces in it, an id may not
		}
		if i.Problem = wrong[in.Key()]; i.Problem != "" {
			i.ShowIf = "" // what is said of it is not hidden
			v.Problems = append(v.Problems, i)
		}
		v.Conditional = v.Conditional || i.ShowIf != ""
		v.Files = v.Files || i.Kind == string(spec.InputFile)
		v.Inputs = append(v.Inputs, i)
	}
	for k, p := range v.Problems {
		if p.Kind == "checkboxes" || p.Kind == "radio" { // the link leads to something that can be focused
			v.Problems[k].ID = p.Options[0].ID
		}
	}
	return v
}

func (f *form) input(in spec.Input, lang string, values url.Values, text func(key string, pairs ...any) string) inputView {
	key := in.Key()
	i := inputView{Name: key, Value: values.Get(key), Required: in.Required, Max: in.MaxLength, Kind: string(in.As)}
	if in.Field == "email" {
		in.ShowIf, i.Required = nil, true
	}
	i.Optional = !i.Required
	if in.ShowIf != nil {
		i.ShowIf, i.Required = values.Get(ifInput+key), false
	}
	if in.Hidden != "" {
		i.Kind = "hidden"
		return i
	}
	i.Label = f.Text(lang, in.Label)
	if in.Help != "" {
		i.Help = f.Text(lang, in.Help)
	}
	if in.Consent != "" {
		i.Kind, i.Checked = "consent", isTicked(i.Value) // ticked only when the visitor did it a moment ago
		return i
	}
	if in.As == spec.InputFile {
		i.Accept, i.Multiple = accept(in), in.MaxFiles > 1
		hint := "form.file.help"
		if i.Multiple {
			hint = "form.files.help"
		}
		i.Help = strings.TrimSpace(i.Help + " " + text(hint, ofFiles(in, text)...))
		return i
	}
	fd := f.fields[in.Field]
	if fd == nil {
		fd = &spec.Field{Type: spec.TypeText}
	}
	options := in.Options
	if in.Field != "" {
		i.Kind = kindOf(in, fd)
		i.Autocomplete = autocomplete(in.Field)
		options = fd.Options
	}
	chosen := values[key]
	add := func(value, label string) {
		i.Options = append(i.Options, optionView{Value: value, Label: label, Selected: slices.Contains(chosen, value)})
	}
	switch {
	case i.Kind == "checkbox":
		i.Checked = isTicked(i.Value)
	case i.Kind != "select" && i.Kind != "radio" && i.Kind != "checkboxes":
	case fd.Type == spec.TypeBoolean:
		add("true", text("form.yes"))
		add("false", text("form.no"))
	case fd.Type == spec.TypeCountry, fd.Type == spec.TypeLanguage, fd.Type == spec.TypeTimezone:
		i.Options = f.lists.of(fd.Type, lang)
		if k := slices.IndexFunc(i.Options, func(o optionView) bool { return o.Value == i.Value }); k >= 0 {
			i.Options[k].Selected = true
		} else if v, err := fieldvalue.Parse(fd, i.Value); err == nil && v != nil { // one that fits, and is not among them, is not lost
			i.Options = append(i.Options, optionView{Value: i.Value, Label: i.Value, Selected: true})
		}
	default:
		for _, o := range options {
			label := f.Text(lang, in.Label+"."+o)
			add(o, cmp.Or(label, o))
		}
	}
	if len(i.Options) == 0 && (i.Kind == "select" || i.Kind == "radio" || i.Kind == "checkboxes") {
		i.Kind = "text" // a choice from nothing
	}
	return i
}

// accept says to a browser which files to offer. Not every system knows all types, nor all extensions.
func accept(in spec.Input) string {
	var all []string
	for _, t := range in.FileTypes() {
		all = append(all, t.MIME)
		for _, ext := range t.Extensions {
			all = append(all, "."+ext)
		}
	}
	return strings.Join(all, ",")
}

// ofFiles fills in our texts about an input of files.
func ofFiles(in spec.Input, text func(key string, pairs ...any) string) []any {
	var titles []string
	for _, t := range in.FileTypes() {
		titles = append(titles, t.Title())
	}
	size := text("form.file.kb", "n", in.MaxSize>>10)
	if in.MaxSize%(1<<20) == 0 {
		size = text("form.file.mb", "n", in.MaxSize>>20)
	}
	return []any{"types", strings.Join(titles, ", "), "size", size, "files", in.MaxFiles}
}

// kindOf is how an input of a field is shown.
func kindOf(in spec.Input, fd *spec.Field) string {
	switch {
	case fd.Type == spec.TypeMultiselect:
		return "checkboxes"
	case fd.Type == spec.TypeDatetime:
		return "datetime-local"
	case in.As != "":
		return string(in.As)
	case in.Field == "email":
		return "email"
	}
	switch fd.Type {
	case spec.TypeNumber, spec.TypeDate, spec.TypeURL, spec.TypeSelect:
		return string(fd.Type)
	case spec.TypePhone:
		return "tel"
	case spec.TypeBoolean:
		return "checkbox"
	case spec.TypeCountry, spec.TypeLanguage, spec.TypeTimezone:
		return "select"
	default:
		return "text"
	}
}

// autocomplete lets a browser fill in what it knows (WCAG 2.2, 1.3.5).
func autocomplete(field string) string {
	return map[string]string{
		"email": "email", "first_name": "given-name", "last_name": "family-name", "name": "name", "full_name": "name", "company": "organization",
		"phone": "tel", "mobile": "tel", "country": "country", "city": "address-level2", "postcode": "postal-code", "zip": "postal-code",
		"birthday": "bday", "website": "url", "job_title": "organization-title", "language": "language", "locale": "language",
	}[field]
}

// newOnce names one showing of a form.
func newOnce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: the program ends if the system has no randomness
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// readOnce gives nil for what is not from newOnce.
func readOnce(s string) []byte {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) != 16 {
		return nil
	}
	return b
}
