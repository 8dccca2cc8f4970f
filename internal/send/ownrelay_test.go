package send

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/smtptest"
)

// secrets is a directory of mounted Secrets, as the kubelet keeps it: files are links through ..data, which is put in another's place whole.
type secrets struct {
	t       *testing.T
	dir     string
	version int
	urls    map[string]string
}

func newSecrets(t *testing.T) *secrets {
	t.Helper()
	return &secrets{t: t, dir: t.TempDir(), urls: map[string]string{}}
}

// set gives a Secret the text of its key url; empty takes the Secret away.
func (s *secrets) set(name, url string) {
	s.t.Helper()
	s.urls[name] = url
	if url == "" {
		delete(s.urls, name)
	}
	s.version++
	version := fmt.Sprintf("..%d", s.version)
	var errs []error
	for name, url := range s.urls {
		errs = append(errs, os.MkdirAll(filepath.Join(s.dir, version, name), 0o755), os.WriteFile(filepath.Join(s.dir, version, name, "url"), []byte(url), 0o644))
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(s.dir, name)); !os.IsExist(err) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, os.Symlink(version, filepath.Join(s.dir, "..new")), os.Rename(filepath.Join(s.dir, "..new"), filepath.Join(s.dir, "..data")))
	for _, err := range errs {
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func (w *world) relay(tenant, secret string) {
	w.t.Helper()
	if _, err := w.data.Admin(w.t).SetSMTPSecret(context.Background(), tenant, secret); err != nil {
		w.t.Fatal(err)
	}
}

// got is how many mails a relay has, and fails when any is for another than those whose address ends so.
func got(t *testing.T, relay *smtptest.Server, domain string) int {
	t.Helper()
	mails := relay.Mails()
	for _, m := range mails {
		if !strings.HasSuffix(m.To, domain) {
			t.Errorf("a mail to %s took the relay of *%s", m.To, domain)
		}
	}
	return len(mails)
}

func sweepBoth(w *world, in http.Handler, function string) (acme, brava int) {
	var at sync.WaitGroup
	at.Go(func() { acme = w.sweepOf(in, pgtest.Acme, function) })
	at.Go(func() { brava = w.sweepOf(in, pgtest.Brava, function) })
	at.Wait()
	return acme, brava
}

// Two tenants send at once, each through its own relay: no mail takes another's or the cell's, whatever becomes of their Secrets.
func TestMailsTakeTheRelayOfTheirTenant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newSecrets(t)
	acme, brava, rotated := smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})
	s.set("acme-relay", acme.URL()+"\n")
	s.set("brava-relay", brava.URL())
	w.relay(pgtest.Acme, "acme-relay")
	w.relay(pgtest.Brava, "brava-relay")
	in := w.start("ONDA_SECRETS=" + s.dir)
	people := w.people(160)
	theirs := func(n int) (contacts []int64) {
		for range n {
			contacts = append(contacts, pgtest.One[int64](t, w.db, pgtest.Brava, "INSERT INTO contact (email) VALUES (gen_random_uuid() || '@brava.example') RETURNING id"))
		}
		return contacts
	}
	expect := func(when string, cell, a, b, r int) {
		t.Helper()
		if n := len(w.smtp.Mails()); n != cell {
			t.Errorf("%s: %d mails took the cell's relay, want %d", when, n, cell)
		}
		if x, y, z := got(t, acme, "@x.example"), got(t, brava, "@brava.example"), got(t, rotated, "@x.example"); x != a || y != b || z != r {
			t.Errorf("%s: acme's relay has %d mails, brava's %d, acme's next %d; want %d, %d, %d", when, x, y, z, a, b, r)
		}
	}

	w.plan(people[:100], 20)
	w.brava()
	if a, b := sweepBoth(w, in, "send"); a != http.StatusAccepted || b != http.StatusAccepted {
		t.Fatalf("status %d, %d", a, b)
	}
	expect("both at once", 0, 100, 3, 0)

	s.set("acme-relay", rotated.URL())
	w.plan(people[100:120], 20)
	w.mustSweep(in, "send")
	expect("rotated", 0, 100, 3, 20)
	acme.Wait("the connections to the relay that was left are closed", func() bool { _, open := acme.Conns(); return open == 0 })

	states := func(tenant string) string {
		return strings.Join(pgtest.All[string](t, w.db, tenant, "SELECT state || ' ' || count(*) FROM delivery GROUP BY state ORDER BY 1"), ", ")
	}
	lost := states(pgtest.Brava)
	for n, broken := range []string{"", "http://user:hidden@relay.example", "smtp://user:hidden@relay.example?rate=many", "   \n"} {
		s.set("brava-relay", broken)
		w.plan(people[120+n:121+n], 20)
		w.transactional(pgtest.Brava, theirs(1)[0])
		if a, b := sweepBoth(w, in, "send"); a != http.StatusAccepted {
			t.Errorf("brava's Secret is %q: acme's is answered %d, brava's %d", broken, a, b)
		}
		if status := w.sweepOf(in, pgtest.Brava, "send-api"); status != http.StatusServiceUnavailable {
			t.Errorf("brava's Secret is %q: answered %d", broken, status)
		}
		if got := states(pgtest.Brava); got != lost {
			t.Errorf("brava's Secret is %q: %s, before %s", broken, got, lost)
		}
	}
	expect("brava's is broken", 0, 100, 3, 24)
	s.set("brava-relay", brava.URL())
	if status := w.sweepOf(in, pgtest.Brava, "send-api"); status != http.StatusAccepted {
		t.Errorf("mended: answered %d", status)
	}
	expect("mended", 0, 100, 7, 24)

	w.relay(pgtest.Acme, "")
	s.set("acme-relay", "")
	w.plan(people[124:125], 20)
	w.mustSweep(in, "send")
	expect("given back", 1, 100, 7, 24)
}

// Where no Secrets are mounted, a tenant with a relay of its own waits, and the error tells what to do.
func TestNoSecretsAreMounted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.relay(pgtest.Acme, "acme-relay")
	w.plan(w.people(1), 1)
	dir := t.TempDir()
	for settings, want := range map[string]string{
		"":                     "the Secret acme-relay (spec.smtpSecret), and ONDA_SECRETS is not set",
		"ONDA_SECRETS=" + dir:  "the Secret acme-relay (spec.smtpSecret of its file) is not mounted, or has no key url: open acme-relay/url",
		"ONDA_SECRETS=/no/dir": "is not mounted",
	} {
		s, in := w.sender(settings)
		if status := w.sweep(in, "send"); status != http.StatusServiceUnavailable {
			t.Errorf("%s: status %d", settings, status)
		}
		err := s.turn(context.Background(), pgtest.Acme, 0, "test")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", settings, err, want)
		}
	}
	if n := len(w.smtp.Mails()); n > 0 {
		t.Errorf("%d mails took the cell's relay", n)
	}
	w.relay(pgtest.Acme, "../acme-relay")
	s, _ := w.sender("ONDA_SECRETS=" + filepath.Join(dir, "x"))
	if err := s.turn(context.Background(), pgtest.Acme, 0, "test"); err == nil || !strings.Contains(err.Error(), "invalid argument") {
		t.Errorf("a Secret's name that leads elsewhere: %v", err)
	}
}

// A tenant that gets a relay of its own in the middle of a batch sends what is not under the mark yet through that.
func TestAnotherRelayInTheMiddleOfABatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := newSecrets(t)
	own := smtptest.Start(t, smtptest.Config{})
	s.set("acme-relay", own.URL())
	w.plan(w.people(200), 500)
	hold, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u1@x.example", smtptest.Script{Rcpt: smtptest.Step{Wait: hold, Reached: reached}})
	in := w.start("ONDA_SMTP_CONNECTIONS=1", "ONDA_SECRETS="+s.dir)
	done := make(chan int, 1)
	go func() { done <- w.sweep(in, "send") }()
	<-reached
	w.relay(pgtest.Acme, "acme-relay")
	close(hold)
	if status := <-done; status != http.StatusAccepted {
		t.Errorf("status %d", status)
	}
	cell, rest := len(w.smtp.Mails()), got(t, own, "@x.example")
	if cell < 1 || rest < 1 || cell+rest != 200 {
		t.Errorf("%d by the cell's relay, %d by its own, of 200", cell, rest)
	}
}

// A pre-production refuses a tenant's own relay that a credential opens, as it does the cell's.
func TestPreproductionRefusesACredentialOfATenant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.stage(postgres.Preproduction)
	s := newSecrets(t)
	own := smtptest.Start(t, smtptest.Config{})
	s.set("acme-relay", strings.Replace(own.URL(), "smtp://", "smtp://user:secret@", 1))
	w.relay(pgtest.Acme, "acme-relay")
	w.transactional(pgtest.Acme, w.people(1)[0])
	sender, in := w.sender("ONDA_SECRETS="+s.dir, "ONDA_PREPRODUCTION_TO=qa@inbox.example")
	if status := w.sweep(in, "send-api"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d", status)
	}
	pgtest.In(t, w.db, pgtest.Acme, func(_ context.Context, tx *postgres.Tx) error {
		if err := sender.unfitFor(&tx.Tenant); err == nil || !strings.Contains(err.Error(), "the Secret acme-relay: this database is marked as pre-production") {
			t.Errorf("over HTTP: %v", err)
		}
		return nil
	})
	s.set("acme-relay", own.URL())
	w.mustSweep(in, "send-api")
	if n := len(own.MailsTo("qa@inbox.example")); n != 1 || len(own.Mails()) != 1 || len(w.smtp.Mails()) != 0 {
		t.Errorf("%d of %d mails to the stand-in, %d by the cell's relay", n, len(own.Mails()), len(w.smtp.Mails()))
	}
}
