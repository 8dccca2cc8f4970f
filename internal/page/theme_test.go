package page

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/spec"
)

// Whatever accent may be chosen, what is written in it and on it can be read, in the light and in the dark.
func TestEveryAccentCanBeRead(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	value := regexp.MustCompile(`--(accent[a-z-]*): #(..)(..)(..);`)
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.Byte()
		accent := spec.Colour{R: b.Draw(t, "r"), G: b.Draw(t, "g"), B: b.Draw(t, "b")}.Toward(spec.Black, spec.White, 4.5)
		style := strings.TrimPrefix(p.styleOf(spec.Theme{Accent: &accent}), p.style)
		light, dark, found := strings.Cut(style, "@media (prefers-color-scheme: dark)")
		if !found {
			t.Fatal("there is nothing for the dark")
		}
		for part, card := range map[string]spec.Colour{light: spec.White, dark: darkCard} {
			c := map[string]spec.Colour{}
			for _, m := range value.FindAllStringSubmatch(part, -1) {
				var v spec.Colour
				if _, err := fmt.Sscanf(m[2]+m[3]+m[4], "%02x%02x%02x", &v.R, &v.G, &v.B); err != nil {
					t.Fatal(err)
				}
				c[m[1]] = v
			}
			for _, pair := range []struct {
				what     string
				on, text spec.Colour
				least    float64
			}{
				{"a link", card, c["accent"], 4.5},
				{"a link under the mouse", card, c["accent-strong"], 4.5},
				{"a button", c["accent"], c["accent-ink"], 4.5},
				{"a button under the mouse", c["accent-strong"], c["accent-ink"], 4.5},
				{"an icon", c["accent-soft"], c["accent"], 3},
			} {
				if got := pair.on.Contrast(pair.text); got < pair.least {
					t.Errorf("%s has a contrast of %.2f in %s", pair.what, got, part)
				}
			}
		}
	})
}

func TestThemesKeepThePolicy(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	plain := httptest.NewRecorder()
	if err := p.Write(plain, httptest.NewRequest(http.MethodGet, "/", nil), View{Title: "x", Brand: "B", Block: "text", Data: "y"}); err != nil {
		t.Fatal(err)
	}
	for name, theme := range themes {
		w := httptest.NewRecorder()
		if err := p.Write(w, httptest.NewRequest(http.MethodGet, "/", nil), View{Title: "x", Brand: "B", Theme: theme, Block: "text", Data: "y"}); err != nil {
			t.Fatal(err)
		}
		policy := w.Header().Get("Content-Security-Policy")
		if strings.Contains(policy, "unsafe") || policy == plain.Header().Get("Content-Security-Policy") {
			t.Errorf("%s: policy %s", name, policy)
		}
		if has := strings.Contains(w.Body.String(), `<img src="data:image/`); has != (theme.Logo != "") || strings.Contains(w.Body.String(), "ZgotmplZ") {
			t.Errorf("%s: a logo is %v: %s", name, has, w.Body)
		}
		if embedded := p.Embedded(theme); theme.Accent != nil && !strings.Contains(embedded, ":host { --accent: "+theme.Accent.String()) {
			t.Errorf("%s: embedded forms have another look: %s", name, embedded)
		}
	}
}

// A style is made once, be its theme's accent another pointer to the same colour; and not kept for ever.
func TestStylesAreMadeOnce(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	themed := func(c spec.Colour) spec.Theme { return spec.Theme{Accent: &c, Corners: spec.CornersRound} }
	first := p.sheetOf(themed(spec.Colour{R: 1}))
	if second := p.sheetOf(themed(spec.Colour{R: 1})); first != second || len(p.sheets) != 1 {
		t.Errorf("%d styles of one theme", len(p.sheets))
	}
	for _, other := range []spec.Theme{{}, themed(spec.Black), themed(spec.Colour{R: 2}), {Corners: spec.CornersRound}, {Font: spec.FontSerif}} {
		s := p.sheetOf(other)
		if s.css == first.css || s.css != p.styleOf(other) || s.hash != hashOf([]byte(s.css)) {
			t.Errorf("%v has another's style", other)
		}
	}
	for i := range 2 * maxSheets {
		p.sheetOf(themed(spec.Colour{R: uint8(i), G: uint8(i >> 8), B: 9}))
	}
	if len(p.sheets) > maxSheets {
		t.Errorf("%d styles are kept", len(p.sheets))
	}
}
