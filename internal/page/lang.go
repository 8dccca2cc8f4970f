package page

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// Fallback is the language of who understands none of the others.
const Fallback = "en"

// Languages are those that every text of ours is in.
func Languages() []string { return []string{"en", "fr", "pt"} }

// texts are those of one language, by key.
type texts map[string]string

// get fills the {name}s of a text with the values of pairs.
func (t texts) get(key string, pairs ...any) (string, error) {
	s, ok := t[key]
	if !ok {
		return "", fmt.Errorf("there is no text %q", key)
	}
	if len(pairs) == 0 {
		return s, nil
	}
	fill := make([]string, 0, len(pairs))
	for i := 0; i+1 < len(pairs); i += 2 {
		fill = append(fill, fmt.Sprintf("{%v}", pairs[i]), fmt.Sprint(pairs[i+1]))
	}
	return strings.NewReplacer(fill...).Replace(s), nil
}

func readTexts() (map[string]texts, error) {
	all := map[string]texts{}
	for _, lang := range Languages() {
		b, err := files.ReadFile("texts/" + lang + ".json")
		if err != nil {
			return nil, fmt.Errorf("read the texts in %s: %w", lang, err)
		}
		var t texts
		if err := json.Unmarshal(b, &t); err != nil {
			return nil, fmt.Errorf("read the texts in %s: %w", lang, err)
		}
		all[lang] = t
	}
	return all, nil
}

// Negotiate picks one of the languages that are offered (BCP 47; the first is the fallback) by an Accept-Language header (RFC 9110 section 12.5.4): the one the visitor
// likes best, where en-GB is content with en and en with en-GB.
func Negotiate(header string, offered ...string) string {
	type wish struct {
		lang string
		q    float64
	}
	var wishes []wish
	for part := range strings.SplitSeq(header, ",") {
		lang, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		w := wish{strings.ToLower(strings.TrimSpace(lang)), 1}
		if v, ok := strings.CutPrefix(strings.ReplaceAll(params, " ", ""), "q="); ok {
			q, err := strconv.ParseFloat(v, 64)
			if err != nil || !(q >= 0 && q <= 1) {
				continue
			}
			w.q = q
		}
		if w.lang != "" && w.q > 0 {
			wishes = append(wishes, w)
		}
		if len(wishes) == 20 { // nobody speaks more
			break
		}
	}
	sort.SliceStable(wishes, func(i, j int) bool { return wishes[i].q > wishes[j].q })
	for _, w := range wishes {
		if w.lang == "*" {
			break
		}
		for _, fits := range []func(offer string) bool{
			func(offer string) bool { return offer == w.lang },
			func(offer string) bool { return baseOf(offer) == baseOf(w.lang) },
		} {
			for _, o := range offered {
				if fits(strings.ToLower(o)) {
					return o
				}
			}
		}
	}
	if len(offered) == 0 {
		return Fallback
	}
	return offered[0]
}

func baseOf(lang string) string {
	base, _, _ := strings.Cut(lang, "-")
	return base
}
