package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// list is a CSV file of contacts with the consent that they gave.
type list struct {
	file     string
	rows     int64
	consents []string
	what     string
}

// writeContacts writes the contacts of the tour: the same ones at every run, for whoever asks. Addresses are in .example, which nobody has (RFC 2606), and
// some of them begin with a word that makes the mailbox server refuse them.
func writeContacts(dir string, total int64) ([]list, error) {
	tracked, silent := total*2/5, total/100
	lists := []list{
		{file: "readers-tracked.csv", rows: tracked, consents: []string{"newsletter", "tracking.email"}, what: "agreed to the newsletter, and to tracking"},
		{file: "readers.csv", rows: total - tracked - silent, consents: []string{"newsletter"}, what: "agreed to the newsletter, not to tracking"},
		{file: "others.csv", rows: silent, what: "agreed to nothing"},
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // it must be the same every time
	n := 0
	for i, l := range lists {
		lists[i].file = filepath.Join(dir, l.file)
		f, err := os.Create(lists[i].file)
		if err != nil {
			return nil, err
		}
		w := bufio.NewWriter(f)
		_, _ = fmt.Fprintln(w, "external_id,email,first_name,country,locale,plan,birthday")
		for range l.rows {
			n++
			_, _ = fmt.Fprintln(w, person(random, n))
		}
		if err := w.Flush(); err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return lists, nil
}

func person(random *rand.Rand, n int) string {
	first := pick(random, "Ada", "Bjørn", "Carla", "Duarte", "Eira", "Finn", "Greta", "Håkon", "Inês", "Jonas", "Karin", "Lars", "Maja", "Nils", "Olga", "Pia", "Sven", "Tuva")
	country := pick(random, "NO", "NO", "NO", "SE", "SE", "DK", "FI", "IS")
	locale := pick(random, "en", "en", "en", "en", "fr", "pt")
	return strings.Join([]string{
		fmt.Sprintf("customer-%05d", n), fmt.Sprintf("%scustomer%05d@mail%d.example", behaviour(n), n, n%7), first, country, locale,
		pick(random, "free", "free", "free", "season", "lifetime"), fmt.Sprintf("%d-%02d-%02d", 1950+random.IntN(55), 1+random.IntN(12), 1+random.IntN(28)),
	}, ",")
}

// behaviour is what the mailbox server does to one in a few hundred.
func behaviour(n int) string {
	switch {
	case n%400 == 7:
		return "nobody."
	case n%900 == 11:
		return "full."
	case n%2500 == 13:
		return "blocked."
	}
	return ""
}

func pick(random *rand.Rand, of ...string) string { return of[random.IntN(len(of))] }
