package track

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

// A contact who clicks on a link of a mail, and then looks at pages of the tenant's own site, is known there where it has agreed to that: the redirect carries the click's token, onda.js takes it
// out of the address and sends it with what the visitor does.

// clickQuery is the parameter of an address that has the token of a click in it. onda.js knows it by the same name.
const clickQuery = "onda_c"

// clickFor is how long a click tells who a visitor is: after that, whoever has the address may be anybody.
const clickFor = time.Hour

// lookFor is how long a redirect may wait to learn whether it may tell whose it is.
const lookFor = time.Second

// click is what a token of a click says.
type click struct{ delivery, link int64 }

// leadsTo tells whether an address is of one of some origins.
func leadsTo(to string, origins []string) bool {
	if len(origins) == 0 {
		return false
	}
	u, err := url.Parse(to)
	return err == nil && slices.Contains(origins, spec.Origin(u))
}

// withClick puts the token of a click into an address, and leaves the rest of it as it is written.
func withClick(to, tok string) string {
	address, fragment, marked := strings.Cut(to, "#")
	path, query, _ := strings.Cut(address, "?")
	var params []string
	if query != "" {
		params = slices.DeleteFunc(strings.Split(query, "&"), func(p string) bool { return p == clickQuery || strings.HasPrefix(p, clickQuery+"=") })
	}
	to = path + "?" + strings.Join(append(params, clickQuery+"="+tok), "&")
	if marked {
		to += "#" + fragment
	}
	return to
}

// agreed joins c, a contact, to what says that it may be known on the site by what it clicks on in mails.
const agreed = ` JOIN subscription s ON s.contact = coalesce(c.merged_into, c.id) AND s.purpose = 'tracking.web' AND s.state = 'granted' AND c.erased_at IS NULL
	AND NOT EXISTS (SELECT FROM subscription e WHERE e.contact = s.contact AND e.purpose = 'tracking.email' AND e.state = 'withdrawn') `

// knownOnTheSite tells whether whoever a mail was sent to may be known on the site.
func (t *Tracker) knownOnTheSite(ctx context.Context, tenant string, delivery int64) (known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	err = t.db.Visit(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM delivery d JOIN contact c ON c.id = d.contact"+agreed+"WHERE d.id = $1)", delivery).Scan(&known)
	})
	return known, err
}

// clicked gives what a token says of the click that a visitor came by; nothing where it is not of the tenant whose program shows it.
func (t *Tracker) clicked(ctx context.Context, tenant, programKey, tok string) (delivery, link int64, err error) {
	program, err := token.ParseProgramKey(programKey)
	if err != nil {
		return 0, 0, nil
	}
	c, err := token.Peek(tok, token.Click)
	if err != nil || c.Tenant != program.Tenant {
		return 0, 0, nil
	}
	keys, err := t.db.Keys(ctx, tenant)
	if err != nil {
		return 0, 0, err
	}
	if c, err = keys.Verifier.Verify(tok, token.Click, time.Now()); err != nil {
		return 0, 0, nil
	}
	return c.Delivery, c.Link, nil
}

// readClickers gives the contacts of clicks that visitors came by: of those that were made a short while ago, by no machine as far as is known, and who agree to it still.
func readClickers(ctx context.Context, tx *postgres.Tx, all []activity) (map[click]int64, error) {
	out := map[click]int64{}
	var deliveries, links []int64
	for _, a := range all {
		k := click{a.delivery, a.link}
		if _, asked := out[k]; k.delivery != 0 && !asked {
			out[k] = 0
			deliveries, links = append(deliveries, k.delivery), append(links, k.link)
		}
	}
	if len(deliveries) == 0 {
		return out, nil
	}
	// Each is looked up by itself, with a LIMIT, so that the plan goes by the index of deliveries.
	rows, err := tx.Query(ctx, `SELECT u.delivery, u.link, s.contact FROM unnest($1::bigint[], $2::bigint[]) u(delivery, link)
		CROSS JOIN LATERAL (SELECT h.contact FROM hit h WHERE h.delivery = u.delivery AND h.delivery > 0 AND h.link = u.link AND h.kind = 'click' AND h.reason = ''
			AND h.at > onda.now() - make_interval(secs => $3) LIMIT 1) h
		JOIN contact c ON c.id = h.contact`+agreed, deliveries, links, clickFor.Seconds())
	if err != nil {
		return nil, fmt.Errorf("look whose clicks visitors came by: %w", err)
	}
	var k click
	var who int64
	if _, err := pgx.ForEachRow(rows, []any{&k.delivery, &k.link, &who}, func() error { out[k] = who; return nil }); err != nil {
		return nil, fmt.Errorf("look whose clicks visitors came by: %w", err)
	}
	return out, nil
}
