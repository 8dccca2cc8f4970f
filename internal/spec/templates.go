package spec

import "strings"

// uses says whether any text of the email names a variable.
func (e *Email) uses(name string) bool {
	for _, c := range e.contents() {
		for _, s := range []Source{c.HTML, c.Markdown, c.Text} {
			if strings.Contains(string(s), name) {
				return true
			}
		}
	}
	return false
}

// contents gives the email's texts and those of its locales.
func (e *Email) contents() []EmailContent {
	all := []EmailContent{e.EmailContent}
	for _, l := range sortedKeys(e.Locales) {
		all = append(all, e.Locales[l])
	}
	return all
}

func (d *decoder) layoutTemplate(n *node, key string) {}
func (d *decoder) emailTemplates(e *Email, n *node)   {}
