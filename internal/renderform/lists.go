package renderform

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"golang.org/x/text/collate"
	"golang.org/x/text/language"
	"golang.org/x/text/language/display"

	"github.com/onda-run/onda/internal/spec"
)

// zoneNames are the time zones of the countries, as the tz database's zone.tab has them.
//
//go:embed zones.txt
var zoneNames string

// maxLists bounds the lists that a process keeps.
const maxLists = 60

// lists keeps the long lists to choose from: to put one in the order of a language takes a while. A nil one keeps nothing.
type lists struct {
	mu   sync.Mutex
	made map[listName][]optionView
}

type listName struct {
	typ  spec.FieldType
	lang string
}

// of gives the countries, languages or time zones in a language; the list is the caller's.
func (l *lists) of(typ spec.FieldType, lang string) []optionView {
	if typ == spec.TypeTimezone {
		return zones()
	}
	inOrderOf := countries
	if typ == spec.TypeLanguage {
		inOrderOf = languages
	}
	if l == nil {
		return inOrderOf(lang)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	name := listName{typ, lang}
	if l.made[name] == nil {
		if len(l.made) >= maxLists || l.made == nil {
			l.made = map[listName][]optionView{}
		}
		l.made[name] = inOrderOf(lang)
	}
	return slices.Clone(l.made[name])
}

// zones are named as the tz database names them, in whatever language.
func zones() []optionView {
	var out []optionView
	for name := range strings.Lines(zoneNames) {
		name = strings.TrimSpace(name)
		out = append(out, optionView{Value: name, Label: strings.ReplaceAll(name, "_", " ")})
	}
	return out
}

// countries are those of ISO 3166-1 by their names in a language, in its order.
func countries(lang string) []optionView {
	tag := language.Make(lang)
	names := display.Regions(tag)
	var out []optionView
	for a := 'A'; a <= 'Z'; a++ {
		for b := 'A'; b <= 'Z'; b++ {
			code := string([]rune{a, b})
			r, err := language.ParseRegion(code)
			if err != nil || !r.IsCountry() || r.IsGroup() || r.Canonicalize() != r || r.String() != code || noCountry(code) {
				continue
			}
			if name := names.Name(r); name != "" {
				out = append(out, optionView{Value: code, Label: name})
			}
		}
	}
	inOrder(tag, out)
	return out
}

// noCountry are codes that are reserved for something else, or for what is no more.
func noCountry(code string) bool {
	return slices.Contains([]string{"AC", "AN", "CP", "CQ", "DG", "EA", "EU", "EZ", "IC", "QO", "TA", "UN", "XA", "XB", "XK", "ZZ"}, code)
}

// languages are those that a company is likely to write in, by their own names.
func languages(lang string) []optionView {
	var out []optionView
	for _, code := range []string{
		"ar", "bg", "ca", "cs", "da", "de", "el", "en", "es", "et", "eu", "fi", "fr", "ga", "gl", "he", "hi", "hr", "hu", "id", "is", "it", "ja", "ko", "lt", "lv", "mt", "nl", "no",
		"pl", "pt", "pt-BR", "ro", "ru", "sk", "sl", "sr", "sv", "sw", "tr", "uk", "vi", "zh",
	} {
		out = append(out, optionView{Value: code, Label: display.Self.Name(language.Make(code))})
	}
	inOrder(language.Make(lang), out)
	return out
}

func inOrder(tag language.Tag, list []optionView) {
	c := collate.New(tag)
	slices.SortFunc(list, func(a, b optionView) int { return c.CompareString(a.Label, b.Label) })
}
