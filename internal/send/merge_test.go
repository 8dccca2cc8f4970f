package send

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/smtptest"
)

// merge makes one contact part of another.
func (w *world) merge(loser, winner int64) (m contact.Merged) {
	w.t.Helper()
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		m, err = contact.Merge(ctx, tx, "campaign", loser, winner, contact.PreferWinner, "test")
		return err
	})
	return m
}

func (w *world) unmerge(loser int64) {
	w.t.Helper()
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Unmerge(ctx, tx, "campaign", loser, "test")
		return err
	})
}

// agreed makes people whose ledger says that they granted the newsletter.
func (w *world) agreed(n int) []int64 {
	w.t.Helper()
	people := w.people(n)
	pgtest.Exec(w.t, w.db, pgtest.Acme, `WITH c AS (INSERT INTO consent (contact, purpose, state, basis) SELECT c, 'newsletter', 'granted', 'form' FROM unnest($1::bigint[]) c RETURNING id, contact)
		UPDATE subscription s SET consent = c.id FROM c WHERE s.contact = c.contact AND s.purpose = 'newsletter'`, people)
	return people
}

// toTheEnd sends, and moves the clock to each retry, until nothing waits any more.
func (w *world) toTheEnd(in http.Handler) {
	w.t.Helper()
	for range 60 {
		w.mustSweep(in, "send")
		next := pgtest.One[*time.Time](w.t, w.db, pgtest.Acme, "SELECT least((SELECT min(retry_at) FROM delivery WHERE state = 'deferred'), (SELECT min(not_before) FROM batch WHERE state = 'open'))")
		if next == nil {
			return
		}
		if ahead := next.Sub(pgtest.One[time.Time](w.t, w.db, pgtest.Acme, "SELECT onda.now()")); ahead > 0 {
			w.moveClock(ahead + time.Second)
		}
	}
	w.t.Fatal("there are mails that wait for ever")
}

// accepted is how many mails the relay took for each address.
func (w *world) accepted() map[string]int {
	out := map[string]int{}
	for _, m := range w.smtp.Mails() {
		out[m.To]++
	}
	return out
}

// counted holds the counts of closed batches against their deliveries.
func (w *world) counted() {
	w.t.Helper()
	if n := pgtest.One[int](w.t, w.db, pgtest.Acme, `SELECT count(*) FROM batch b WHERE b.attempt = 1 AND (b.state <> 'closed' OR ROW(b.sent, b.deferred, b.failed, b.suppressed, b.unknown) IS DISTINCT FROM (
		SELECT ROW(sum((d.state = 'sent')::int)::int, sum((d.state = 'deferred')::int)::int, sum((d.state = 'failed')::int)::int, sum((d.state = 'suppressed')::int)::int, sum((d.state = 'unknown')::int)::int) FROM delivery d WHERE d.id >> 9 = b.id))`); n > 0 {
		w.t.Errorf("%d batches are open, or count other than what became of their mails", n)
	}
}

// Whose mail waits while it is merged gets it at the winner's address, unless the winner has the same one, or gets it: nobody has one twice, and none is lost.
func TestMailsOfMergedContactsGoOnce(t *testing.T) {
	t.Parallel()
	busy := smtptest.Reject("451 4.3.0 busy")
	for name, test := range map[string]struct {
		plan   []string            // batches: the numbers of contacts in each
		reply  map[string][]string // by contact, at the first attempts
		early  int                 // how many of the batches are sent before the merge
		back   bool                // what was sent before the merge came back by then
		during bool                // the run began while the merge was not over
		bare   bool                // onda migrate has made no index yet
		merges []string            // loser>winner
		asked  bool                // what is planned is tried once before that
		later  bool                // but for the last batch, which is due in half a minute
		dead   bool                // and the first batch's mails expire then
		undone []string            // losers
		want   string              // accepted mails
		told   string              // of the last merge: repeated, redirected
		states string              // of deliveries in order
	}{
		"a deferred one, whose winner had it":         {plan: []string{"1 2"}, reply: map[string][]string{"2": {"busy"}}, early: 1, merges: []string{"2>1"}, want: "1:1", told: "1 0", states: "sent suppressed/duplicate"},
		"a deferred one, whose winner is in no batch": {plan: []string{"2"}, reply: map[string][]string{"2": {"busy"}}, early: 1, merges: []string{"2>1"}, want: "1:1", told: "0 1", states: "sent"},
		"both deferred": {plan: []string{"1 2"}, reply: map[string][]string{"1": {"busy"}, "2": {"busy"}}, early: 1, merges: []string{"2>1"}, want: "1:1", told: "1 0", states: "sent suppressed/duplicate"},
		"a deferred one, whose winner is planned":      {plan: []string{"2", "1"}, reply: map[string][]string{"2": {"busy"}}, early: 1, merges: []string{"2>1"}, want: "1:1", told: "1 1", states: "sent suppressed/duplicate"},
		"one that was sent, whose winner is planned":   {plan: []string{"2", "1"}, early: 1, merges: []string{"2>1"}, want: "2:1", told: "1 0", states: "sent suppressed/duplicate"},
		"one that is planned, whose winner had it":     {plan: []string{"1", "2"}, early: 1, merges: []string{"2>1"}, want: "1:1", told: "1 0", states: "sent suppressed/duplicate"},
		"one that is planned, whose winner is nowhere": {plan: []string{"2"}, merges: []string{"2>1"}, want: "1:1", told: "0 1", states: "sent"},
		"both planned, in one batch":                   {plan: []string{"2 1"}, merges: []string{"2>1"}, want: "1:1", told: "1 0", states: "suppressed/duplicate sent"},
		"both planned, in two":                         {plan: []string{"2", "1"}, merges: []string{"2>1"}, want: "1:1", told: "1 0", states: "suppressed/duplicate sent"},
		"one that was sent during the merge":           {plan: []string{"2", "1"}, early: 1, during: true, merges: []string{"2>1"}, want: "2:1", told: "1 0", states: "sent suppressed/duplicate"},
		"both planned, in two, without an index":       {plan: []string{"2", "1"}, bare: true, merges: []string{"2>1"}, want: "1:1", told: "1 0", states: "suppressed/duplicate sent"},
		"one that was sent, without an index":          {plan: []string{"2", "1"}, early: 1, during: true, bare: true, merges: []string{"2>1"}, want: "2:1", told: "1 0", states: "sent suppressed/duplicate"},
		"one that came back, whose winner is planned":  {plan: []string{"2", "1"}, early: 1, back: true, merges: []string{"2>1"}, want: "1:1 2:1", told: "0 0", states: "sent sent"},
		"one whose first was refused for good":         {plan: []string{"2", "1"}, reply: map[string][]string{"2": {"gone"}}, early: 1, merges: []string{"2>1"}, want: "1:1", told: "0 0", states: "failed sent"},
		"three":                                        {plan: []string{"1 2 3"}, reply: map[string][]string{"1": {"busy"}, "2": {"busy"}, "3": {"busy"}}, early: 1, merges: []string{"2>1", "3>1"}, want: "1:1", told: "2 0", states: "sent suppressed/duplicate suppressed/duplicate"},
		"two of whom neither is the winner":            {plan: []string{"2 3"}, reply: map[string][]string{"2": {"busy"}, "3": {"busy"}}, early: 1, merges: []string{"2>1", "3>1"}, want: "1:1", told: "1 0", states: "sent suppressed/duplicate"},
		"a chain":                                      {plan: []string{"1 2 3"}, reply: map[string][]string{"1": {"busy"}, "2": {"busy"}, "3": {"busy"}}, early: 1, merges: []string{"1>2", "2>3"}, want: "3:1", told: "2 1", states: "sent suppressed/duplicate suppressed/duplicate"},
		"a chain that is planned":                      {plan: []string{"1 2", "3"}, merges: []string{"1>2", "2>3"}, want: "3:1", told: "2 0", states: "suppressed/duplicate suppressed/duplicate sent"},
		"undone before it is tried again":              {plan: []string{"1 2"}, reply: map[string][]string{"2": {"busy"}}, early: 1, merges: []string{"2>1"}, undone: []string{"2"}, want: "1:1 2:1", told: "1 0", states: "sent sent"},
		"undone when the winner's was asked for":       {plan: []string{"2", "1"}, reply: map[string][]string{"2": {"busy"}}, early: 1, merges: []string{"2>1"}, asked: true, undone: []string{"2"}, want: "1:1 2:1", told: "1 1", states: "sent sent"},
		"one that waited for the winner's":             {plan: []string{"2", "1"}, merges: []string{"2>1"}, asked: true, later: true, want: "1:1", told: "1 0", states: "suppressed/duplicate sent"},
		"a deferred one that expires":                  {plan: []string{"2", "1"}, reply: map[string][]string{"2": {"busy"}}, early: 1, merges: []string{"2>1"}, asked: true, dead: true, want: "1:1", told: "1 1", states: "failed/expired sent"},
		"a chain that is undone":                       {plan: []string{"1 2 3"}, merges: []string{"1>2", "2>3"}, undone: []string{"2", "1"}, want: "1:1 2:1 3:1", told: "2 0", states: "sent sent sent"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if test.bare {
				w.data.Own(t, pgtest.Acme, "DROP INDEX contact_merged")
			}
			people := w.agreed(3)
			id := func(n string) int64 { return people[n[0]-'1'] }
			for n, replies := range test.reply {
				var scripts []smtptest.Script
				for _, r := range replies {
					scripts = append(scripts, map[string]smtptest.Script{"busy": busy, "gone": smtptest.Reject("550 5.1.1 no such user")}[r])
				}
				w.smtp.Script("u"+n+"@x.example", append(scripts, smtptest.Accept())...)
			}
			in := w.start()
			for i, b := range test.plan {
				if i == test.early && i > 0 {
					w.mustSweep(in, "send")
				}
				var who []int64
				for _, n := range strings.Fields(b) {
					who = append(who, id(n))
				}
				w.plan(who, 500)
			}
			if test.early == len(test.plan) {
				w.mustSweep(in, "send")
			}
			if test.back {
				pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE delivery SET bounced_at = onda.now(), bounce_class = 'hard'")
			}
			var m contact.Merged
			for _, pair := range test.merges {
				loser, winner, _ := strings.Cut(pair, ">")
				m = w.merge(id(loser), id(winner))
			}
			if got := fmt.Sprint(m.Repeated, " ", m.Redirected); got != test.told {
				t.Errorf("the merge tells of %s mails that repeat and that move, want %s", got, test.told)
			}
			if test.during {
				pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET started_at = (SELECT max(changed_at) FROM contact WHERE merged_into IS NOT NULL) + interval '1 second'")
			}
			if test.later {
				pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE batch SET not_before = onda.now() + interval '30 seconds' WHERE id = (SELECT max(id) FROM batch)")
			}
			if test.asked {
				w.mustSweep(in, "send")
			}
			if test.dead {
				pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE batch SET expires_at = onda.now() WHERE id = (SELECT min(id) FROM batch)")
			}
			for _, n := range test.undone {
				w.unmerge(id(n))
			}
			w.toTheEnd(in)
			var got []string
			for a, n := range w.accepted() {
				got = append(got, fmt.Sprintf("%s:%d", strings.TrimSuffix(strings.TrimPrefix(a, "u"), "@x.example"), n))
			}
			slices.Sort(got)
			w.ended(test.want, strings.Join(got, " "), test.states)
		})
	}
}

// ended holds who got mails, and what became of each, to what is wanted.
func (w *world) ended(want, got, states string) {
	w.t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("accepted (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(states, strings.Join(pgtest.All[string](w.t, w.db, pgtest.Acme, "SELECT state || coalesce('/' || reason, '') FROM delivery ORDER BY id"), " ")); diff != "" {
		w.t.Errorf("deliveries (-want +got):\n%s", diff)
	}
	w.counted()
}

// A mail that is on its way while its contact is merged: the winner's waits to hear what comes of it.
func TestAMailOnItsWayWhileItsContactIsMerged(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ answer, want, states string }{
		"it is taken":              {"", "u2@x.example", "sent suppressed/duplicate"},
		"it is refused for now":    {"451 4.3.0 busy", "u1@x.example", "sent suppressed/duplicate"},
		"it is refused for good":   {"550 5.1.1 no such user", "u1@x.example", "failed sent"},
		"its connection is broken": {"drop", "", "unknown suppressed/duplicate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			people := w.agreed(2)
			reached, release := make(chan struct{}), make(chan struct{})
			held := smtptest.Step{Reply: test.answer, Wait: release, Reached: reached}
			if test.answer == "drop" {
				held.Reply, held.Drop = "", true
			}
			w.smtp.Script("u2@x.example", smtptest.Script{End: held}, smtptest.Accept())
			w.plan(people[1:], 500)
			in := w.start()
			var sending sync.WaitGroup
			sending.Go(func() { w.sweep(in, "send") })
			<-reached
			w.merge(people[1], people[0])
			w.plan(people[:1], 500)
			w.sweep(in, "send")
			if diff := cmp.Diff([]string{"deferred"}, pgtest.All[string](t, w.db, pgtest.Acme, "SELECT state FROM delivery")); diff != "" {
				t.Errorf("while the loser's is on its way the winner's is (-want +got):\n%s", diff)
			}
			if n := len(w.smtp.MailsTo("u1@x.example")); n > 0 {
				t.Errorf("%d mails were taken for the winner", n)
			}
			close(release)
			sending.Wait()
			w.toTheEnd(in)
			var got []string
			for a, n := range w.accepted() {
				got = append(got, strings.Repeat(a, n))
			}
			w.ended(test.want, strings.Join(got, " "), test.states)
		})
	}
}

// Transactional mails are asked for one by one: whoever is merged gets each of them, at the winner's address.
func TestTransactionalMailsOfMergedContactsAllGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.agreed(2)
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		for i, who := range []int64{people[1], people[0], people[1]} {
			_, _, err := delivery.Request(ctx, tx, "send-api", delivery.TransactionalMail{Email: "password", Contact: who, Data: map[string]any{"code": i}, Silent: true})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if m := w.merge(people[1], people[0]); m.Redirected != 2 || m.Repeated != 0 {
		t.Errorf("the merge tells of %d mails that move and %d that repeat", m.Redirected, m.Repeated)
	}
	w.mustSweep(w.start(), "send-api")
	if diff := cmp.Diff(map[string]int{"u1@x.example": 3}, w.accepted()); diff != "" {
		t.Errorf("accepted (-want +got):\n%s", diff)
	}
}

// Contacts are merged, and merges undone, at random while a run is sent by two at once, and many mails are refused for the moment: in the end each person has one mail, unless two had theirs, or were
// about to be sent it, before they became one. None is lost.
func TestMergesWhileARunIsSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const groups, each = 20, 3
	people := w.agreed(groups * each)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 8))
	for n := range people {
		var scripts []smtptest.Script
		for range random.IntN(3) {
			scripts = append(scripts, smtptest.Reject("451 4.3.0 busy"))
		}
		w.smtp.Script(fmt.Sprintf("u%d@x.example", n+1), append(scripts, smtptest.Accept())...)
	}
	order := slices.Clone(people)
	random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	w.plan(order[:len(order)*3/4], 4)
	a, b := w.start("ONDA_SMTP_CONNECTIONS=2"), w.start("ONDA_SMTP_CONNECTIONS=2")
	var sending sync.WaitGroup
	var over atomic.Bool
	for _, in := range []http.Handler{a, b} {
		sending.Go(func() {
			for !over.Load() {
				if status := w.sweep(in, "send"); status != http.StatusAccepted {
					t.Errorf("status %d", status)
				}
			}
		})
	}
	// most is how many mails each person may get: of those in it, each that was sent, or marked, before the merge.
	most := map[int64]int{}
	for g := range groups {
		who := slices.Clone(people[g*each : g*each+each])
		random.Shuffle(each, func(i, j int) { who[i], who[j] = who[j], who[i] })
		for i, loser := range who[:random.IntN(each)] {
			winner := who[i+1+random.IntN(each-i-1)]
			if pgtest.One[bool](t, w.db, pgtest.Acme, "SELECT merged_into IS NOT NULL FROM contact WHERE id = $1", winner) {
				continue
			}
			err := w.db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
				if _, err := contact.Merge(ctx, tx, "campaign", loser, winner, contact.PreferWinner, "test"); err != nil {
					return err
				}
				var n int // nothing is marked while the merge is not over
				err := tx.QueryRow(ctx, `SELECT count(*) FROM batch b, unnest(b.contacts) WITH ORDINALITY x(c, n) LEFT JOIN contact l ON l.id = x.c
					WHERE b.attempt = 1 AND (x.c = $1 OR l.merged_into = $1) AND (EXISTS (SELECT FROM delivery d WHERE d.id = b.id << 9 | x.n AND (d.state IN ('sent', 'unknown')
						OR d.state = 'deferred' AND d.retry_at IS NULL AND EXISTS (SELECT FROM batch r WHERE r.attempt > 1 AND r.state = 'open' AND array_position(r.contacts, d.id) <= r.mark)))
						OR x.n <= b.mark AND NOT EXISTS (SELECT FROM delivery d WHERE d.id = b.id << 9 | x.n))`, winner).Scan(&n)
				most[winner] = max(n, 1)
				return err
			})
			if err != nil && !strings.Contains(err.Error(), "40P01") {
				t.Fatal(err)
			}
		}
		if g == groups/2 {
			w.plan(order[len(order)*3/4:], 4)
		}
	}
	over.Store(true)
	sending.Wait()
	w.toTheEnd(a)
	accepted := w.accepted()
	twice := 0
	for g := range groups {
		by := map[int64]int{}
		for k, id := range people[g*each : g*each+each] {
			person := pgtest.One[int64](t, w.db, pgtest.Acme, "SELECT coalesce(merged_into, id) FROM contact WHERE id = $1", id)
			by[person] += accepted[fmt.Sprintf("u%d@x.example", g*each+k+1)]
		}
		for person, n := range by {
			if n < 1 || n > max(most[person], 1) {
				t.Errorf("person %d got %d mails, want one, or as many as were sent or marked before it was merged: %d", person, n, most[person])
			}
			twice += n - 1
		}
	}
	t.Logf("%d mails, %d of them to persons that had one before they were merged; %d were no longer sent, %d merged", len(w.smtp.Mails()), twice,
		w.count("SELECT count(*) FROM delivery WHERE reason = 'duplicate'"), w.count("SELECT count(*) FROM contact WHERE merged_into IS NOT NULL"))
	if n := w.count("SELECT count(*) FROM delivery WHERE state NOT IN ('sent', 'suppressed') OR state = 'suppressed' AND reason <> 'duplicate'"); n > 0 {
		t.Errorf("%d deliveries are neither sent nor duplicates", n)
	}
	w.counted()
	if n := pgtest.One[int](t, w.db, pgtest.Brava, "SELECT count(*) FROM delivery"); n != 0 {
		t.Errorf("the other tenant has %d deliveries", n)
	}
}

// A batch that is planned while its contact is merged, which the merge could not lock, may be marked by who reads that it is a contact still: the merge is over after that mark, so that whoever asks for
// the person sees it.
func TestABatchThatIsPlannedWhileItsContactIsMerged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.agreed(2)
	in := func(f func(ctx context.Context, tx *postgres.Tx) error) chan error {
		out := make(chan error, 1)
		go func() { out <- w.db.InTenant(t.Context(), pgtest.Acme, f) }()
		return out
	}
	until := func(ctx context.Context, c chan struct{}) {
		select {
		case <-c:
		case <-ctx.Done():
		}
	}
	locked, release, marked, commit := make(chan struct{}), make(chan struct{}), make(chan int, 1), make(chan struct{})
	holds := in(func(ctx context.Context, tx *postgres.Tx) error { // what the merge waits for when it has locked the batches
		_, err := tx.Exec(ctx, "SELECT FROM contact WHERE id = $1 FOR UPDATE", people[0])
		close(locked)
		until(ctx, release)
		return err
	})
	<-locked
	merge := in(func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Merge(ctx, tx, "campaign", people[1], people[0], contact.PreferWinner, "test")
		return err
	})
	wait(t, time.Minute, "the merge to wait", func() bool {
		return w.count("SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database()") > 0
	})
	w.plan(people[1:], 500)
	mark := in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		var pid int
		l, err := delivery.Take(ctx, tx, "send", delivery.Bulk, delivery.Terms{Lease: time.Minute, MessageLimit: time.Second}, time.Now(), nil)
		if err == nil {
			_, _, err = l.Advance(ctx, tx, 1)
		}
		if err == nil {
			err = tx.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid)
		}
		marked <- pid
		until(ctx, commit)
		return err
	})
	pid := <-marked
	close(release)
	wait(t, time.Minute, "the merge to wait for the mark", func() bool {
		select {
		case err := <-merge:
			t.Fatalf("the merge was over before the mark: %v", err)
		default:
		}
		return w.count(fmt.Sprintf("SELECT count(*) FROM pg_locks l WHERE NOT l.granted AND %d = ANY (pg_blocking_pids(l.pid))", pid)) > 0
	})
	close(commit)
	for _, done := range []chan error{holds, mark, merge} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// The undoing of a merge waits for marks of batches with mails to either, which go by the merge.
func TestAnUnmergeWaitsForMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.agreed(2)
	w.plan(people[1:], 500)
	w.merge(people[1], people[0])
	unmerge := func() error {
		return w.db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '50ms'"); err != nil {
				return err
			}
			_, err := contact.Unmerge(ctx, tx, "campaign", people[1], "test")
			return err
		})
	}
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		l, err := delivery.Take(ctx, tx, "send", delivery.Bulk, delivery.Terms{Lease: time.Minute, MessageLimit: time.Second}, time.Now(), nil)
		if err == nil {
			_, _, err = l.Advance(ctx, tx, 1)
		}
		if err == nil && unmerge() == nil {
			t.Error("the merge was undone while a mail was marked")
		}
		return err
	})
	if err := unmerge(); err != nil {
		t.Error(err)
	}
}
