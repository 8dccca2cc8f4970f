package compose

import (
	"context"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
)

// A copy of a production has its keys: nothing in a mail of it leads to the production's hosts, which would believe the tokens. The mark counts from the next mail on.
func TestMailsOfAPreproductionDoNotLeadToProduction(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	b.apply(documents + "---\napiVersion: onda/v1\nkind: Domain\nmetadata: {name: acme}\nspec: {domain: acme.example, dkim: {selectors: [s1]}, returnPath: bounce.acme.example}\n")
	pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		d, err := senderdomain.Find(ctx, tx, "acme")
		if err == nil {
			_, err = d.Checked(ctx, tx, true, nil)
		}
		return err
	})
	a := b.d.Admin(t)
	if _, err := a.SetHosts(t.Context(), pgtest.Acme, []string{"links.acme.example"}, nil); err != nil {
		t.Fatal(err)
	}
	standIn, err := mail.ParseStandIn("qa@inbox.example")
	if err != nil {
		t.Fatal(err)
	}
	_, name, err := a.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plain, special := b.contact("ana@x.example", `{}`), b.contact("ünal@x.example", `{}`) // in production no layout is used for it
	own := Config{LinkURL: "https://links.trial.example", ReturnPathDomain: "bounce.trial.example", StandIn: standIn}
	none := own
	none.ReturnPathDomain = ""
	for what, cfg := range map[string]Config{"a return path of its own": own, "none": none} {
		b.c = New(cfg)
		for _, stage := range []postgres.Stage{postgres.Production, postgres.Preproduction, postgres.Production} { // both are laid out anew
			if err := a.SetStage(t.Context(), stage, name); err != nil {
				t.Fatal(err)
			}
			host, back := "links.acme.example", "bounce.acme.example"
			if stage == postgres.Preproduction {
				host, back = "links.trial.example", cfg.ReturnPathDomain
			}
			for _, to := range []int64{plain, special} {
				for _, at := range []int64{delivery.ID(9, 1), 0} {
					out, err := b.mail("news", to, at).Append(nil)
					if err != nil {
						t.Fatalf("%s, %s: %v", what, stage, err)
					}
					header, _, _ := strings.Cut(strings.ReplaceAll(string(out.Content), "\r\n ", " "), "\r\n\r\n")
					if mailto := strings.Contains(header, "<mailto:u+"); mailto != (back != "") || mailto && !strings.Contains(header, "@"+back+">") {
						t.Errorf("%s, %s: unsubscribed at %q:\n%s", what, stage, back, header)
					}
					from := "news@acme.example"
					if at > 0 && back != "" {
						from = "@" + back
					}
					if !strings.HasSuffix(out.From, from) {
						t.Errorf("%s, %s: it is from %s, want %s", what, stage, out.From, from)
					}
					c, err := b.mail("news", to, at).Render()
					if err != nil {
						t.Fatal(err)
					}
					found := hosts.FindAllStringSubmatch(c.HTML+c.Text+header, -1)
					for _, f := range found {
						if f[1] != host {
							t.Errorf("%s, %s: a link to %s, want %s", what, stage, f[1], host)
						}
					}
					if len(found) < 5 {
						t.Errorf("%s, %s: %d links", what, stage, len(found))
					}
				}
			}
		}
	}
}
