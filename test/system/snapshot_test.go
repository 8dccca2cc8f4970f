package system

import (
	"fmt"
	"slices"
	"strings"
)

// numbers are the names of tenants by number.
func (w *world) numbers() map[int32]string {
	w.t.Helper()
	tenants, err := w.admin.Tenants(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[int32]string{}
	for _, t := range tenants {
		out[t.Number] = t.Name
	}
	return out
}

// emailNames are the names of the emails by delivery.
func (w *world) emailNames(tenant string) map[int64]string {
	w.t.Helper()
	out := map[int64]string{}
	for _, line := range w.all(tenant, `SELECT d.id || ' ' || e.name FROM delivery d JOIN batch b ON b.id = d.id >> 9 JOIN document o ON o.id = b.email JOIN entity e ON e.id = o.entity`) {
		var id int64
		var name string
		if _, err := fmt.Sscan(line, &id, &name); err != nil {
			w.t.Fatal(err)
		}
		out[id] = name
	}
	return out
}

// who is a contact in a snapshot: the local part of the address, since each tenant has a domain of its own.
const who = `coalesce(split_part(c.email, '@', 1), 'contact without address')`

// parts of a snapshot: what the end state is, in words that do not depend on the order in which things got their numbers, nor on how often they were tried.
var parts = []struct{ name, sql string }{
	{"contact", `SELECT concat_ws(' ', ` + who + `, external_id, fields, array(SELECT unnest(tags) ORDER BY 1), CASE WHEN expires_at IS NOT NULL THEN 'unconfirmed' END, CASE WHEN erased_at IS NOT NULL THEN 'erased' END) FROM contact c`},
	{"points", `SELECT concat_ws(' ', ` + who + `, c.scores, c.stage) FROM contact c WHERE c.scores <> '{}' OR c.stage IS NOT NULL`},
	{"outcome", `SELECT concat_ws(' ', ` + who + `, e.name, r.kind, b.step, d.state, d.reason, d.class, d.code, d.status, d.tracking,
			CASE WHEN d.bounced_at IS NOT NULL THEN 'bounced ' || d.bounce_class END, CASE WHEN d.complained_at IS NOT NULL THEN 'complained' END, CASE WHEN d.delivered_at IS NOT NULL THEN 'delivered' END)
		FROM delivery d JOIN contact c ON c.id = d.contact JOIN batch b ON b.id = d.id >> 9 JOIN run r ON r.id = b.run JOIN document o ON o.id = b.email JOIN entity e ON e.id = o.entity`},
	{"run", `SELECT concat_ws(' ', e.name, r.kind, r.state, r.planned, sum(b.sent), sum(b.deferred), sum(b.failed), sum(b.suppressed), sum(b.unknown),
			sum(cardinality(b.contacts)) FILTER (WHERE b.attempt = 1), count(*) FILTER (WHERE b.state = 'open'))
		FROM run r JOIN entity e ON e.id = r.entity LEFT JOIN batch b ON b.run = r.id GROUP BY r.id, e.name`},
	{"journey", `SELECT concat_ws(' ', ` + who + `, e.name, j.key, j.state, j.outcome, j.step, (SELECT string_agg(concat_ws('/', s.visit, s.step, s.branch, (
				SELECT concat_ws('/', m.name, d.state) FROM delivery d JOIN batch b ON b.id = d.id >> 9 JOIN document o ON o.id = b.email JOIN entity m ON m.id = o.entity WHERE d.id = s.delivery)), ' ' ORDER BY s.visit)
			FROM step s WHERE s.journey = j.id))
		FROM journey j JOIN contact c ON c.id = j.contact JOIN run r ON r.id = j.run JOIN entity e ON e.id = r.entity`},
	{"member", `SELECT concat_ws(' ', e.name, ` + who + `, m.kept) FROM member m JOIN entity e ON e.id = m.segment JOIN contact c ON c.id = m.contact`},
	{"segment", `SELECT concat_ws(' ', e.name, s.members, s.requested, s.document = e.current) FROM segment s JOIN entity e ON e.id = s.entity`},
	{"subscription", `SELECT concat_ws(' ', ` + who + `, s.purpose, s.state, k.state, k.basis) FROM subscription s JOIN contact c ON c.id = s.contact JOIN consent k ON k.id = s.consent`},
	{"consent", `SELECT concat_ws(' ', ` + who + `, k.purpose, string_agg(k.state || '/' || k.basis, ' ' ORDER BY k.id)) FROM consent k JOIN contact c ON c.id = k.contact GROUP BY c.id, k.purpose`},
	{"suppression", `SELECT concat_ws(' ', ` + who + `, s.reason, s.until) FROM suppression s LEFT JOIN contact c ON c.id = s.contact`},
	{"hit", `SELECT concat_ws(' ', ` + who + `, e.name, h.kind, h.verdict, h.reason, l.url, count(*)) FROM hit h LEFT JOIN contact c ON c.id = h.contact LEFT JOIN link l ON l.id = h.link
			LEFT JOIN batch b ON b.id = h.delivery >> 9 LEFT JOIN document o ON o.id = b.email LEFT JOIN entity e ON e.id = o.entity GROUP BY c.email, e.name, h.kind, h.verdict, h.reason, l.url`},
	{"stat", `SELECT concat_ws(' ', e.name, s.step, to_char(s.hour AT TIME ZONE 'UTC', 'DD HH24'), s.kind, s.verdict, l.url, s.tracked, s.n, s.firsts)
		FROM stat s LEFT JOIN run r ON r.id = s.run LEFT JOIN entity e ON e.id = r.entity LEFT JOIN link l ON l.id = s.link WHERE s.n <> 0`},
	{"submission", `SELECT concat_ws(' ', e.name, ` + who + `, s.state, s.reason, s.data) FROM submission s JOIN entity e ON e.id = s.form LEFT JOIN contact c ON c.id = s.contact`},
	{"allowance", `SELECT concat_ws(' ', ` + who + `, split_part(a.kind, ':', 1), sum(a.n)) FROM allowance a JOIN contact c ON c.id = a.contact GROUP BY c.id, split_part(a.kind, ':', 1)`},
	// A fact is what happened to a contact, however many of them are written in one row. When a segment's members are computed is no fact of the contact's, and how many facts points are told in
	// is a matter of which clicks are read together: the points are a part of their own.
	{"fact", `SELECT concat_ws(' ', f.kind, f.name, coalesce(split_part(c.email, '@', 1), ''), f.data - 'hit' - 'link' - 'submission' - 'consent', e.name, count(*))
		FROM fact f CROSS JOIN LATERAL (
			SELECT f.contact AS contact, f.deliveries[1] AS delivery WHERE f.contact IS NOT NULL
			UNION ALL SELECT u, NULL FROM unnest(f.contacts) u
			UNION ALL SELECT d.contact, d.id FROM delivery d WHERE f.contact IS NULL AND f.contacts IS NULL AND d.id = ANY (f.deliveries)
			UNION ALL SELECT NULL, NULL WHERE f.contact IS NULL AND f.contacts IS NULL AND f.deliveries IS NULL) p
		LEFT JOIN contact c ON c.id = p.contact LEFT JOIN batch b ON b.id = p.delivery >> 9 LEFT JOIN document o ON o.id = b.email LEFT JOIN entity e ON e.id = o.entity
		WHERE f.kind NOT LIKE 'segment.%' AND f.kind <> 'score.changed' GROUP BY f.kind, f.name, c.email, f.data - 'hit' - 'link' - 'submission' - 'consent', e.name`},
	{"outbox", `SELECT type FROM outbox`},
	{"failure", `SELECT function || ' ' || (event ->> 'type') || ' ' || error FROM failure`},
	{"request", `SELECT concat_ws(' ', e.name, r.key IS NOT NULL) FROM request r JOIN batch b ON b.id = r.delivery >> 9 JOIN document o ON o.id = b.email JOIN entity e ON e.id = o.entity`},
}

// snapshot is the end state of a tenant, a line a row, and what its recipients have in their mailboxes.
func (w *world) snapshot(tenant string) []string {
	w.t.Helper()
	var out []string
	for _, p := range parts {
		for _, line := range w.all(tenant, p.sql) {
			out = append(out, p.name+": "+strings.ReplaceAll(line, "@"+tenant+".example", "@TENANT"))
		}
	}
	names, numbers := w.emailNames(tenant), w.numbers()
	got := map[string]int{}
	for _, l := range w.letters() {
		if numbers[l.tenant] == tenant {
			got[local(l.to)+" "+names[l.delivery]]++
		}
	}
	for mail, n := range got {
		out = append(out, fmt.Sprintf("mailbox: %s %d", mail, n))
	}
	slices.Sort(out)
	return out
}
