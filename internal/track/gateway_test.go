package track

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
)

// What stands before the mailboxes of many is known by its clicks on several mails, also those that were judged before the last of them came; an office is left alone.
func TestGatewayBeforeManyMailboxes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// click stores a click on a mail, some time after that was sent.
	click := func(delivery int64, after time.Duration, agent, from string) {
		pgtest.Exec(t, w.db, "acme", `INSERT INTO hit (kind, delivery, contact, link, run, step, agent, origin, at)
			SELECT 'click', d.id, d.contact, $2, b.run, b.step, $3, $4::text::bytea, d.at + $5::interval FROM delivery d JOIN batch b ON b.id = d.id >> 9 WHERE d.id = $1`,
			delivery, w.link("acme", "https://example.com/a"), agent, from, after)
	}
	mails := func(name string, n int) (deliveries []int64) {
		for i := range n {
			_, d := w.sent("acme", fmt.Sprintf("%s%d@example.com", name, i), time.Hour)
			deliveries = append(deliveries, d)
		}
		pgtest.Exec(t, w.db, "acme", "UPDATE delivery SET at = date_trunc('hour', onda.now()) - interval '1 hour' WHERE id = ANY ($1)", deliveries)
		return deliveries
	}
	gated, four, office, agents, places, same := mails("gated", 2*gatewayMails), mails("four", gatewayMails-1), mails("office", 2*gatewayMails), mails("agents", gatewayMails), mails("places", gatewayMails), mails("same", 1)
	for i, d := range gated[:gatewayMails-1] {
		click(d, 5*time.Second+time.Duration(i)*time.Second, browser, "gateway")
	}
	for _, d := range four {
		click(d, 6*time.Second, browser, "four people")
	}
	for _, d := range office {
		click(d, 2*time.Minute, browser, "office")
	}
	for i, d := range agents {
		click(d, 6*time.Second, fmt.Sprint(browser, i), "many browsers")
	}
	for i, d := range places {
		click(d, 6*time.Second, browser, fmt.Sprint("place ", i))
	}
	for range gatewayMails {
		click(same[0], 6*time.Second, browser, "one mail")
	}
	w.sweep("acme")
	stats := func() []string { return w.stats("acme") }
	all := gatewayMails - 1 + len(four) + len(office) + len(agents) + len(places)
	if diff := cmp.Diff([]string{fmt.Sprintf("click human link=true tracked=true n=%d firsts=%d", all+gatewayMails, all+1)}, stats()); diff != "" {
		t.Errorf("before the fifth: %s", diff)
	}
	for _, d := range gated[gatewayMails-1:] {
		click(d, 9500*time.Millisecond, browser, "gateway")
	}
	types := w.sweep("acme")
	if !slices.Contains(types, "onda.hit.reclassified.v1") {
		t.Errorf("doorbells: %v", types)
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT convert_from(origin, 'UTF8') || ' ' || verdict || ' ' || reason || ' ' || count(*) FROM hit WHERE verdict <> 'human' GROUP BY origin, verdict, reason")
	if diff := cmp.Diff([]string{fmt.Sprintf("gateway machine gateway %d", len(gated))}, got); diff != "" {
		t.Error(diff)
	}
	people := all - (gatewayMails - 1)
	want := []string{
		fmt.Sprintf("click human link=true tracked=true n=%d firsts=%d", people+gatewayMails, people+1),
		fmt.Sprintf("click machine link=true tracked=true n=%d firsts=%d", len(gated), len(gated)),
	}
	if diff := cmp.Diff(want, stats()); diff != "" {
		t.Error(diff)
	}
	// Further evidence of its mails changes nothing about it.
	click(gated[0], 30*time.Minute, browser, "at home")
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE reason = 'gateway' AND verdict = 'machine'"); n != len(gated) {
		t.Errorf("%d of %d clicks are the gateway's in the end", n, len(gated))
	}
}
