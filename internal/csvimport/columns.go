package csvimport

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// known is what the tenant has that a file may name.
type known struct {
	fields map[string]*spec.Field
	topics []string
}

func read(ctx context.Context, tx *postgres.Tx) (known, error) {
	k := known{fields: map[string]*spec.Field{}}
	rows, err := tx.Query(ctx, `SELECT e.kind, e.name, CASE WHEN e.kind = 'Field' THEN d.spec END FROM entity e JOIN document d ON d.id = e.current
		WHERE e.kind IN ('Field', 'Topic') ORDER BY e.name`)
	if err != nil {
		return k, fmt.Errorf("read fields: %w", err)
	}
	var kind, name string
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&kind, &name, &stored}, func() error {
		if kind == spec.KindTopic {
			k.topics = append(k.topics, name)
			return nil
		}
		f, err := spec.DecodeAs[*spec.Field](spec.KindField, stored)
		k.fields[name] = f
		return err
	})
	if err != nil {
		return k, fmt.Errorf("read fields: %w", err)
	}
	return k, nil
}

// options checks what everyone is said to have, and to have agreed to.
func (k known) options(opts Options) error {
	purposes := k.purposes()
	for _, c := range opts.Consent {
		if !slices.Contains(purposes, c) {
			return fmt.Errorf("there is no topic %q%s", c, suggestion(c, purposes))
		}
	}
	if len(opts.Consent) > 0 && strings.TrimSpace(opts.Proof) == "" {
		return errors.New("consent needs a proof: say where and how these people agreed")
	}
	for _, t := range opts.Tags {
		if !validTag(t) {
			return fmt.Errorf("%q is not a tag: 1 to 64 characters, no comma", t)
		}
	}
	if !slices.Contains(Policies(), opts.Policy) {
		return fmt.Errorf("there is no policy %q: it is upsert, create, update or skip", opts.Policy)
	}
	return nil
}

// typedColumn is how an address was typed, as an export writes it.
const typedColumn = "email.typed"

// exported takes a column of an export that is neither a field nor an identity: false where it is none. left says why it is left out, or what of it.
func (k known) exported(c *column, opts Options) (left string, ok bool) {
	switch topic, isTopic := strings.CutPrefix(c.name, "consent."); {
	case c.name == typedColumn:
		return "", true
	case isTopic && slices.Contains(k.purposes(), topic):
		c.topic = topic
		if strings.TrimSpace(opts.Proof) == "" {
			return "all but who has withdrawn; --proof imports what is granted, too: say how they agreed", true
		}
		return "", true
	case c.name == spec.MainScore || strings.HasPrefix(c.name, spec.MainScore+"."), c.name == "stage", c.name == "created":
		return "Onda sets it", true
	}
	return "", false
}

func (k known) purposes() []string {
	return append(slices.Clone(k.topics), contact.TrackingEmail, contact.TrackingWeb)
}

// maxUnknown is how many columns that are unknown are told of one by one.
const maxUnknown = 10

// columns reads the header. All that is wrong with it is told at once.
func (k known) columns(header [][]byte, opts Options) (out []column, left []LeftOut, err error) {
	names := append(slices.Sorted(maps.Keys(k.fields)), "email", "external_id", "tags")
	var errs []error
	at, mapped, unknown := map[string]int{}, map[string]bool{}, 0
	for i, cell := range header {
		if !utf8.Valid(cell) || bytes.IndexByte(cell, 0) >= 0 {
			errs = append(errs, fmt.Errorf("column %d has bytes in its name that are no text: say with --encoding what the file is written in", i+1))
			continue
		}
		h := strings.TrimSpace(string(csvexport.Unguard(cell)))
		name, isMapped := opts.Mapping[h]
		if isMapped {
			mapped[h] = true
		} else {
			name = meant(h, names)
		}
		c := column{header: h, name: name, field: k.fields[name], skip: name == errorColumn && k.fields[name] == nil || isMapped && name == ""}
		isKnown := slices.Contains(names, name)
		if !c.skip && !isKnown {
			var why string
			if why, isKnown = k.exported(&c, opts); why != "" {
				left, c.skip = append(left, LeftOut{h, why}), c.topic == ""
			}
		}
		switch {
		case c.skip:
		case opts.IgnoreUnknown && !isMapped && !isKnown:
			c.skip = true
		case name == "":
			errs = append(errs, fmt.Errorf("column %d has no name: the first row must name all columns", i+1))
		case !isKnown:
			if unknown++; unknown <= maxUnknown {
				errs = append(errs, fmt.Errorf("column %d: there is no field %q%s", i+1, clip(h), suggestion(name, names)))
			}
		case c.topic != "" && slices.Contains(opts.Consent, c.topic): // who withdrew is not to be granted by what is said of all
			errs = append(errs, fmt.Errorf("column %d tells of each who agreed to %q, and --consent %s that all did: leave that out, or the column by --map %s=", i+1, c.topic, c.topic, h))
		case at[name] > 0:
			errs = append(errs, fmt.Errorf("column %d: %q is column %d already", i+1, h, at[name]))
		}
		if !c.skip {
			at[name] = cmp.Or(at[name], i+1)
			c.begin = fmt.Sprintf("%q:", name)
		}
		out = append(out, c)
	}
	if unknown > maxUnknown {
		errs = append(errs, fmt.Errorf("and %d more columns that are no fields", unknown-maxUnknown))
	}
	if unknown > 0 {
		errs = append(errs, errors.New("--map COLUMN=FIELD says which field a column is, --ignore-unknown leaves such columns out"))
	}
	for _, h := range slices.Sorted(maps.Keys(opts.Mapping)) {
		if !mapped[h] {
			errs = append(errs, fmt.Errorf("--map %s: the file has no such column", h))
		}
	}
	if at["email"] == 0 && at["external_id"] == 0 {
		errs = append(errs, errors.New(`the column email is missing, and external_id too: one of them says who a row is about; the first row must name the columns`))
	}
	if len(errs) == 0 && opts.Proof != "" && len(opts.Consent) == 0 && !slices.ContainsFunc(out, func(c column) bool { return c.topic != "" }) {
		errs = append(errs, errors.New("a proof is of consent, and neither --consent nor a column such as consent.newsletter says to what"))
	}
	return out, left, errors.Join(errs...)
}

// meant is the field that a header names, in any case and with anything between its words: E-Mail is email. What names none is given in small letters.
func meant(header string, names []string) string {
	squeezed := func(s string) string {
		return strings.NewReplacer(" ", "", "_", "", "-", "").Replace(strings.ToLower(s))
	}
	name := strings.ReplaceAll(strings.ToLower(header), " ", "_")
	if slices.Contains(names, name) {
		return name
	}
	var found []string
	for _, n := range names {
		if squeezed(n) == squeezed(header) {
			found = append(found, n)
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	return name
}

// suggestion is what was meant instead, if that can be guessed.
func suggestion(name string, names []string) string {
	best, distance := "", 3
	for _, n := range names {
		if d := edits(strings.ToLower(name), strings.ToLower(n)); d < distance && d < len(n) {
			best, distance = n, d
		}
	}
	if best != "" {
		return fmt.Sprintf(", did you mean %q?", best)
	}
	if len(names) == 0 {
		return ""
	}
	return ": there are " + strings.Join(names, ", ")
}

// edits is how many letters have to be put in, taken out, changed, or swapped with the next, to make b of a.
func edits(a, b string) int {
	x, y := []rune(a), []rune(b)
	before, prev, next := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(x); i++ {
		next[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			next[j] = min(prev[j]+1, next[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, prev, next = prev, next, before
	}
	return prev[len(y)]
}

// validTag holds tags to what documents may say.
func validTag(t string) bool {
	return t != "" && t == strings.TrimSpace(t) && utf8.ValidString(t) && utf8.RuneCountInString(t) <= 64 && !strings.Contains(t, ",") && !strings.ContainsFunc(t, unicode.IsControl)
}
