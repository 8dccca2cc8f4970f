package track

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/onda-run/onda/internal/postgres"
)

// The kinds of hits.
const (
	kindOpen  = "open"
	kindClick = "click"
	kindView  = "view"
)

const maxAgent = 300 // bytes of a User-Agent that are kept

// hit is one request of a pixel, a link or a web view.
type hit struct {
	kind     string
	delivery int64 // 0: aggregate
	link     int64
	method   string
	agent    string
	origin   []byte // hash of the address it came from
	nameless bool   // whoever asks does not want to be followed
	reason   string // why the request alone shows a machine; empty when it may have been a person
}

// size is about how much memory it takes.
func (h hit) size() int { return 250 + len(h.agent) }

// insertHits stores hits with what they belong to. A hit of a mail whose recipient has withdrawn tracking.email since, or is gone, or whose browser asks not to be followed keeps nothing but
// what the aggregate counts need; so does one of a web view whose mail was not tracked in full: every mail has a token for it, while those of pixels and of named clicks are in no others.
// An origin that is not known is empty, not NULL: by that what is to be blanked in time is found.
const insertHits = `INSERT INTO hit (kind, delivery, contact, link, run, step, agent, method, origin, reason)
SELECT u.kind, CASE WHEN k.named THEN u.delivery ELSE 0 END, CASE WHEN k.named THEN k.contact END, u.link, b.run, coalesce(b.step, ''),
       CASE WHEN k.named THEN u.agent ELSE '' END, u.method, CASE WHEN k.named THEN coalesce(u.origin, '') END, u.reason
  FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::bytea[], $7::text[], $8::boolean[]) WITH ORDINALITY
       u(kind, delivery, link, method, agent, origin, reason, nameless, n)
  LEFT JOIN batch b ON u.delivery > 0 AND b.id = u.delivery >> 9
  LEFT JOIN delivery d ON u.delivery > 0 AND d.id = u.delivery
  LEFT JOIN contact c ON c.id = coalesce(d.contact, b.contacts[(u.delivery & 511)::integer])
  LEFT JOIN subscription s ON s.contact = coalesce(c.merged_into, c.id) AND s.purpose = 'tracking.email' AND s.state = 'withdrawn'
  LEFT JOIN LATERAL (
       SELECT coalesce(c.merged_into, c.id) AS contact,
              NOT u.nameless AND (u.kind <> 'view' OR d.tracking = 'full') AND c.id IS NOT NULL AND c.erased_at IS NULL AND s.contact IS NULL AS named) k ON true
 ORDER BY u.n`

// storeHits stores hits.
func (t *Tracker) storeHits(ctx context.Context, tenant string, lock time.Duration, hits []hit) error {
	n := len(hits)
	kind, method, agent, reason := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	delivery, link, origin, nameless := make([]int64, n), make([]int32, n), make([][]byte, n), make([]bool, n)
	for i, h := range hits {
		kind[i], method[i], agent[i], origin[i] = h.kind, h.method, h.agent, h.origin
		delivery[i], link[i], nameless[i] = h.delivery, int32(h.link), h.nameless
		reason[i] = h.reason
	}
	return t.db.Append(ctx, tenant, lock, postgres.Append{
		SQL: insertHits, Args: []any{kind, delivery, link, method, agent, origin, reason, nameless},
		Wake: "track", In: t.cfg.Hold,
	})
}

// linkURL gives where a link leads. A link never changes, so it is read once.
func (t *Tracker) linkURL(ctx context.Context, tenant string, link int64) (string, bool, error) {
	key := linkKey{tenant, link}
	if url, ok := t.links.get(key); ok {
		return url, true, nil
	}
	if _, absent := t.noLinks.get(key); absent {
		return "", false, nil
	}
	var urls []string
	err := t.db.Visit(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, "SELECT coalesce(array_agg(url), '{}') FROM link WHERE id = $1", link).Scan(&urls)
	})
	if err != nil {
		return "", false, fmt.Errorf("look up a link: %w", err)
	}
	if len(urls) == 0 {
		t.noLinks.put(key, struct{}{})
		return "", false, nil
	}
	t.links.put(key, urls[0])
	return urls[0], true, nil
}

type linkKey struct {
	tenant string
	link   int64
}

// clip cuts a text to at most n bytes of valid UTF-8 without NUL, which Postgres cannot hold.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "")
	}
	return strings.ReplaceAll(s, "\x00", "")
}
