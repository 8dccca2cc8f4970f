package delivery

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestEnqueueSplitsIntoBatchesOfFiveHundred(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	batches := f.plan(1200)
	var sizes []int
	for _, b := range batches {
		sizes = append(sizes, len(b.Contacts))
	}
	if d := cmp.Diff([]int{500, 500, 200}, sizes); d != "" {
		t.Errorf("sizes of batches (-want +got):\n%s", d)
	}
	for _, b := range batches {
		if d := cmp.Diff(b.Contacts, pgtest.One[[]int64](t, f.db, f.tenant, "SELECT contacts FROM batch WHERE id = $1", b.ID)); d != "" {
			t.Errorf("contacts of batch %d (-planned +stored):\n%s", b.ID, d)
		}
	}
	if !pgtest.One[bool](t, f.db, f.tenant, "SELECT at <= onda.now() FROM onda.wakeup WHERE function = 'send'") {
		t.Error("send is not woken")
	}
	if n := pgtest.One[int](t, f.db, pgtest.Brava, "SELECT count(*) FROM batch"); n != 0 {
		t.Errorf("the other tenant has %d batches", n)
	}
}

func TestIDNamesBatchAndNumber(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 500} {
		if id := ID(77, n); BatchOf(id) != 77 || Number(id) != n {
			t.Errorf("ID(77, %d) = %d: batch %d, number %d", n, id, BatchOf(id), Number(id))
		}
	}
}

func TestRequestIsStoredOnceAKey(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := TransactionalMail{Email: "password", Contact: 5, Data: map[string]any{"code": "1"}, Key: "k", Cause: "c"}
	request := func(m TransactionalMail) (id int64, repeated bool, err error) {
		err = f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			id, repeated, err = Request(ctx, tx, "send-api", m)
			return err
		})
		return id, repeated, err
	}
	first, repeated, err := request(m)
	if err != nil || repeated {
		t.Fatalf("first request: repeated %v, %v", repeated, err)
	}
	if again, repeated, err := request(m); err != nil || !repeated || again != first {
		t.Errorf("repeat: %d %v %v, want %d", again, repeated, err, first)
	}
	other := m
	other.Data = map[string]any{"code": "2"}
	if _, _, err := request(other); !errors.Is(err, ErrKeyReused) {
		t.Errorf("other content under the same key: %v", err)
	}
	other.Key = ""
	if second, repeated, err := request(other); err != nil || repeated || second == first {
		t.Errorf("no key: %d %v %v", second, repeated, err)
	}
	for name, want := range map[string]error{"news": ErrNotTransactional, "nothing": ErrUnknownEmail} {
		if _, _, err := request(TransactionalMail{Email: name, Contact: 5}); !errors.Is(err, want) {
			t.Errorf("email %q: %v, want %v", name, err, want)
		}
	}
	if n := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM batch WHERE lane = 1"); n != 2 {
		t.Errorf("%d batches of transactional mail, want 2", n)
	}
	if n := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM run WHERE kind = 'standing'"); n != 1 {
		t.Errorf("%d standing runs, want 1", n)
	}
	if n := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM outbox WHERE type = 'onda.email.requested.v1' AND drainer = 'send-api'"); n != 2 {
		t.Errorf("%d doorbells, want 2", n)
	}
}

func TestRequestsAtOnceUnderOneKeyMakeOneMail(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	const n = 6
	ids, errs := make(chan int64, n), make(chan error, n)
	for range n {
		go func() {
			errs <- f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
				id, _, err := Request(ctx, tx, "send-api", TransactionalMail{Email: "password", Contact: 5, Key: "once"})
				ids <- id
				return err
			})
		}()
	}
	first := int64(0)
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
		if id := <-ids; first == 0 {
			first = id
		} else if id != first {
			t.Errorf("deliveries %d and %d under one key", first, id)
		}
	}
	if n := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM batch"); n != 1 {
		t.Errorf("%d batches, want 1", n)
	}
}

// Mails that are requested together are as each would be by itself.
func TestRequestReserved(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	var ids []int64
	request := func(emails ...string) error {
		return f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			if ids, err = ReserveIDs(ctx, tx, len(emails)); err != nil {
				return err
			}
			var mails []Reserved
			for i, name := range emails {
				mails = append(mails, Reserved{TransactionalMail{Email: name, Contact: int64(5 + i), Data: map[string]any{"code": i}, Cause: "c"}, ids[i]})
			}
			return RequestReserved(ctx, tx, "send-api", mails)
		})
	}
	for name, want := range map[string]error{"news": ErrNotTransactional, "nothing": ErrUnknownEmail} {
		if err := request("password", name); !errors.Is(err, want) {
			t.Errorf("email %q: %v, want %v", name, err, want)
		}
	}
	if err := request("password", "password", "password"); err != nil {
		t.Fatal(err)
	}
	reserved := append([]int64{}, ids...)
	err := f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		id, _, err := Request(ctx, tx, "send-api", TransactionalMail{Email: "password", Contact: 8, Data: map[string]any{"code": 3}, Cause: "c"})
		reserved = append(reserved, id)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const all = `SELECT b.contacts[1] || ' ' || (r.data->>'code') || ' ' || (r.attachments::text) || ' ' || (r.key IS NULL) || ' ' || b.lane || b.attempt || b.step || b.cause || ' ' || b.state || ' ' || (b.expires_at - b.not_before)
		|| ' ' || (o.event->'data'->>'delivery') || ' ' || (o.event->>'correlationid')
		FROM unnest($1::bigint[]) WITH ORDINALITY u(id, n) JOIN request r ON r.delivery = u.id JOIN batch b ON b.id = u.id >> 9 JOIN outbox o ON (o.event->'data'->>'delivery')::bigint = u.id ORDER BY n`
	got := pgtest.All[string](t, f.db, f.tenant, all, reserved)
	if len(got) != 4 {
		t.Fatalf("%d of 4 mails are there: %q", len(got), got)
	}
	for i := range got {
		_, rest, _ := strings.Cut(got[i], " [] ")
		_, want, _ := strings.Cut(got[3], " [] ")
		cut := func(s string) string { return strings.Replace(s, fmt.Sprint(reserved[i]), "", 1) }
		if want = strings.Replace(want, fmt.Sprint(reserved[3]), "", 1); cut(rest) != want || !strings.HasPrefix(got[i], fmt.Sprintf("%d %d ", 5+i, i)) {
			t.Errorf("mail %d: %s, by itself it would be %s", i, got[i], got[3])
		}
	}
}
