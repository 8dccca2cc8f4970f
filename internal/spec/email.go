package spec

import (
	"cmp"
	"crypto/md5"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// Source is the text of a template, as it was written.
type Source string

// Unknown is what is done with a delivery whose outcome is not known.
type Unknown string

// What is done with unknown deliveries.
const (
	UnknownSkip   Unknown = "skip"
	UnknownResend Unknown = "resend"
)

// Email is a mail: its texts, who it is from, and why it may be sent.
type Email struct {
	Meta
	Topic         string // "" for a transactional one
	Transactional bool
	From          string // a mailbox, RFC 5322 section 3.4
	ReplyTo       string
	Layout        string // "" for none
	Unknown       Unknown
	UTM           *UTM // nil for no parameters
	EmailContent
	// Locales are the texts in other languages than the tenant's own; what a
	// locale leaves out is taken from the email itself.
	Locales map[string]EmailContent
	// Variants are forms of the email of which each contact gets one; none for one
	// form for all.
	Variants []Variant
	// Attachments go out with every mail.
	Attachments []Attachment
}

// Variant is a form of an email. What it leaves out is taken from the email; a
// text in the reader's language, of the variant and then of the email, goes
// before one in another.
type Variant struct {
	Name   string
	Weight int // its share is this of the sum of all
	EmailContent
	Locales map[string]EmailContent
}

// UTM are the parameters of links that tell web analytics where a visit comes
// from; what is "" is what Parameters says.
type UTM struct{ Source, Medium, Campaign, Term, Content string }

// Parameter is one of a link's query.
type Parameter struct{ Name, Value string }

// Parameters gives what the email's links to the web get: what its document
// says, else the topic as source, email as medium, its own name as campaign and the variant as content.
func (e *Email) Parameters(variant string) []Parameter {
	if e.UTM == nil {
		return nil
	}
	all := []Parameter{
		{"utm_source", cmp.Or(e.UTM.Source, e.Topic, "transactional")},
		{"utm_medium", cmp.Or(e.UTM.Medium, "email")},
		{"utm_campaign", cmp.Or(e.UTM.Campaign, e.Name)},
		{"utm_term", e.UTM.Term},
		{"utm_content", cmp.Or(e.UTM.Content, variant)},
	}
	return slices.DeleteFunc(all, func(p Parameter) bool { return p.Value == "" })
}

func utmRule() rule[*UTM] {
	value := scalar("one line of text without Liquid", `^[^\r\n{}]*[^\s{}][^\r\n{}]*$`, asText)
	return pointer(shape("utm", func(o *object, u *UTM) {
		get(o, "source", value, &u.Source, optional)
		get(o, "medium", value, &u.Medium, optional)
		get(o, "campaign", value, &u.Campaign, optional)
		get(o, "term", value, &u.Term, optional)
		get(o, "content", value, &u.Content, optional)
	}))
}

// EmailContent are the texts of an email in one language.
type EmailContent struct {
	Subject   Source
	Preheader Source
	HTML      Source // or Markdown, or MJML
	Markdown  Source
	MJML      Source
	Text      Source // derived from the others when empty
}

// Kind gives KindEmail.
func (*Email) Kind() string { return KindEmail }

// Editions gives the forms that the email's texts have: each of its variants in
// each of its languages, the email's own first.
func (e *Email) Editions() []Edition {
	locales := map[string]bool{}
	for l := range e.Locales {
		locales[l] = true
	}
	for _, v := range e.Variants {
		for l := range v.Locales {
			locales[l] = true
		}
	}
	variants := e.Variants
	if len(variants) == 0 {
		variants = []Variant{{}}
	}
	var all []Edition
	for _, locale := range append([]string{""}, sortedKeys(locales)...) {
		for _, v := range variants {
			all = append(all, Edition{locale, v.Name})
		}
	}
	return all
}

// Content gives the texts of one of Editions.
func (e *Email) Content(of Edition) EmailContent {
	var v Variant
	if i := slices.IndexFunc(e.Variants, func(v Variant) bool { return v.Name == of.Variant }); i >= 0 {
		v = e.Variants[i]
	}
	var c EmailContent
	for _, l := range localeChain(of.Locale) {
		variants, hasVariants := v.Locales[l]
		own, hasOwn := e.Locales[l]
		if hasVariants || hasOwn {
			c = variants.over(own)
			break
		}
	}
	return c.over(v.EmailContent).over(e.EmailContent)
}

// VariantOf gives the variant that a contact gets, "" where there are none. It
// is decided by the contact, the email's name and the variants alone, and so is
// the same wherever it is asked for, and in the next version of the email.
func (e *Email) VariantOf(contact int64) string {
	if len(e.Variants) == 0 {
		return ""
	}
	all := 0
	for _, v := range e.Variants {
		all += v.Weight
	}
	at := int(uint64(Share("email:"+e.Name, contact)) * uint64(all) >> 32)
	for _, v := range e.Variants {
		if at -= v.Weight; at < 0 {
			return v.Name
		}
	}
	return "" // not reached: at was below the sum
}

// Share gives where a contact falls when contacts are divided: a number that is
// spread evenly, by hash of the seed and the contact. Postgres computes the same
// for samples, in internal/predicate.
func Share(seed string, contact int64) uint32 {
	var b [128]byte
	sum := md5.Sum(strconv.AppendInt(append(append(b[:0], seed...), '/'), contact, 10))
	return binary.BigEndian.Uint32(sum[:])
}

// over fills what c leaves out from base.
func (c EmailContent) over(base EmailContent) EmailContent {
	if c.Subject == "" {
		c.Subject = base.Subject
	}
	if c.Preheader == "" {
		c.Preheader = base.Preheader
	}
	if c.HTML == "" && c.Markdown == "" && c.MJML == "" {
		c.HTML, c.Markdown, c.MJML = base.HTML, base.Markdown, base.MJML
		if c.Text == "" {
			c.Text = base.Text
		}
	}
	return c
}

// localeChain gives a locale and those it is a kind of: pt-BR, pt.
func localeChain(locale string) []string {
	var chain []string
	for locale != "" {
		chain = append(chain, locale)
		i := strings.LastIndexByte(locale, '-')
		if i < 0 {
			break
		}
		locale = locale[:i]
	}
	return chain
}

func emailKeys(o *object, e *Email) {
	get(o, "topic", reference(KindTopic), &e.Topic, optional)
	get(o, "transactional", flag(), &e.Transactional, optional)
	o.oneOf("topic", "transactional")
	get(o, "from", addressRule(), &e.From, required)
	get(o, "replyTo", addressRule(), &e.ReplyTo, optional)
	get(o, "layout", reference(KindLayout), &e.Layout, optional)
	hasUnknown := get(o, "unknown", choice(UnknownSkip, UnknownResend), &e.Unknown, optional)
	get(o, "utm", utmRule(), &e.UTM, optional)
	contentKeys(o, &e.EmailContent, required)
	o.oneOf("html", "markdown", "mjml")
	get(o, "locales", localesRule(), &e.Locales, optional)
	get(o, "variants", list(shape("emailVariant", variantKeys), 1), &e.Variants, optional)
	get(o, "attachments", attachmentsRule(), &e.Attachments, optional)
	if !hasUnknown {
		e.Unknown = UnknownSkip
		if e.Transactional {
			e.Unknown = UnknownResend
		}
	}
	o.check(func(d *decoder, n *node) {
		variants := n.get("variants")
		for i, v := range e.Variants {
			if v.Name != "" && slices.ContainsFunc(e.Variants[:i], func(w Variant) bool { return v.Name == w.Name }) {
				d.fail(variants.items[i].get("name").position, "there is a variant %q already", v.Name)
			}
		}
		d.emailTemplates(e, n)
	})
}

func variantKeys(o *object, v *Variant) {
	v.Weight = 1
	get(o, "name", nameRule(), &v.Name, required)
	get(o, "weight", whole(1, 1000), &v.Weight, optional)
	otherContentKeys(o, &v.EmailContent)
	get(o, "locales", localesRule(), &v.Locales, optional)
}

func localesRule() rule[map[string]EmailContent] {
	return dictionary(isLocale, localePattern, shape("emailLocale", otherContentKeys))
}

// otherContentKeys are the texts in another form than the email's own.
func otherContentKeys(o *object, c *EmailContent) {
	contentKeys(o, c, optional)
	o.atMostOne("html", "markdown", "mjml")
}

func contentKeys(o *object, c *EmailContent, subject keyOption) {
	get(o, "subject", lineRule(), &c.Subject, subject)
	get(o, "preheader", lineRule(), &c.Preheader, optional)
	get(o, "html", sourceRule(), &c.HTML, optional)
	get(o, "markdown", sourceRule(), &c.Markdown, optional)
	get(o, "mjml", sourceRule(), &c.MJML, optional)
	get(o, "text", sourceRule(), &c.Text, optional)
}

// lineRule is a template of one line.
func lineRule() rule[Source] {
	return scalar("one line of text", `^[^\r\n]*[^\s][^\r\n]*$`, func(s string) (Source, error) { return Source(s), nil })
}

// sourceRule is a template: its text, or {file: name} for a file beside the
// document. The tree then holds the text, so that the stored form is complete.
func sourceRule() rule[Source] {
	inline := text()
	return rule[Source]{
		read: func(d *decoder, n *node) (Source, bool) {
			if n.kind == objectNode && !d.inline(n) {
				return "", false
			}
			s, ok := inline.read(d, n)
			return Source(s), ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{inline.schema(b), b.define("file", func() schema {
				return objectSchema(b, func(o *object) { get(o, "file", fileName(), new(string), required) })
			})}}
		},
	}
}

func fileName() rule[string] {
	return scalar("the name of a file beside the document", `^[A-Za-z0-9_][A-Za-z0-9_. /-]*$`, asText)
}

// fileOf gives the name in {file: name}, and where it stands. ok is false, and an error is noted, where it names none or no file can be read.
func (d *decoder) fileOf(n *node) (name string, at position, ok bool) {
	o := &object{d: d, n: n}
	named := get(o, "file", fileName(), &name, required)
	o.done()
	if !named {
		return "", at, false
	}
	at = n.get("file").position
	if d.files == nil {
		d.fail(at, "a file cannot be read here")
		return "", at, false
	}
	return name, at, true
}

// inline turns {file: name} into the text of the file.
func (d *decoder) inline(n *node) bool {
	name, at, ok := d.fileOf(n)
	if !ok {
		return false
	}
	text, path, err := d.read(name)
	if err != nil {
		d.fail(at, "%v", err)
		return false
	}
	*n = node{position: n.position, kind: textNode, text: text, body: position{file: path, line: 1, col: 1}}
	return true
}
