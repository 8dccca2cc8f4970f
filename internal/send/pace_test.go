package send

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/smtptest"
	"github.com/onda-run/onda/internal/spec"
)

func settings(s string) string {
	return "---\napiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec:\n" + s
}

// at gives contacts addresses of another domain.
func (w *world) at(domain string, contacts ...int64) {
	w.t.Helper()
	pgtest.Exec(w.t, w.db, pgtest.Acme, "UPDATE contact SET email = split_part(email, '@', 1) || '@' || $2 WHERE id = ANY ($1)", contacts, domain)
}

// sentOnce fails when anybody got a mail twice, and gives how many got one.
func (w *world) sentOnce() int {
	w.t.Helper()
	to := map[string]int{}
	for _, m := range w.smtp.Mails() {
		to[m.To]++
	}
	for who, n := range to {
		if n > 1 {
			w.t.Errorf("%s got %d mails", who, n)
		}
	}
	return len(to)
}

// counts are deliveries by what became of them.
func (w *world) counts() map[string]int {
	w.t.Helper()
	out := map[string]int{}
	for _, s := range pgtest.All[string](w.t, w.db, pgtest.Acme, "SELECT concat_ws(' ', state, reason, CASE WHEN state = 'deferred' THEN detail END) FROM delivery") {
		out[s]++
	}
	return out
}

func (w *world) quotas(q postgres.Quotas) {
	w.t.Helper()
	if _, err := w.data.Admin(w.t).SetQuotas(context.Background(), pgtest.Acme, q); err != nil {
		w.t.Fatal(err)
	}
}

// noonTomorrow moves acme's clock there, so that no day ends meanwhile.
func (w *world) noonTomorrow() {
	w.t.Helper()
	now := w.now()
	w.moveClock(now.Truncate(24 * time.Hour).Add(36 * time.Hour).Sub(now))
}

// noonOfThe10th moves acme's clock to that of next month, so that no month ends meanwhile either.
func (w *world) noonOfThe10th() time.Time {
	w.t.Helper()
	now := w.now()
	at := time.Date(now.Year(), now.Month()+1, 10, 12, 0, 0, 0, time.UTC)
	w.moveClock(at.Sub(now))
	return at
}

func (w *world) now() time.Time {
	w.t.Helper()
	return pgtest.One[time.Time](w.t, w.db, pgtest.Acme, "SELECT onda.now()").UTC()
}

func TestPaceIsSharedByAllWhoSend(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*world){
		"settings": func(w *world) { w.apply(settings("  pace: {rate: 20/s}\n")) },
		"a quota below the settings": func(w *world) {
			w.apply(settings("  pace: {rate: 200/s}\n"))
			twenty := 20.0
			w.quotas(postgres.Quotas{PerSecond: &twenty})
		},
		"the relay": func(w *world) { w.env["ONDA_SMTP_URL"] += "&rate=20" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			set(w)
			const n = 41
			w.plan(w.people(n), 10)
			from := time.Now()
			in := []*fn.Instance{w.start("ONDA_BATCHES=2"), w.start("ONDA_BATCHES=2")}
			for sent := 0; sent < n; sent = len(w.smtp.Mails()) {
				var both sync.WaitGroup
				for _, in := range in {
					both.Go(func() { w.mustSweep(in, "send") })
				}
				both.Wait()
			}
			// 41 mails are 40 twentieths of a second apart. A relay's time may be left unused, and is not made up for beyond a quarter of a second.
			if took := time.Since(from); took < 1700*time.Millisecond {
				t.Errorf("41 mails at 20 a second took %s", took)
			}
			if got := w.sentOnce(); got != n {
				t.Errorf("%d of %d got a mail", got, n)
			}
			if got := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery WHERE attempt = 1 AND state = 'sent'"); got != n {
				t.Errorf("%d of %d went out at their first attempt", got, n)
			}
		})
	}
}

func TestATurnGoesOnAtThePace(t *testing.T) {
	t.Parallel()
	for _, wide := range []int32{0, delivery.MaxWindow} { // a window as it begins, and as a blast leaves it
		w := newWorld(t, settings("  pace: {rate: 5/s}\n"))
		w.plan(w.people(12), 500)
		s, in := w.sender("ONDA_TURN=1m")
		s.lanes[delivery.Bulk].wide.Store(wide)
		w.mustSweep(in, "send")
		if got := w.sentOnce(); got != 12 {
			t.Errorf("%d of 12 went out in a turn, with a window of %d", got, wide)
		}
	}
}

func TestAPaceThatIsRaisedCountsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {rate: 1/d, domains: {y.example: 1/d}}\n"))
	people := w.people(40)
	w.at("y.example", people[20:]...)
	w.plan(people, 500)
	in := w.start("ONDA_TURN=1m")
	w.mustSweep(in, "send")
	w.apply(settings("  pace: {rate: 1000/s, domains: {y.example: 1000/s}}\n"))
	w.moveClock(24*time.Hour + time.Second) // the time that the batch was put off for; the pace is by the server's clock
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"sent": 40}, w.counts()); d != "" {
		t.Errorf("after the pace was raised (-want +got):\n%s", d)
	}
}

func TestASlowPacePutsBatchesOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {rate: 6/h}\n"))
	w.plan(w.people(3), 500)
	in := w.start()
	for range 3 {
		w.mustSweep(in, "send")
	}
	if got := w.sentOnce(); got != 1 {
		t.Fatalf("%d mails at once at a rate of 6 an hour", got)
	}
	if got := pgtest.One[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', state, mark, lease_until, not_before > onda.now() + interval '9 minutes', expires_at - not_before > interval '23 hours') FROM batch"); got != "open 1 -infinity t t" {
		t.Errorf("the batch is %s", got)
	}
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		at, err := delivery.Due(ctx, tx, delivery.Bulk, time.Second)
		if at.Before(tx.Now().Add(9 * time.Minute)) {
			t.Errorf("send is woken at %s, before there is anything to do", at)
		}
		return err
	})
	// The pace is real time: a tenant's clock that is moved does not speed it up.
	w.moveClock(time.Hour)
	w.mustSweep(in, "send")
	if got := w.sentOnce(); got != 1 {
		t.Errorf("%d mails after the clock was moved", got)
	}
}

func TestPaceByWhereMailGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {domains: {google: 2/s, slow.example: 1/h}}\n"))
	people := w.people(20)
	w.at("gmail.com", people[:5]...)
	w.at("googlemail.com", people[5:8]...)
	w.at("slow.example", people[8:10]...)
	w.plan(people, 500)
	in := w.start()
	w.mustSweep(in, "send")
	got := w.counts()
	// the first of each at once, of google two more within the second that is waited for
	if d := cmp.Diff(map[string]int{"sent": 10 + 3 + 1, "deferred paced: google": 5, "deferred paced: slow.example": 1}, got); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	times := pgtest.All[time.Time](t, w.db, pgtest.Acme, "SELECT retry_at FROM delivery WHERE detail = 'paced: google' ORDER BY id")
	for i := 1; i < len(times); i++ {
		if gap := times[i].Sub(times[i-1]); (gap - 500*time.Millisecond).Abs() > 50*time.Millisecond { // but for the rounding, and the time between two marks
			t.Errorf("mail %d waits %s after the one before", i, gap)
		}
	}
	// When their time has come they go, and no faster: the clock is moved past all of them.
	w.moveClock(2 * time.Hour)
	for w.counts()["sent"] < 20 {
		w.mustSweep(in, "send")
		w.moveClock(10 * time.Second)
	}
	if got := w.sentOnce(); got != 20 {
		t.Errorf("%d got a mail", got)
	}
}

func TestCancelledMailsGiveTheirTimeBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {domains: {x.example: 1/m}}\n"))
	w.plan(w.people(100), 500)
	in := w.start()
	w.mustSweep(in, "send")
	ahead := func() time.Duration {
		return pgtest.One[time.Duration](t, w.db, pgtest.Acme, "SELECT next_at - now() FROM throttle WHERE provider = 'x.example'")
	}
	if got := ahead(); got < 90*time.Minute {
		t.Fatalf("the time of 100 mails is taken for %s", got)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET state = 'cancelled' WHERE id = $1", w.run)
	pgtest.In(t, w.db, pgtest.Acme, delivery.Unqueue)
	if got := ahead(); got > time.Second {
		t.Errorf("the time of cancelled mails is taken for %s", got)
	}
}

func TestAQuotaEndsInTheMiddleOfABatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seven, month := int64(7), int64(10)
	w.quotas(postgres.Quotas{PerDay: &seven, PerMonth: &month})
	now := w.noonOfThe10th()
	people := w.people(14)
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE subscription SET state = 'withdrawn' WHERE contact = $1", people[1])
	w.plan(people, 5)
	in := w.start("ONDA_BATCHES=1")
	sweep := func() {
		for range 3 {
			w.mustSweep(in, "send")
		}
	}
	sweep()
	if d := cmp.Diff(map[string]int{"sent": 7, "suppressed no_consent": 1}, w.counts()); d != "" {
		t.Errorf("the first day (-want +got):\n%s", d)
	}
	tomorrow := now.Add(12 * time.Hour)
	for _, at := range pgtest.All[time.Time](t, w.db, pgtest.Acme, "SELECT not_before FROM batch WHERE state = 'open'") {
		if !at.Equal(tomorrow) {
			t.Errorf("a batch waits until %s", at)
		}
	}
	w.moveClock(12*time.Hour + time.Minute)
	sweep()
	if d := cmp.Diff(map[string]int{"sent": 10, "suppressed no_consent": 1, "suppressed quota": 3}, w.counts()); d != "" {
		t.Errorf("the second day, on which the month's quota ends, too late for what expires (-want +got):\n%s", d)
	}
	if got := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT kind || ' ' || n FROM allowance WHERE contact = 0 ORDER BY kind, period"); !slices.Equal(got, []string{"quota:day 7", "quota:day 3", "quota:month 10"}) {
		t.Errorf("used up: %q", got)
	}
	w.sentOnce()
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM batch WHERE state = 'open'"); n != 0 {
		t.Errorf("%d batches are open", n)
	}
}

func TestNoQuotaIsPassedByManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seven := int64(7)
	w.quotas(postgres.Quotas{PerDay: &seven})
	w.noonTomorrow()
	w.plan(w.people(40), 2)
	in := []*fn.Instance{w.start("ONDA_BATCHES=2"), w.start("ONDA_BATCHES=2")}
	for range 2 {
		var both sync.WaitGroup
		for _, in := range in {
			both.Go(func() { w.mustSweep(in, "send") })
		}
		both.Wait()
	}
	if d := cmp.Diff(map[string]int{"sent": 7}, w.counts()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	w.sentOnce()
}

func TestTransactionalMailHasNoQuota(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {rate: 1/h}\n"))
	none := int64(0)
	w.quotas(postgres.Quotas{PerDay: &none})
	people := w.people(3)
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		for _, c := range people {
			if _, _, err := delivery.Request(ctx, tx, "send-api", delivery.TransactionalMail{Email: "password", Contact: c, Data: map[string]any{"code": "1"}, Key: fmt.Sprint(c)}); err != nil {
				return err
			}
		}
		return nil
	})
	w.mustSweep(w.start(), "send-api")
	if got := w.sentOnce(); got != 3 {
		t.Errorf("%d of 3 got their password: %v", got, w.counts())
	}
}

func TestWarmup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	today := pgtest.One[time.Time](t, w.db, pgtest.Acme, "SELECT onda.now()").UTC()
	w.moveClock(time.Date(today.Year(), today.Month(), today.Day()+1, 12, 0, 0, 0, time.UTC).Sub(today))
	w.apply("---\napiVersion: onda/v1\nkind: Domain\nmetadata: {name: acme}\nspec:\n  domain: acme.example\n  dkim: {selectors: [s1]}\n  warmup:\n    from: " +
		today.AddDate(0, 0, 1).Format(time.DateOnly) + "\n    days: [{days: 1, mails: 3}, {days: 2-3, mails: 4}]\n")
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		d, err := senderdomain.Find(ctx, tx, "acme.example")
		if err != nil {
			return err
		}
		_, err = d.Checked(ctx, tx, true, nil)
		return err
	})
	w.plan(w.people(14), 5)
	in := w.start()
	for day, want := range []int{3, 7, 11, 14} {
		for range 3 {
			w.mustSweep(in, "send")
		}
		if d := cmp.Diff(map[string]int{"sent": want}, w.counts()); d != "" {
			t.Errorf("after day %d (-want +got):\n%s", day+1, d)
		}
		w.moveClock(24 * time.Hour)
	}
	w.sentOnce()
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  duplicates: 24h\n  frequency: {count: 2, per: 1w}\n"))
	people := w.people(3)
	in := w.start()
	send := func(to ...int64) {
		w.plan(to, 500)
		w.mustSweep(in, "send")
	}
	send(people[:2]...)
	send(people...)
	if d := cmp.Diff(map[string]int{"sent": 3, "suppressed duplicate": 2}, w.counts()); d != "" {
		t.Errorf("the same day (-want +got):\n%s", d)
	}
	w.moveClock(25 * time.Hour)
	send(people...) // duplicates used up nothing of the cap
	if d := cmp.Diff(map[string]int{"sent": 6, "suppressed duplicate": 2}, w.counts()); d != "" {
		t.Errorf("a day later (-want +got):\n%s", d)
	}
}

func TestBreaker(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(420)
	w.at("gmail.com", people[:210]...)
	for i := range 30 {
		w.smtp.Script(fmt.Sprintf("u%d@gmail.com", i+1), smtptest.Reject("550 5.1.1 no such user"))
	}
	w.plan(people[:200], 500)
	in := w.start()
	w.mustSweep(in, "send")
	why := "30 of 200 bounced (15.0 %, at most 10.0 %)"
	open := func() (out []string) {
		pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			all, err := delivery.Breakers(ctx, tx, "acme.example")
			for _, b := range all {
				out = append(out, b.Receiver+": "+b.Why)
			}
			return err
		})
		return out
	}
	if d := cmp.Diff([]string{": " + why, "google: " + why}, open()); d != "" {
		t.Fatalf("open breakers (-want +got):\n%s", d)
	}
	w.plan(people[200:], 500)
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"sent": 170, "failed": 30}, w.counts()); d != "" {
		t.Errorf("while nothing goes out (-want +got):\n%s", d)
	}
	// The others may have mail again, google may not: its mails wait, the others' go.
	everywhere := delivery.Everywhere
	closeBreaker := func(to *string) {
		pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			n, err := delivery.CloseBreakers(ctx, tx, "acme.example", to)
			if n != 1 {
				t.Errorf("%d breakers were closed", n)
			}
			if err == nil {
				_, err = delivery.Release(ctx, tx)
			}
			return err
		})
	}
	closeBreaker(&everywhere)
	w.moveClock(61 * time.Minute) // past the time that the batch was put off for; google's breaker is opened for longer here
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE throttle SET open_until = onda.now() + interval '1 hour' WHERE provider = 'google'")
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"sent": 170 + 210, "failed": 30, "deferred held: " + why: 10}, w.counts()); d != "" {
		t.Errorf("while google's breaker is open (-want +got):\n%s", d)
	}
	closeBreaker(nil)
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"sent": 390, "failed": 30}, w.counts()); d != "" {
		t.Errorf("in the end (-want +got):\n%s", d)
	}
	w.sentOnce()
}

// TestABlastOfOneTenantDoesNotKeepAnothers has two tenants share a process with room for one batch.
func TestABlastOfOneTenantDoesNotKeepAnothers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(50)
	w.plan(people, 5)
	w.brava()
	reached, goOn := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u3@x.example", smtptest.Script{End: smtptest.Step{Reached: reached, Wait: goOn}})
	s, in := w.sender("ONDA_BATCHES=1", "ONDA_SMTP_CONNECTIONS=1")
	var both sync.WaitGroup
	both.Go(func() { w.mustSweep(in, "send") })
	<-reached
	both.Go(func() {
		if err := s.turn(context.Background(), pgtest.Brava, delivery.Bulk, "brava"); err != nil {
			t.Error(err)
		}
	})
	wait(t, 10*time.Second, "brava's worker waits for room", func() bool { return s.lanes[delivery.Bulk].waiting.Load() > 0 })
	close(goOn)
	both.Wait()
	before := 0
	for i, m := range w.smtp.Mails() {
		if strings.HasSuffix(m.To, "@brava.example") {
			before = i
		}
	}
	if got := w.sentOnce(); got != 53 {
		t.Fatalf("%d mails, want 53", got)
	}
	// acme's first batch was out already, and may be followed by one more before brava's turn
	if before > 2*5+3 {
		t.Errorf("brava's last mail is number %d of 53: it waited for acme's blast", before+1)
	}
}

// sender is start, with what is inside.
func (w *world) sender(settings ...string) (s *sender, in *fn.Instance) {
	w.t.Helper()
	env := maps.Clone(w.env)
	for _, set := range settings {
		k, v, _ := strings.Cut(set, "=")
		env[k] = v
	}
	in, err := fn.Start(context.Background(), "send", func(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
		var cfg Config
		if err := rt.Config(ctx, &cfg); err != nil {
			return fn.Handler{}, err
		}
		var err error
		s, err = newSender(cfg, w.db, rt)
		return fn.Handler{Event: s.event, Close: s.close}, err
	}, envconfig.MapLookuper(env), zap.NewNop())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = in.Stop(context.Background()) })
	return s, in
}

// brava plans three mails for contacts of brava, which has acme's documents.
func (w *world) brava() {
	w.t.Helper()
	w.applyTo(pgtest.Brava, documents)
	ids := pgtest.All[int64](w.t, w.db, pgtest.Brava, "INSERT INTO contact (email) SELECT 'b' || n || '@brava.example' FROM generate_series(1, 3) n RETURNING id")
	pgtest.Exec(w.t, w.db, pgtest.Brava, "INSERT INTO subscription (contact, purpose, state, consent, at) SELECT c, 'newsletter', 'granted', 0, onda.now() FROM unnest($1::bigint[]) c", ids)
	email := pgtest.One[int64](w.t, w.db, pgtest.Brava, "SELECT current FROM entity WHERE kind = 'Email' AND name = 'news'")
	run := pgtest.One[int64](w.t, w.db, pgtest.Brava, "INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM document WHERE id = $1 RETURNING id", email)
	pgtest.In(w.t, w.db, pgtest.Brava, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := delivery.Enqueue(ctx, tx, delivery.Plan{Run: run, Step: "send", Email: email, Contacts: ids, Cause: "test"})
		return err
	})
}

func TestAQueueThatComesDueInWholeMinutes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {domains: {x.example: 100/s}}\n"))
	w.plan(w.people(500), 500)
	in := w.start("ONDA_TURN=1m")
	w.mustSweep(in, "send")
	// a minute passes, for both clocks
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE throttle SET next_at = next_at - interval '1 minute', again_at = again_at - interval '1 minute'")
	w.moveClock(time.Minute)
	w.mustSweep(in, "send")
	if got := w.sentOnce(); got != 500 {
		t.Errorf("%d of 500: %v", got, w.counts())
	}
	if got := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT max(attempt) FROM delivery"); got > 2 {
		t.Errorf("%d attempts", got)
	}
}

// TestNoMidnight ends a day's quota where the clocks skip midnight.
func TestNoMidnight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  zone: America/Santiago\n"))
	two := int64(2)
	w.quotas(postgres.Quotas{PerDay: &two})
	now := w.now()
	w.moveClock(time.Date(2027, 9, 5, 3, 30, 0, 0, time.UTC).Sub(now)) // 4 September 23:30 there
	w.plan(w.people(5), 500)
	w.mustSweep(w.start(), "send")
	got := pgtest.One[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', mark, fence, not_before AT TIME ZONE 'America/Santiago') FROM batch")
	if got != "2 1 2027-09-05 01:00:00" {
		t.Errorf("mark, leases and when it goes on: %s", got)
	}
}

func TestAnotherZoneIsNoOtherDay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	two := int64(2)
	w.quotas(postgres.Quotas{PerDay: &two})
	w.noonTomorrow()
	in := w.start()
	people := w.people(6)
	for i, zone := range []string{"UTC", "Europe/Athens", "America/New_York"} { // at noon in UTC it is the same date there
		w.apply(settings("  zone: " + zone + "\n"))
		w.plan(people[2*i:2*i+2], 500)
		w.mustSweep(in, "send")
	}
	if got := w.sentOnce(); got != 2 {
		t.Errorf("%d mails on a day of 2", got)
	}
}

// TestWhatOthersGiveBackIsUsed has one batch hold all that is left of a month, of which it needs nothing, while another asks.
func TestWhatOthersGiveBackIsUsed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	five := int64(5)
	w.quotas(postgres.Quotas{PerMonth: &five})
	w.noonOfThe10th()
	people := w.people(10)
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE subscription SET state = 'withdrawn' WHERE contact = ANY ($1)", people[:5])
	w.plan(people, 5)
	s, in := w.sender()
	l := s.lanes[delivery.Bulk]
	l.run()
	turn := &worker{lane: l, tenant: pgtest.Acme, until: time.Now().Add(time.Minute)}
	hold := func() *holder {
		h, err := l.take(context.Background(), pgtest.Acme)
		if err != nil || h == nil {
			t.Fatalf("lease: %v, %v", h, err)
		}
		return h
	}
	first := hold()
	if _, err := first.advance(context.Background(), 1); err != nil { // takes 5 of the month
		t.Fatal(err)
	}
	second := hold()
	for _, h := range []*holder{second, first} {
		if err := h.run(context.Background(), turn); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(map[string]int{"suppressed no_consent": 5}, w.counts()); d != "" {
		t.Fatalf("while the first held it all (-want +got):\n%s", d)
	}
	w.moveClock(2 * time.Minute)
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"suppressed no_consent": 5, "sent": 5}, w.counts()); d != "" {
		t.Errorf("after it came back (-want +got):\n%s", d)
	}
}

func TestWhatIsGrantedIsNotLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	quota := int64(400)
	w.quotas(postgres.Quotas{PerDay: &quota})
	w.noonTomorrow()
	w.plan(w.people(300), 500)
	s, in := w.sender()
	l := s.lanes[delivery.Bulk]
	l.run()
	used := func() string {
		return pgtest.One[string](t, w.db, pgtest.Acme, "SELECT coalesce(sum(n), 0)::text FROM allowance")
	}
	turn := &worker{lane: l, tenant: pgtest.Acme, until: time.Now().Add(time.Minute)}
	h, err := l.take(context.Background(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET state = 'paused'")
	if err := h.run(context.Background(), turn); err != nil {
		t.Fatal(err)
	}
	if got := used(); got != "0" {
		t.Errorf("a run that was paused before its first mark used up %s", got)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET state = 'running'")
	// A process dies after its first mark: what was granted to it is the next holder's.
	if h, err = l.take(context.Background(), pgtest.Acme); err != nil {
		t.Fatal(err)
	}
	if _, err := h.advance(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if got := used(); got != "300" {
		t.Errorf("%s of 300 are granted", got)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE batch SET lease_until = now() - interval '1 hour'")
	w.mustSweep(in, "send")
	if got := used(); got != "300" {
		t.Errorf("%s are used up by 300 mails", got)
	}
	if d := cmp.Diff(map[string]int{"sent": 299, "unknown": 1}, w.counts()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
}

// A holder whose batch was taken over gives nothing back of what the next one has by now, only what it did not hand over itself.
func TestWhatIsGrantedIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	quota := int64(400)
	w.quotas(postgres.Quotas{PerDay: &quota})
	w.noonTomorrow()
	w.plan(w.people(300), 500)
	s, in := w.sender()
	l := s.lanes[delivery.Bulk]
	l.run()
	used := func() int64 {
		return pgtest.One[int64](t, w.db, pgtest.Acme, "SELECT sum(n)::bigint FROM allowance")
	}
	old, err := l.take(t.Context(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	jobs, err := old.advance(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE batch SET lease_until = now() - interval '1 hour'")
	next, err := l.take(t.Context(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	old.putBack(jobs, "the lease ended")
	<-old.acks
	if err := old.end(t.Context(), errHeld); err != nil {
		t.Fatal(err)
	}
	if got := used(); got != 299 {
		t.Errorf("%d are used up or granted once the old holder has ended, want 299", got)
	}
	if err := next.run(t.Context(), &worker{lane: l, tenant: pgtest.Acme, until: time.Now().Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"sent": 300}, w.counts()); d != "" || used() != 300 {
		t.Errorf("%d are used up by 300 mails; outcomes (-want +got):\n%s", used(), d)
	}
}

// The lease is renewed for what is under the last mark, whatever keeps the next from being set.
func TestAQuotaThatIsUsedUpEndsNoLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	quota := int64(2)
	w.quotas(postgres.Quotas{PerDay: &quota})
	w.noonTomorrow()
	w.plan(w.people(4), 500)
	release, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u1@x.example", smtptest.Script{End: smtptest.Step{Wait: release, Reached: reached}})
	in := w.start("ONDA_SMTP_CONNECTIONS=1", "ONDA_LEASE=2s", "ONDA_MESSAGE_LIMIT=60s")
	done := make(chan int, 1)
	go func() { done <- w.sweep(in, "send") }()
	<-reached
	first := pgtest.One[time.Time](t, w.db, pgtest.Acme, "SELECT now()")
	wait(t, 30*time.Second, "the lease to be renewed", func() bool {
		return pgtest.One[bool](t, w.db, pgtest.Acme, "SELECT lease_until > $1::timestamptz + interval '4 seconds' FROM batch", first)
	})
	close(release)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	if d := cmp.Diff(map[string]int{"sent": 2}, w.counts()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
}

func TestTwiceInABatch(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ settings, why string }{
		"duplicates": {"  duplicates: 24h\n", "duplicate"},
		"a cap":      {"  frequency: {count: 1, per: 1w}\n", "capped"},
	} {
		w := newWorld(t, settings(c.settings))
		one := w.people(1)[0]
		w.plan([]int64{one, one}, 500) // two journeys of one contact
		w.mustSweep(w.start(), "send")
		if d := cmp.Diff(map[string]int{"sent": 1, "suppressed " + c.why: 1}, w.counts()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

func TestWhoIsTooLateUsesUpNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  duplicates: 30d\n  pace: {domains: {x.example: 1/h}}\n"))
	w.plan(w.people(40), 500)
	in := w.start()
	w.mustSweep(in, "send")
	late := pgtest.All[int64](t, w.db, pgtest.Acme, "SELECT contact FROM delivery WHERE reason = 'late'")
	if len(late) < 10 {
		t.Fatalf("%v", w.counts())
	}
	w.apply(settings("  duplicates: 30d\n"))
	w.plan(late, 500)
	w.mustSweep(in, "send")
	if got := w.counts()["sent"]; got != 1+len(late) {
		t.Errorf("%d mails, want 1 and %d: %v", got, len(late), w.counts())
	}
}

func TestCancelledMailsThatWerePutOffEndAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {rate: 1/h}\n"))
	w.plan(w.people(5), 500)
	in := w.start()
	w.mustSweep(in, "send")
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET state = 'cancelled' WHERE id = $1", w.run)
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]int{"sent": 1, "suppressed cancelled": 4}, w.counts()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
}

func TestWhatABreakerForEverybodyHeldGoesOnSoon(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(5), 500)
	pgtest.Exec(t, w.db, pgtest.Acme, "INSERT INTO throttle (domain, provider, open_until, why) VALUES ('acme.example', '', onda.now() + interval '16 hours', 'x')")
	in := w.start()
	w.mustSweep(in, "send")
	if got := w.sentOnce(); got != 0 {
		t.Fatalf("%d mails", got)
	}
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := delivery.CloseBreakers(ctx, tx, "acme.example", nil)
		return err
	})
	w.moveClock(delivery.HeldFor + time.Second)
	w.mustSweep(in, "send")
	if got := w.sentOnce(); got != 5 {
		t.Errorf("%d of 5 mails", got)
	}
}

func TestPeriodsOfCapsAreByTheClockOnTheWall(t *testing.T) {
	t.Parallel()
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := func(d, h int) time.Time { return time.Date(2027, 3, d, h, 30, 0, 0, berlin) }
	day, week := spec.Duration{Days: 1}, spec.Duration{Days: 7}
	for name, c := range map[string]struct {
		a, b time.Time
		per  spec.Duration
		same bool
	}{
		"a day on which clocks change":      {at(28, 0), at(28, 23), day, true},
		"the day after it":                  {at(28, 23), at(29, 0), day, false},
		"a week with such a day at its end": {at(22, 0), at(28, 23), week, true},
		"the week after it":                 {at(28, 23), at(29, 0), week, false},
	} {
		if same := periodOf(c.a, c.per, berlin).Equal(periodOf(c.b, c.per, berlin)); same != c.same {
			t.Errorf("%s: in one period %v, want %v", name, same, c.same)
		}
	}
}

// TestADayIsOfTheMailsThatGoOnIt has mails wait for the next day, whose own then ask for what is left of it.
func TestADayIsOfTheMailsThatGoOnIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  quietHours: {from: \"10:00\", to: \"06:00\"}\n"))
	quota := int64(4)
	w.quotas(postgres.Quotas{PerDay: &quota})
	w.noonTomorrow()
	used := func() []string {
		return pgtest.All[string](t, w.db, pgtest.Acme, "SELECT n::text FROM allowance WHERE contact = 0 ORDER BY period")
	}
	people := w.people(12)
	w.plan(people[:6], 500)
	in := w.start("ONDA_BATCHES=1")
	sweep := func() {
		for range 3 {
			w.mustSweep(in, "send")
		}
	}
	sweep()
	if d := cmp.Diff(map[string]int{"deferred quiet hours": 6}, w.counts()); d != "" {
		t.Fatalf("in the evening (-want +got):\n%s", d)
	}
	if got := used(); !slices.Equal(got, []string{"0"}) {
		t.Errorf("what waits used up %q of the day", got)
	}
	w.moveClock(19 * time.Hour) // 07:00
	w.plan(people[6:], 500)
	for day := range 3 {
		sweep()
		if got := w.counts(); got["sent"] != 4*(day+1) {
			t.Errorf("on day %d: %v", day+2, got)
		}
		w.moveClock(24 * time.Hour)
	}
	if got := used(); !slices.Equal(got, []string{"0", "4", "4", "4"}) {
		t.Errorf("used up: %q", got)
	}
	w.sentOnce()
}

func TestADayGetsBackWhatNoRelayWasAskedAbout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	quota := int64(3)
	w.quotas(postgres.Quotas{PerDay: &quota})
	w.noonTomorrow()
	w.smtp.Script("u1@x.example", smtptest.DropBeforeContent(), smtptest.Reject("451 4.3.0 later"), smtptest.Script{})
	w.plan(w.people(4), 500)
	in := w.start("ONDA_SMTP_CONNECTIONS=1")
	sweep := func() {
		for range 3 {
			w.mustSweep(in, "send")
		}
	}
	sweep()
	got := w.counts()
	used := func() string {
		return pgtest.One[string](t, w.db, pgtest.Acme, "SELECT string_agg(n::text, ' ' ORDER BY period) FROM allowance WHERE contact = 0")
	}
	if got["sent"] != 2 || used() != "2" {
		t.Fatalf("%v, used up %s", got, used())
	}
	// The next day it is asked about, and refused: it uses up a part of that day, once, and the back-off begins.
	w.moveClock(24 * time.Hour)
	sweep()
	retry := pgtest.One[time.Duration](t, w.db, pgtest.Acme, "SELECT retry_at - at FROM delivery WHERE code = 451")
	if retry > time.Minute || used() != "2 2" {
		t.Errorf("tried again after %s; used up %s: %v", retry, used(), w.counts())
	}
	w.moveClock(2 * time.Minute)
	sweep()
	if d := cmp.Diff(map[string]int{"sent": 4}, w.counts()); d != "" || used() != "2 2" {
		t.Errorf("in the end (-want +got):\n%s, used up %s", d, used())
	}
}

func TestAQuotaOfADayIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	two := int64(2)
	w.quotas(postgres.Quotas{PerDay: &two})
	w.noonTomorrow()
	people := w.people(9)
	w.plan(people[:8], 3)
	in := w.start("ONDA_BATCHES=1")
	for day := range 4 {
		for range 3 {
			w.mustSweep(in, "send")
		}
		if d := cmp.Diff(map[string]int{"sent": 2 * (day + 1)}, w.counts()); d != "" {
			t.Errorf("on day %d (-want +got):\n%s", day+1, d)
		}
		w.moveClock(24 * time.Hour)
	}
	none := int64(0)
	w.quotas(postgres.Quotas{PerDay: &none})
	w.plan(people[8:], 500)
	for range 2 {
		w.mustSweep(in, "send")
		w.moveClock(13 * time.Hour)
	}
	if d := cmp.Diff(map[string]int{"sent": 8, "suppressed quota": 1}, w.counts()); d != "" {
		t.Errorf("where no day has any (-want +got):\n%s", d)
	}
}

func TestADayEndsInTheMiddleOfABatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	quota := int64(5)
	w.quotas(postgres.Quotas{PerDay: &quota})
	w.noonTomorrow()
	w.plan(w.people(8), 500)
	s, in := w.sender()
	l := s.lanes[delivery.Bulk]
	l.run()
	h, err := l.take(context.Background(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	h.first, err = h.advance(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	w.moveClock(13 * time.Hour)
	if err := h.run(context.Background(), &worker{lane: l, tenant: pgtest.Acme, until: time.Now().Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.mustSweep(in, "send")
	}
	if got := pgtest.One[string](t, w.db, pgtest.Acme, "SELECT string_agg(n::text, ' ' ORDER BY period) FROM allowance WHERE contact = 0"); got != "1 5" {
		t.Errorf("used up: %s", got)
	}
	if got := w.sentOnce(); got != 6 {
		t.Errorf("%d mails", got)
	}
}

// TestASlowRelayCostsNoAttempts has mails wait at a relay for longer than a lease and a turn.
func TestASlowRelayCostsNoAttempts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.env["ONDA_SMTP_URL"] += "&rate=1"
	w.plan(w.people(6), 500)
	in := w.start("ONDA_TURN=500ms", "ONDA_LEASE=2s", "ONDA_BATCHES=1")
	for len(w.smtp.Mails()) < 6 {
		w.mustSweep(in, "send")
	}
	if got := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery WHERE attempt > 1 OR state <> 'sent'"); got != 0 {
		t.Errorf("%d of 6 did not go out at their first attempt: %v", got, w.outcomes())
	}
}

// TestAWaitIsNoAttempt has a mail wait several times and be refused then.
func TestAWaitIsNoAttempt(t *testing.T) {
	t.Parallel()
	quiet := settings("  quietHours: {from: \"10:00\", to: \"14:00\"}\n")
	w := newWorld(t, quiet)
	w.noonTomorrow()
	w.smtp.Script("u1@x.example", smtptest.Reject("451 4.3.0 later"), smtptest.Reject("451 4.3.0 later"))
	w.plan(w.people(1), 500)
	in := w.start()
	row := func() string {
		return pgtest.One[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', attempt, code, round(extract(epoch FROM retry_at - at) / 60)) FROM delivery")
	}
	for i := range 3 { // each time it is in quiet hours again
		w.mustSweep(in, "send")
		if got := row(); !strings.HasPrefix(got, fmt.Sprint(i+1, " ")) {
			t.Fatalf("after waiting %d times: %s", i+1, got)
		}
		if i < 2 {
			pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE delivery SET retry_at = onda.now()")
		}
	}
	w.moveClock(2*time.Hour + time.Minute)
	w.mustSweep(in, "send")
	if got := row(); got != "4 451 1" {
		t.Errorf("first refused: attempt, code and minutes until the next: %s", got)
	}
	w.moveClock(70 * time.Second)
	w.mustSweep(in, "send")
	if got := row(); got != "5 451 5" {
		t.Errorf("refused again: %s", got)
	}
	w.apply(settings("  quietHours: {from: \"14:00\", to: \"16:00\"}\n"))
	w.moveClock(6 * time.Minute)
	w.mustSweep(in, "send")
	if got := pgtest.One[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', code, detail) FROM delivery"); got != "451 quiet hours" {
		t.Errorf("that it was tried is forgotten: %s", got)
	}
}

// No more mails are on the way to a place at once than its connections are, whatever batches they are of; those that wait keep nobody's place at the connections.
func TestConnectionsByWhereMailGoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, settings("  pace: {domains: {x.example: {connections: 2}, y.example: 1000/s}}\n"))
	people := w.people(16)
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET email = 'v' || id || '@y.example' WHERE id = ANY ($1::bigint[])", people[12:])
	hold, reached := make(chan struct{}), make([]chan struct{}, 12)
	for i := range reached {
		reached[i] = make(chan struct{})
		w.smtp.Script(fmt.Sprintf("u%d@x.example", i+1), smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached[i]}})
	}
	atOnce := func() (n int) {
		for _, r := range reached {
			select {
			case <-r:
				n++
			default:
			}
		}
		return n
	}
	w.plan(people[:6], 6)
	w.plan(people[6:], 10) // six to x.example, and then four to y.example
	s, in := w.sender("ONDA_SMTP_CONNECTIONS=8", "ONDA_LEASE=30s", "ONDA_MESSAGE_LIMIT=20s")
	done := make(chan int, 1)
	go func() { done <- w.sweep(in, "send") }()
	w.smtp.Wait("mails to y.example, behind those that wait, and two to x.example", func() bool { return len(w.smtp.Mails()) == 4 && atOnce() >= 2 })
	if n := atOnce(); n != 2 {
		t.Errorf("%d mails to x.example at once, want 2", n)
	}
	close(hold)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	if got := w.sentOnce(); got != 16 {
		t.Errorf("%d of 16: %v", got, w.counts())
	}
	if left := s.lanes[delivery.Bulk].busy.mails; len(left) > 0 {
		t.Errorf("counted still: %v", left)
	}
}
