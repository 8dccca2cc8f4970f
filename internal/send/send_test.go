package send

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/smtptest"
)

func TestEveryOutcome(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(12)
	w.plan(people, 500)
	w.smtp.Script("u2@x.example", smtptest.Reject("550 5.1.1 no such user"))
	w.smtp.Script("u3@x.example", smtptest.Reject("451 4.7.1 try later"))
	w.smtp.Script("u4@x.example", smtptest.DropAfterContent(true))
	w.smtp.Script("u5@x.example", smtptest.DropAfterContent(false))
	w.smtp.Script("u6@x.example", smtptest.RejectContent("554 5.7.1 looks like spam"))
	w.smtp.Script("u7@x.example", smtptest.DropBeforeContent(), smtptest.Accept()) // certainly not sent: again at once, on another connection
	for sql, who := range map[string]int64{
		"UPDATE subscription SET state = 'withdrawn' WHERE contact = $1":             people[7],
		"UPDATE subscription SET state = 'pending' WHERE contact = $1":               people[8],
		"UPDATE contact SET erased_at = now() WHERE id = $1":                         people[9],
		"UPDATE contact SET email = NULL WHERE id = $1":                              people[10],
		"INSERT INTO suppression (hash, reason, contact) VALUES ('x', 'manual', $1)": people[11],
	} {
		pgtest.Exec(t, w.db, pgtest.Acme, sql, who)
	}
	in := w.start("ONDA_SMTP_CONNECTIONS=1") // so that breaks are of the message's own connection
	w.mustSweep(in, "send")

	got := w.outcomes()
	want := map[string]string{
		"u1@x.example": "sent 250", "u2@x.example": "failed hard 550", "u3@x.example": "deferred soft 451", "u4@x.example": "unknown", "u5@x.example": "unknown",
		"u6@x.example": "failed block 554", "u7@x.example": "sent 250", "u8@x.example": "suppressed no_consent", "u9@x.example": "suppressed pending", "u10@x.example": "suppressed erased",
		fmt.Sprint("contact ", people[10]): "suppressed bad_address", "u12@x.example": "suppressed suppressed",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	// A hard failure suppresses the address; a block, which is our fault, does not.
	if d := cmp.Diff([]int64{people[1]}, pgtest.All[int64](t, w.db, pgtest.Acme, "SELECT contact FROM suppression WHERE reason = 'bounce'")); d != "" {
		t.Errorf("suppressed (-want +got):\n%s", d)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM batch WHERE state = 'closed' AND sent + deferred + failed + suppressed + unknown = 12"); n != 1 {
		t.Error("the batch is not closed with its counts")
	}
	told := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT DISTINCT type FROM outbox WHERE drainer = 'send' ORDER BY 1")
	for _, kind := range []string{event.TypeEmailBatchSent, event.TypeEmailSent, event.TypeEmailDeferred, event.TypeEmailFailed, event.TypeEmailSuppressed, event.TypeSuppressionAdded} {
		if !slices.Contains(told, kind) {
			t.Errorf("no doorbell %s among %v", kind, told)
		}
	}
	if n := pgtest.One[int](t, w.db, pgtest.Brava, "SELECT count(*) FROM delivery"); n != 0 {
		t.Errorf("the other tenant has %d deliveries", n)
	}
	// Doing it all again changes nothing and sends nothing.
	before := len(w.smtp.Mails())
	w.mustSweep(in, "send")
	if after := len(w.smtp.Mails()); after != before {
		t.Errorf("%d mails were sent by sweeping again", after-before)
	}
}

func TestAMailThatIsDeferredIsTriedAgainUntilItExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(2), 500)
	w.smtp.Script("u1@x.example", smtptest.Reject("451 4.3.0 busy"), smtptest.Reject("451 4.3.0 busy"), smtptest.Accept())
	w.smtp.Script("u2@x.example", smtptest.Reject("451 4.3.0 busy"))
	in := w.start()
	w.mustSweep(in, "send")
	for range 40 {
		next := pgtest.One[*time.Time](t, w.db, pgtest.Acme, "SELECT min(retry_at) FROM delivery WHERE state = 'deferred'")
		if next == nil {
			break
		}
		if !pgtest.One[bool](t, w.db, pgtest.Acme, "SELECT at <= $1 FROM onda.wakeup WHERE function = 'send'", next) {
			t.Errorf("send is not woken for the retry at %s", next)
		}
		w.moveClock(next.Sub(pgtest.One[time.Time](t, w.db, pgtest.Acme, "SELECT onda.now()")) + time.Second)
		w.mustSweep(in, "send")
	}
	if d := cmp.Diff(map[string]string{"u1@x.example": "sent 250 attempt 3", "u2@x.example": "failed expired soft 451 attempt 10"}, w.outcomes()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int32{1, 0, 1, 0, 0}, pgtest.One[[]int32](t, w.db, pgtest.Acme, "SELECT ARRAY[sum(sent), sum(deferred), sum(failed), sum(suppressed), sum(unknown)]::int[] FROM batch")); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
	ids := map[string]bool{}
	for _, m := range w.smtp.MailsTo("u1@x.example") {
		ids[header(t, m.Body, "Message-ID")] = true
	}
	if len(ids) != 1 {
		t.Errorf("Message-IDs of one delivery: %v", ids)
	}
	if at := pgtest.One[bool](t, w.db, pgtest.Acme, "SELECT at = 'infinity' OR EXISTS (SELECT FROM outbox WHERE drainer = 'send') FROM onda.wakeup WHERE function = 'send'"); !at {
		t.Error("send is woken although there is nothing to do")
	}
}

func header(tb testing.TB, body []byte, name string) string {
	tb.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(body))
	if err != nil {
		tb.Fatalf("read a mail: %v", err)
	}
	return m.Header.Get(name)
}

func TestATransactionalMailOfUnknownOutcomeIsSentAgainUnderItsMessageID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	to := w.people(1)[0]
	in := w.start()
	w.smtp.Script("u1@x.example", smtptest.DropAfterContent(true), smtptest.Accept())
	e, err := event.New(pgtest.Acme, "shop", "", "order-1", event.EmailRequested{Email: "password", Contact: to, Data: map[string]any{"code": "42"}, Key: "order-1"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the event comes twice
		if status := post(context.Background(), in, e); status != http.StatusAccepted {
			t.Fatalf("status %d", status)
		}
	}
	mails := w.smtp.MailsTo("u1@x.example")
	if len(mails) != 2 {
		t.Fatalf("%d mails, want the one of unknown outcome and its repeat", len(mails))
	}
	if a, b := header(t, mails[0].Body, "Message-ID"), header(t, mails[1].Body, "Message-ID"); a != b || a == "" {
		t.Errorf("Message-IDs %q and %q", a, b)
	}
	if d := cmp.Diff(map[string]string{"u1@x.example": "sent 250 attempt 2"}, w.outcomes()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if !bytes.Contains(mails[1].Body, []byte("Code 42")) {
		t.Errorf("the data is not in the mail:\n%s", mails[1].Body)
	}
}

func TestARelayThatIsAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(3), 500)
	in := w.start("ONDA_SMTP_URL=smtp://127.0.0.1:1?tls=none")
	began := time.Now()
	if status := w.sweep(in, "send"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d while the relay is away", status)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery"); n != 0 {
		t.Errorf("%d deliveries were tried", n)
	}
	if !pgtest.One[bool](t, w.db, pgtest.Acme, "SELECT at <= onda.now() FROM onda.wakeup WHERE function = 'send'") {
		t.Error("send is not woken again")
	}
	w.mustSweep(w.start(), "send") // the relay is back; the batch was released, so nobody waits for a lease
	if n := len(w.smtp.Mails()); n != 3 {
		t.Errorf("%d mails, want 3", n)
	}
}

func TestARelayThatGoesAwayInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(200), 500)
	hold, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u40@x.example", smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached}})
	in := w.start("ONDA_SMTP_CONNECTIONS=1")
	done := make(chan int)
	go func() { done <- w.sweep(in, "send") }()
	<-reached
	w.smtp.Close()
	close(hold)
	if status := <-done; status != http.StatusServiceUnavailable {
		t.Errorf("status %d", status)
	}
	// Nothing is unknown: each was sent, was put back, or is queued.
	states := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT DISTINCT state FROM delivery ORDER BY 1")
	if d := cmp.Diff([]string{"deferred", "sent"}, states); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	sent := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery WHERE state = 'sent'")
	if n := len(w.smtp.Mails()); n != sent {
		t.Errorf("%d mails were taken, %d are sent", n, sent)
	}
	back := smtptest.Start(t, smtptest.Config{})
	in = w.start("ONDA_SMTP_URL=" + back.URL())
	w.mustSweep(in, "send")
	w.moveClock(2 * time.Minute)
	w.mustSweep(in, "send")
	if n := len(back.Mails()); n != 200-sent {
		t.Errorf("%d mails after the relay came back, want %d", n, 200-sent)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery WHERE state = 'sent'"); n != 200 {
		t.Errorf("%d sent", n)
	}
}

func TestPauseWhileSendingHoldsAndCancelEnds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(300), 500)
	hold, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u20@x.example", smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached}})
	in := w.start("ONDA_SMTP_CONNECTIONS=1")
	done := make(chan int)
	go func() { done <- w.sweep(in, "send") }()
	<-reached
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET state = 'paused' WHERE id = $1", w.run)
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		n, err := delivery.InFlight(ctx, tx, w.run)
		if n < 1 || n > delivery.MaxWindow {
			t.Errorf("%d mails in flight", n)
		}
		return err
	})
	marked := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT mark FROM batch")
	close(hold)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	if n := len(w.smtp.Mails()); n != marked {
		t.Errorf("%d mails went out, %d were in flight or sent when it was paused", n, marked)
	}
	w.mustSweep(in, "send")
	if n := len(w.smtp.Mails()); n != marked {
		t.Errorf("%d mails went out while it was paused", n-marked)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE run SET state = 'cancelled' WHERE id = $1", w.run)
	w.mustSweep(in, "send")
	got := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', state, reason, count(*)) FROM delivery GROUP BY state, reason ORDER BY 1")
	if d := cmp.Diff([]string{fmt.Sprint("sent ", marked), fmt.Sprint("suppressed cancelled ", 300-marked)}, got); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
}

// Who is erased while a worker holds the batch gets no mail but the one on its way, and what comes of that is stored without the relay's words.
func TestErasedWhileSending(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(300)
	w.plan(people, 500)
	hold, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u20@x.example", smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached, Reply: "550 5.1.1 there is no u20 here"}})
	in := w.start("ONDA_SMTP_CONNECTIONS=1")
	done := make(chan int)
	go func() { done <- w.sweep(in, "send") }()
	<-reached
	for _, c := range []int64{people[19], people[299]} {
		if _, err := contact.Erase(t.Context(), w.db, pgtest.Acme, "campaign", c, nil); err != nil {
			t.Error(err)
		}
	}
	close(hold)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	w.mustSweep(in, "send")
	got := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', contact, state, reason, code, detail) FROM delivery WHERE state <> 'sent' ORDER BY contact")
	if d := cmp.Diff([]string{fmt.Sprint(people[19], " failed 550"), fmt.Sprint(people[299], " suppressed erased")}, got); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if n := len(w.smtp.Mails()); n != 298 {
		t.Errorf("%d mails went out, want 298", n)
	}
}

func TestWorkersAtOnceSendEachMailOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 600
	w.plan(w.people(n), 40)
	in := []http.Handler{w.start(), w.start(), w.start()}
	done := make(chan int, 6)
	for i := range cap(done) {
		go func() { done <- w.sweep(in[i%len(in)], "send") }()
	}
	for range cap(done) {
		if status := <-done; status != http.StatusAccepted {
			t.Errorf("status %d", status)
		}
	}
	seen := map[string]int{}
	for _, m := range w.smtp.Mails() {
		seen[m.To]++
	}
	for to, k := range seen {
		if k != 1 {
			t.Errorf("%d mails to %s", k, to)
		}
	}
	if len(seen) != n {
		t.Errorf("%d of %d got a mail", len(seen), n)
	}
	if open := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM batch WHERE state = 'open'"); open != 0 {
		t.Errorf("%d batches are open", open)
	}
}

func TestATurnEndsAndLeavesAFollowUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(40), 10)
	hold, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u1@x.example", smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached}})
	in := w.start("ONDA_TURN=1ms", "ONDA_BATCHES=1", "ONDA_SMTP_CONNECTIONS=1")
	e, err := event.New(pgtest.Acme, "campaign", "", "ring", event.EmailSendRequested{Run: w.run})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan int, 1)
	go func() { done <- post(context.Background(), in, e) }()
	select {
	case <-reached:
	case status := <-done: // the turn was over before the first batch
		done <- status
	}
	close(hold)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM outbox WHERE drainer = 'send' AND type = $1", event.TypeEmailSendRequested); n != 1 {
		t.Errorf("%d follow-ups", n)
	}
	w.mustSweep(w.start(), "send")
	if n := len(w.smtp.Mails()); n != 40 {
		t.Errorf("%d mails", n)
	}
}

func TestATenantThatIsNotArmedSendsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(1), 500)
	w.superuser("UPDATE onda.tenant SET armed = split_part(armed, '/', 1) || '/0' WHERE name = 'acme'")
	in := w.start()
	w.mustSweep(in, "send")
	if n := len(w.smtp.Mails()); n != 0 {
		t.Errorf("%d mails", n)
	}
	w.superuser("UPDATE onda.tenant SET armed = onda.identity() WHERE name = 'acme'")
	w.mustSweep(in, "send")
	if n := len(w.smtp.Mails()); n != 1 {
		t.Errorf("%d mails after rearming", n)
	}
}

func TestCapsAndQuietHours(t *testing.T) {
	t.Parallel()
	w := newWorld(t, `---
apiVersion: onda/v1
kind: Settings
metadata: {name: settings}
spec:
  frequency: {count: 1, per: 1d}
  quietHours: {days: [`+quietDay(t)+`]}
`)
	people := w.people(2)
	w.plan(people, 500)
	w.plan(people[:1], 500) // a second mail to the first, within the day
	in := w.start()
	w.mustSweep(in, "send")
	got := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', state, reason, detail) FROM delivery ORDER BY 1")
	if d := cmp.Diff([]string{"deferred quiet hours", "deferred quiet hours", "suppressed capped"}, got); d != "" {
		t.Errorf("outcomes within quiet hours (-want +got):\n%s", d)
	}
	now := pgtest.One[time.Time](t, w.db, pgtest.Acme, "SELECT onda.now()").UTC()
	w.moveClock(now.Truncate(24 * time.Hour).Add(24*time.Hour + time.Minute).Sub(now))
	w.mustSweep(in, "send")
	if n := len(w.smtp.Mails()); n != 2 {
		t.Errorf("%d mails when quiet hours were over, want 2", n)
	}
}

// What a recipient wishes holds for marketing mail to that recipient alone: it waits for the end of a pause, is late where that comes too late, and comes so often at most.
func TestRecipientsWishes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(5)
	wish := func(c int64, wishes contact.Wishes) {
		pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return contact.SetWishes(ctx, tx, c, wishes) })
	}
	now := pgtest.One[time.Time](t, w.db, pgtest.Acme, "SELECT onda.now()")
	wish(people[0], contact.Wishes{PausedUntil: now.Add(12 * time.Hour)}) // a mail lives a day
	wish(people[1], contact.Wishes{PausedUntil: now.Add(48 * time.Hour)})
	wish(people[2], contact.Wishes{PausedUntil: now.Add(-time.Hour)})
	wish(people[3], contact.Wishes{Frequency: contact.Frequency{Count: 1, Per: "month"}})
	w.plan(people, 500)
	w.plan(people[3:], 500)
	w.transactional(pgtest.Acme, people[1])
	in := w.start()
	w.mustSweep(in, "send")
	w.mustSweep(in, "send-api")
	outcomes := func() []string {
		return pgtest.All[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', c.email, d.state, d.reason, d.detail) FROM delivery d JOIN contact c ON c.id = d.contact WHERE d.state <> 'sent' ORDER BY 1")
	}
	want := []string{"u1@x.example deferred paused by the recipient", "u2@x.example suppressed late", "u4@x.example suppressed capped"}
	if d := cmp.Diff(want, outcomes()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if n := len(w.smtp.Mails()); n != 5 { // of which one that u2 asked for
		t.Errorf("%d mails, want 5", n)
	}
	w.moveClock(13 * time.Hour)
	w.mustSweep(in, "send")
	if d := cmp.Diff(want[1:], outcomes()); d != "" {
		t.Errorf("outcomes when the pause was over (-want +got):\n%s", d)
	}
	w.moveClock(32 * 24 * time.Hour)
	w.plan(people[3:4], 500)
	w.mustSweep(in, "send")
	if d := cmp.Diff(want[1:], outcomes()); d != "" {
		t.Errorf("outcomes in another month (-want +got):\n%s", d)
	}
}

// A tenant one migration behind has no wishes, and its mails go out.
func TestNoWishesBeforeTheirMigration(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(1)
	conn, err := pgx.Connect(t.Context(), w.data.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), fmt.Sprintf("ALTER TABLE acme.contact DROP paused_until, DROP frequency; UPDATE onda.tenant SET schema = %d", contact.WishesSchema-1)); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.plan(people, 500)
	w.mustSweep(w.start(), "send")
	if n := len(w.smtp.Mails()); n != 1 {
		t.Errorf("%d mails, want 1", n)
	}
}

// Postmark's webhooks name a mail by its metadata, which every mail has that may go through a relay of theirs.
func TestMailsHaveTheirProvidersReference(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(3)
	w.plan(people[:1], 500)
	w.transactional(pgtest.Acme, people[1])
	w.transactional(pgtest.Acme, people[2], delivery.Attachment{Name: "a.txt", Content: []byte("a")})
	in := w.start("ONDA_SMTP_URL=" + w.smtp.URL() + "&provider=postmark")
	w.mustSweep(in, "send")
	w.mustSweep(in, "send-api")
	for n := range people {
		to := fmt.Sprintf("u%d@x.example", n+1)
		mails := w.smtp.MailsTo(to)
		if len(mails) != 1 {
			t.Fatalf("%s got %d mails", to, len(mails))
		}
		of, _, _ := strings.Cut(header(t, mails[0].Body, "Message-ID"), "@")
		if got := header(t, mails[0].Body, "X-PM-Metadata-onda"); "<"+got != of+"@onda" {
			t.Errorf("the metadata of the mail %s is %q", of, got)
		}
	}
}

// An address that cannot be mailed, however it came into the database, is an outcome of its own contact: nothing of it is said to the relay, and the others get their mails.
func TestAddressesThatCannotBeMailed(t *testing.T) {
	t.Parallel()
	type refused struct{ address, outcome string }
	const bad = "suppressed bad_address"
	for name, c := range map[string]struct {
		extensions []string
		addresses  []refused
	}{
		"a relay of today": {addresses: []refused{
			{"", bad},
			{"ada", bad},
			{"ada@", bad},
			{"@x.example", bad},
			{"ada@b@x.example", bad},
			{strings.Repeat("a", 65) + "@x.example", bad},
			{"ada@" + strings.Repeat("b", 64) + ".example", bad},
			{"ada@" + strings.Repeat("b.", 130) + "example", bad},
			{"ada@x.example\r\nRCPT TO:<evil@x.example>", bad},
			{"ada\n@x.example", bad},
			{"ada@x.example>\r\nDATA", bad},
			{"ada@x.example> SIZE=1", bad},
			{`"ada lovelace"@x.example`, bad},
			{`"ada"@x.example`, bad},
			{"Ada <ada@x.example>", bad},
			{"ad\u200ba@x.example", bad},
			{"ada@[127.0.0.1]", bad},
			{"zoë@x.example", "sent 250"},
			{"zoe@bücher.example", "sent 250"},
			{strings.Repeat("a", 64) + "@x.example", "sent 250"},
		}},
		"a relay that knows no Unicode": {extensions: []string{"PIPELINING", "ENHANCEDSTATUSCODES"}, addresses: []refused{
			{"zoë@x.example", "failed policy"}, {"zoe@bücher.example", "sent 250"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.smtp = smtptest.Start(t, smtptest.Config{Extensions: c.extensions})
			w.env["ONDA_SMTP_URL"] = w.smtp.URL()
			people := w.people(len(c.addresses) + 1)
			want := map[string]string{fmt.Sprintf("u%d@x.example", len(people)): "sent 250"}
			for i, r := range c.addresses {
				pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET email = $2 WHERE id = $1", people[i], r.address)
				want[r.address] = r.outcome
			}
			w.plan(people, 500)
			w.mustSweep(w.start(), "send")
			if d := cmp.Diff(want, w.outcomes()); d != "" {
				t.Errorf("outcomes (-want +got):\n%s", d)
			}
			for _, line := range w.smtp.Commands() {
				if strings.Contains(line, "evil") || strings.Contains(line, "lovelace") {
					t.Errorf("the relay was told %q", line)
				}
			}
		})
	}
}
