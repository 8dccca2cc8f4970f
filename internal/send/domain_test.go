package send

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
)

const domain = `
---
apiVersion: onda/v1
kind: Domain
metadata: {name: ours}
spec: {domain: acme.example, signer: onda, returnPath: bounce.acme.example}
`

// checked is what a check comes to that finds these keys published.
func (w *world) checked(keys ...mail.DKIMKey) {
	w.t.Helper()
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		d, err := senderdomain.Find(ctx, tx, "acme.example")
		if err != nil {
			return err
		}
		published := make([]string, len(keys))
		for i, k := range keys {
			published[i] = k.Name()
		}
		_, err = d.Checked(ctx, tx, true, published)
		return err
	})
}

func (w *world) newKeys(base string) (keys []mail.DKIMKey) {
	w.t.Helper()
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		keys, err = senderdomain.AddKeys(ctx, tx, "acme.example", base)
		return err
	})
	return keys
}

// signatures gives the selectors of the keys that have signed the last mail to somebody; one that does not verify fails the test.
func (w *world) signatures(to string, keys ...mail.DKIMKey) (by []string) {
	w.t.Helper()
	mails := w.smtp.MailsTo(to)
	if len(mails) == 0 {
		w.t.Fatalf("%s got no mail", to)
	}
	var mu sync.Mutex // signatures are verified at once
	all, err := dkim.VerifyWithOptions(bytes.NewReader(mails[len(mails)-1].Body), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		for _, k := range keys {
			if k.Name() == name {
				mu.Lock()
				defer mu.Unlock()
				by = append(by, k.Selector)
				return []string{k.Record()}, nil
			}
		}
		return nil, fmt.Errorf("no key is published at %s", name)
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range all {
		if v.Err != nil {
			w.t.Errorf("signature of a mail to %s: %v", to, v.Err)
		}
	}
	slices.Sort(by)
	return by
}

func TestMailsAreFromVerifiedDomains(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.superuser("UPDATE onda.database SET development = false")
	people := w.people(7)
	in := w.start()
	next := func(n int) string {
		w.plan(people[n-1:n], 500)
		w.mustSweep(in, "send")
		return w.outcomes()[fmt.Sprintf("u%d@x.example", n)]
	}
	is := func(n int, want string) {
		t.Helper()
		if got := next(n); got != want {
			t.Errorf("mail %d: %s, want %s", n, got, want)
		}
	}
	is(1, "sent 250") // there is no Domain
	w.apply(domain)
	is(2, "suppressed domain_unverified")

	w.superuser("UPDATE onda.database SET development = true")
	is(3, "sent 250")
	w.superuser("UPDATE onda.database SET development = false")

	first := w.newKeys("first")
	w.checked(first...)
	is(4, "sent 250")
	if d := cmp.Diff([]string{"first-ed25519", "first-rsa"}, w.signatures("u4@x.example", first...)); d != "" {
		t.Errorf("signed by (-want +got):\n%s", d)
	}
	sent := w.smtp.MailsTo("u4@x.example")[0]
	if !strings.HasSuffix(sent.From, "@bounce.acme.example") {
		t.Errorf("the envelope is from %s, want the domain's return path", sent.From)
	}
	if got := header(t, sent.Body, "From"); !strings.Contains(got, "news@acme.example") {
		t.Errorf("From is %s", got)
	}

	// A newer key signs once it is published.
	second := w.newKeys("second")
	w.checked(first...)
	is(5, "sent 250")
	if d := cmp.Diff([]string{"first-ed25519", "first-rsa"}, w.signatures("u5@x.example", first...)); d != "" {
		t.Errorf("signed by (-want +got):\n%s", d)
	}
	w.checked(append(first, second[0])...)
	is(6, "sent 250")
	if d := cmp.Diff([]string{"first-ed25519", "second-rsa"}, w.signatures("u6@x.example", append(first, second...)...)); d != "" {
		t.Errorf("signed by (-want +got):\n%s", d)
	}

	// A version that nobody has checked is not gone by, and the other tenant has nothing to do with any of it.
	w.apply(strings.Replace(domain, "domain: acme.example", "domain: elsewhere.example", 1))
	is(7, "sent 250")
	if n := pgtest.One[int](t, w.db, pgtest.Brava, "SELECT count(*) FROM key WHERE kind = 'dkim'"); n != 0 {
		t.Errorf("the other tenant has %d DKIM keys", n)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM key WHERE kind = 'dkim' AND id >= 0"); n != 0 {
		t.Errorf("%d DKIM keys take ids of token keys", n)
	}
}

// A key that is gone or broken holds the mails, since they are not at fault: nothing is marked, and all go out once it is back.
func TestABrokenKeyHoldsMails(t *testing.T) {
	t.Parallel()
	w := newWorld(t, domain)
	keys := w.newKeys("first")
	w.checked(keys...)
	in := w.start()
	w.plan(w.people(1), 500)
	for _, damage := range []string{
		"UPDATE acme.key SET secret = substring(secret FROM 1 FOR 100) WHERE name LIKE 'first-rsa%'",
		"UPDATE acme.key SET secret = '' WHERE name LIKE 'first-rsa%'",
		"UPDATE acme.key SET name = 'lost' WHERE kind = 'dkim' AND name LIKE '%ed25519%'; UPDATE acme.key SET name = 'gone' WHERE kind = 'dkim' AND name LIKE '%rsa%'",
	} {
		w.superuser("CREATE TABLE public.saved AS SELECT id, name, secret FROM acme.key")
		w.superuser(damage)
		if status := w.sweep(in, "send"); status < http.StatusInternalServerError {
			t.Errorf("after %s: status %d", damage, status)
		}
		if got := w.outcomes(); len(got) > 0 {
			t.Errorf("after %s: %v", damage, got)
		}
		w.superuser("UPDATE acme.key k SET name = s.name, secret = s.secret FROM public.saved s WHERE s.id = k.id; DROP TABLE public.saved")
	}
	w.mustSweep(in, "send")
	if d := cmp.Diff(map[string]string{"u1@x.example": "sent 250"}, w.outcomes()); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if by := w.signatures("u1@x.example", keys...); len(by) != 2 {
		t.Errorf("signed by %v", by)
	}
}
