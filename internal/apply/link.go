package apply

import (
	"context"
	"fmt"
	"slices"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// storeLinks gives an id to each link of the emails in force that changed, or whose layout did: a click leads only to a link that has one.
func storeLinks(ctx context.Context, tx *postgres.Tx, changes []Change) error {
	changed := map[key]bool{}
	for _, c := range changes {
		changed[key{c.Kind, c.Name}] = c.Action != Keep
	}
	if !slices.ContainsFunc(changes, func(c Change) bool {
		return c.Action != Keep && (c.Kind == spec.KindEmail || c.Kind == spec.KindLayout)
	}) {
		return nil
	}
	known, err := Known(ctx, tx)
	if err != nil {
		return err
	}
	for _, name := range known.Names(spec.KindEmail) {
		email, ok := spec.Find[*spec.Email](known, spec.KindEmail, name)
		if !ok || !changed[key{spec.KindEmail, name}] && !changed[key{spec.KindLayout, email.Layout}] {
			continue
		}
		layout, _ := spec.Find[*spec.Layout](known, spec.KindLayout, email.Layout)
		compiled, err := email.Compile(layout)
		if err != nil {
			return fmt.Errorf("compile email %s: %w", name, err)
		}
		var urls []string
		for _, locale := range compiled.Locales() {
			urls = append(urls, compiled.For(locale).Links...)
		}
		_, err = tx.Exec(ctx, `INSERT INTO link (document, url) SELECT e.current, u FROM entity e, unnest($2::text[]) WITH ORDINALITY u (u, n)
			WHERE e.kind = 'Email' AND e.name = $1 ORDER BY n ON CONFLICT (document, url) DO NOTHING`, name, urls)
		if err != nil {
			return fmt.Errorf("store links of email %s: %w", name, err)
		}
	}
	return nil
}
