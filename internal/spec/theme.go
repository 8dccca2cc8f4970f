package spec

import (
	"encoding/base64"
	"fmt"
	"math"
	"path"
	"strings"
)

// Theme is how visitors' pages and forms look. Its zero value is how they look of themselves.
type Theme struct {
	Accent  *Colour // of buttons, links and marks on white; on dark ground a lighter one is made of it
	Corners Corners
	Font    Font
	Logo    string // a data: URL of an image, shown in the place of the tenant's name
}

// Corners are how round boxes, inputs and buttons are.
type Corners string

// Corners of pages; soft unless given.
const (
	CornersSquare Corners = "square"
	CornersSoft   Corners = "soft"
	CornersRound  Corners = "round"
)

// Font is which of the visitor's own fonts the pages are in.
type Font string

// Fonts of pages; sans unless given.
const (
	FontSans  Font = "sans"
	FontSerif Font = "serif"
)

const (
	colorPattern = `^#[0-9A-Fa-f]{6}$`
	logoPattern  = `^data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/]+=*$`
	maxLogo      = 32 << 10 // each page carries it
	// readable is the contrast that WCAG 2.2, 1.4.3, asks of text.
	readable = 4.5
)

var errLogo = fmt.Errorf("the logo is larger than %d KiB, and every page has it in it: make it smaller, or an SVG of it", maxLogo>>10)

// Colour is one of sRGB.
type Colour struct{ R, G, B uint8 }

// White and Black are the ends of the scale.
var (
	White = Colour{255, 255, 255}
	Black = Colour{}
)

// parseColour reads #rrggbb.
func parseColour(s string) (c Colour, err error) {
	_, err = fmt.Sscanf(s, "#%02x%02x%02x", &c.R, &c.G, &c.B)
	return c, err
}

// String gives #rrggbb.
func (c Colour) String() string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

// Mix gives the colour with a share, from 0 to 1, of another in it.
func (c Colour) Mix(with Colour, share float64) Colour {
	mix := func(a, b uint8) uint8 { return uint8(math.Round(float64(a) + (float64(b)-float64(a))*share)) }
	return Colour{mix(c.R, with.R), mix(c.G, with.G), mix(c.B, with.B)}
}

// Contrast gives the ratio of WCAG 2.2 to another colour, from 1 to 21.
func (c Colour) Contrast(to Colour) float64 {
	a, b := c.luminance(), to.luminance()
	return (max(a, b) + .05) / (min(a, b) + .05)
}

func (c Colour) luminance() float64 {
	linear := func(v uint8) float64 {
		f := float64(v) / 255
		if f <= .04045 {
			return f / 12.92
		}
		return math.Pow((f+.055)/1.055, 2.4)
	}
	return .2126*linear(c.R) + .7152*linear(c.G) + .0722*linear(c.B)
}

// Toward gives the colour with as much of another in it as it takes to have a contrast to the ground.
func (c Colour) Toward(end, ground Colour, contrast float64) Colour {
	out := c
	for share := .02; out.Contrast(ground) < contrast && share <= 1; share += .02 {
		out = c.Mix(end, share)
	}
	return out
}

func themeRule() rule[Theme] {
	return shape("theme", func(o *object, t *Theme) {
		get(o, "accent", pointer(accentRule()), &t.Accent, optional)
		get(o, "corners", choice(CornersSquare, CornersSoft, CornersRound), &t.Corners, optional)
		get(o, "font", choice(FontSans, FontSerif), &t.Font, optional)
		get(o, "logo", logoRule(), &t.Logo, optional)
	})
}

// accentRule is a colour that text can have on white, and white on it.
func accentRule() rule[Colour] {
	return scalar(`a colour such as "#1c5bb8", in quotes`, colorPattern, func(s string) (Colour, error) {
		c, err := parseColour(s)
		if err != nil {
			return c, err
		}
		if has := c.Contrast(White); has < readable {
			return c, Problem{Msg: fmt.Sprintf("white on %s, and %s on white, has a contrast of %.1f:1, and text needs %.1f:1 to be read by everybody: write a darker one, such as %q",
				s, s, math.Floor(has*10)/10, readable, c.Toward(Black, White, readable))}
		}
		return c, nil
	})
}

// logoRule is {file: logo.svg}. The tree then holds the image, so that the stored form is complete.
func logoRule() rule[string] {
	stored := scalar("{file: name}, of an SVG, PNG, JPEG, GIF or WebP", logoPattern, asText)
	source := sourceRule()
	return rule[string]{
		read: func(d *decoder, n *node) (string, bool) {
			if n.kind == objectNode && !d.image(n) {
				return "", false
			}
			return stored.read(d, n)
		},
		schema: source.schema,
	}
}

// image turns {file: name} into a data: URL of the file.
func (d *decoder) image(n *node) bool {
	name, at, ok := d.fileOf(n)
	if !ok {
		return false
	}
	kind := map[string]string{".svg": "svg+xml", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}[strings.ToLower(path.Ext(name))]
	if kind == "" {
		d.fail(at, "a logo is an SVG, PNG, JPEG, GIF or WebP: %q has another ending", name)
		return false
	}
	src, _, err := d.find(name, func(name string) ([]byte, error) { return readFile(d.files.fsys, name, maxLogo, errLogo) })
	if err != nil {
		d.fail(at, "%v", err)
		return false
	}
	*n = node{position: n.position, kind: textNode, text: "data:image/" + kind + ";base64," + base64.StdEncoding.EncodeToString(src)}
	return true
}
