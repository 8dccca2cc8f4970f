package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/liquid"
)

// The variables of templates, beside contact.*, topic.* and data.*.
const (
	VarContact        = "contact"
	VarTopic          = "topic"
	VarData           = "data"
	VarUnsubscribeURL = "unsubscribe_url"
	VarPreferencesURL = "preferences_url"
	VarWebviewURL     = "webview_url"
	VarFormURL        = "form_url"    // form_url.NAME: a form's page that knows who comes
	VarConfirmURL     = "confirm_url" // in the email of a form's confirm only

	varContent = "content" // in layouts only
)

func topicVariables() []string { return []string{"name", "title", "description"} }

func templateVariables() []string {
	return []string{VarContact, VarTopic, VarData, VarUnsubscribeURL, VarPreferencesURL, VarWebviewURL, VarFormURL}
}

// templateKeys are the keys of an email's texts, with the mode in which each is
// checked. Markdown and MJML become HTML later; Text only reads their Liquid.
func templateKeys() map[string]liquid.Mode {
	return map[string]liquid.Mode{
		"subject": liquid.Header, "preheader": liquid.Text, "html": liquid.HTML, "markdown": liquid.Text, "mjml": liquid.Text, "text": liquid.Text,
	}
}

// template parses a text of a document and keeps the check of its names. It
// gives nil when it does not parse.
func (d *decoder) template(n *node, mode liquid.Mode, extra ...string) *liquid.Template {
	if d.stored {
		return nil // parsed when it is compiled
	}
	t, problems := liquid.Parse(n.text, mode)
	for _, p := range problems {
		d.fail(n.place(p.Line, p.Col), "%s", p.Msg)
	}
	if t == nil {
		return nil
	}
	d.later(func(c *checker) { c.templateNames(n, t, extra) })
	return t
}

const scriptTag = `(?i)<script\b`

// noScript refuses scripts: mail programs drop them, and the web view must not run them.
func (d *decoder) noScript(n *node) {
	if d.stored {
		return // refused at apply
	}
	at := compiled(scriptTag).FindStringIndex(n.text)
	if at == nil {
		return
	}
	before := n.text[:at[0]]
	line := 1 + strings.Count(before, "\n")
	col := 1 + len([]rune(before[strings.LastIndexByte(before, '\n')+1:]))
	d.fail(n.place(line, col), "a mail has no scripts: leave <script> out")
}

const contentOutput = `\{\{-?\s*content\s*-?\}\}`

// Within puts an email's content into its layout: where {{ content }} is.
func Within(layout Source, content string) string {
	at := compiled(contentOutput).FindStringIndex(string(layout))
	if at == nil {
		return content
	}
	return string(layout[:at[0]]) + content + string(layout[at[1]:])
}

func (d *decoder) layoutTemplate(n *node, key string) {
	mode := templateKeys()[key]
	if key != "text" {
		d.noScript(n)
	}
	t := d.template(n, mode, varContent)
	if t == nil {
		return
	}
	uses := 0
	for _, name := range t.Names() {
		if name.Path[0] == varContent {
			uses++
		}
	}
	if uses != 1 || len(compiled(contentOutput).FindAllString(n.text, -1)) != 1 {
		d.fail(n.position, "a layout has {{ content }} in it exactly once: the email goes there")
	}
}

func (d *decoder) emailTemplates(e *Email, n *node) {
	before := len(d.problems)
	each := func(content *node) {
		modes := templateKeys()
		for _, key := range sortedKeys(modes) {
			at := content.get(key)
			if at == nil || at.kind != textNode {
				continue
			}
			if key == "html" || key == "markdown" || key == "mjml" {
				d.noScript(at)
			}
			d.template(at, modes[key])
		}
	}
	for _, content := range contentNodes(n) {
		each(content)
	}
	if len(d.problems) == before {
		d.later(func(c *checker) { c.compiles(e, n) })
	}
}

// contentNodes gives where an email's texts are: itself, its variants, and the locales of both.
func contentNodes(n *node) []*node {
	all := []*node{n}
	if variants := n.get("variants"); variants != nil {
		for _, v := range variants.items {
			if v.kind == objectNode {
				all = append(all, contentNodes(v)...)
			}
		}
	}
	if locales := n.get("locales"); locales != nil {
		for _, l := range locales.entries {
			if l.value.kind == objectNode {
				all = append(all, l.value)
			}
		}
	}
	return all
}

// templateNames checks the names that a template takes.
func (c *checker) templateNames(n *node, t *liquid.Template, extra []string) {
	known := append(templateVariables(), extra...)
	if c.doc.Kind == KindEmail && c.confirms(c.doc.Name) {
		known = append(known, VarConfirmURL)
	}
	for _, name := range t.Names() {
		at := n.place(name.Line, name.Col)
		root := name.Path[0]
		if root == VarConfirmURL && !slices.Contains(known, root) {
			if c.doc.Kind == KindLayout {
				c.fail(at, "confirm_url is not known in a layout: put it into the email")
			} else {
				c.fail(at, "confirm_url is known only in an email that a form's confirm names")
			}
			continue
		}
		if !slices.Contains(known, root) {
			c.fail(at, "%s", unknown("name", name.String(), append(known, c.contactNames()...)))
			continue
		}
		switch root {
		case VarContact:
			c.contactName(at, name)
		case VarFormURL:
			if len(name.Path) != 2 {
				c.fail(at, "say which form's: form_url.NAME")
			} else {
				c.mustHave(at, KindForm, name.Path[1])
			}
		case VarTopic:
			if len(name.Path) < 2 {
				c.fail(at, "say what of the topic: topic.title")
			} else if !slices.Contains(topicVariables(), name.Path[1]) {
				c.fail(at, "%s", unknown("name", name.String(), []string{"topic.name", "topic.title", "topic.description"}))
			}
		}
	}
}

func (c *checker) contactNames() []string {
	names := c.fieldNames()
	for i, f := range names {
		names[i] = VarContact + "." + f
	}
	return names
}

func (c *checker) contactName(at position, name liquid.Name) {
	if len(name.Path) < 2 {
		c.fail(at, "say which field of the contact: contact.email")
		return
	}
	field := name.Path[1]
	if field == MainScore && len(name.Path) > 2 {
		c.fail(at, "%s: of scores templates know contact.%s alone", name, MainScore)
		return
	}
	if _, builtin := builtinField(field); builtin {
		return
	}
	c.note(KindField, field)
	if _, ok := c.find(KindField, field); !ok {
		c.fail(at, "%s", unknown("field", name.String(), c.contactNames()))
	}
}

// confirms says whether a form's double opt-in names this email.
func (c *checker) confirms(email string) bool {
	for _, form := range c.names(KindForm) {
		doc, ok := c.find(KindForm, form)
		if doc == nil && ok {
			return true // the form cannot be read; that has been said
		}
		if f, ok := doc.(*Form); ok && f.Confirm != nil && f.Confirm.Email == email {
			return true
		}
	}
	return false
}

// compiles puts an email of the set together with its layout, for it to be stored.
func (c *checker) compiles(e *Email, n *node) {
	if c.doc.broken || c.compile == nil {
		return // what is missing was said
	}
	var layout *Layout
	if e.Layout != "" {
		var ok bool
		if layout, ok = found[*Layout](c, KindLayout, e.Layout); !ok {
			return // said already
		}
	}
	if c.doc.Compiled = c.together(e, layout, bodyOf(n).position); c.doc.Compiled != nil {
		c.warn(e, n, c.doc.Compiled.Findings)
	}
}

// warn gives the findings in an email, and in its layout if that is of the set, their places.
func (c *checker) warn(e *Email, n *node, findings []Finding) {
	for _, f := range findings {
		at := e.bodyNode(n, f.Edition)
		if f.Layout {
			layout := c.docs[ref{KindLayout, e.Layout}]
			if layout == nil || layout.tree == nil {
				continue // it was said when the layout was applied
			}
			at = bodyOf(layout.tree.get("spec"))
		}
		if at == nil {
			continue
		}
		p := at.position
		if f.Line > 0 {
			p = at.place(f.Line, f.Col)
		}
		c.set.Warnings = append(c.set.Warnings, p.problem("%s", f.Msg))
	}
}

// bodyOf gives the text that a node has for a body, or nil.
func bodyOf(n *node) *node {
	if n == nil {
		return nil
	}
	for _, key := range []string{"html", "markdown", "mjml"} {
		if at := n.get(key); at != nil {
			return at
		}
	}
	return nil
}

// bodyNode gives the text that is the body of an edition: see Content.
func (e *Email) bodyNode(n *node, of Edition) *node {
	var variant *node
	for i, v := range e.Variants {
		if v.Name == of.Variant {
			variant = n.get("variants").items[i]
		}
	}
	var places []*node
	for _, l := range localeChain(of.Locale) {
		for _, where := range []*node{variant, n} {
			if where != nil && where.get("locales") != nil {
				places = append(places, where.get("locales").get(l))
			}
		}
		if slices.ContainsFunc(places, func(n *node) bool { return n != nil }) {
			break
		}
	}
	for _, where := range append(places, variant, n) {
		if at := bodyOf(where); at != nil {
			return at
		}
	}
	return nil
}

// together puts an email together with its layout. What is wrong with that is said at p.
func (c *checker) together(e *Email, layout *Layout, p position) *Compiled {
	made, err := c.compile(e, layout)
	if err != nil {
		c.fail(p, "the mail cannot be put together: %v", err)
		return nil
	}
	if e.Topic == "" || e.Transactional {
		return made
	}
	for _, parts := range made.Parts() {
		if !parts.HTML.Uses(VarUnsubscribeURL) {
			c.fail(p, "a mail with a topic needs {{ unsubscribe_url }} in it, or in its layout%s", ofEmail(c.doc, e))
			return nil
		}
	}
	return made
}

// ofEmail names the email where the document at fault is not the email itself.
func ofEmail(doc *Document, e *Email) string {
	if doc.Kind == KindEmail {
		return ""
	}
	return fmt.Sprintf(": the email %q has it in neither", e.Name)
}

// remake puts the emails that are known, and not of the set, together with a layout of the set.
func (c *checker) remake(doc *Document, layout *Layout) {
	for _, name := range c.known.Names(KindEmail) {
		if r := (ref{KindEmail, name}); c.docs[r] != nil || c.broken[r] {
			continue
		}
		e, ok := found[*Email](c, KindEmail, name)
		if !ok || e.Layout != doc.Name {
			continue
		}
		if made := c.together(e, layout, position{doc.File, doc.Line, doc.Col}); made != nil {
			c.set.Remade = append(c.set.Remade, &Document{Kind: KindEmail, Name: name, Title: e.Title, Doc: e, Compiled: made})
		}
	}
}

// uses says whether any text of the email takes a variable.
func (e *Email) uses(name ...string) bool {
	for _, edition := range e.Editions() {
		c := e.Content(edition)
		for _, s := range []Source{c.HTML, c.Markdown, c.MJML, c.Text} {
			if t, _ := liquid.Parse(string(s), liquid.Text); t != nil && t.Uses(name...) {
				return true
			}
		}
	}
	return false
}
