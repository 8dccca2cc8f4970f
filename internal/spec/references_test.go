package spec

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// Each document of the example company, read back from its stored form, refers to what it is refused without.
func TestReferences(t *testing.T) {
	t.Parallel()
	set, err := LoadChecked(os.DirFS("../../examples/company"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Segment nordic":        "Field country",
		"Segment engaged":       "",
		"Segment quiet-readers": "Segment engaged, Segment newsletter-readers",
		"Segment birthday-week": "Field birthday, Topic newsletter",
		"Broadcast spring-news": "Segment nordic, Segment staff, Email spring-news",
		"Email spring-news":     "Field first_name, Field interests, Field plan, Topic newsletter, Layout shop",
	}
	for _, d := range set.Documents {
		refs, err := References(d.JSON)
		if err != nil {
			t.Fatalf("%s %s: %v", d.Kind, d.Name, err)
		}
		var words []string
		for _, r := range refs {
			words = append(words, r.Kind+" "+r.Name)
		}
		if want, ok := want[d.Kind+" "+d.Name]; ok && want != strings.Join(words, ", ") {
			t.Errorf("%s %s refers to %s, want %s", d.Kind, d.Name, strings.Join(words, ", "), want)
		}
		// With exactly these documents nothing is missing; without any one of them, something is.
		for without := -1; without < len(refs); without++ {
			var known []Doc
			for i, r := range refs {
				doc, ok := set.Document(r.Kind, r.Name)
				if !ok {
					t.Fatalf("%s %s refers to %v, which is not there", d.Kind, d.Name, r)
				}
				if i != without {
					known = append(known, doc)
				}
			}
			problems := (&Set{Documents: []*Document{d}}).Check(NewStored(known...), nil)
			missing := slices.ContainsFunc(problems, func(p Problem) bool {
				return strings.HasPrefix(p.Msg, "unknown ") || strings.Contains(p.Msg, "there is none yet")
			})
			if missing != (without >= 0) {
				t.Errorf("%s %s, without its reference %d of %v: %v", d.Kind, d.Name, without, refs, problems)
			}
		}
	}
	if _, err := References([]byte(`{"kind": "Nothing"}`)); err == nil {
		t.Error("a document of no kind was read")
	}
}
