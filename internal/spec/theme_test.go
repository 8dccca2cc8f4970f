package spec

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestLogo(t *testing.T) {
	t.Parallel()
	head := "apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings, title: Acme}\nspec:\n  theme: {accent: \"#1c5bb8\", logo: {file: %}}\n"
	files := fstest.MapFS{"logo.svg": {Data: []byte("<svg/>")}, "huge.png": {Data: make([]byte, maxLogo+1)}, "logo.pdf": {Data: []byte("x")}}
	for name, want := range map[string]string{
		"logo.svg": "",
		"huge.png": "settings.yaml:5:43: the file \"huge.png\" cannot be read: the logo is larger than 32 KiB, and every page has it in it: make it smaller, or an SVG of it",
		"logo.pdf": `settings.yaml:5:43: a logo is an SVG, PNG, JPEG, GIF or WebP: "logo.pdf" has another ending`,
		"none.png": `settings.yaml:5:43: there is no file "none.png" beside the document`,
	} {
		files["settings.yaml"] = &fstest.MapFile{Data: []byte(strings.ReplaceAll(head, "%", name))}
		set, err := Load(files)
		if want != "" {
			if err == nil || err.Error() != want {
				t.Errorf("%s: %v, want %s", name, err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := DecodeAs[*Settings](KindSettings, set.Documents[0].JSON)
		if err != nil || s.Theme.Logo != "data:image/svg+xml;base64,PHN2Zy8+" || *s.Theme.Accent != (Colour{0x1c, 0x5b, 0xb8}) {
			t.Errorf("%+v, %v", s, err)
		}
	}
}
