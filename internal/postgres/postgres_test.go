package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestTenantsAreKeptApartByPostgres(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", "INSERT INTO contact (email) VALUES ('ada@example.com')")
	if n := pgtest.One[int](t, db, "brava", "SELECT count(*) FROM contact"); n != 0 {
		t.Errorf("brava sees %d contacts of acme", n)
	}
	for _, sql := range []string{
		"SELECT count(*) FROM acme.contact",
		"INSERT INTO acme.contact (email) VALUES ('eve@example.com')",
		"UPDATE acme.run SET state = 'cancelled'",
		"DROP TABLE acme.contact",
	} {
		err := db.InTenant(context.Background(), "brava", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		})
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || pe.Code != "42501" {
			t.Errorf("%s as brava: %v, want permission denied", sql, err)
		}
	}
	// The shared tables show and change only its own rows.
	if got := pgtest.All[string](t, db, "brava", "SELECT name FROM onda.tenant"); !cmp.Equal(got, []string{"brava"}) {
		t.Errorf("brava sees tenants %v", got)
	}
	pgtest.Exec(t, db, "brava", "UPDATE onda.wakeup SET at = '-infinity'")
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM onda.wakeup WHERE at < 'infinity'"); n != 0 {
		t.Errorf("brava woke %d functions of acme", n)
	}
}

func TestEnterRefuses(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	only := d.Open(t, postgres.Config{Tenant: "acme"})
	for _, c := range []struct {
		db     *postgres.DB
		tenant string
		want   error
	}{
		{only, "acme", nil},
		{only, "brava", postgres.ErrForeignTenant},
		{d.DB(t), "nobody", postgres.ErrUnknownTenant},
		{d.DB(t), "", postgres.ErrUnknownTenant},
		{d.DB(t), "onda", postgres.ErrUnknownTenant},
		{d.DB(t), "postgres", postgres.ErrUnknownTenant},
		{d.DB(t), "onda_admin", postgres.ErrUnknownTenant},
		{d.DB(t), `acme"; DROP SCHEMA acme; --`, postgres.ErrUnknownTenant},
	} {
		err := c.db.InTenant(context.Background(), c.tenant, func(context.Context, *postgres.Tx) error { return nil })
		if !errors.Is(err, c.want) {
			t.Errorf("tenant %q: %v, want %v", c.tenant, err, c.want)
		}
	}
	if _, err := postgres.Open(postgres.Config{URL: "postgres://u:geheim@[bad"}); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("a malformed URL: %v, want an error that does not show the password", err)
	}
}

func TestNothingIsKeptOnError(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	boom := errors.New("boom")
	ctx := context.Background()
	insert := func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO contact (email) VALUES ('ada@example.com')")
		return err
	}
	for name, f := range map[string]func(ctx context.Context, tx *postgres.Tx) error{
		"error": func(ctx context.Context, tx *postgres.Tx) error { return errors.Join(insert(ctx, tx), boom) },
		"swallowed": func(ctx context.Context, tx *postgres.Tx) error {
			_, _ = tx.Exec(ctx, "SELECT 1/0")
			return insert(ctx, tx)
		},
		"hidden": func(ctx context.Context, tx *postgres.Tx) error {
			err := insert(ctx, tx)
			_, _ = tx.Exec(ctx, "SELECT 1/0")
			return err
		},
	} {
		if err := db.InTenant(ctx, "acme", f); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	func() {
		defer func() { _ = recover() }()
		_ = db.InTenant(ctx, "acme", func(ctx context.Context, tx *postgres.Tx) error { _ = insert(ctx, tx); panic("boom") })
	}()
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM contact"); n != 0 {
		t.Errorf("%d contacts were kept", n)
	}
}

func TestClockMovesForOneTenant(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db, admin := d.DB(t), d.Admin(t)
	if _, err := admin.MoveClock(context.Background(), "acme", 72*time.Hour); err != nil {
		t.Fatal(err)
	}
	var acme, brava time.Time
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		var sql time.Time
		err := tx.QueryRow(ctx, "SELECT onda.now()").Scan(&sql)
		acme = tx.Now()
		if !sql.Equal(acme) {
			t.Errorf("Go's clock %v, Postgres's %v", acme, sql)
		}
		return err
	})
	brava = pgtest.One[time.Time](t, db, "brava", "SELECT onda.now()") // on the same connection: the setting must not stay
	if diff := acme.Sub(brava); diff < 71*time.Hour || diff > 73*time.Hour {
		t.Errorf("acme is %v ahead, want 72h", diff)
	}
}

// readable waits until no transaction on the server, of another test say, holds back the facts that acme has.
func readable(t *testing.T, db *postgres.DB) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !pgtest.One[bool](t, db, "acme", "SELECT bool_and(xid < pg_snapshot_xmin(pg_current_snapshot())) FROM fact"); {
		if time.Now().After(deadline) {
			t.Fatal("facts are held back for a minute")
		}
	}
}

func TestFactsAreReadOnceAndNoneIsLostThatCommitsLate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	read := func() (kinds []string) {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			facts, _, err := tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: 100, Items: 1000}, "email.")
			for _, f := range facts {
				kinds = append(kinds, f.Kind)
			}
			return err
		})
		return kinds
	}
	add := func(ctx context.Context, tx *postgres.Tx, kind string) error {
		return tx.AddFacts(ctx, postgres.Fact{Kind: kind, Contact: 7, Data: []byte(`{"a":1}`)})
	}
	written, commit := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			err := add(ctx, tx, "email.opened")
			close(written)
			<-commit
			return err
		})
	})
	<-written
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return add(ctx, tx, "email.clicked") })
	if got := read(); got != nil { // the younger is held back until the older has committed
		t.Errorf("read %v before the older had committed", got)
	}
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		at, err := tx.FactsDue(ctx, "segment")
		if !at.Equal(tx.Now()) {
			t.Errorf("due at %v, want now", at)
		}
		return err
	})
	close(commit)
	wg.Wait()
	readable(t, db)
	if got := read(); !cmp.Equal(got, []string{"email.opened", "email.clicked"}) {
		t.Errorf("read %v", got)
	}
	if got := read(); got != nil {
		t.Errorf("read again: %v", got)
	}
}

// Facts about many contacts at once are read in parts, none twice and none left out.
func TestFactsOfALargeAudienceAreReadInParts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", "INSERT INTO fact (kind, contacts) SELECT 'segment.joined', ARRAY(SELECT i FROM generate_series(g * 500, g * 500 + 499) i) FROM generate_series(0, 9) g")
	pgtest.Exec(t, db, "acme", "INSERT INTO fact (kind, deliveries) SELECT 'email.sent', ARRAY(SELECT i FROM generate_series(1, 100) i) FROM generate_series(1, 10)")
	readable(t, db)
	var parts []int
	seen := map[int64]bool{}
	for more := true; more; {
		items := 0
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			facts, further, err := tx.ReadFacts(ctx, "campaign", postgres.FactLimit{Facts: 18, Items: 1400}, "segment.", "email.")
			for _, f := range facts {
				items += len(f.Contacts) + len(f.Deliveries)
				if seen[f.ID] {
					t.Errorf("fact %d is read twice", f.ID)
				}
				seen[f.ID] = true
			}
			more = further
			return err
		})
		parts = append(parts, items)
	}
	if diff := cmp.Diff([]int{1500, 1500, 1500, 1400, 100}, parts); diff != "" || len(seen) != 20 {
		t.Errorf("read %d facts, of items %s", len(seen), diff)
	}
}

func TestOnlyOneReadsWithACursor(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		if _, _, err := tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: 10, Items: 1000}, "email."); err != nil {
			return err
		}
		err := db.InTenant(ctx, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, _, err := tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: 10, Items: 1000}, "email.")
			return err
		})
		if !errors.Is(err, postgres.ErrBusy) {
			t.Errorf("second reader: %v, want ErrBusy", err)
		}
		return nil
	})
}

// Few facts are written by a statement, many by COPY: what is read is the same.
func TestFactsAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	at := time.Date(1999, 12, 31, 23, 59, 59, 123456000, time.Local)
	facts := []postgres.Fact{
		{Kind: "email.sent", Run: 1 << 40, Deliveries: []int64{1, -2, 1 << 62}, At: at},
		{Kind: "segment.joined", Name: `Ærlig "talt"`, Contacts: []int64{5}, Deliveries: []int64{}, At: at},
		{Kind: "event.tracked", Name: "large", Contact: 7, Visitor: 8, Data: []byte(`{"text": "` + strings.Repeat("long ", 40_000) + `"}`), At: at.AddDate(30, 0, 0)},
		{Kind: "page.viewed", Data: []byte(`{}`), At: at},
	}
	want := slices.Clone(facts)
	for len(facts) < 300 {
		facts = append(facts, postgres.Fact{Kind: "event.tracked", Name: fmt.Sprint(len(facts)), Contact: int64(len(facts)), Data: fmt.Appendf(nil, `{"n": %d}`, len(facts)), At: at})
	}
	want = append(want, facts...)
	for _, some := range [][]postgres.Fact{facts[:4], facts} {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return tx.AddFacts(ctx, some...) })
	}
	var got []postgres.Fact
	for len(got) < len(want) { // writers of other tests hold readers back for a moment
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			some, _, err := tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: 1000, Items: 10_000}, "email.", "segment.", "event.", "page.")
			got = append(got, some...)
			return err
		})
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(postgres.Fact{}, "XID", "ID")); diff != "" {
		t.Error(diff)
	}
}

func TestReadersAreToldHowFarBehindTheyAre(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var told []string
	db.Watch(func(_ context.Context, what, reader string, oldest time.Duration, n int) {
		told = append(told, fmt.Sprintf("%d %s for %s since %s", n, what, reader, oldest))
	})
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error { // when programs say that something happened is not when it was written
		return tx.AddFacts(ctx, postgres.Fact{Kind: "event.tracked", At: tx.Now().Add(-time.Hour)}, postgres.Fact{Kind: "email.clicked", At: tx.Now().Add(-time.Minute)})
	})
	var since time.Duration
	var left int64
	for len(told) == 0 { // writers of other tests hold readers back for a moment
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			oldest, n, err := tx.Unread(ctx, "segment")
			if since = tx.Now().Sub(oldest); err != nil || n != 2 || since < time.Minute || since > 30*time.Minute {
				t.Errorf("%d are unread since %s: %v", n, since, err)
			}
			if _, _, err := tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: 10, Items: 1000}, "email."); err != nil {
				return err
			}
			_, left, err = tx.Unread(ctx, "segment")
			return err
		})
	}
	if left != 0 {
		t.Errorf("%d are unread after all were read", left)
	}
	if diff := cmp.Diff([]string{"2 facts for segment since " + since.String()}, told); diff != "" {
		t.Error(diff)
	}
}

// A writer that sets a wake-up and the owner that computes it anew never end at never while work is due.
func TestWakeupsAreNeverLost(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, "acme", "CREATE TABLE work (at timestamptz)")
	db := d.DB(t)
	ctx := context.Background()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 40 {
				err := db.InTenant(ctx, "acme", func(ctx context.Context, tx *postgres.Tx) error {
					at := tx.Now().Add(time.Duration(i) * time.Second)
					tx.Wake("send", at)
					_, err := tx.Exec(ctx, "INSERT INTO work VALUES ($1)", at)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 60 {
				err := db.InTenant(ctx, "acme", func(ctx context.Context, tx *postgres.Tx) error {
					_, err := tx.Exec(ctx, "DELETE FROM work WHERE ctid IN (SELECT ctid FROM work ORDER BY at LIMIT 3 FOR UPDATE SKIP LOCKED)")
					return err
				})
				if err == nil {
					err = db.Recompute(ctx, "acme", "send", func(ctx context.Context, tx *postgres.Tx) (at time.Time, err error) {
						err = tx.QueryRow(ctx, "SELECT coalesce(min(at), $1) FROM work", postgres.Never).Scan(&at)
						return at, err
					})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if !pgtest.One[bool](t, db, "acme", `SELECT (SELECT at FROM onda.wakeup WHERE function = 'send') <= coalesce((SELECT min(at) FROM work), 'infinity')`) {
		t.Error("work is due and nobody will be woken for it")
	}
}

func TestOutboxPostsAfterTheCommitAndUntilItIsTaken(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	ctx := context.Background()
	ring := func(e cloudevents.Event) {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return tx.Publish(ctx, "campaign", e) })
	}
	command, err := event.New("acme", "campaign", "", event.DeriveID("a"), event.EmailSendRequested{Run: 1})
	if err != nil {
		t.Fatal(err)
	}
	ring(command)
	away := errors.New("broker away")
	if err := db.DrainPending(ctx, func(context.Context, string, cloudevents.Event) error { return away }); !errors.Is(err, away) {
		t.Errorf("drain: %v", err)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox"); n != 1 {
		t.Fatalf("%d rows after a failed post, want 1", n)
	}
	if !pgtest.One[bool](t, db, "acme", "SELECT at < 'infinity' FROM onda.wakeup WHERE function = 'campaign'") {
		t.Error("nobody is woken for an undrained outbox")
	}
	other := d.DB(t) // the sweep, in another process
	var got []string
	n, err := other.Drain(ctx, "acme", "campaign", func(_ context.Context, _ string, e cloudevents.Event) error { got = append(got, e.ID()); return nil })
	if err != nil || n != 1 || !cmp.Equal(got, []string{command.ID()}) {
		t.Errorf("drained %d %v %v", n, got, err)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox"); n != 0 {
		t.Errorf("%d rows left", n)
	}
}

func TestDoorbellsAreMerged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	const name = `a "b" \]}, {[`
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		for i := range 7 {
			items := make([]event.Activity, 100)
			for j := range items {
				items[j] = event.Activity{Contact: int64(i*100 + j + 1), Name: name}
			}
			e, err := event.New("acme", "track", "", event.DeriveID("x", string(rune('a'+i))), event.EventTracked{Activities: event.Activities{Items: items}})
			if err != nil {
				return err
			}
			if err := tx.Publish(ctx, "track", e); err != nil {
				return err
			}
		}
		return nil
	})
	var sizes []int
	var contacts int64
	err := db.DrainPending(context.Background(), func(_ context.Context, _ string, e cloudevents.Event) error {
		d, err := event.Decode(e)
		if err != nil {
			return err
		}
		items := d.(event.EventTracked).Items
		sizes = append(sizes, len(items))
		for _, item := range items {
			if contacts++; item.Contact != contacts || item.Name != name {
				t.Errorf("item %d is %v", contacts, item)
			}
		}
		return nil
	})
	if err != nil || !cmp.Equal(sizes, []int{500, 200}) {
		t.Errorf("posted events of %v items (%v), want 500 and 200", sizes, err)
	}
}

// An event that can never be posted, and doorbells that only together are too large, must not keep others back.
func TestOneBadEventHoldsNothingUp(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	publish := func(id string, data event.Data) {
		t.Helper()
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			e, err := event.New("acme", "campaign", "", event.DeriveID(id), data)
			if err != nil {
				return err
			}
			return tx.Publish(ctx, "campaign", e)
		})
	}
	publish("bad", event.EmailSendRequested{Run: 1})
	publish("good", event.EmailSendRequested{Run: 2})
	name := strings.Repeat("n", 200)
	for i := range 4 {
		items := make([]event.Activity, 100)
		for j := range items {
			items[j] = event.Activity{Contact: int64(i*100 + j + 1), Name: name}
		}
		publish(fmt.Sprint("large ", i), event.EventTracked{Activities: event.Activities{Items: items}})
	}
	bad := errors.New("400")
	var runs []int64
	items := 0
	for range 2 {
		_, err := db.Drain(context.Background(), "acme", "campaign", func(_ context.Context, _ string, e cloudevents.Event) error {
			d, err := event.Decode(e)
			if err != nil {
				t.Errorf("post: %v", err)
				return err
			}
			switch d := d.(type) {
			case event.EmailSendRequested:
				if d.Run == 1 {
					return bad
				}
				runs = append(runs, d.Run)
			case event.EventTracked:
				items += len(d.Items)
			}
			return nil
		})
		if !errors.Is(err, bad) {
			t.Errorf("drain: %v", err)
		}
	}
	if diff := cmp.Diff([]int64{2}, runs); diff != "" {
		t.Error(diff)
	}
	if items != 400 {
		t.Errorf("%d items were told, want 400", items)
	}
}

// A tenant's role can write anything into its outbox; the pool's broker believes what an event says of its tenant.
func TestNoEventOfAnotherTenantIsPosted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var forged []byte
	for _, tenant := range []string{"brava", "acme"} {
		e, err := event.New(tenant, "campaign", "", event.DeriveID(tenant), event.EmailSendRequested{Run: 1})
		if err == nil {
			err = db.InTenant(context.Background(), "acme", func(ctx context.Context, tx *postgres.Tx) error { return tx.Publish(ctx, "campaign", e) })
		}
		if (err == nil) != (tenant == "acme") {
			t.Errorf("publish an event of %s in acme: %v", tenant, err)
		}
		if tenant == "brava" {
			if forged, err = e.MarshalJSON(); err != nil {
				t.Fatal(err)
			}
		}
	}
	pgtest.Exec(t, db, "acme", "INSERT INTO outbox (drainer, type, event) VALUES ('campaign', 'x', $1), ('campaign', 'x', '{}')", forged)
	var posted []string
	n, err := db.Drain(context.Background(), "acme", "campaign", func(_ context.Context, _ string, e cloudevents.Event) error {
		posted = append(posted, e.ID())
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "it is of tenant brava, in the outbox of acme") || n != 3 || !cmp.Equal(posted, []string{event.DeriveID("acme")}) {
		t.Errorf("posted %v of %d: %v", posted, n, err)
	}
	if left := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox"); left != 0 {
		t.Errorf("%d rows are left", left)
	}
}

func TestAnyEventThatFailsIsKept(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	e := cloudevents.NewEvent()
	e.SetID("a\x00")
	e.SetType("onda.email.requested.v1")
	e.SetSource("/tenants/acme/functions/app")
	if err := e.SetData(cloudevents.ApplicationJSON, map[string]string{"a": "b\x00c"}); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"acme", "nobody", "no\x00body", ""} {
		if err := db.KeepFailure(context.Background(), "send", tenant, e, errors.New("bad \x00")); err != nil {
			t.Errorf("%q: %v", tenant, err)
		}
	}
	if got := pgtest.One[string](t, db, "acme", "SELECT convert_from(decode(event->>'data_base64', 'base64'), 'UTF8') FROM failure"); got != `{"a":"b\u0000c"}` {
		t.Errorf("kept %s", got)
	}
}

func TestPartitionsAreMadeAhead(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, "acme", "SELECT setval(pg_get_serial_sequence('batch', 'id'), 40000), setval(pg_get_serial_sequence('fact', 'id'), 16777000)")
	db := d.DB(t)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return tx.EnsurePartitions(ctx) })
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		if err := tx.EnsurePartitions(ctx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO delivery (id, contact, state) VALUES (40000::bigint << 9 | 1, 1, 'sent')"); err != nil {
			return err
		}
		return tx.AddFacts(ctx, make([]postgres.Fact, 0)...)
	})
	pgtest.Exec(t, db, "acme", "INSERT INTO fact (kind) SELECT 'email.sent' FROM generate_series(1, 1000)")
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM pg_inherits WHERE inhparent IN ('delivery'::regclass, 'fact'::regclass)"); n != 4 {
		t.Errorf("%d partitions, want 4", n)
	}
	// Postgres 17 attaches no table that counts for itself.
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM pg_class WHERE relkind = 'S' AND relname LIKE 'fact\\_%\\_id\\_seq' AND relnamespace = 'acme'::regnamespace"); n != 0 {
		t.Errorf("%d partitions count for themselves", n)
	}
}

func TestCreateTenantTwiceIsOnce(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	admin := d.Admin(t)
	ctx := context.Background()
	for i, want := range []bool{true, false} {
		made, err := admin.CreateTenant(ctx, "casa-verde")
		if err != nil || made != want {
			t.Errorf("create %d: made %v, %v", i+1, made, err)
		}
	}
	run := func(sql string) {
		t.Helper()
		conn, err := pgx.Connect(ctx, d.AdminURL)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(ctx) }()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE ROLE replicator SUPERUSER") // roles are the server's: this test's own name
	t.Cleanup(func() { run("DROP ROLE replicator") })
	for _, bad := range []string{"replicator", "", "onda", "public", "postgres", "pg_x", "Acme", "a b", "onda-x", strings.Repeat("a", 41), `a"b`} {
		if _, err := admin.CreateTenant(ctx, bad); err == nil {
			t.Errorf("tenant %q was made", bad)
		}
	}
	db := d.DB(t)
	k, err := db.Keys(ctx, "casa-verde")
	if err != nil {
		t.Fatal(err)
	}
	if signing, ok := k.Tokens.Current(); !ok || len(signing.Secret) != 32 || len(k.Pepper) != 32 {
		t.Errorf("keys: %d, a pepper of %d bytes", len(k.Tokens), len(k.Pepper))
	}
	other, err := db.Keys(ctx, "acme")
	if err != nil || string(other.Pepper) == string(k.Pepper) {
		t.Errorf("two tenants have one pepper (%v)", err)
	}
	m, err := admin.Migrate(ctx)
	if err != nil || m.Shared != 0 || len(m.Tenants) != 0 {
		t.Errorf("migrate again: %+v %v", m, err)
	}
}

// Tenants are looked at again and again, and there are not so many numbers: they are in tokens.
func TestATenantThatIsThereUsesNoNumberUp(t *testing.T) {
	t.Parallel()
	admin := pgtest.New(t).Admin(t)
	create := func(name string) int32 {
		t.Helper()
		if _, err := admin.CreateTenant(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		info, err := admin.Tenant(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return info.Number
	}
	first := create("numbered-a")
	for range 3 {
		create("numbered-a")
	}
	if next := create("numbered-b"); next != first+1 {
		t.Errorf("numbers %d and %d", first, next)
	}
}

func TestProgramsKeysLeaveTheIdsOfTokensKeys(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	admin := d.Admin(t)
	for i := range 300 {
		if err := admin.AddProgramKey(context.Background(), "acme", "sk", "shop", []byte{byte(i), byte(i >> 8)}); err != nil {
			t.Fatal(err)
		}
	}
	db := d.DB(t)
	pgtest.Exec(t, db, "acme", "INSERT INTO key (kind, secret) VALUES ('hmac', '0123456789abcdef0123456789abcdef')")
	k, err := db.Keys(context.Background(), "acme")
	if err != nil || len(k.Tokens) != 2 {
		t.Errorf("%d keys of tokens, %v", len(k.Tokens), err)
	}
}

func TestARefusedOutboxIsLookedAtLessAndLess(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var waits []time.Duration
	for _, tries := range []int{0, 1, 3, 50} {
		pgtest.Exec(t, db, "acme", "DELETE FROM outbox")
		pgtest.Exec(t, db, "acme", "INSERT INTO outbox (drainer, type, event, tries) VALUES ('send', 'x', '{}', $1)", tries)
		var now time.Time
		err := db.Recompute(context.Background(), "acme", "send", func(_ context.Context, tx *postgres.Tx) (time.Time, error) {
			now = tx.Now()
			return postgres.Never, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		waits = append(waits, pgtest.One[time.Time](t, db, "acme", "SELECT at FROM onda.wakeup WHERE function = 'send'").Sub(now))
	}
	if diff := cmp.Diff([]time.Duration{time.Minute, 2 * time.Minute, 8 * time.Minute, 64 * time.Minute}, waits); diff != "" {
		t.Error(diff)
	}
}

// Numbers that are short as they come in are long when they are read: facts full of them are read in parts.
func TestFactsWithMuchDataAreReadInParts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", `INSERT INTO fact (kind, data) SELECT 'event.tracked', jsonb_build_object('n', (SELECT jsonb_agg(1e308) FROM generate_series(1, 5400))) FROM generate_series(1, 20)`)
	readable(t, db)
	read, longest := 0, 0
	for more := true; more; {
		size := 0
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			facts, further, err := tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: 100, Items: 1000}, "event.")
			for _, f := range facts {
				size += len(f.Data)
			}
			read += len(facts)
			more = further
			return err
		})
		longest = max(longest, size)
	}
	if read != 20 || longest > 12<<20 {
		t.Errorf("read %d facts, up to %d bytes at once", read, longest)
	}
}
