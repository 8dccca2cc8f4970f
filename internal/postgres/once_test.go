package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// counted is a way to a database that counts how often it is asked and answers: round trips.
type counted struct {
	url   string
	trips chan struct{} // one of each
}

func countTrips(t *testing.T, database string) *counted {
	t.Helper()
	cfg, err := pgx.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	u := url.URL{Scheme: "postgres", User: url.User(cfg.User), Host: listener.Addr().String(), Path: "/" + cfg.Database, RawQuery: "sslmode=disable"}
	c := &counted{u.String(), make(chan struct{}, 1000)}
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			network, address := pgconn.NetworkAddress(cfg.Host, cfg.Port)
			out, err := (&net.Dialer{}).DialContext(context.Background(), network, address)
			if err != nil {
				_ = in.Close()
				return
			}
			asked := make(chan struct{}, 1)
			go func() {
				defer func() { _ = out.Close() }()
				b := make([]byte, 64<<10)
				for {
					n, err := in.Read(b)
					if n > 0 {
						select {
						case asked <- struct{}{}:
							c.trips <- struct{}{}
						default: // not answered yet: part of the same
						}
						_, _ = out.Write(b[:n])
					}
					if err != nil {
						return
					}
				}
			}()
			go func() {
				defer func() { _ = in.Close() }()
				_, _ = io.Copy(answers{in, asked}, out)
			}()
		}
	}()
	return c
}

// answers notes that what was asked is answered.
type answers struct {
	to    io.Writer
	asked chan struct{}
}

func (a answers) Write(b []byte) (int, error) {
	select {
	case <-a.asked:
	default:
	}
	return a.to.Write(b)
}

// made gives how many there were since it was called last.
func (c *counted) made() int {
	n := len(c.trips)
	for range n {
		<-c.trips
	}
	return n
}

// A process that was started for a request asks Postgres no more often than it must: each time is a wait.
func TestRoundTripsOfAStart(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, pgtest.Acme, "CREATE TABLE thing (n integer)")
	number := tenant(t, d.DB(t), pgtest.Acme).Number
	way := countTrips(t, d.URL)
	open := func() *postgres.DB {
		db, err := postgres.Open(postgres.Config{URL: way.url, MaxConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(db.Close)
		if _, err := db.Entered(t.Context()); err != nil { // it connects
			t.Fatal(err)
		}
		way.made()
		return db
	}
	db := open()
	byNumber := func(ctx context.Context) error {
		name, err := db.TenantByNumber(ctx, number)
		if err == nil && name != pgtest.Acme {
			err = fmt.Errorf("tenant %d is %s", number, name)
		}
		return err
	}
	keys := func(ctx context.Context) error {
		_, err := db.Keys(ctx, pgtest.Acme)
		return err
	}
	appended := func(ctx context.Context) error {
		return db.Append(ctx, pgtest.Acme, time.Second, postgres.Append{SQL: "INSERT INTO thing SELECT unnest($1::integer[])", Args: []any{[]int{1}}, Wake: "track", In: time.Hour})
	}
	read := func(ctx context.Context) error {
		return db.InTenant(ctx, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
			var n, one int
			err = tx.OnceRow(ctx, "SELECT count(*), $1::integer FROM thing", 1).Scan(&n, &one)
			if err == nil && one != 1 {
				err = fmt.Errorf("read %d", one)
			}
			return err
		})
	}
	for _, c := range []struct {
		what  string
		fresh bool
		do    func(ctx context.Context) error
		want  int
	}{
		{"a tenant's name", false, byNumber, 1},
		{"its keys", false, keys, 1},
		{"what is appended first", false, appended, 1},
		{"what is appended second, and prepared", false, appended, 3},
		{"what is appended third", false, appended, 2},
		{"and from then on", false, appended, 1},
		{"its keys, again", false, keys, 0},
		{"a first transaction", true, read, 3},
		{"a second one, which is prepared", false, read, 4},
		{"a third", false, read, 3},
	} {
		if c.fresh {
			db = open()
		}
		if err := c.do(t.Context()); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if n := way.made(); n != c.want {
			t.Errorf("%s: %d round trips, want %d", c.what, n, c.want)
		}
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM thing"); n != 4 {
		t.Errorf("%d things are stored of 4", n)
	}
}

// Keys are read of tenants that are served, and of no other, also by a process that enters none else.
func TestKeysAreOfWhoIsServed(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	admin, err := pgx.Connect(t.Context(), d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	acme, err := d.DB(t).Keys(t.Context(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	brava, err := d.DB(t).Keys(t.Context(), pgtest.Brava)
	if err != nil || cmp.Equal(acme.Tokens, brava.Tokens) || cmp.Equal(acme.Pepper, brava.Pepper) {
		t.Fatalf("two tenants' keys are the same, or %v", err)
	}
	for _, c := range []struct {
		what   string
		change string // by an administrator, before
		tenant string
		want   error
	}{
		{what: "another", tenant: pgtest.Brava, want: postgres.ErrForeignTenant},
		{what: "none", tenant: "nobody", want: postgres.ErrForeignTenant},
		{what: "suspended", change: "UPDATE onda.tenant SET state = 'suspended' WHERE name = 'acme'", tenant: pgtest.Acme},
		{what: "moving", change: "UPDATE onda.tenant SET state = 'moving' WHERE name = 'acme'", tenant: pgtest.Acme, want: postgres.ErrMoving},
		{what: "elsewhere", change: "UPDATE onda.tenant SET state = 'active', armed = '1/1' WHERE name = 'acme'", tenant: pgtest.Acme, want: postgres.ErrElsewhere},
		{what: "at an old schema", change: "UPDATE onda.tenant SET armed = onda.identity(), schema = 0 WHERE name = 'acme'", tenant: pgtest.Acme, want: postgres.ErrSchemaTooOld},
		{what: "locked", change: "UPDATE onda.tenant SET schema = 29 WHERE name = 'acme'; COMMIT; BEGIN; LOCK TABLE acme.key", tenant: pgtest.Acme, want: errLocked},
		{what: "moving, and without the table", change: "DROP TABLE acme.key CASCADE; UPDATE onda.tenant SET state = 'moving' WHERE name = 'acme'; COMMIT", tenant: pgtest.Acme, want: postgres.ErrMoving},
		{what: "deleted", change: "UPDATE onda.tenant SET state = 'deleted', deleted_at = now() WHERE name = 'acme'", tenant: pgtest.Acme, want: postgres.ErrUnknownTenant},
	} {
		if c.change != "" {
			if _, err := admin.Exec(t.Context(), c.change); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
		}
		db := d.Open(t, postgres.Config{MaxConns: 1, Tenant: pgtest.Acme})
		k, err := db.Keys(t.Context(), c.tenant)
		switch {
		case c.want == nil:
			if err != nil || !cmp.Equal(acme.Tokens, k.Tokens) || !cmp.Equal(acme.Pepper, k.Pepper) {
				t.Errorf("%s: %v", c.what, err)
			}
		case errors.Is(c.want, errLocked):
			if !postgres.IsLocked(err) {
				t.Errorf("%s: %v", c.what, err)
			}
		case !errors.Is(err, c.want):
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		if err != nil && len(k.Tokens) > 0 {
			t.Errorf("%s: keys are given with the error", c.what)
		}
		if _, err := db.Entered(t.Context()); err != nil { // its only connection is of use
			t.Errorf("%s: afterwards: %v", c.what, err)
		}
	}
}

var errLocked = errors.New("locked")

// What is run without being prepared reads the same whatever form a server gives texts.
func TestOnceOnAServerWithItsOwnForms(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, pgtest.Acme, "CREATE TABLE thing (n integer)")
	admin, err := pgx.Connect(t.Context(), d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	if _, err := admin.Exec(t.Context(), fmt.Sprintf(`ALTER DATABASE %s SET DateStyle = 'German, DMY'; ALTER DATABASE %[1]s SET bytea_output = 'escape'; ALTER DATABASE %[1]s SET TimeZone = 'Asia/Kathmandu'`,
		pgx.Identifier{admin.Config().Database}.Sanitize())); err != nil {
		t.Fatal(err)
	}
	db := d.Open(t, postgres.Config{MaxConns: 1})
	if _, err := db.Keys(t.Context(), pgtest.Acme); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := db.Append(t.Context(), pgtest.Acme, time.Second, postgres.Append{SQL: "INSERT INTO thing SELECT unnest($1::integer[])", Args: []any{[]int{1}}}); err != nil {
			t.Fatal(err)
		}
	}
	other := d.Open(t, postgres.Config{MaxConns: 1})
	for _, db := range []*postgres.DB{db, other} {
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			var at time.Time
			var n int
			err := tx.OnceRow(ctx, "SELECT onda.now(), count(*) FROM thing WHERE $1::timestamptz = onda.now()", tx.Now()).Scan(&at, &n)
			if err == nil && (!at.Equal(tx.Now()) || n != 3) {
				err = fmt.Errorf("read %v and %d, want %v and 3", at, n, tx.Now())
			}
			return err
		})
	}
}
