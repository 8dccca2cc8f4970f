package system

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
)

// Whoever got mails, opened and clicked, sent forms in, bought something and was sent a receipt is in many tables; erased, and after all work that is due then, in none, and the neighbour's rows
// are as they were.
func TestNothingIsLeftOfWhoIsErased(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t)
	tenants := []string{pgtest.Acme, pgtest.Brava}
	const person = "c0003@acme.example"
	marks := []string{person, "c-0003", "Xylophia"}
	n.fill(n.URL()+"/f/acme/newsletter", http.Header{"User-Agent": {browser}}, url.Values{"email": {person}, "first_name": {marks[2]}, "country": {"NO"}, "consent.newsletter": {"on"}})
	for _, l := range n.letters() {
		if l.to == person && len(l.links) > 0 {
			n.open(l, browser+" "+marks[2])
			n.follow(l, http.MethodGet, browser+" "+marks[2])
		}
	}
	h := n.secret(pgtest.Acme, "application/json")
	n.must(http.MethodPost, n.URL()+"/v1/track", h, fmt.Sprintf(`{"messageId": "o-1", "userId": "c-0003", "event": "order.placed", "properties": {"total": 5, "note": %q}}`, "for "+marks[2]), 200, 202)
	n.must(http.MethodPost, n.URL()+"/v1/emails", h, fmt.Sprintf(`{"to": %q, "email": "receipt", "data": {"number": "R-1", "total": 5, "currency": "NOK", "lines": [], "note": %q}}`, person, marks[2]), 202)
	n.until(tenants, begin.Add(6*time.Hour))
	tables := n.all(pgtest.Acme, "SELECT c.relname FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition ORDER BY 1")
	found := func() (in []string) {
		for _, table := range tables {
			for _, mark := range marks {
				if n.count(pgtest.Acme, "SELECT count(*) FROM "+table+" r WHERE to_jsonb(r)::text ILIKE ANY ($1)", []string{"%" + mark + "%", "%" + hex.EncodeToString([]byte(mark)) + "%"}) > 0 {
					in = append(in, table+" "+mark)
				}
			}
		}
		return in
	}
	before := strings.Join(found(), ", ")
	for _, in := range []string{"contact " + person, "contact c-0003", "submission Xylophia", "fact Xylophia", "request Xylophia", "hit Xylophia"} {
		if !strings.Contains(before, in) {
			t.Errorf("%s is not there to be erased; there is: %s", in, before)
		}
	}
	brava := n.snapshot(pgtest.Brava)
	id := pgtest.One[int64](t, n.db, pgtest.Acme, "SELECT id FROM contact WHERE email = $1", person)
	if _, err := contact.Erase(t.Context(), n.db, pgtest.Acme, "campaign", id, nil); err != nil {
		t.Fatal(err)
	}
	n.until(tenants, begin.Add(30*time.Hour))
	if left := found(); len(left) > 0 {
		t.Errorf("of who was erased there is still: %s", strings.Join(left, ", "))
	}
	if k := n.count(pgtest.Acme, "SELECT count(*) FROM contact WHERE erased_at IS NOT NULL"); k != 1 {
		t.Errorf("%d contacts are erased", k)
	}
	if k := n.count(pgtest.Acme, "SELECT count(*) FROM delivery WHERE contact = $1 AND state = 'sent'", id); k == 0 {
		t.Error("what was sent is not counted any more")
	}
	if diff := cmp.Diff(brava, n.snapshot(pgtest.Brava)); diff != "" {
		t.Errorf("the neighbour's rows are others (-before +after):\n%s", diff)
	}
}
