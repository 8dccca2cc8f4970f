package send

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/smtptest"
	"github.com/onda-run/onda/internal/token"
)

func (w *world) stage(s postgres.Stage) {
	w.t.Helper()
	a := w.data.Admin(w.t)
	_, name, err := a.Stage(context.Background())
	if err == nil {
		err = a.SetStage(context.Background(), s, name)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// transactional asks for a password mail in a tenant.
func (w *world) transactional(tenant string, contact int64, attachments ...delivery.Attachment) {
	w.t.Helper()
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, _, err := delivery.Request(ctx, tx, "send-api", delivery.TransactionalMail{
			Email: "password", Contact: contact, Data: map[string]any{"code": 7}, Attachments: attachments, Cause: "test",
		})
		return err
	})
}

// sweepOf is a sweep of a tenant's lane; it gives the status.
func (w *world) sweepOf(in http.Handler, tenant, function string) int {
	e := sweepEvent(function, fmt.Sprint("sweep ", w.events.Add(1)))
	e.SetExtension("tenant", tenant)
	e.SetSource("/tenants/" + tenant + "/functions/schedule")
	return post(context.Background(), in, e)
}

// In a pre-production no mail is for anybody's address, whoever sends it, at whatever attempt, and whatever is sent along.
func TestPreproductionMailsNobody(t *testing.T) {
	t.Parallel()
	for to, want := range map[string]func(tenant string, contact int64) string{
		"qa@inbox.example": func(string, int64) string { return "qa@inbox.example" },
		"%@inbox.example":  func(tenant string, contact int64) string { return fmt.Sprintf("%s-%d@inbox.example", tenant, contact) },
	} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.stage(postgres.Preproduction)
			if _, _, err := apply.Directory(t.Context(), w.db, pgtest.Brava, fstest.MapFS{"all.yaml": {Data: []byte(documents)}}, nil); err != nil {
				t.Fatal(err)
			}
			people := w.people(5)
			pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET email = 'ünal@x.example' WHERE id = $1", people[1]) // no layout is made for it
			pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET email = 'a@b' || chr(10) || '@x.example' WHERE id = $1", people[2])
			theirs := pgtest.One[int64](t, w.db, pgtest.Brava, "INSERT INTO contact (email) VALUES ('v1@x.example') RETURNING id")
			w.plan(people, 2)
			w.transactional(pgtest.Acme, people[3])
			w.transactional(pgtest.Acme, people[4], delivery.Attachment{Name: "a.txt", Content: []byte("a")})
			w.transactional(pgtest.Brava, theirs)

			expected := map[string]int{}
			for _, n := range []int{0, 1, 3, 4, 3, 4} {
				expected[want(pgtest.Acme, people[n])]++
			}
			expected[want(pgtest.Brava, theirs)]++
			first := want(pgtest.Acme, people[0])
			w.smtp.Script(first, smtptest.Reject("451 4.3.0 busy"), smtptest.Accept())

			in := w.start("ONDA_PREPRODUCTION_TO=" + to)
			for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
				for _, function := range []string{"send", "send-api"} {
					if status := w.sweepOf(in, tenant, function); status != http.StatusAccepted {
						t.Fatalf("%s of %s: %d", function, tenant, status)
					}
				}
			}
			if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery WHERE state = 'deferred'"); n != 1 {
				t.Fatalf("%d are deferred", n)
			}
			w.moveClock(time.Hour)
			w.mustSweep(in, "send")
			w.mustSweep(in, "send-api")

			got := map[string]int{}
			for _, m := range w.smtp.Mails() {
				got[m.To]++
				if h := header(t, m.Body, "To"); h != "<"+m.To+">" {
					t.Errorf("a mail to %s has To: %s", m.To, h)
				}
				if tenant := header(t, m.Body, mail.PreproductionHeader); tenant != pgtest.Acme && tenant != pgtest.Brava {
					t.Errorf("%s is %q", mail.PreproductionHeader, tenant)
				}
				if s := header(t, m.Body, "Subject"); !strings.HasPrefix(s, "News for U") && s != "Your code" {
					t.Errorf("the subject is %q", s)
				}
				if i := strings.Index(string(m.Body), "@x.example"); i >= 0 {
					t.Errorf("an address of somebody's is in a mail to %s: %s", m.To, m.Body)
				}
			}
			if d := cmp.Diff(expected, got); d != "" {
				t.Errorf("mails by recipient (-want +got):\n%s", d)
			}
			states := pgtest.All[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', state, reason, count(*)) FROM delivery GROUP BY state, reason ORDER BY 1")
			if d := cmp.Diff([]string{"sent 6", "suppressed bad_address 1"}, states); d != "" {
				t.Errorf("outcomes (-want +got):\n%s", d)
			}
		})
	}
}

// Without an address that stands in nobody is mailed, and each mail says why.
func TestPreproductionWithoutAnAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stage(postgres.Preproduction)
	people := w.people(2)
	w.plan(people[:1], 500)
	w.transactional(pgtest.Acme, people[1])
	in := w.start()
	w.mustSweep(in, "send")
	w.mustSweep(in, "send-api")
	if d := cmp.Diff(map[string]string{"u1@x.example": "suppressed preproduction", "u2@x.example": "suppressed preproduction"}, w.outcomes()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if n := len(w.smtp.Mails()); n > 0 {
		t.Errorf("%d mails", n)
	}
}

// The mark counts from the next one of a batch that is being sent, in either direction: nothing of what is kept ready is gone by.
func TestAStageCountsAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(4)
	in := w.start("ONDA_PREPRODUCTION_TO=qa@inbox.example")
	for n, s := range []postgres.Stage{postgres.Production, postgres.Preproduction, postgres.Production, postgres.Preproduction} {
		w.stage(s)
		w.plan(people[n:n+1], 500)
		w.mustSweep(in, "send")
	}
	to := []string{}
	for _, m := range w.smtp.Mails() {
		to = append(to, m.To)
		if marked := strings.Contains(string(m.Body), mail.PreproductionHeader); marked != (m.To == "qa@inbox.example") {
			t.Errorf("a mail to %s: marked is %v", m.To, marked)
		}
	}
	if d := cmp.Diff([]string{"u1@x.example", "qa@inbox.example", "u3@x.example", "qa@inbox.example"}, to); d != "" {
		t.Errorf("recipients (-want +got):\n%s", d)
	}

	// And in the middle of a batch: what is under the mark already goes out as it was made.
	w = newWorld(t)
	w.plan(w.people(200), 500)
	hold, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u1@x.example", smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached}})
	in = w.start("ONDA_PREPRODUCTION_TO=qa@inbox.example", "ONDA_SMTP_CONNECTIONS=1")
	done := make(chan int, 1)
	go func() { done <- w.sweep(in, "send") }()
	<-reached
	w.stage(postgres.Preproduction)
	close(hold)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	meant, rest := 0, len(w.smtp.MailsTo("qa@inbox.example"))
	for _, m := range w.smtp.Mails() {
		if m.To != "qa@inbox.example" {
			meant++
		}
	}
	if meant < 1 || meant > delivery.MaxWindow || meant+rest != 200 {
		t.Errorf("%d to those they were for, %d instead of that", meant, rest)
	}
}

// A relay that a credential opens is refused before anything is marked, and whoever asks is told.
func TestPreproductionRefusesACredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	people := w.people(2)
	w.plan(people[:1], 500)
	w.transactional(pgtest.Acme, people[1])
	key := w.programKey(pgtest.Acme, token.SecretKey)
	in := w.start("ONDA_SMTP_URL="+strings.Replace(w.smtp.URL(), "://", "://user:hunter2@", 1), "ONDA_PREPRODUCTION_TO=qa@inbox.example")
	w.stage(postgres.Preproduction)
	for _, function := range []string{"send", "send-api"} {
		if status := w.sweep(in, function); status != http.StatusServiceUnavailable {
			t.Errorf("%s: status %d", function, status)
		}
	}
	r := call(in, `{"to": "a@x.example", "email": "password", "data": {"code": "1"}}`, "Authorization: Bearer "+key.Reveal())
	if said := r.Body.String(); r.Code != http.StatusServiceUnavailable || !strings.Contains(said, "ONDA_SMTP_URL") || strings.Contains(said, "hunter2") {
		t.Errorf("POST /v1/emails: %d %s", r.Code, said)
	}
	if n := w.count("SELECT count(*) FROM delivery") + w.count("SELECT sum(mark) + sum(fence) FROM batch") + len(w.smtp.Commands()); n != 0 {
		t.Errorf("%d things were done", n)
	}
	if n := w.count("SELECT count(*) FROM contact WHERE email = 'a@x.example'"); n != 0 {
		t.Error("what was refused is stored")
	}
	// With a relay that wants none all of it goes out.
	in = w.start("ONDA_PREPRODUCTION_TO=qa@inbox.example")
	w.mustSweep(in, "send")
	w.mustSweep(in, "send-api")
	if n := len(w.smtp.MailsTo("qa@inbox.example")); n != 2 {
		t.Errorf("%d mails", n)
	}
}
