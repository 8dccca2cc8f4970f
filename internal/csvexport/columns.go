package csvexport

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// column is one of an export. Its SQL gives a text, of the contact c and its consents s.
type column struct {
	name string
	// text gives what is in a cell of CSV, json the value as JSON; NULL for none.
	text, json string
	// number: what reads as a number is one, and no formula.
	number bool
	// consent is the SQL that makes a column of s, of the rows of a contact's subscriptions.
	consent string
}

// chosen gives the columns that are named, or all that an export has by default, and the arguments that their SQL has from $3 on.
func chosen(ctx context.Context, tx *postgres.Tx, names []string) ([]column, []any, error) {
	b := &builder{make: map[string]func() column{}}
	if err := b.read(ctx, tx); err != nil {
		return nil, nil, err
	}
	if len(names) == 0 {
		names = b.all
	}
	out := make([]column, 0, len(names))
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			return nil, nil, fmt.Errorf("%q is named twice: a column is exported once", name)
		}
		if b.make[name] == nil {
			return nil, nil, fmt.Errorf("there is no column %q%s", name, b.suggestion(name))
		}
		c := b.make[name]()
		c.name = name
		out = append(out, c)
	}
	return out, b.args, nil
}

type builder struct {
	all  []string // in the order in which they are exported
	make map[string]func() column
	args []any
}

func (b *builder) arg(v any) string {
	b.args = append(b.args, v)
	return fmt.Sprintf("$%d::text", len(b.args)+2)
}

func (b *builder) add(name string, f func() column) {
	if b.make[name] == nil {
		b.all = append(b.all, name)
		b.make[name] = f
	}
}

// words are of a text wherever it is.
func words(sql string) column { return column{text: sql, json: "to_json(" + sql + ")::text"} }

func (b *builder) read(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, "SELECT e.kind, e.name, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind IN ('Field', 'Topic', 'Settings') ORDER BY e.name")
	if err != nil {
		return fmt.Errorf("read fields: %w", err)
	}
	b.add("email", func() column { return words("c.email") })
	b.add("external_id", func() column { return words("c.external_id") })
	purposes, settings := []string{}, spec.DefaultSettings()
	var kind, name string
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&kind, &name, &stored}, func() (err error) {
		switch kind {
		case spec.KindTopic:
			purposes = append(purposes, name)
		case spec.KindSettings:
			settings, err = spec.DecodeAs[*spec.Settings](spec.KindSettings, stored)
		default:
			var f *spec.Field
			if f, err = spec.DecodeAs[*spec.Field](spec.KindField, stored); err == nil {
				b.add(name, func() column { return b.field(f) })
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read fields: %w", err)
	}
	b.add("tags", func() column { return column{text: "array_to_string(c.tags, ',')", json: "to_json(c.tags)::text"} })
	if tx.Tenant.Schema >= contact.ScoresSchema {
		b.add(spec.MainScore, func() column { return b.score(spec.MainScore) })
		for _, s := range settings.Scores {
			if s.Group != spec.MainScore {
				b.add(spec.MainScore+"."+s.Group, func() column { return b.score(s.Group) })
			}
		}
	}
	if tx.Tenant.Schema >= contact.StageSchema && len(settings.Stages) > 0 { // a field of this name goes first
		b.add("stage", func() column { return words("c.stage") })
	}
	for i, purpose := range append(purposes, contact.TrackingEmail, contact.TrackingWeb) {
		b.add("consent."+purpose, func() column {
			as := fmt.Sprintf("p%d", i)
			c := words("s." + as)
			c.consent = "max(state) FILTER (WHERE purpose = " + b.arg(purpose) + ") AS " + as
			return c
		})
	}
	if tx.Tenant.Schema >= contact.TypedSchema {
		b.add("email.typed", func() column { return words("c.typed") }) // no field has a dot in its name
	}
	b.add("created", func() column { return words(`to_char(c.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')`) })
	return nil
}

func (b *builder) field(f *spec.Field) column {
	arg := b.arg(f.Name)
	value := "c.fields->" + arg
	c := column{text: "c.fields->>" + arg, json: "(" + value + ")::text", number: f.Type == spec.TypeNumber}
	if f.Type == spec.TypeMultiselect {
		c.text = "CASE jsonb_typeof(" + value + ") WHEN 'array' THEN (SELECT string_agg(v, ',') FROM jsonb_array_elements_text(" + value + ") v) ELSE " + c.text + " END"
	}
	return c
}

func (b *builder) score(group string) column {
	arg := b.arg(group)
	return column{text: "c.scores->>" + arg, json: "(c.scores->" + arg + ")::text", number: true}
}

// suggestion is what was meant instead, or what there is.
func (b *builder) suggestion(name string) string {
	if near := spec.Nearest(name, b.all); near != "" {
		return fmt.Sprintf(", did you mean %q?", near)
	}
	return ": there are " + strings.Join(b.all, ", ")
}
