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
