// Package provider knows which mailbox provider is behind a domain: reputations are made, and mails slowed down, by provider and not by domain.
package provider

import (
	_ "embed"
	"fmt"
	"strings"
	"sync"
)

//go:embed providers.tsv
var table string

// rows are providers by domain, and the names of all providers.
type rows struct {
	domains map[string]string
	names   map[string]bool
}

var known = sync.OnceValue(func() rows {
	r, err := parse(table)
	if err != nil {
		panic(err) // the table is part of the program and has a test
	}
	return r
})

func parse(table string) (rows, error) {
	r := rows{domains: map[string]string{}, names: map[string]bool{}}
	for i, line := range strings.Split(table, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		domain, name, found := strings.Cut(line, "\t")
		switch {
		case !found || !strings.Contains(domain, ".") || name == "" || strings.ContainsAny(name, ".\t "):
			return r, fmt.Errorf("providers.tsv:%d: want a domain, a tab and a provider's name", i+1)
		case r.domains[domain] != "":
			return r, fmt.Errorf("providers.tsv:%d: %s is there twice", i+1, domain)
		}
		r.domains[domain], r.names[name] = name, true
	}
	return r, nil
}

// Of gives the provider behind a domain, which is in lower case and ASCII; "" when the domain stands for itself.
func Of(domain string) string { return known().domains[domain] }

// Known tells whether there is a provider of the name.
func Known(name string) bool { return known().names[name] }

// OfAddress gives the domain of a normalised address and the provider behind it.
func OfAddress(address string) (domain, provider string) {
	domain = address[strings.LastIndexByte(address, '@')+1:]
	return domain, Of(domain)
}
