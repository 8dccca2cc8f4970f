package postgres_test

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Facts of hits that were corrected before the database marked them are marked by migrate, a chunk after the other, and by the next one where that is killed.
func TestWhatWasCorrectedIsMarkedInChunks(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		pgtest.Exec(t, db, tenant, `INSERT INTO hit (kind, contact, verdict, at) SELECT CASE WHEN n % 2 = 0 THEN 'click' ELSE 'open' END, n, CASE WHEN n % 3 = 0 THEN 'machine' ELSE 'human' END, onda.now() FROM generate_series(1, 12000) n`)
		pgtest.Exec(t, db, tenant, `INSERT INTO fact (kind, contact, at, data) SELECT CASE kind WHEN 'click' THEN 'email.clicked' ELSE 'email.opened' END, contact, at, jsonb_build_object('hit', id) FROM hit WHERE contact % 2 = 0 OR contact < 100`)
	}
	// The one has come to the chunks, the other has all before it.
	d.Own(t, pgtest.Acme, "INSERT INTO cursor (name, xid, base, data) VALUES ('taken', NULL, 0, '{\"to\": 12000}')", "RESET ROLE", fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", postgres.TakenSchema-1))
	d.Own(t, pgtest.Brava, "DROP TRIGGER mark_taken ON hit", "DROP FUNCTION mark_taken", "RESET ROLE", fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'brava'", postgres.TakenSchema-2))
	state := func(tenant string) string {
		return pgtest.One[string](t, db, tenant, `SELECT (SELECT schema FROM onda.tenant WHERE name = current_schema()) || coalesce(', through ' || (SELECT id FROM cursor WHERE name = 'taken'), '')
			|| ', ' || (SELECT count(*) FROM fact WHERE data ? 'taken') || ' marked, ' || (SELECT count(*) FROM fact f JOIN hit h ON h.id = (f.data->>'hit')::bigint WHERE h.verdict = 'human' AND f.data ? 'taken') || ' wrongly'`)
	}
	ended, killed := make(chan error, 1), d.Admin(t)
	end := writes(t, d, "UPDATE acme.hit SET reason = 'held' WHERE contact = 6000") // one of the twelfth chunk
	go func() {
		_, err := killed.Migrate(t.Context())
		ended <- err
	}()
	pid := waiting(t, db, ended, "transactionid")
	d.Own(t, pgtest.Acme, fmt.Sprintf("RESET ROLE; SELECT pg_terminate_backend(%d)", pid))
	if err := <-ended; err == nil {
		t.Error("it was not killed")
	}
	end()
	first := fmt.Sprintf("%d, through 5500, %d marked, 0 wrongly", postgres.TakenSchema-1, 5500/6+17)
	if got := state(pgtest.Acme); got != first {
		t.Errorf("after the kill: %s, want %s", got, first)
	}
	// Whoever corrects meanwhile, marks.
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE hit SET verdict = CASE verdict WHEN 'human' THEN 'machine' ELSE 'human' END WHERE contact IN (6, 8, 11994, 11996)")
	m, err := d.Admin(t).Migrate(t.Context())
	if err != nil || strings.Join(m.Tenants, " ") != "acme brava" {
		t.Fatalf("%+v, %v", m, err)
	}
	for _, tenant := range m.Tenants {
		if got := state(tenant); !strings.HasSuffix(got, fmt.Sprintf(", %d marked, 0 wrongly", 12000/6+17)) || strings.Contains(got, "through") {
			t.Errorf("%s at the end: %s", tenant, got)
		}
	}
}

// Tenants whose tables somebody keeps locked come behind the others, wait together, and are told in one line with who holds them; what is up to date waits for nobody.
func TestMigrateLeavesLockedTenants(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db := d.Admin(t), d.DB(t)
	if _, err := d.Admin(t).CreateTenant(t.Context(), "zeppelin"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mustExec(t, connect(t, d.AdminURL), "DROP SCHEMA zeppelin CASCADE", "DROP ROLE zeppelin") })
	newest := pgtest.One[int](t, db, pgtest.Acme, "SELECT schema FROM onda.tenant")
	back := fmt.Sprintf("RESET ROLE; UPDATE onda.tenant SET schema = %d", newest-1)
	d.Own(t, pgtest.Acme, back)
	end := writes(t, d, "SET LOCAL application_name = 'dump'; SELECT FROM onda.tenant WHERE name <> 'zeppelin' FOR UPDATE")
	a.SetPatience(0)
	m, err := a.Migrate(t.Context())
	if err == nil || strings.Count(err.Error(), "run onda migrate again") != 1 || !regexp.MustCompile(`no lock on tables of acme, brava, which stay at the schema they have \(process \d+ of \w+, dump`).MatchString(err.Error()) {
		t.Errorf("it says %v", err)
	}
	if strings.Join(m.Tenants, " ") != "zeppelin" {
		t.Errorf("brought up to date: %q", m.Tenants)
	}
	end()
	held := writes(t, d, "SELECT FROM onda.tenant WHERE name = 'zeppelin' FOR UPDATE")
	if m, err := a.Migrate(t.Context()); err != nil || strings.Join(m.Tenants, " ") != "acme brava" {
		t.Errorf("when it is over: %q, %v", m.Tenants, err)
	}
	held()
}

// A tenant that is purged while a migration waits for it is no failure of that.
func TestMigrateWhileATenantIsPurged(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, super := d.Admin(t), connect(t, d.AdminURL)
	newTenant(t, a, "zgone")
	mustExec(t, super, "UPDATE onda.tenant SET schema = schema - 1 WHERE name = 'zgone'",
		"BEGIN", "DROP SCHEMA zgone CASCADE", "DELETE FROM onda.wakeup WHERE tenant = 'zgone'", "DELETE FROM onda.tenant WHERE name = 'zgone'")
	ended := make(chan error, 1)
	go func() {
		_, err := a.Migrate(context.WithoutCancel(t.Context()))
		ended <- err
	}()
	waiting(t, d.DB(t), ended, "transactionid")
	mustExec(t, super, "COMMIT", "DROP OWNED BY zgone", "DROP ROLE zgone")
	if err := <-ended; err != nil {
		t.Errorf("it says %v", err)
	}
}
