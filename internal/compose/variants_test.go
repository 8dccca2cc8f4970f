package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

const tested = `
apiVersion: onda/v1
kind: Email
metadata: {name: tested}
spec:
  topic: newsletter
  layout: plain
  from: "Acme <news@acme.example>"
  subject: "Plain"
  html: '<p>plain</p>'
  locales: {fr: {subject: "Simple"}}
  variants:
    - {name: control}
    - {name: short, subject: "Short", locales: {fr: {html: "<p>court</p>"}}}
`

// A contact gets one variant, wherever and whenever its mail is made: in a later version of the email, in the web view, after a merge.
func TestVariantOfAContactIsAlwaysTheSame(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	b.apply(tested)
	subjects := map[string]int{}
	var shorts, controls int64
	for i := range 40 {
		to := b.contact(fmt.Sprintf("c%d@x.example", i), `{}`)
		m := b.mail("tested", to, delivery.ID(9, i+1))
		c, err := m.Render()
		if err != nil {
			t.Fatal(err)
		}
		subjects[c.Subject]++
		if c.Variant != m.variant || (c.Variant == "short") != (c.Subject == "Short") {
			t.Errorf("contact %d has the variant %q and the subject %q", to, c.Variant, c.Subject)
		}
		out, err := m.Append(nil)
		if err != nil || !bytes.Contains(out.Content, []byte("Subject: "+c.Subject+"\r\n")) {
			t.Errorf("what goes out is not what is rendered: %v\n%s", err, out.Content)
		}
		if c.Variant == "short" {
			shorts = to
		} else {
			controls = to
		}
	}
	if subjects["Plain"] < 8 || subjects["Short"] < 8 || subjects["Plain"]+subjects["Short"] != 40 {
		t.Fatalf("subjects %v", subjects)
	}

	id := delivery.ID(700, 1)
	pgtest.Exec(t, b.db, pgtest.Acme, `WITH r AS (INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM document WHERE id = $1 RETURNING id)
		INSERT INTO batch (id, run, email, contacts) SELECT 700, id, $1, ARRAY[$2]::bigint[] FROM r`, b.document("tested"), shorts)
	pgtest.Exec(t, b.db, pgtest.Acme, "UPDATE contact SET merged_into = $2 WHERE id = $1", shorts, controls)
	b.apply(strings.Replace(tested, "Short", "Shorter", 1))
	pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		view, err := b.c.WebView(ctx, tx, id)
		if err != nil {
			return err
		}
		if view.Subject != "Short" {
			t.Errorf("the web view of a mail of the variant short, to a contact that was merged since, has the subject %q", view.Subject)
		}
		for want, as := range map[string]Previewed{
			"Shorter plain": {Contact: shorts}, "Plain plain": {Contact: controls}, "Simple court": {Variant: "short", Locale: "fr-CA"}, "Simple plain": {Variant: "control", Locale: "fr"},
		} {
			m, err := b.c.Preview(ctx, tx, "tested", as)
			if err != nil {
				return err
			}
			c, err := m.Render()
			subject, body, _ := strings.Cut(want, " ")
			if err != nil || c.Subject != subject || !strings.Contains(c.HTML, "<p>"+body+"</p>") {
				t.Errorf("preview as %+v is %+v, %v; want %s", as, c, err, want)
			}
		}
		for email, want := range map[string]string{"tested": "it has control, short", "news": "it has none"} {
			if _, err := b.c.Preview(ctx, tx, email, Previewed{Variant: "long"}); !errors.Is(err, ErrVariant) || !strings.Contains(err.Error(), want) {
				t.Errorf("preview of a variant that %s has not: %v", email, err)
			}
		}
		return nil
	})
}

func BenchmarkVariants(b *testing.B) {
	w := setUp(b)
	w.apply(tested)
	m := w.mail("tested", w.contact("ana@x.example", `{}`), delivery.ID(9, 1))
	for b.Loop() {
		m.variant = m.a.email.spec.VariantOf(m.contact)
		if _, err := m.Append(nil); err != nil {
			b.Fatal(err)
		}
	}
}
