package emailsource_test

import (
	"os"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/spec"
)

// loadExamples reads the documents of the example company.
func loadExamples(tb testing.TB) *spec.Set {
	tb.Helper()
	set, err := spec.LoadChecked(os.DirFS("../../examples/company"), nil, emailsource.Compile)
	if err != nil {
		tb.Fatalf("the examples have problems:\n%v", err)
	}
	return set
}

// Every mail of the examples renders in all its languages for a contact that
// has everything and for one that has nothing.
func TestExamplesRender(t *testing.T) {
	t.Parallel()
	set := loadExamples(t)
	full := map[string]any{
		"email": "astrid.berg@example.no", "first_name": "Astrid <b>", "country": "NO", "plan": "season",
		"interests": []any{"touring", "sailing"}, "locale": "en",
	}
	for _, name := range set.Names(spec.KindEmail) {
		email, _ := spec.Find[*spec.Email](set, spec.KindEmail, name)
		layout, _ := spec.Find[*spec.Layout](set, spec.KindLayout, email.Layout)
		compiled, err := emailsource.Compile(email, layout)
		if err != nil {
			t.Fatal(err)
		}
		for _, parts := range compiled.Parts() {
			locale := parts.Edition
			for _, contact := range []map[string]any{full, {}} {
				vars := map[string]any{
					spec.VarContact: contact, spec.VarTopic: map[string]any{"title": "Newsletter"},
					spec.VarUnsubscribeURL: "https://l.example/u/x", spec.VarPixel: "https://l.example/o/x.gif",
				}
				links := make([]any, len(parts.Links))
				for i := range links {
					links[i] = "https://l.example/c/" + string(rune('a'+i))
				}
				vars[spec.VarLinks] = links
				html, err := parts.HTML.Render(vars)
				if err != nil {
					t.Errorf("%s %s: %v", name, locale, err)
				}
				text, err := parts.Text.Render(vars)
				if err != nil {
					t.Errorf("%s %s: %v", name, locale, err)
				}
				subject, err := parts.Subject.Render(vars)
				if err != nil || subject == "" {
					t.Errorf("%s %s: subject %q, %v", name, locale, subject, err)
				}
				for _, part := range []string{html, text} {
					if strings.Contains(part, "{{") || strings.Contains(part, "{%") || strings.Contains(part, "ondaliquid") {
						t.Errorf("%s %s: Liquid is left:\n%s", name, locale, part)
					}
					if !email.Transactional && !strings.Contains(part, "https://l.example/u/x") {
						t.Errorf("%s %s: no address to unsubscribe:\n%s", name, locale, part)
					}
				}
				if strings.Contains(html, "<b>") {
					t.Errorf("%s %s: a name was not escaped", name, locale)
				}
			}
		}
	}
}
