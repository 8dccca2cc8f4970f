package spec

import (
	"slices"
	"strings"
)

// Form is a page on which visitors leave what a contact and its consent are made of.
type Form struct {
	Meta
	Locale    string                       // the language of visitors whose own is not there
	Texts     map[string]map[string]string // by locale and key; every locale has every key
	Inputs    []Input
	Protect   Protect
	Confirm   *Confirm
	Submitted []Step // tag, update, campaign: when it was sent
	Confirmed []Step // and when the address was confirmed
	Result    Result
	Origins   []string // who may embed and post it; empty: only its own page
	Keep      Duration // of submissions; zero: as Settings say
}

// Kind gives KindForm.
func (*Form) Kind() string { return KindForm }

// The keys of texts that every form has.
const (
	TextTitle  = "title"
	TextSubmit = "submit"
)

// Text gives a text in the best language there is for locale.
func (f *Form) Text(locale, key string) string { return f.Texts[f.BestLocale(locale)][key] }

// BestLocale gives the locale of the form that fits locale best.
func (f *Form) BestLocale(locale string) string {
	for _, l := range localeChain(locale) {
		if _, ok := f.Texts[l]; ok {
			return l
		}
	}
	return f.Locale
}

// Consents gives the consent inputs.
func (f *Form) Consents() []Input {
	return slices.DeleteFunc(slices.Clone(f.Inputs), func(i Input) bool { return i.Consent == "" })
}

// InputType is how an input is shown.
type InputType string

// The types of inputs.
const (
	InputText     InputType = "text"
	InputTextarea InputType = "textarea"
	InputEmail    InputType = "email"
	InputNumber   InputType = "number"
	InputDate     InputType = "date"
	InputURL      InputType = "url"
	InputPhone    InputType = "tel"
	InputSelect   InputType = "select"
	InputRadio    InputType = "radio"
	InputCheckbox InputType = "checkbox"
	InputFile     InputType = "file"
)

// Input is one input of a form. Exactly one of Field, Name, Consent and Hidden is set.
type Input struct {
	Field   string // a field of the contact
	Name    string // of the submission only
	Consent string // a topic, tracking.email or tracking.web; never ticked beforehand
	Hidden  string // of the submission, not shown

	HideWhenKnown bool // of Field: not asked for when a link in a mail says who comes, and the answer is known

	As        InputType // how it is shown; "" for what fits the field's type
	Label     string    // a key of the texts: the field's or input's name unless given
	Help      string    // a key of the texts, or ""
	Options   []string  // of a Name with select or radio
	Required  bool
	ShowIf    *Predicate
	MaxLength int
	Accept    []string // of a Name with file: the types that are taken, and how many files of how many bytes
	MaxFiles  int
	MaxSize   int
	From      string   // of Hidden: query (the parameter of that name) or referrer
	Keep      Duration // of Name and Hidden: what was given is forgotten after it, before the submission is; zero: with it
}

// Key gives the name under which the input is posted and its problems are shown.
func (i Input) Key() string {
	switch {
	case i.Field != "":
		return i.Field
	case i.Consent != "":
		return "consent." + i.Consent
	case i.Hidden != "":
		return i.Hidden
	}
	return i.Name
}

// Purposes of consent that are no topics.
const (
	ConsentTrackingEmail = "tracking.email"
	ConsentTrackingWeb   = "tracking.web"
)

// Protect keeps programs out.
type Protect struct {
	Honeypot     bool // true unless said otherwise
	ProofOfWork  bool // browsers compute for a moment; without scripts a form waits longer instead
	PerAddress   Rate // zero: no limit
	BlockDomains []string
}

// Confirm is the double opt-in of a form.
type Confirm struct {
	Email   string   // a transactional one, with confirm_url
	Expires Duration // an unconfirmed contact is deleted after it; 7d unless given
}

// Result is what a visitor sees after it was sent. Exactly one is set.
type Result struct {
	Redirect string
	Message  string // a key of the texts
}

func formKeys(o *object, f *Form) {
	get(o, "locales", formLocalesRule(), &struct{}{}, required)
	get(o, "inputs", list(inputRule(), 1), &f.Inputs, required)
	f.Protect.Honeypot = true
	get(o, "protect", shape("protect", func(o *object, p *Protect) {
		p.Honeypot = true
		get(o, "honeypot", boolean(), &p.Honeypot, optional)
		get(o, "perAddress", rateRule(), &p.PerAddress, optional)
		get(o, "blockDomains", list(domainRule(), 1), &p.BlockDomains, optional)
		get(o, "proofOfWork", boolean(), &p.ProofOfWork, optional)
		o.notYet("captcha")
	}), &f.Protect, optional)
	get(o, "confirm", pointer(shape("confirm", func(o *object, c *Confirm) {
		c.Expires = Duration{Days: 7}
		get(o, "email", reference(KindEmail), &c.Email, required)
		get(o, "expires", durationRule(), &c.Expires, optional)
	})), &f.Confirm, optional)
	get(o, "submitted", list(stepRule(true), 1), &f.Submitted, optional)
	get(o, "confirmed", list(stepRule(true), 1), &f.Confirmed, optional)
	numberSteps(f.Submitted, "submitted.")
	numberSteps(f.Confirmed, "confirmed.")
	get(o, "result", shape("result", func(o *object, r *Result) {
		get(o, "redirect", httpURL(), &r.Redirect, optional)
		get(o, "message", textKey(), &r.Message, optional)
		o.oneOf("redirect", "message")
	}), &f.Result, required)
	get(o, "origins", list(originRule(), 1), &f.Origins, optional)
	get(o, "keep", durationRule(), &f.Keep, optional)
	o.check(func(d *decoder, n *node) { d.form(f, n) })
}

const textKeyPattern = `^[a-z][A-Za-z0-9_]*(\.[A-Za-z0-9_-]+)*$`

func textKey() rule[string] { return scalar("a key of the form's texts", textKeyPattern, asText) }

func inputRule() rule[Input] {
	common := func(o *object, i *Input) {
		get(o, "label", textKey(), &i.Label, optional)
		get(o, "help", textKey(), &i.Help, optional)
		get(o, "required", boolean(), &i.Required, optional)
		get(o, "showIf", pointer(predicateRule()), &i.ShowIf, optional)
	}
	shown := []InputType{
		InputText, InputTextarea, InputEmail, InputNumber, InputDate, InputURL, InputPhone,
		InputSelect, InputRadio, InputCheckbox,
	}
	return variants("input", "input", []string{"step"},
		variant[Input]{"field", func(o *object, i *Input) {
			get(o, "field", fieldReference(), &i.Field, required)
			get(o, "as", choice(shown...), &i.As, optional)
			get(o, "hideWhenKnown", boolean(), &i.HideWhenKnown, optional)
			get(o, "maxLength", whole(1, 100_000), &i.MaxLength, optional)
			common(o, i)
			o.check(func(d *decoder, n *node) {
				d.later(func(c *checker) { c.inputField(n, i.Field, i.As) })
			})
		}},
		variant[Input]{"consent", func(o *object, i *Input) {
			get(o, "consent", rule[string]{
				read: func(d *decoder, n *node) (string, bool) {
					if n.kind == textNode && (n.text == ConsentTrackingEmail || n.text == ConsentTrackingWeb) {
						return n.text, true
					}
					return reference(KindTopic).read(d, n)
				},
				schema: func(b *schemaBuilder) schema {
					return schema{"anyOf": []any{
						schema{"enum": []string{ConsentTrackingEmail, ConsentTrackingWeb}}, nameRule().schema(b),
					}}
				},
			}, &i.Consent, required)
			common(o, i)
			if o.n == nil {
				o.required = append(o.required, "label")
			}
			o.check(func(d *decoder, n *node) {
				if n.get("label") == nil {
					d.fail(n.position, `"label" is missing: the text that is shown is the proof of consent`)
				}
			})
		}},
		variant[Input]{"hidden", func(o *object, i *Input) {
			get(o, "hidden", textKey(), &i.Hidden, required)
			get(o, "from", choice("query", "referrer"), &i.From, required)
			get(o, "keep", durationRule(), &i.Keep, optional)
		}},
		variant[Input]{"name", func(o *object, i *Input) {
			get(o, "name", scalar("a name of small letters, digits and _", fieldNamePattern, asText), &i.Name, required)
			i.As = InputText
			get(o, "type", choice(append(slices.Clone(shown), InputFile)...), &i.As, optional)
			get(o, "accept", list(fileTypeRule(), 1), &i.Accept, optional)
			get(o, "maxFiles", whole(1, 10), &i.MaxFiles, optional)
			get(o, "maxSize", sizeRule(), &i.MaxSize, optional)
			get(o, "options", list(optionRule(), 1), &i.Options, optional)
			get(o, "maxLength", whole(1, 100_000), &i.MaxLength, optional)
			get(o, "keep", durationRule(), &i.Keep, optional)
			common(o, i)
			o.check(func(d *decoder, n *node) {
				selects := i.As == InputSelect || i.As == InputRadio
				if selects && n.get("options") == nil {
					d.fail(n.position, `"options" is missing: a %s needs them`, i.As)
				}
				if !selects && n.get("options") != nil {
					d.fail(n.at("options"), "options are for type select or radio")
				}
				d.fileInput(n, i)
			})
		}},
	)
}

// formLocalesRule is {default, dir} as it is written, or {default, texts} as it
// is stored. What it reads is taken from the tree by form.
func formLocalesRule() rule[struct{}] {
	textsRule := dictionary(isLocale, localePattern, dictionary(isTextKey, textKeyPattern, text()))
	return shape("formLocales", func(o *object, _ *struct{}) {
		var def, dir string
		var texts map[string]map[string]string
		get(o, "default", localeRule(), &def, required)
		get(o, "dir", fileName(), &dir, optional)
		get(o, "texts", textsRule, &texts, optional)
		o.oneOf("dir", "texts")
	})
}

func isTextKey(d *decoder, p position, key string) bool {
	_, ok := textKey().read(d, &node{position: p, kind: textNode, text: key})
	return ok
}

// form checks what holds between the parts of a form, and takes its texts in.
func (d *decoder) form(f *Form, n *node) {
	if locales := n.get("locales"); locales != nil && locales.kind == objectNode {
		d.formTexts(f, locales)
	}
	inputs := n.get("inputs")
	if inputs == nil || inputs.kind != listNode {
		return
	}
	seen := map[string]bool{}
	hasEmail := slices.ContainsFunc(inputs.items, func(in *node) bool {
		field := in.get("field")
		return field != nil && field.text == "email"
	})
	for i := range f.Inputs {
		in := &f.Inputs[i]
		if in.Label == "" && in.Hidden == "" {
			in.Label = in.Field + in.Name
		}
		key := in.Key()
		if key == "" || key == "consent." {
			continue
		}
		if seen[key] {
			d.fail(inputs.items[i].position, "there is an input %q already", key)
		}
		seen[key] = true
	}
	if most := f.FileBytes(); most > MaxFileBytes {
		d.fail(inputs.position, "the files of a form may have %d MB together, and these %d MB: lower maxSize (5MB unless given) or maxFiles", MaxFileBytes>>20, (most+1<<20-1)>>20)
	}
	if !hasEmail {
		d.fail(inputs.position, "an input for the field email is missing: {field: email, required: true}")
	}
	if f.Confirmed != nil && f.Confirm == nil {
		d.fail(n.at("confirmed"), "confirmed is for a form with confirm")
	}
	if confirm := n.get("confirm"); confirm != nil && confirm.kind == objectNode && f.Confirm != nil {
		at := confirm.get("email")
		d.later(func(c *checker) { c.confirmEmail(at, f.Confirm.Email) })
	}
	if f.Texts != nil {
		d.textKeys(f, n)
	}
	asked := map[string]bool{}
	for i, in := range f.Inputs {
		if i >= len(inputs.items) {
			break
		}
		at := inputs.items[i]
		if in.Consent != "" {
			d.later(func(c *checker) { c.optIn(at, in.Consent, f.Confirm != nil) })
		}
		if in.ShowIf != nil {
			before := sortedKeys(asked)
			d.later(func(c *checker) { c.showIf(at.get("showIf"), in.ShowIf, before) })
		}
		asked[in.Field] = true
	}
}

// textKeys checks that each text the form names is there.
func (d *decoder) textKeys(f *Form, n *node) {
	base := f.Texts[f.Locale]
	keys := sortedKeys(base)
	need := func(p position, key string) {
		if key != "" && base[key] == "" {
			d.fail(p, "%s", unknown("text", key, keys))
		}
	}
	locales := n.get("locales").position
	for _, key := range []string{TextTitle, TextSubmit} {
		if base[key] == "" {
			d.fail(locales, "the text %q is missing in %s", key, f.Locale)
		}
	}
	inputs := n.get("inputs")
	for i, in := range f.Inputs {
		at := inputs.items[i]
		if in.Hidden != "" {
			continue
		}
		if at.get("label") != nil {
			need(at.get("label").position, in.Label)
		} else if in.Label != "" && base[in.Label] == "" {
			d.fail(at.position, "the text %q, the label of this input, is missing in %s", in.Label, f.Locale)
		}
		if at.get("help") != nil {
			need(at.get("help").position, in.Help)
		}
	}
	if result := n.get("result"); result != nil && result.get("message") != nil {
		need(result.get("message").position, f.Result.Message)
	}
}

// formTexts reads the texts of a form: those that are inline, else the files
// of the directory, which then are put inline.
func (d *decoder) formTexts(f *Form, locales *node) {
	if def := locales.get("default"); def != nil {
		f.Locale = def.text
	}
	if dir := locales.get("dir"); dir != nil && dir.kind == textNode {
		if d.files == nil {
			d.fail(dir.position, "a directory cannot be read here")
			return
		}
		texts := d.textFiles(dir)
		if texts == nil {
			return
		}
		locales.drop("dir")
		locales.put("texts", texts)
	}
	texts := locales.get("texts")
	if texts == nil || texts.kind != objectNode {
		return
	}
	f.Texts = map[string]map[string]string{}
	all := map[string]bool{}
	for _, locale := range texts.entries {
		f.Texts[locale.key] = map[string]string{}
		for _, e := range locale.value.entries {
			f.Texts[locale.key][e.key] = e.value.text
			all[e.key] = true
		}
	}
	if f.Locale != "" && f.Texts[f.Locale] == nil {
		d.fail(locales.get("default").position, "there are no texts in %q: there are %s", f.Locale, strings.Join(sortedKeys(f.Texts), ", "))
		f.Texts = nil
		return
	}
	for _, locale := range texts.entries {
		for _, key := range sortedKeys(all) {
			if f.Texts[locale.key][key] == "" {
				at := locale.value.position
				if len(locale.value.entries) == 0 {
					at = locale.position
				}
				d.fail(at, "the text %q is missing in %s", key, locale.key)
			}
		}
	}
}
