package senderdomain

import (
	"context"
	"errors"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const emails = `
apiVersion: onda/v1
kind: Email
metadata: {name: hello}
spec: {transactional: true, from: "Acme <a@News.Bücher.example>", subject: s, html: "<p>x</p>"}
---
apiVersion: onda/v1
kind: Email
metadata: {name: other}
spec: {transactional: true, from: "b@other.example", subject: s, html: "<p>x</p>"}
`

const books = `
---
apiVersion: onda/v1
kind: Domain
metadata: {name: books}
spec: {domain: news.bücher.example, signer: onda}
`

func put(t *testing.T, db *postgres.DB, docs string) {
	t.Helper()
	if _, _, err := apply.Directory(t.Context(), db, pgtest.Acme, fstest.MapFS{"all.yaml": {Data: []byte(docs)}}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestUnverified(t *testing.T) {
	t.Parallel()
	data := pgtest.New(t)
	db := data.DB(t)
	var stamps []string
	look := func(change func(ctx context.Context, tx *postgres.Tx) error, want ...string) {
		t.Helper()
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			if err := change(ctx, tx); err != nil {
				return err
			}
			s, err := Read(ctx, tx)
			if err != nil {
				return err
			}
			stamps = append(stamps, s.Stamp())
			got, err := Unverified(ctx, tx)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("unverified (-want +got):\n%s", diff)
			}
			one, err1 := Unverified(ctx, tx, "hello")
			if err == nil && err1 == nil && len(got) > 1 && len(one) != 1 {
				t.Errorf("of one email: %v", one)
			}
			return errors.Join(err, err1)
		})
	}
	checked := func(right bool) func(ctx context.Context, tx *postgres.Tx) error {
		return func(ctx context.Context, tx *postgres.Tx) error {
			d, err := Find(ctx, tx, "Bücher.example")
			if !errors.Is(err, ErrUnknown) {
				t.Errorf("a domain above it is found: %v, %v", d, err)
			}
			if d, err = Find(ctx, tx, "News.BÜCHER.example"); err != nil {
				return err
			}
			_, err = d.Checked(ctx, tx, right, nil)
			return err
		}
	}
	const other = "the email other: no Domain document is of other.example: apply one, and verify it with onda domain check"
	const never = "the email hello: news.xn--bcher-kva.example is not verified: onda domain check books tells what is missing"
	nothing := func(context.Context, *postgres.Tx) error { return nil }
	put(t, db, emails)
	look(nothing)
	put(t, db, emails+books)
	look(nothing, never, other)
	look(checked(false), never, other)
	look(checked(true), other)
	look(checked(false), other)
	if _, err := data.Admin(t).MoveClock(t.Context(), pgtest.Acme, Fresh+time.Hour); err != nil {
		t.Fatal(err)
	}
	at := pgtest.One[time.Time](t, db, pgtest.Acme, "SELECT verified_at FROM entity WHERE name = 'books'").Format(time.DateOnly)
	look(checked(false), "the email hello: news.xn--bcher-kva.example was last verified on "+at+": onda domain check books looks again", other)
	look(checked(true), other)
	for i, same := range []bool{false, true, false, true, true, false} { // as the one before
		if (stamps[i] == stamps[i+1]) != same {
			t.Errorf("stamp %d is %q after %q", i+1, stamps[i+1], stamps[i])
		}
	}
}

// Keys: which sign, in whatever order they are published.
func TestRotation(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	put(t, db, books)
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		d, err := Find(ctx, tx, "books")
		if err != nil {
			return err
		}
		const domain = "news.xn--bcher-kva.example"
		if _, err := Signer(ctx, tx, domain); err == nil {
			t.Error("a signer without a key")
		}
		for _, base := range []string{"a", "b", "c"} {
			if _, err := AddKeys(ctx, tx, domain, base); err != nil {
				return err
			}
		}
		if _, err := AddKeys(ctx, tx, "xn--bcher-kva.example", "above"); err != nil { // another domain's, whose name ends the same
			return err
		}
		if _, err := Signer(ctx, tx, domain); err == nil {
			t.Error("a signer without a published key")
		}
		for i, step := range []struct {
			published      []string
			signs, retired []string
		}{
			{[]string{"a-rsa"}, []string{"a-rsa"}, nil},
			{[]string{"a-rsa", "a-ed25519"}, []string{"a-rsa", "a-ed25519"}, nil},
			{[]string{"a-rsa", "c-rsa", "b-ed25519"}, []string{"c-rsa", "b-ed25519"}, []string{"a-rsa", "a-ed25519", "b-rsa"}},
			{[]string{"b-rsa"}, []string{"c-rsa", "b-ed25519"}, nil},
		} {
			var published, retired []string
			for _, s := range step.published {
				published = append(published, mail.DKIMName(s, domain))
			}
			for _, s := range step.retired {
				retired = append(retired, mail.DKIMName(s, domain))
			}
			got, err := d.Checked(ctx, tx, true, published)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(retired, got); diff != "" {
				t.Errorf("step %d: retired (-want +got):\n%s", i, diff)
			}
			keys, err := Keys(ctx, tx, domain)
			if err != nil {
				return err
			}
			signs := newest(keys)
			for _, s := range step.signs {
				if found := signs[mail.RSA].Selector == s || signs[mail.Ed25519].Selector == s; !found {
					t.Errorf("step %d: %s does not sign: %s and %s do", i, s, signs[mail.RSA].Selector, signs[mail.Ed25519].Selector)
				}
			}
			if len(signs) != len(step.signs) {
				t.Errorf("step %d: %d keys sign", i, len(signs))
			}
			if _, err := Signer(ctx, tx, domain); err != nil {
				t.Errorf("step %d: %v", i, err)
			}
		}
		return nil
	})
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Keys(ctx); err != nil {
			t.Errorf("the keys of tokens: %v", err)
		}
		return nil
	})
}

// A function may run before the migration has: nothing is verified then, and there is no key.
func TestBeforeTheMigration(t *testing.T) {
	t.Parallel()
	data := pgtest.New(t)
	conn, err := pgx.Connect(t.Context(), data.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "ALTER TABLE acme.entity DROP verified, DROP verified_at; ALTER TABLE acme.key DROP published_at; UPDATE onda.tenant SET schema = 3"); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	db := data.DB(t)
	put(t, db, emails+books)
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if got, err := Unverified(ctx, tx); err != nil || len(got) != 2 {
			t.Errorf("unverified: %v, %v", got, err)
		}
		keys, err := Keys(ctx, tx, "news.xn--bcher-kva.example")
		if err != nil || len(keys) != 0 {
			t.Errorf("keys: %v, %v", keys, err)
		}
		return nil
	})
}
