package spec

import (
	"cmp"
	"slices"
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
}

// UTM are the parameters of links that tell web analytics where a visit comes
// from; what is "" is what Parameters says.
type UTM struct{ Source, Medium, Campaign, Term, Content string }

// Parameter is one of a link's query.
type Parameter struct{ Name, Value string }

// Parameters gives what the email's links to the web get: what its document
// says, else the topic as source, email as medium and its own name as campaign.
func (e *Email) Parameters() []Parameter {
	if e.UTM == nil {
		return nil
	}
	all := []Parameter{
		{"utm_source", cmp.Or(e.UTM.Source, e.Topic, "transactional")},
		{"utm_medium", cmp.Or(e.UTM.Medium, "email")},
		{"utm_campaign", cmp.Or(e.UTM.Campaign, e.Name)},
		{"utm_term", e.UTM.Term},
		{"utm_content", e.UTM.Content},
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
	HTML      Source // or Markdown
	Markdown  Source
	Text      Source // derived from the others when empty
}

// Kind gives KindEmail.
func (*Email) Kind() string { return KindEmail }

// Content gives the texts for a locale: of pt-BR those of pt-BR, else of pt,
// else the email's own. It gives which of the locales it is, "" for the email's own.
func (e *Email) Content(locale string) (EmailContent, string) {
	for _, l := range localeChain(locale) {
		if c, ok := e.Locales[l]; ok {
			return c.over(e.EmailContent), l
		}
	}
	return e.EmailContent, ""
}

// Languages gives the languages there are texts in: "" first, the email's own.
func (e *Email) Languages() []string { return append([]string{""}, sortedKeys(e.Locales)...) }

// over fills what c leaves out from base.
func (c EmailContent) over(base EmailContent) EmailContent {
	if c.Subject == "" {
		c.Subject = base.Subject
	}
	if c.Preheader == "" {
		c.Preheader = base.Preheader
	}
	if c.HTML == "" && c.Markdown == "" {
		c.HTML, c.Markdown = base.HTML, base.Markdown
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
	o.oneOf("html", "markdown")
	get(o, "locales", dictionary(isLocale, localePattern, shape("emailLocale", func(o *object, c *EmailContent) {
		contentKeys(o, c, optional)
		o.atMostOne("html", "markdown")
	})), &e.Locales, optional)
	o.notYet("mjml", "attachments", "variants")
	if !hasUnknown {
		e.Unknown = UnknownSkip
		if e.Transactional {
			e.Unknown = UnknownResend
		}
	}
	o.check(func(d *decoder, n *node) { d.emailTemplates(e, n) })
}

func contentKeys(o *object, c *EmailContent, subject keyOption) {
	get(o, "subject", lineRule(), &c.Subject, subject)
	get(o, "preheader", lineRule(), &c.Preheader, optional)
	get(o, "html", sourceRule(), &c.HTML, optional)
	get(o, "markdown", sourceRule(), &c.Markdown, optional)
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

// inline turns {file: name} into the text of the file.
func (d *decoder) inline(n *node) bool {
	o := &object{d: d, n: n}
	var name string
	named := get(o, "file", fileName(), &name, required)
	o.done()
	if !named {
		return false
	}
	at := n.get("file")
	if d.files == nil {
		d.fail(at.position, "a file cannot be read here")
		return false
	}
	text, path, err := d.read(name)
	if err != nil {
		d.fail(at.position, "%v", err)
		return false
	}
	*n = node{position: n.position, kind: textNode, text: text, body: position{file: path, line: 1, col: 1}}
	return true
}
