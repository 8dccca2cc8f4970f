package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// tableIndexes are the names of those that migrate makes.
const tableIndexes = "fact_at, delivery_at, contact_created, fact_sets, contact_merged, contact_erased"

// indexesOf gives what the tenant's indexes on tables are over, those of partitions with the partition, and which are not whole.
func indexesOf(t *testing.T, db *postgres.DB, tenant string) []string {
	t.Helper()
	return pgtest.All[string](t, db, tenant, `SELECT t.relname || coalesce(' of ' || p.relname, '') || regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING', '') || CASE WHEN i.indisvalid THEN '' ELSE ' half' END
		FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid LEFT JOIN pg_inherits h ON h.inhrelid = i.indexrelid LEFT JOIN pg_class p ON p.oid = h.inhparent
		WHERE t.relnamespace = current_schema()::regnamespace ORDER BY 1`)
}

func migrate(t *testing.T, a *postgres.Admin) []string {
	t.Helper()
	m, err := a.Migrate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m.Indexes
}

// nextPartitions lets new batches and facts begin other partitions than those there are.
func nextPartitions(t *testing.T, d *pgtest.Database, db *postgres.DB, tenant string, n int) {
	t.Helper()
	d.Own(t, tenant, fmt.Sprintf("SELECT setval(pg_get_serial_sequence('batch', 'id'), %d::bigint * (1 << 24) / 512), setval(pg_get_serial_sequence('fact', 'id'), %[1]d::bigint * (1 << 24))", n))
	pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) error { return tx.EnsurePartitions(ctx) })
}

// A tenant that is migrated ends with the indexes of one that is new, whatever of them it had, and of earlier forms of the migrations as well.
func TestMigrateIndexesTables(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db, admin := d.DB(t), d.Admin(t)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		nextPartitions(t, d, db, tenant, 1)
	}
	want := indexesOf(t, db, pgtest.Brava)
	if all := strings.Join(want, "\n"); strings.Contains(all, "half") || strings.Count(all, "fact_16777216 of fact_") != 5 {
		t.Fatalf("a new tenant has\n%s", all)
	}
	for _, c := range []struct {
		had  string
		sql  []string
		made int
	}{
		{"all", nil, 0},
		{"none", []string{"DROP INDEX " + tableIndexes}, 9},
		{"one of an earlier form", []string{"DROP INDEX fact_at", "CREATE INDEX fact_at ON fact USING brin (at timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on)"}, 0},
		{"some of the table alone", []string{"DROP INDEX fact_sets", "CREATE INDEX fact_sets ON ONLY fact (kind, at) WHERE contacts IS NOT NULL"}, 2},
		{"one that is not attached", []string{
			"DROP INDEX fact_sets", "CREATE INDEX fact_sets ON ONLY fact (kind, at) WHERE contacts IS NOT NULL",
			"CREATE INDEX fact_sets_0 ON fact_0 (kind, at) WHERE contacts IS NOT NULL",
		}, 2},
		{"halves", []string{
			"DROP INDEX fact_sets", "CREATE INDEX fact_sets ON ONLY fact (kind, at) WHERE contacts IS NOT NULL", "CREATE INDEX fact_sets_0 ON fact_0 (kind, at) WHERE contacts IS NOT NULL",
			"RESET ROLE", "UPDATE pg_index SET indisvalid = false WHERE indexrelid IN ('fact_sets_0'::regclass, 'contact_merged'::regclass)",
		}, 3},
	} {
		d.Own(t, pgtest.Acme, c.sql...)
		if made := migrate(t, admin); len(made) != c.made || slices.ContainsFunc(made, func(n string) bool { return !strings.HasPrefix(n, "acme.") }) {
			t.Errorf("who had %s: made %q, want %d of acme", c.had, made, c.made)
		}
		if diff := cmp.Diff(want, indexesOf(t, db, pgtest.Acme)); diff != "" {
			t.Errorf("who had %s: %s", c.had, diff)
		}
		if made := migrate(t, admin); len(made) > 0 {
			t.Errorf("who had %s: made %q again", c.had, made)
		}
	}
}

// Whoever writes goes on, and makes partitions, while an index is made; who is killed in the middle leaves what the next one makes whole, and it is read by then.
func TestMigrateIsKilledWhileItIndexes(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind) SELECT 'x' FROM generate_series(1, 1000)")
	d.Own(t, pgtest.Acme, "DROP INDEX fact_at")
	killed, ended := d.Admin(t), make(chan error, 1)
	end := writes(t, d, "INSERT INTO acme.fact_0 (id, kind) VALUES (5000, 'x')") // has this partition for itself, and the table not
	go func() {
		_, err := killed.Migrate(t.Context())
		ended <- err
	}()
	pid := waiting(t, db, ended, "virtualxid")
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind) VALUES ('x')")
	nextPartitions(t, d, db, pgtest.Acme, 1)
	if !seen(t, d, "pid = $1 AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND backend_xid IS NULL", pid) {
		t.Error("who makes an index holds back readers of facts")
	}
	d.Own(t, pgtest.Acme, fmt.Sprintf("RESET ROLE; SELECT pg_terminate_backend(%d)", pid))
	if err := <-ended; err == nil {
		t.Error("it was not killed")
	}
	end()
	if all := strings.Join(indexesOf(t, db, pgtest.Acme), "\n"); strings.Count(all, "half") != 2 { // of the table and of its first partition
		t.Errorf("there are\n%s", all)
	}
	if diff := cmp.Diff([]string{"acme.fact_at_0"}, migrate(t, d.Admin(t))); diff != "" {
		t.Error(diff)
	}
	nextPartitions(t, d, db, pgtest.Brava, 1)
	if diff := cmp.Diff(indexesOf(t, db, pgtest.Brava), indexesOf(t, db, pgtest.Acme)); diff != "" {
		t.Error(diff)
	}
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = off"); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "EXPLAIN SELECT FROM fact WHERE at > onda.now() - interval '1 minute'")
		if err != nil {
			return err
		}
		defer rows.Close()
		plan, line := "", ""
		for rows.Next() {
			if err := rows.Scan(&line); err != nil {
				return err
			}
			plan += line + "\n"
		}
		if !strings.Contains(plan, "Index Scan on fact_at_0") || !strings.Contains(plan, "Index Scan on fact_16777216_at_idx") {
			t.Errorf("%s", plan)
		}
		return rows.Err()
	})
}

// writes has a transaction that wrote something, until end.
func writes(t *testing.T, d *pgtest.Database, sql string) (end func()) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.AdminURL) // not a tenant's, which is ended when it is idle for long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	mustExec(t, conn, "BEGIN", sql)
	return func() { mustExec(t, conn, "ROLLBACK") }
}

// waiting gives the process that waits for a lock of a type: who makes an index waits for a virtualxid, who changes a row for a transactionid.
func waiting(t *testing.T, db *postgres.DB, ended <-chan error, lock string) (pid int) {
	t.Helper()
	for pid == 0 {
		select {
		case err := <-ended:
			t.Fatalf("it waited for nobody: %v", err)
		default:
		}
		pid = pgtest.One[int](t, db, pgtest.Brava, "SELECT coalesce(max(pid), 0) FROM pg_locks WHERE NOT granted AND locktype = $1 AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())", lock)
	}
	return pid
}

// seen tells whether there is a session of the database as the condition says: a tenant does not see what others do.
func seen(t *testing.T, d *pgtest.Database, condition string, pid int) (yes bool) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.AdminURL)
	if err == nil {
		defer func() { _ = conn.Close(context.WithoutCancel(t.Context())) }()
		err = conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND "+condition+")", pid).Scan(&yes)
	}
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

// A dump has one snapshot for as long as it takes, and every index would wait for its end: the first that did is the last that is tried.
func TestMigrateIsHeldUp(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		d.Own(t, tenant, "DROP INDEX contact_merged, contact_erased")
	}
	want := indexesOf(t, db, pgtest.Brava)
	end := writes(t, d, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SET LOCAL application_name = 'dump'; SELECT FROM onda.tenant")
	super, err := postgres.OpenAdmin(t.Context(), d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = super.Close(context.WithoutCancel(t.Context())) })
	managed := d.Admin(t)
	for _, c := range []struct {
		a   *postgres.Admin
		who string
	}{{super, `process \d+ of \w+, dump, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC`}, {managed, `process \d+ of \w+, dump`}} { // who is no superuser may not see since when
		c.a.SetPatience(50 * time.Millisecond)
		m, err := c.a.Migrate(t.Context())
		if !errors.Is(err, postgres.ErrHeldUp) || len(m.Indexes) > 0 {
			t.Fatalf("made %q, error %v", m.Indexes, err)
		}
		if said := err.Error(); strings.Count(said, "index tables of tenant") != 1 || !regexp.MustCompile(`\(`+c.who+`\): run onda migrate again`).MatchString(said) {
			t.Error(said)
		}
		if _, err := c.a.IndexContacts(t.Context(), pgtest.Acme, []postgres.ContactIndex{{Field: "created", For: postgres.IndexValue}}); !errors.Is(err, postgres.ErrHeldUp) {
			t.Errorf("on contacts: %v", err)
		}
	}
	if diff := cmp.Diff(want, indexesOf(t, db, pgtest.Brava)); diff != "" {
		t.Error(diff)
	}
	end()
	if made := migrate(t, managed); len(made) != 4 {
		t.Errorf("then made %q", made)
	}
}

func TestTwoMigrateAtOnce(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	d.Own(t, pgtest.Acme, "DROP INDEX "+tableIndexes)
	made, ended := make(chan []string, 2), make(chan error, 2)
	end := writes(t, d, "INSERT INTO acme.contact DEFAULT VALUES")
	for range 2 {
		admin := d.Admin(t)
		go func() {
			m, err := admin.Migrate(t.Context())
			made <- m.Indexes
			ended <- err
		}()
	}
	first := waiting(t, db, ended, "virtualxid")
	for !seen(t, d, "pid <> $1 AND query LIKE '%pg_try_advisory_lock($1%'", first) { // the other has come to its turn
	}
	end()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	all := slices.Concat(<-made, <-made)
	slices.Sort(all)
	want := []string{"acme.contact_created", "acme.contact_erased", "acme.contact_merged", "acme.delivery_at_0", "acme.fact_at_0", "acme.fact_sets_0"}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(indexesOf(t, db, pgtest.Brava), indexesOf(t, db, pgtest.Acme)); diff != "" {
		t.Error(diff)
	}
}

// No migration makes an index on a table that grows, or reads or writes all its rows: whoever writes would wait for it, and in its transaction the readers of facts of all tenants.
func TestMigrationsAreShort(t *testing.T) {
	t.Parallel()
	const from = "0017" // those before it met no tenant that was large
	small := []string{"segment", "cursor", "entity", "document", "run", "key", "domain"}
	names, err := fs.Glob(postgres.Migrations(), "tenant/*.sql")
	if err != nil {
		t.Fatal(err)
	}
	looked := 0
	for _, name := range names {
		if path.Base(name) < from {
			continue
		}
		sql, err := fs.ReadFile(postgres.Migrations(), name)
		if err != nil {
			t.Fatal(err)
		}
		looked++
		if strings.HasSuffix(name, ".chunks.sql") {
			if !strings.Contains(string(sql), "LIMIT") {
				t.Errorf("%s: its chunks have no limit", name)
			}
			continue
		}
		for _, bad := range long(string(sql), small) {
			t.Errorf("%s: %s: see tableIndexes in tableindex.go, and the package's documentation", name, bad)
		}
	}
	if looked == 0 {
		t.Error("there is none")
	}
	for sql, want := range map[string]int{
		"CREATE INDEX a ON contact (id); -- x\nCREATE UNIQUE INDEX b ON fact (id)":                                                                       2,
		"CREATE TABLE x (id bigint); CREATE INDEX a ON x (id); CREATE INDEX x_y ON ONLY x (id)":                                                          0,
		"UPDATE fact f SET data = NULL; DELETE FROM hit; INSERT INTO x SELECT 1 FROM contact":                                                            3,
		"UPDATE segment SET requested = true; INSERT INTO cursor (name) VALUES ('x')":                                                                    0,
		"ALTER TABLE contact ADD COLUMN x jsonb; ALTER TABLE segment ADD CHECK (x > 1)":                                                                  0,
		"ALTER TABLE contact ADD CONSTRAINT x CHECK (y > 1); ALTER TABLE hit ALTER id SET NOT NULL":                                                      2,
		"ALTER TABLE contact ADD CONSTRAINT x CHECK (y > 1) NOT VALID":                                                                                   0,
		"CREATE FUNCTION x() RETURNS void LANGUAGE sql AS $$ UPDATE fact SET data = NULL; $$":                                                            0,
		"CREATE FUNCTION x() RETURNS void AS $x$ BEGIN UPDATE fact SET data = NULL; END $x$; UPDATE hit SET y = 1":                                       1,
		"DO $$ BEGIN IF true THEN UPDATE fact SET data = NULL; END IF; DELETE FROM hit; EXECUTE 'DELETE FROM hit'; END $$":                               3,
		"DO $$ BEGIN UPDATE segment SET requested = true; END $$":                                                                                        0,
		"ALTER TABLE contact ADD COLUMN x uuid NOT NULL DEFAULT gen_random_uuid(); ALTER TABLE hit ADD COLUMN y int GENERATED ALWAYS AS (id + 1) STORED": 2,
		"ALTER TABLE contact ADD COLUMN x jsonb NOT NULL DEFAULT '{}', ADD COLUMN y int DEFAULT 0":                                                       0,
	} {
		if got := long(sql, small); len(got) != want {
			t.Errorf("%s: found %q, want %d", sql, got, want)
		}
	}
}

// long gives the statements of a migration that may take long: on tables that are neither its own nor small.
func long(sql string, small []string) (found []string) {
	sql = regexp.MustCompile(`--[^\n]*`).ReplaceAllString(sql, "")
	sql = regexp.MustCompile(`(?is)(CREATE (?:OR REPLACE )?(?:FUNCTION|PROCEDURE)\b[^;]*?)\$\w*\$.*?\$\w*\$`).ReplaceAllString(sql, "$1") // nobody calls it yet
	may := slices.Clone(small)
	for _, m := range regexp.MustCompile(`(?i)CREATE TABLE (\w+)`).FindAllStringSubmatch(sql, -1) {
		may = append(may, m[1])
	}
	statements := []*regexp.Regexp{
		regexp.MustCompile(`(?is)^CREATE (?:UNIQUE )?INDEX\b.*? ON (?:ONLY )?(\w+)`),
		regexp.MustCompile(`(?is)^(?:UPDATE|DELETE FROM|LOCK TABLE) (?:ONLY )?(\w+)`),
		regexp.MustCompile(`(?is)^(?:INSERT INTO|WITH)\b.*?\b(?:FROM|JOIN) (\w+)`),
		regexp.MustCompile(`(?is)^ALTER TABLE (\w+)\b.*?\b(?:ADD (?:CONSTRAINT|CHECK|FOREIGN|PRIMARY|UNIQUE)|SET NOT NULL|TYPE)\b`),
		regexp.MustCompile(`(?is)^ALTER TABLE (\w+)\b.*?\bADD\b[^,]*(?:\bDEFAULT\b[^,]*\(|\bGENERATED\b)`), // which is another in each row
	}
	inBlock := regexp.MustCompile(`(?i)\b(?:BEGIN|THEN|ELSE|LOOP|EXECUTE\s+(?:format\()?')\s*`) // of DO
	for s := range strings.SplitSeq(sql, ";") {
		s = strings.TrimSpace(s)
		from := []int{0}
		for _, at := range inBlock.FindAllStringIndex(s, -1) {
			from = append(from, at[1])
		}
		if slices.ContainsFunc(from, func(at int) bool {
			return slices.ContainsFunc(statements, func(r *regexp.Regexp) bool {
				m := r.FindStringSubmatch(s[at:])
				return m != nil && !slices.Contains(may, m[1]) && !strings.Contains(s, "NOT VALID")
			})
		}) {
			found = append(found, s)
		}
	}
	return found
}
