package track

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/report"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

const day = 24 * time.Hour

// mailed is a mail that was sent to one of a tenant's contacts, opened and clicked, as it is after everybody has read of it. Its batch was closed as send does it.
func (w *world) mailed(tenant, address string) (delivery int64) {
	w.t.Helper()
	_, delivery = w.sent(tenant, address, time.Hour)
	pgtest.Exec(w.t, w.db, tenant, "UPDATE batch SET mark = 1, sent = 1, closed_at = onda.now() WHERE id = $1", delivery>>9)
	w.clicks(tenant, delivery)
	w.sweep(tenant)
	return delivery
}

func (w *world) clicks(tenant string, delivery int64) answer {
	return w.get("/c/" + w.token(tenant, token.Claims{Purpose: token.Click, Link: w.link(tenant, "https://example.com/a"), Delivery: delivery}))
}

// read lets all readers come to all facts.
func (w *world) read(tenant string) {
	pgtest.Exec(w.t, w.db, tenant, "UPDATE cursor SET xid = pg_current_xact_id(), id = 9223372036854775807")
}

// nextPartitions lets new batches and facts begin other partitions than those there are.
func (w *world) nextPartitions(tenant string) {
	w.t.Helper()
	w.d.Own(w.t, tenant, "SELECT setval(pg_get_serial_sequence('batch', 'id'), (1 << 24) / 512), setval(pg_get_serial_sequence('fact', 'id'), 1 << 24)")
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error { return tx.EnsurePartitions(ctx) })
}

// kept says what is there of deliveries, facts and the recipients of batches.
func (w *world) kept(tenant string) string {
	return pgtest.One[string](w.t, w.db, tenant, `SELECT (SELECT count(*) FROM delivery) || ' deliveries, ' || (SELECT count(*) FROM fact WHERE kind = 'email.clicked') || ' clicks, '
		|| (SELECT coalesce(sum(cardinality(contacts)), 0) FROM batch) || ' recipients, ' || (SELECT count(*) FROM pg_inherits WHERE inhparent IN ('delivery'::regclass, 'fact'::regclass)) || ' partitions'`)
}

func (w *world) expectKept(tenant, when, want string) {
	w.t.Helper()
	if got := w.kept(tenant); got != want {
		w.t.Errorf("%s, %s: %s, want %s", tenant, when, got, want)
	}
}

func TestPartitionsAreDroppedByRetention(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var old, young, other int64
	old, other = w.mailed("acme", "ada@example.com"), w.mailed("brava", "ada@example.com")
	for _, tenant := range []string{"acme", "brava"} {
		w.nextPartitions(tenant)
	}
	w.move("acme", 400*day)
	young = w.mailed("acme", "bob@example.com")
	w.read("acme")
	w.move("acme", 329*day) // 24 months are 730 or 731
	w.sweep("acme")
	w.expectKept("acme", "before its time", "2 deliveries, 2 clicks, 2 recipients, 4 partitions")

	w.move("acme", 4*day)
	pgtest.Exec(t, w.db, "acme", "UPDATE cursor SET xid = '0' WHERE name = 'segment'") // has not come by since
	w.sweep("acme")
	w.expectKept("acme", "with facts that a reader has not come to", "1 deliveries, 2 clicks, 1 recipients, 3 partitions")
	if at := pgtest.One[bool](t, w.db, "acme", "SELECT at < 'infinity' FROM onda.wakeup WHERE function = 'track'"); !at {
		t.Error("nobody will look again")
	}
	w.read("acme")
	w.sweep("acme")
	w.expectKept("acme", "when its time is over", "1 deliveries, 1 clicks, 1 recipients, 2 partitions")
	w.sweep("brava")
	w.expectKept("brava", "whose clock has not moved", "1 deliveries, 1 clicks, 1 recipients, 4 partitions")

	// What goes on without a delivery.
	if a := w.clicks("acme", old); a.status != http.StatusFound || a.header.Get("Location") != "https://example.com/a" {
		t.Errorf("a late click: %d %s", a.status, a.header.Get("Location"))
	}
	w.get("/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: old}) + ".gif")
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE delivery = $1", old); n != 0 {
		t.Errorf("%d hits have the name of somebody who is no longer kept", n)
	}
	if a := w.get("/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: old})); a.status != http.StatusNotFound {
		t.Errorf("web view: %d", a.status)
	}
	person := pgtest.One[int64](t, w.db, "acme", "SELECT id FROM contact WHERE email = 'ada@example.com'")
	topic := pgtest.One[int32](t, w.db, "acme", "SELECT id FROM entity WHERE kind = 'Topic' AND name = 'newsletter'")
	claims := token.Claims{Purpose: token.Unsubscribe, Contact: person, Topic: topic}
	if a := w.do(http.MethodPost, "/u/"+w.token("acme", claims), "203.0.113.1", browser, map[string][]string{"List-Unsubscribe": {"One-Click"}}); a.status != http.StatusOK {
		t.Errorf("unsubscribe: %d", a.status)
	}
	if s := pgtest.One[string](t, w.db, "acme", "SELECT state FROM subscription WHERE contact = $1 AND purpose = 'newsletter'", person); s != "withdrawn" {
		t.Errorf("after unsubscribing: %s", s)
	}
	claims.Purpose = token.Preferences
	if a := w.get("/p/" + w.token("acme", claims)); a.status != http.StatusOK {
		t.Errorf("preferences: %d", a.status)
	}
	for tenant, d := range map[string]int64{"acme": old, "brava": other} {
		var text strings.Builder
		pgtest.In(t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			e, err := report.Explain(ctx, tx, d)
			if err != nil {
				return err
			}
			return e.Text(&text)
		})
		if got := strings.Contains(text.String(), "a contact that is no longer kept") && strings.Contains(text.String(), "no longer kept: retention.deliveries"); got != (tenant == "acme") {
			t.Errorf("%s: explain says that it is no longer kept: %v\n%s", tenant, got, text.String())
		}
	}
	// Counts stay what they were.
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		st, err := campaign.RunStatus(ctx, tx, pgtest.One[int64](t, w.db, "acme", "SELECT run FROM batch WHERE id = $1", young>>9))
		if err != nil {
			return err
		}
		if st.Planned != 2 || st.Counts.Sent != 2 || st.Queued != 0 {
			t.Errorf("status: %+v", st)
		}
		r, err := report.Load(ctx, tx, "news")
		if err != nil {
			return err
		}
		if r.Recipients != 2 || r.Sent != 2 || r.Queued != 0 || r.NotKept != 1 || r.Tracked() != 1 || r.ClicksHuman.Mails != 2 {
			t.Errorf("report: %+v", r)
		}
		var text strings.Builder
		if err := r.Text(&text); err != nil {
			return err
		}
		if !strings.Contains(text.String(), "of 1 mails nothing but these counts is kept") {
			t.Error(text.String())
		}
		return nil
	})
}

// A mail that waits, for whatever attempt, keeps its partition; so does somebody who reads at that moment, whom nobody waits behind for long.
func TestPartitionsGiveWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d := w.mailed("acme", "ada@example.com")
	w.nextPartitions("acme")
	w.read("acme")
	w.move("acme", 735*day)
	pgtest.Exec(t, w.db, "acme", "UPDATE delivery SET state = 'deferred', retry_at = 'infinity'")
	w.sweep("acme")
	w.expectKept("acme", "while a mail waits for another attempt", "1 deliveries, 0 clicks, 1 recipients, 3 partitions")
	pgtest.Exec(t, w.db, "acme", "UPDATE delivery SET state = 'sent', retry_at = NULL")
	pgtest.Exec(t, w.db, "acme", "UPDATE batch SET state = 'open' WHERE id = $1", d>>9)
	w.sweep("acme")
	w.expectKept("acme", "while its batch is open", "1 deliveries, 0 clicks, 1 recipients, 3 partitions")
	pgtest.Exec(t, w.db, "acme", "UPDATE batch SET state = 'closed'")

	// A reader that is in no hurry: the sweep ends all the same, and so does a hit that comes meanwhile.
	reads, done, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "SELECT FROM delivery")
			close(reads)
			<-done
			return err
		})
	}()
	<-reads
	w.sweep("acme")
	if a := w.clicks("acme", d); a.status != http.StatusFound {
		t.Errorf("a click beside it: %d", a.status)
	}
	w.expectKept("acme", "while somebody reads", "1 deliveries, 0 clicks, 1 recipients, 3 partitions")
	close(done)
	<-ended
	w.sweep("acme")
	w.expectKept("acme", "afterwards", "0 deliveries, 1 clicks, 0 recipients, 2 partitions")
}

// Where all is in one partition, rows go one by one, those that wait excepted; and where one took long to be filled.
func TestOldRowsOfOnePartition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	applyTo(t, w.db, "acme", fstest.MapFS{"settings.yaml": {Data: []byte("apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {retention: {deliveries: 30d, facts: 30d}}\n")}})
	w.mailed("acme", "ada@example.com")
	w.move("acme", 20*day)
	w.mailed("acme", "bob@example.com")
	w.move("acme", 11*day)
	w.sweep("acme")
	w.expectKept("acme", "unread", "1 deliveries, 2 clicks, 1 recipients, 2 partitions")
	w.read("acme")
	w.sweep("acme")
	w.expectKept("acme", "read", "1 deliveries, 1 clicks, 1 recipients, 2 partitions")
	w.nextPartitions("acme")
	w.move("acme", 21*day)
	w.sweep("acme")
	w.expectKept("acme", "soon to be dropped whole", "0 deliveries, 0 clicks, 0 recipients, 2 partitions")
	if !pgtest.One[bool](t, w.db, "acme", "SELECT at > '2100-01-01' OR at < onda.now() + interval '400 days' FROM onda.wakeup WHERE function = 'track'") {
		t.Error("somebody will be woken for nothing")
	}
}

// Hits go a delivery at a time: what is counted of its first one stays so, whatever comes later.
func TestHitsAreForgottenWithTheFirstOfTheirDelivery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	applyTo(t, w.db, "acme", fstest.MapFS{"settings.yaml": {Data: []byte("apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {retention: {hits: 7d}}\n")}})
	_, d := w.sent("acme", "ada@example.com", time.Hour)
	_, other := w.sent("acme", "bob@example.com", time.Hour)
	open := func(delivery int64, agent string) {
		w.do(http.MethodGet, "/o/"+w.token("acme", token.Claims{Purpose: token.Open, Delivery: delivery})+".gif", "203.0.113.1", agent, nil)
	}
	open(d, browser)
	w.sweep("acme")
	w.move("acme", 4*day)
	open(d, browser)
	open(other, browser)
	w.sweep("acme")
	w.move("acme", 4*day)
	w.sweep("acme")
	if n := pgtest.All[int64](t, w.db, "acme", "SELECT delivery FROM hit"); len(n) != 1 || n[0] != other {
		t.Errorf("hits of the deliveries %v are kept, want of %d", n, other)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE hit SET agent = 'Googlebot/2.1'") // as after a list was brought up to date
	open(d, browser)
	open(other, browser)
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM stat WHERE n < firsts OR firsts < 0"); n > 0 {
		t.Errorf("statistics: %v", w.stats("acme"))
	}
}

// Where a hit came from is blanked in time, and so is its agent where that is not known.
func TestOriginsOfHitsAreBlanked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, d := w.sent("acme", "ada@example.com", time.Hour)
	for _, from := range []string{"203.0.113.1", "nowhere"} {
		w.do(http.MethodGet, "/o/"+w.token("acme", token.Claims{Purpose: token.Open, Delivery: d})+".gif", from, browser, nil)
	}
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE agent <> '' AND verdict = 'human'"); n != 2 {
		t.Errorf("%d hits have their agent, want 2", n)
	}
	w.move("acme", 31*day)
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE agent = '' AND origin IS NULL AND verdict = 'human'"); n != 2 {
		t.Errorf("%d hits are blank, want 2", n)
	}
}

// A click that was found to be a machine's counts no more, also when its hit is forgotten, as it is before its fact; and one that turns out to be a person's counts again.
func TestTakenBackForGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	w.scanners.dir, w.scanners.every = dir, 0
	applyTo(t, w.db, "acme", fstest.MapFS{"settings.yaml": {Data: []byte("apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {retention: {hits: 7d}}\n")}})
	clicked := func(when string, schema, want int) {
		t.Helper()
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			tx.Tenant.Schema = schema
			env, err := predicate.Load(ctx, tx)
			if err != nil {
				return err
			}
			q, err := predicate.Compile(&spec.Predicate{Event: &spec.EventTest{Event: "email.clicked", Count: spec.Test{Op: spec.OpGte, Values: []spec.Value{{Kind: spec.NumberValue, Number: 1}}}}}, env)
			if err != nil {
				return err
			}
			var n int
			err = tx.QueryRow(ctx, "SELECT count(*) FROM contact c WHERE "+q.SQL, q.Args...).Scan(&n)
			if n != want {
				t.Errorf("%s, on schema %d: %d have clicked, want %d", when, schema, n, want)
			}
			return err
		})
	}
	judge := func(agents, address string) (delivery int64) {
		put(t, dir, agentsFile, agents)
		_, d := w.sent("acme", address, time.Hour)
		w.clicks("acme", d)
		w.sweep("acme")
		return d
	}
	bot, nobody := "bot all firefox/140\n", "bot all nobody\n"
	d := judge(nobody, "ada@example.com")
	clicked("told", postgres.TakenSchema, 1)
	for _, corrected := range []struct {
		agents string
		want   int
	}{{bot, 0}, {nobody, 1}, {bot, 0}} {
		put(t, dir, agentsFile, corrected.agents)
		w.clicks("acme", d) // its mail is looked at again
		w.sweep("acme")
		clicked("corrected by "+corrected.agents, postgres.TakenSchema, corrected.want)
		clicked("corrected by "+corrected.agents, postgres.TakenSchema-1, corrected.want)
	}
	// By a version that does not mark its fact.
	for verdict, want := range map[string]int{"human": 1, "machine": 0} {
		pgtest.Exec(t, w.db, "acme", "UPDATE hit SET verdict = $1 WHERE kind = 'click'", verdict)
		clicked("corrected to "+verdict+" by an earlier version", postgres.TakenSchema, want)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE hit SET verdict = 'machine' WHERE kind = 'click'")
	pgtest.Exec(t, w.db, "acme", "UPDATE fact SET data = data - 'taken' WHERE kind = 'email.clicked'")
	clicked("corrected by an earlier version, before the migration", postgres.TakenSchema-1, 0)
	pgtest.Exec(t, w.db, "acme", "UPDATE fact SET data = data || '{\"taken\": true}' WHERE kind = 'email.clicked'")

	judge(nobody, "bob@example.com")
	clicked("with another, who is a person", postgres.TakenSchema, 1)
	w.move("acme", 8*day)
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit"); n > 0 {
		t.Fatalf("%d hits are kept", n)
	}
	clicked("when its hit is forgotten", postgres.TakenSchema, 1)
}

// While a merge moves what somebody had, a hit is one contact's and its fact another's: it was told all the same, and is not told again when it turns out to be a person's after all.
func TestCorrectedWhileMerged(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]string{
		"the fact is moved": "UPDATE fact SET contact = $2 WHERE kind = 'email.clicked' AND contact = $1",
		"the hit is moved":  "UPDATE hit SET contact = $2 WHERE contact = $1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			dir := t.TempDir()
			w.scanners.dir, w.scanners.every = dir, 0
			ada, d := w.sent("acme", "ada@example.com", time.Hour)
			bob, _ := w.sent("acme", "bob@example.com", time.Hour)
			for i, agents := range []string{"nobody", "firefox/140", "nobody"} {
				put(t, dir, agentsFile, "bot all "+agents+"\n")
				w.clicks("acme", d)
				w.sweep("acme")
				if i == 0 {
					pgtest.Exec(t, w.db, "acme", "UPDATE contact SET merged_into = $2 WHERE id = $1", ada, bob)
					pgtest.Exec(t, w.db, "acme", "INSERT INTO fact (kind, contact, data) VALUES ('contact.merged', $2::bigint, jsonb_build_object('contact', $1::bigint, 'into', $2::bigint))", ada, bob)
					pgtest.Exec(t, w.db, "acme", move, ada, bob)
				}
			}
			if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM fact WHERE kind = 'hit.reclassified'"); n < 2 {
				t.Fatalf("%d corrections", n)
			}
			if twice := pgtest.All[string](t, w.db, "acme", "SELECT data->>'hit' FROM fact WHERE kind = 'email.clicked' GROUP BY 1 HAVING count(*) > 1"); len(twice) > 0 {
				t.Errorf("hits %s were told twice", twice)
			}
		})
	}
}

// Segments that may have gone by what is forgotten are computed anew; those that look back for less, and were swept, are left alone.
func TestForgettingIsToldToSegments(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	document := func(kind, name, spec string) string {
		return "apiVersion: onda/v1\nkind: " + kind + "\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
	}
	applyTo(t, w.db, "acme", fstest.MapFS{"all.yaml": {Data: []byte(strings.Join([]string{
		document("Settings", "settings", "{retention: {facts: 30d, deliveries: 90d}}"),
		document("Segment", "ever", "{where: {not: {event: email.clicked}}}"),
		document("Segment", "fixed", `{where: {event: email.clicked, between: ["2020-01-01", "2070-01-01"]}}`),
		document("Segment", "lagging", "{where: {event: email.clicked, within: 7d}}"),
		document("Segment", "long", "{where: {event: email.opened, within: 40d}}"),
		document("Segment", "mails", "{where: {event: email.sent}}"),
		document("Segment", "people", "{where: {field: email, exists: true}}"),
		document("Segment", "short", "{where: {event: email.clicked, within: 7d}}"),
	}, "---\n"))}})
	pgtest.Exec(t, w.db, "acme", "INSERT INTO segment (entity, swept_at) SELECT id, onda.now() FROM entity WHERE kind = 'Segment' ON CONFLICT (entity) DO UPDATE SET swept_at = onda.now(), requested = false")
	w.mailed("acme", "ada@example.com")
	forget := func(what string, after time.Duration, want ...string) {
		t.Helper()
		w.move("acme", after)
		pgtest.Exec(t, w.db, "acme", "UPDATE segment s SET swept_at = onda.now() FROM entity e WHERE e.id = s.entity AND e.name <> 'lagging'")
		w.read("acme")
		w.sweep("acme")
		if diff := cmp.Diff(want, pgtest.All[string](t, w.db, "acme", "SELECT e.name FROM segment s JOIN entity e ON e.id = s.entity WHERE s.requested ORDER BY 1"), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
		pgtest.Exec(t, w.db, "acme", "UPDATE segment SET requested = false")
	}
	forget("nothing yet", 30*day+12*time.Hour)
	w.expectKept("acme", "not a day over", "1 deliveries, 1 clicks, 1 recipients, 2 partitions")
	forget("facts", 13*time.Hour, "ever", "fixed", "lagging", "long")
	w.expectKept("acme", "facts are over", "1 deliveries, 0 clicks, 1 recipients, 2 partitions")
	forget("deliveries", 61*day, "mails")
	w.expectKept("acme", "all is over", "0 deliveries, 0 clicks, 0 recipients, 2 partitions")
	w.mailed("acme", "bob@example.com")
	w.nextPartitions("acme")
	forget("a partition of facts", 40*day, "ever", "fixed", "lagging", "long")
	w.expectKept("acme", "a partition of facts is over", "1 deliveries, 0 clicks, 1 recipients, 3 partitions")
	forget("a partition of deliveries", 90*day, "mails")
	w.expectKept("acme", "partitions are over", "0 deliveries, 0 clicks, 0 recipients, 2 partitions")
	forget("nothing more", 2*day)
}
