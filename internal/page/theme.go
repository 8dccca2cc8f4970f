package page

import (
	"cmp"
	"strings"

	"github.com/onda-run/onda/internal/spec"
)

var (
	darkCard = spec.Colour{R: 0x18, G: 0x20, B: 0x2a} // style.css: --card in the dark
	darkInk  = spec.Colour{R: 0x0c, G: 0x1a, B: 0x2e}
)

// sheet is the style of pages, and how their Content-Security-Policy names it.
type sheet struct{ css, hash string }

// look is what of a theme decides about the style.
type look struct {
	accent  spec.Colour
	themed  bool // there is an accent
	corners spec.Corners
	font    spec.Font
}

func lookOf(t spec.Theme) look {
	l := look{corners: t.Corners, font: t.Font}
	if t.Accent != nil {
		l.accent, l.themed = *t.Accent, true
	}
	return l
}

// maxSheets is how many styles are kept; past it they are made anew.
const maxSheets = 1_000

// sheetOf gives the style of a theme's pages, which is made once: it takes longer than all else of a page.
func (p *Pages) sheetOf(t spec.Theme) sheet {
	l := lookOf(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.sheets[l]
	if !ok {
		css := p.styleOf(t)
		s = sheet{css, hashOf([]byte(css))}
		if len(p.sheets) >= maxSheets {
			clear(p.sheets)
		}
		p.sheets[l] = s
	}
	return s
}

// styleOf gives the style of the pages, with what a theme says after it. Of the accent the other colours are made, so that they can be read wherever the accent can on white.
func (p *Pages) styleOf(t spec.Theme) string {
	var light, dark strings.Builder
	if t.Accent != nil {
		colours(&light, *t.Accent, spec.White, t.Accent.Mix(spec.White, .9), t.Accent.Mix(spec.Black, .25))
		bright := t.Accent.Toward(spec.White, darkCard, 7)
		colours(&dark, bright, darkInk, darkCard.Mix(bright, .12), bright.Mix(spec.White, .4))
	}
	switch cmp.Or(t.Corners, spec.CornersSoft) {
	case spec.CornersSoft: // as the style has them
	case spec.CornersSquare:
		light.WriteString("--corner: 0; ")
	case spec.CornersRound:
		light.WriteString("--corner: 1.8; ")
	}
	if t.Font == spec.FontSerif {
		light.WriteString(`--font: "Iowan Old Style", "Palatino Linotype", Palatino, "Noto Serif", "Liberation Serif", Georgia, serif; `)
	}
	style := p.style
	if light.Len() > 0 {
		style += ":root { " + light.String() + "}\n"
	}
	if dark.Len() > 0 {
		style += "@media (prefers-color-scheme: dark) { :root { " + dark.String() + "} }\n"
	}
	return style
}

func colours(b *strings.Builder, accent, ink, soft, strong spec.Colour) {
	for _, c := range []struct {
		name   string
		colour spec.Colour
	}{{"accent", accent}, {"accent-ink", ink}, {"accent-soft", soft}, {"accent-strong", strong}} {
		b.WriteString("--" + c.name + ": " + c.colour.String() + "; ")
	}
}
