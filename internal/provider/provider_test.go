package provider

import (
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string][2]string{
		"a@gmail.com":      {"gmail.com", "google"},
		"a@hotmail.com":    {"hotmail.com", "microsoft"},
		`"a@b"@aol.com`:    {"aol.com", "yahoo"},
		"a@example.com":    {"example.com", ""},
		"a@mx.gmail.com":   {"mx.gmail.com", ""},
		"a@xn--bcher.test": {"xn--bcher.test", ""},
	} {
		if domain, name := OfAddress(address); domain != want[0] || name != want[1] {
			t.Errorf("%s: %q, %q, want %q", address, domain, name, want)
		}
	}
	if !Known("google") || Known("gmail.com") || Known("gogle") {
		t.Error("names of providers are not told from others")
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a.example\tx\na.example\ty": "providers.tsv:2: a.example is there twice",
		"# c\na.example x":           "providers.tsv:2: want a domain, a tab",
		"a\tx":                       "providers.tsv:1: want",
		"a.example\tx.y":             "providers.tsv:1: want",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}
