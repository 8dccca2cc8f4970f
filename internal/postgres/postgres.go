// Package postgres is where Onda's state is: tenants as schemas with a role each, transactions that enter one of them,
// facts with cursors, the outbox, wake-ups, a clock that can be moved, keys and migrations.
//
// Invariants: all access to a tenant's rows is within a transaction that took the tenant's role first, so that Postgres
// keeps tenants apart; what a transaction writes, the facts of it, the events it rings and the wake-ups it sets commit
// together; no session state outlives a transaction, so that it works behind a pooler in transaction mode.
//
// A migration is over at once, however large the tenant: it makes no index on a table that grows (that is for tableIndexes), and changes or checks not all rows of one (but in
// chunks: see migration), since who writes would wait for it, and with its transaction the readers of facts of all tenants on the server.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onda-run/onda/internal/tenantname"
)

// Schema is the tenant migration that this code needs at the least; a tenant below it answers ErrSchemaTooOld.
const Schema = 1

// Errors of entering a tenant. A deleted one is unknown.
var (
	ErrUnknownTenant = errors.New("unknown tenant")
	ErrForeignTenant = errors.New("this process serves another tenant")
)

// Errors of entering a tenant that will be served again, when somebody has done what each says.
const (
	ErrSchemaTooOld = notYet("the tenant's schema is older than this code: run onda migrate")
	ErrMoving       = notYet("the tenant is being moved: nothing is served until onda tenant resume")
	// ErrElsewhere: what is written there now would be lost to readers of facts, whose cursors are of the other server.
	ErrElsewhere = notYet("the tenant was restored into another server: nothing is served until onda tenant rearm")
)

// notYet is an error that passes: whoever asked may ask again.
type notYet string

func (e notYet) Error() string { return string(e) }

// Transient has a request answered with 503, as when Postgres is away.
func (notYet) Transient() bool { return true }

// visitsPerConn bounds the memory of a connection, which Postgres never gives back: 0.2 to 0.7 MB a tenant visited.
const visitsPerConn = 200

// Config is what a function needs to reach Postgres.
type Config struct {
	// URL is of the pool's login (or of a dedicated tenant's own), as libpq takes it.
	URL string `env:"ONDA_DATABASE_URL, required"`
	// MaxConns bounds the connections of one process.
	MaxConns int32 `env:"ONDA_DATABASE_MAX_CONNS, default=4"`
	// Tenant, when set, is the only one that the process serves.
	Tenant string `env:"ONDA_TENANT"`
	// Tick is the sweep's interval: work that no event announced is found by then.
	Tick time.Duration `env:"ONDA_TICK, default=1m"`
}

// DB is a pool of connections, opened at the first use.
type DB struct {
	pool  *pgxpool.Pool
	only  string
	tick  time.Duration
	watch Watch

	server atomic.Pointer[server]
	stage  atomic.Value // the Stage that was seen last; none before the first

	mu         sync.Mutex
	conns      map[*pgx.Conn]*connection
	pending    map[drain]struct{}  // what this process published to and has not drained
	rungAt     map[drain]time.Time // when it last posted a doorbell from there
	keys       map[string]cachedKeys
	partitions map[string]time.Time // when those of a tenant were looked after last
	numbers    map[int32]string
	unknown    unknownNumbers

	doors doors
}

// server is a Postgres that is no standby, and onda.identity() of it.
type server struct {
	started  time.Time
	identity string
}

// Open checks the configuration and makes a pool that has no connection yet. A malformed URL is an error; a server that is
// away is found out at the first transaction.
func Open(cfg Config) (*DB, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, errors.New("ONDA_DATABASE_URL: not a Postgres URL such as postgres://onda_pool@host/onda") // the cause would show the password
	}
	db := &DB{
		only: cfg.Tenant, tick: cfg.Tick,
		conns:      map[*pgx.Conn]*connection{},
		pending:    map[drain]struct{}{},
		rungAt:     map[drain]time.Time{},
		keys:       map[string]cachedKeys{},
		partitions: map[string]time.Time{},
		numbers:    map[int32]string{},
	}
	db.server.Store(&server{}) // of no server: none started in the year 1
	if db.tick <= 0 {
		db.tick = time.Minute
	}
	pc.MaxConns = max(cfg.MaxConns, 1)
	db.doors = doors{each: int(pc.MaxConns), of: map[string]*door{}}
	if db.only == "" {
		db.doors.each = max(1, db.doors.each/2)
	}
	pc.MinConns = 0
	pc.MaxConnIdleTime = 30 * time.Second
	if pc.ConnConfig.ConnectTimeout == 0 {
		pc.ConnConfig.ConnectTimeout = 900 * time.Millisecond // a function answers 503 within a second when Postgres is away
	}
	if _, named := pc.ConnConfig.RuntimeParams["application_name"]; !named {
		pc.ConnConfig.RuntimeParams["application_name"] = "onda"
	}
	// Where a connection is taken, and not where it is given back: pgxpool would do that in its own time, and whoever comes next would open another.
	pc.PrepareConn = db.keep
	pc.BeforeClose = func(c *pgx.Conn) {
		db.mu.Lock()
		delete(db.conns, c)
		db.mu.Unlock()
	}
	db.pool, err = pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return db, nil
}

// Close ends all connections, once the transactions under way are over.
func (db *DB) Close() { db.pool.Close() }

// Tick is the sweep's interval.
func (db *DB) Tick() time.Duration { return db.tick }

// Serves tells whether a process with this configuration may serve the tenant at all (see Config.Tenant).
func (db *DB) Serves(tenant string) bool { return db.only == "" || db.only == tenant }

// keep tells whether a connection is used on.
func (db *DB) keep(_ context.Context, c *pgx.Conn) (bool, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	return len(db.of(c).visits) < visitsPerConn, nil
}

// connection is what is known of one.
type connection struct {
	visits map[string]entered // of tenants that were entered on it
	ran    map[string]int     // statements that ran counts
}

// of is called under the lock.
func (db *DB) of(c *pgx.Conn) *connection {
	known := db.conns[c]
	if known == nil {
		known = &connection{visits: map[string]entered{}, ran: map[string]int{}}
		db.conns[c] = known
	}
	return known
}

// ran gives how often a statement was about to be run on a connection before. Of few different ones.
func (db *DB) ran(c *pgx.Conn, sql string) (times int) {
	db.mu.Lock()
	defer db.mu.Unlock()
	ran := db.of(c).ran
	ran[sql]++
	return ran[sql] - 1
}

// entered is what was so when a tenant was entered, on a server that was no standby.
type entered struct {
	started       time.Time // that server
	name          string
	number        int32
	state, armed  string
	schema        int
	preproduction bool
}

func (db *DB) visit(c *pgx.Conn, e entered) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.of(c).visits[e.name] = e
}

func (db *DB) enteredOn(c *pgx.Conn, tenant string) (entered, bool) {
	db.mu.Lock()
	defer db.mu.Unlock()
	e, ok := db.of(c).visits[tenant]
	return e, ok
}

// Preproduction tells whether the database was marked as pre-production when a tenant was last entered: for what is shown to people who came to no tenant. Before any was, the
// database is asked; false where it does not answer. What decides about mail goes by Tenant.Preproduction.
func (db *DB) Preproduction(ctx context.Context) bool {
	if db.stage.Load() == nil {
		var marked bool
		if db.pool.QueryRow(ctx, `SELECT d.preproduction FROM (SELECT false AS preproduction) AS absent, LATERAL (SELECT preproduction FROM onda.database) AS d`).Scan(&marked) == nil {
			db.stage.CompareAndSwap(nil, stageOf(marked)) // a tenant that was entered meanwhile knows better
		}
	}
	return db.stage.Load() == Preproduction
}

func stageOf(marked bool) Stage {
	if marked {
		return Preproduction
	}
	return Production
}

// Tenant is what a transaction knows of the tenant that it is in.
type Tenant struct {
	Number int32
	Name   string
	// State is Active or Suspended: no other is entered. Only sending minds it.
	State string
	// Armed tells whether this is the server, and the history of it, that the tenant was armed with; see onda tenant rearm.
	Armed bool
	// Preproduction tells that the database is marked as pre-production: nothing is mailed to the addresses that contacts have.
	Preproduction bool
	// Namespace is where its functions and its broker are: a ring of the pool's, or its own.
	Namespace string
	// LinkHosts and FormHosts are its own names of track and of render-form.
	LinkHosts, FormHosts Hosts
	// Schema is the tenant migration that it is at; see Schema for the least.
	Schema int
	Quotas Quotas
	// SMTPSecret is the Secret with the relay of its own; empty: its mails go through the cell's.
	SMTPSecret string
}

// Quotas are what a tenant may send of marketing, by its file; nil for as much as it likes.
type Quotas struct {
	PerSecond        *float64
	PerDay, PerMonth *int64
}

// Slower is a pace, in mails a second and 0 for none, or the quota's where that is slower.
func (q Quotas) Slower(rate float64) float64 {
	if q.PerSecond != nil && (rate == 0 || *q.PerSecond < rate) {
		return *q.PerSecond
	}
	return rate
}

// Hosts are a tenant's own names of one function. New links are made with the first; at the others, and at the function's own, it goes on being served.
type Hosts []string

// LinkURL is what new links of the tenant begin with, without a slash at the end: its first host, else the address that track has for all. A pre-production has that alone:
// the hosts of a copy are the production's, which has its keys and would do what its links say.
func (t *Tenant) LinkURL(all string) string { return t.url(t.LinkHosts, all) }

// FormURL is the same of forms and confirmations, at render-form.
func (t *Tenant) FormURL(all string) string { return t.url(t.FormHosts, all) }

func (t *Tenant) url(h Hosts, all string) string {
	if len(h) == 0 || t.Preproduction {
		return all
	}
	return "https://" + h[0]
}

// Tx is a transaction in a tenant's schema, under its role. It is used by one goroutine at a time.
type Tx struct {
	Tenant Tenant

	db    *DB
	conn  *pgxpool.Conn
	now   time.Time
	last  pgx.Batch
	wakes map[string]time.Time
	rang  map[drain]struct{}
	out   struct{ drainers, types, events []string } // rows of the outbox
}

// Now is onda.now(): the transaction's time on the tenant's clock. What is due is decided by it; leases are not.
func (tx *Tx) Now() time.Time { return tx.now }

// Tick is the sweep's interval.
func (tx *Tx) Tick() time.Duration { return tx.db.tick }

// Exec runs one statement in the transaction.
func (tx *Tx) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	return tx.conn.Exec(ctx, sql, args...)
}

// Finally has a statement run after all else, in the round trip of the commit; an error of it is that of the transaction.
func (tx *Tx) Finally(sql string, args ...any) { tx.last.Queue(sql, args...) }

// Query runs one query in the transaction; its rows are read or closed before the next statement.
func (tx *Tx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	return tx.conn.Query(ctx, sql, args...)
}

// QueryRow runs a query that gives one row.
func (tx *Tx) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return tx.conn.QueryRow(ctx, sql, args...)
}

// SendBatch sends several statements in one round trip.
func (tx *Tx) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	return tx.conn.SendBatch(ctx, b)
}

// InTenant runs f in a transaction of the tenant and commits what it did, with the wake-ups that it set, when it returns nil.
// On any error nothing is kept. Those above are told apart with errors.Is; errors of Postgres come through wrapped.
func (db *DB) InTenant(ctx context.Context, tenant string, f func(ctx context.Context, tx *Tx) error) error {
	return db.inTenant(ctx, tenant, mode{}, f)
}

// InTenantSnapshot is InTenant of a transaction that only reads, and sees all of it as it was at one moment. Nobody waits for it, but what it sees cannot be cleaned up before its end.
func (db *DB) InTenantSnapshot(ctx context.Context, tenant string, f func(ctx context.Context, tx *Tx) error) error {
	return db.inTenant(ctx, tenant, mode{snapshot: true}, f)
}

// InTenantUnlocked is InTenant of a transaction that waits for each lock no longer than is given (0: as long as the server says); then it fails with SQLSTATE 55P03.
func (db *DB) InTenantUnlocked(ctx context.Context, tenant string, lock time.Duration, f func(ctx context.Context, tx *Tx) error) error {
	return db.inTenant(ctx, tenant, mode{lock: lock}, f)
}

// mode is what kind of a transaction it is.
type mode struct {
	lock     time.Duration // how long it waits for a lock; 0: as long as the server says
	snapshot bool
}

func (db *DB) inTenant(ctx context.Context, tenant string, m mode, f func(ctx context.Context, tx *Tx) error) error {
	conn, err := db.acquire(ctx, tenant)
	if err != nil {
		return err
	}
	defer conn.Release()
	return db.on(ctx, conn, tenant, m, f)
}

// acquire gives a connection for a tenant; it is released, and closed by that if it is still in a transaction.
func (db *DB) acquire(ctx context.Context, tenant string) (*pgxpool.Conn, error) {
	if !db.Serves(tenant) {
		return nil, fmt.Errorf("tenant %s: %w", tenant, ErrForeignTenant)
	}
	if tenantname.Check(tenant) != nil { // no role that is no tenant's is entered, and no text that Postgres would choke on is sent
		return nil, fmt.Errorf("tenant %.60q: %w", tenant, ErrUnknownTenant)
	}
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres%s: %w", remedy(err), err)
	}
	return conn, nil
}

// on is inTenant on a connection.
func (db *DB) on(ctx context.Context, conn *pgxpool.Conn, tenant string, m mode, f func(ctx context.Context, tx *Tx) error) error {
	tx := &Tx{db: db, conn: conn, wakes: map[string]time.Time{}, rang: map[drain]struct{}{}}
	if err := tx.begin(ctx, tenant, m); err != nil {
		rollback(conn)
		return err
	}
	if err := tx.run(ctx, f); err != nil {
		rollback(conn)
		return err
	}
	if err := tx.commit(ctx); err != nil {
		rollback(conn)
		return err
	}
	db.published(tx.rang)
	return nil
}

// remedy is what to look at when the server is there and lets nobody in.
func remedy(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) && (strings.HasPrefix(pe.Code, "28") || pe.Code == "3D000") { // a wrong login, password or database
		return ", check ONDA_DATABASE_URL"
	}
	return ""
}

// run ends the transaction also when f panics, so that its locks do not wait for the connection to be found out.
func (tx *Tx) run(ctx context.Context, f func(ctx context.Context, tx *Tx) error) error {
	done := false
	defer func() {
		if !done {
			rollback(tx.conn)
		}
	}()
	err := f(ctx, tx)
	done = true
	return err
}

// enter needs no schema on the search path: it is parsed before the role is set. What a column is called that a table does not have yet is found in absent, so
// that this code runs on the shared schema before 0002, 0004, 0005 and 0006 too.
//
// Which server this is costs ten times what the rest does, and cannot change while a server runs, unless it is a standby: so it is asked once for each start of a server,
// whichever one a pooler leads to.
const enter = `SELECT t.number, t.name, t.state, t.schema, t.armed,
       pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_is_in_recovery(),
       CASE WHEN pg_catalog.pg_postmaster_start_time() = $2 AND NOT pg_catalog.pg_is_in_recovery() THEN '' ELSE onda.identity() END,
       t.namespace, t.link_hosts, t.form_hosts, d.preproduction, t.mails_per_second, t.mails_per_day, t.mails_per_month, coalesce(t.smtp_secret, ''),
       set_config('onda.offset', t."offset"::text, true) IS NOT NULL,
       pg_catalog.now() + t."offset"
  FROM (SELECT '{}'::text[] AS link_hosts, '{}'::text[] AS form_hosts, false AS preproduction,
               NULL::float8 AS mails_per_second, NULL::bigint AS mails_per_day, NULL::bigint AS mails_per_month, NULL::text AS smtp_secret) AS absent,
       LATERAL (SELECT preproduction FROM onda.database) AS d,
       LATERAL (SELECT number, name, state, schema, armed, namespace, link_hosts, form_hosts, mails_per_second, mails_per_day, mails_per_month, smtp_secret, "offset"
               FROM onda.tenant WHERE name = $1) AS t`

// queueBegin queues what begins a transaction under the tenant's role.
func queueBegin(b *pgx.Batch, tenant string, m mode) {
	if m.snapshot {
		b.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	} else {
		b.Queue("BEGIN")
	}
	if m.lock == 0 {
		b.Queue("SELECT set_config('role', $1, true)", tenant)
	} else {
		b.Queue("SELECT set_config('role', $1, true), set_config('lock_timeout', $2, true)", tenant, strconv.FormatInt(m.lock.Milliseconds(), 10))
	}
}

func (tx *Tx) begin(ctx context.Context, tenant string, m mode) error {
	b := &pgx.Batch{}
	queueBegin(b, tenant, m)
	e := tx.queueEnter(b, tenant)
	if tx.db.ran(tx.conn.Conn(), enter) == 0 {
		return tx.enter(e, tenant, sendOnce(ctx, tx.conn.Conn(), b))
	}
	return tx.enter(e, tenant, tx.conn.SendBatch(ctx, b).Close())
}

// entering is what enter tells of the server.
type entering struct {
	known          *server // before
	read           bool
	armed, here    string
	started        time.Time
	standby, moved bool
}

// queueEnter queues what tells of the tenant.
func (tx *Tx) queueEnter(b *pgx.Batch, tenant string) *entering {
	e := &entering{known: tx.db.server.Load()}
	b.Queue(enter, tenant, e.known.started).QueryRow(func(row pgx.Row) error {
		t := &tx.Tenant
		err := row.Scan(&t.Number, &t.Name, &t.State, &t.Schema, &e.armed, &e.started, &e.standby, &e.here, &t.Namespace, &t.LinkHosts, &t.FormHosts, &t.Preproduction,
			&t.Quotas.PerSecond, &t.Quotas.PerDay, &t.Quotas.PerMonth, &t.SMTPSecret, &e.moved, &tx.now)
		e.read = err == nil
		return err
	})
	return e
}

// enter tells whether the tenant may be entered, by what was read and the error of the batch: of that which came after enter too.
func (tx *Tx) enter(e *entering, tenant string, err error) error {
	if e.here == "" {
		e.here = e.known.identity
	} else if !e.standby {
		tx.db.server.Store(&server{e.started, e.here})
	}
	switch {
	case !e.read && (errors.Is(err, pgx.ErrNoRows) || failedWith(err, "22023", "42501")):
		return fmt.Errorf("tenant %s: %w", tenant, ErrUnknownTenant)
	case !e.read:
		return fmt.Errorf("enter tenant %s: %w", tenant, err)
	case tx.Tenant.State == Deleted:
		return fmt.Errorf("tenant %s was deleted: %w", tenant, ErrUnknownTenant)
	case tx.Tenant.State == Moving:
		return fmt.Errorf("tenant %s: %w", tenant, ErrMoving)
	case !sameServer(e.armed, e.here):
		return fmt.Errorf("tenant %s: %w", tenant, ErrElsewhere)
	case tx.Tenant.Schema < Schema:
		return fmt.Errorf("tenant %s is at schema %d, %d is needed: %w", tenant, tx.Tenant.Schema, Schema, ErrSchemaTooOld)
	case err != nil:
		return err
	}
	tx.Tenant.Armed = e.armed == e.here
	if e.standby {
		e.started = time.Time{} // of no server
	}
	tx.db.visit(tx.conn.Conn(), entered{e.started, tx.Tenant.Name, tx.Tenant.Number, tx.Tenant.State, e.armed, tx.Tenant.Schema, tx.Tenant.Preproduction})
	tx.db.stage.Store(stageOf(tx.Tenant.Preproduction))
	return nil
}

// sameServer compares the system identifiers of two values of onda.identity(), and not their timelines.
func sameServer(x, y string) bool {
	x, _, _ = strings.Cut(x, "/")
	y, _, _ = strings.Cut(y, "/")
	return x == y
}

func (tx *Tx) commit(ctx context.Context) error {
	b := &tx.last
	tx.queueOutbox(b)
	tx.queueWakes(b)
	var err error
	if b.Len() == 0 { // without preparing it
		var ct pgconn.CommandTag
		if ct, err = tx.conn.Exec(ctx, "COMMIT"); err == nil {
			err = committed(ct)
		}
	} else {
		queueCommit(b)
		err = tx.conn.SendBatch(ctx, b).Close()
	}
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// queueCommit queues the commit.
func queueCommit(b *pgx.Batch) { b.Queue("COMMIT").Exec(committed) }

// committed tells whether a commit was one.
func committed(ct pgconn.CommandTag) error {
	if ct.String() != "COMMIT" { // an error that was swallowed turns a commit into a rollback
		return errors.New("an earlier statement had failed, nothing was kept")
	}
	return nil
}

// look runs statements that only read, in the tenant and in one round trip with all that a transaction takes. What they gave counts when no error is returned.
func (db *DB) look(ctx context.Context, tenant string, m mode, queue func(b *pgx.Batch)) error {
	conn, err := db.acquire(ctx, tenant)
	if err != nil {
		return err
	}
	defer conn.Release()
	tx, b := &Tx{db: db, conn: conn}, &pgx.Batch{}
	queueBegin(b, tenant, m)
	e := tx.queueEnter(b, tenant)
	queue(b)
	queueCommit(b)
	if err := tx.enter(e, tenant, sendOnce(ctx, conn.Conn(), b)); err != nil {
		rollback(conn)
		return err
	}
	return nil
}

func rollback(conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() || conn.Conn().PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = conn.Exec(ctx, "ROLLBACK") // on an error Release closes the connection
}

// RelaySlots takes the time of mails at a relay, at a rate a second that all processes and tenants share, unless it is further from now than ahead: then taken is false. wait is how
// long from now that time begins. On a database that knows nothing of it yet, everything may go at once.
func (db *DB) RelaySlots(ctx context.Context, relay string, mails int, perSecond float64, ahead time.Duration) (wait time.Duration, taken bool, err error) {
	var seconds float64
	err = db.pool.QueryRow(ctx, "SELECT taken, wait FROM onda.relay_slots($1, $2, $3, $4)", relay, mails, perSecond, ahead.Seconds()).Scan(&taken, &seconds)
	if failedWith(err, "42883") { // undefined function
		return 0, true, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("take the time of mails at the relay: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), taken, nil
}

// failedWith tells whether Postgres answered with one of the codes.
func failedWith(err error, codes ...string) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && slices.Contains(codes, pe.Code)
}
