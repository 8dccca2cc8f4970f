package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// tenant is what a transaction knows of the tenant.
func tenant(t *testing.T, db *postgres.DB, name string) (known postgres.Tenant) {
	t.Helper()
	pgtest.In(t, db, name, func(_ context.Context, tx *postgres.Tx) error {
		known = tx.Tenant
		return nil
	})
	return known
}

func TestHostsAreInTheOrderOfTheFile(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db := d.Admin(t), d.DB(t)
	const brava = "links.brava.example"
	if changed, err := a.SetHosts(t.Context(), "brava", []string{brava}, nil); err != nil || !changed {
		t.Fatalf("brava: %t, %v", changed, err)
	}
	for _, c := range []struct {
		name       string
		link, form []string
		changed    bool
		err        string
	}{
		{name: "none"},
		{name: "one of each", link: []string{"a.example"}, form: []string{"f.example"}, changed: true},
		{name: "the same again", link: []string{"a.example"}, form: []string{"f.example"}},
		{name: "a new one before the old", link: []string{"b.example", "a.example"}, form: []string{"f.example"}, changed: true},
		{name: "another order", link: []string{"a.example", "b.example"}, form: []string{"f.example"}, changed: true},
		{name: "another tenant's", link: []string{"c.example", brava}, err: "set the hosts of tenant acme: links.brava.example is a host of tenant brava"},
		{name: "another tenant's for forms", form: []string{brava}, err: "links.brava.example is a host of tenant brava"},
		{name: "for the other function", link: []string{"f.example"}, form: []string{"a.example"}, changed: true},
		{name: "one for both", link: []string{"a.example"}, form: []string{"a.example"}, changed: true},
		{name: "one for both again", link: []string{"a.example"}, form: []string{"a.example"}},
		{name: "none any more", changed: true},
	} {
		before := tenant(t, db, "acme")
		changed, err := a.SetHosts(t.Context(), "acme", c.link, c.form)
		want := postgres.Tenant{LinkHosts: c.link, FormHosts: c.form}
		if c.err != "" {
			want = before
		}
		if changed != c.changed || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: changed %t, %v", c.name, changed, err)
		}
		got := tenant(t, db, "acme")
		if strings.Join(got.LinkHosts, " ") != strings.Join(want.LinkHosts, " ") || strings.Join(got.FormHosts, " ") != strings.Join(want.FormHosts, " ") {
			t.Errorf("%s: links at %q, forms at %q", c.name, got.LinkHosts, got.FormHosts)
		}
	}
	// A version before 0002, which ran in between, knows the table alone.
	d.Own(t, "acme", "INSERT INTO onda.host (host, tenant, kind) VALUES ('old.example', 'acme', 'link')")
	if changed, err := a.SetHosts(t.Context(), "acme", []string{"old.example"}, nil); err != nil || !changed {
		t.Errorf("after the version before: %t, %v", changed, err)
	}
	if got := tenant(t, db, "brava").LinkHosts; !cmp.Equal(got, postgres.Hosts{brava}) {
		t.Errorf("brava has %q", got)
	}
}

// Two tenants that want one host at the same moment: one gets it.
func TestAHostIsOneTenantsAlone(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	other := connect(t, d.AdminURL)
	mustExec(t, other, "BEGIN", "INSERT INTO onda.host (host, tenant, kind) VALUES ('x.example', 'brava', 'link')")
	a, done := d.Admin(t), make(chan error)
	go func() {
		_, err := a.SetHosts(context.WithoutCancel(t.Context()), "acme", []string{"x.example"}, nil)
		done <- err
	}()
	watch := connect(t, d.AdminURL)
	for waiting := false; !waiting; {
		if err := watch.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'), pg_sleep(0.01)::text`).Scan(&waiting, nil); err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, other, "COMMIT")
	if err := <-done; err == nil || !strings.Contains(err.Error(), "x.example is a host of tenant brava") {
		t.Errorf("acme: %v", err)
	}
}

// Two at once that each look at all hosts that the other has and wants end both: row by row they waited in a circle.
func TestHostsAreChangedAtOnce(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	hosts := map[string][]string{"acme": {"a.example", "b.example"}, "brava": {"y.example", "z.example"}}
	setup := d.Admin(t)
	for tenant, link := range hosts {
		if _, err := setup.SetHosts(t.Context(), tenant, link, nil); err != nil {
			t.Fatal(err)
		}
	}
	const rounds = 30
	done := make(chan error, len(hosts))
	for tenant, other := range map[string]string{"acme": "brava", "brava": "acme"} {
		a := d.Admin(t)
		go func() {
			for range rounds {
				// Another's: refused. Then fewer, and all again.
				if _, err := a.SetHosts(context.WithoutCancel(t.Context()), tenant, hosts[other], nil); err == nil || !strings.Contains(err.Error(), "is a host of tenant "+other) {
					done <- fmt.Errorf("%s took hosts of %s: %w", tenant, other, err)
					return
				}
				if _, err := a.ReleaseHosts(context.WithoutCancel(t.Context()), tenant, hosts[tenant][:1]); err != nil {
					done <- err
					return
				}
				if _, err := a.SetHosts(context.WithoutCancel(t.Context()), tenant, hosts[tenant], nil); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range hosts {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A host that is released is free, and those that stay keep their order.
func TestReleaseHosts(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db := d.Admin(t), d.DB(t)
	if _, err := a.SetHosts(t.Context(), "acme", []string{"c.example", "b.example", "a.example"}, []string{"f.example", "b.example"}); err != nil {
		t.Fatal(err)
	}
	release := func(changes bool, but ...string) {
		t.Helper()
		if changed, err := a.ReleaseHosts(t.Context(), "acme", but); err != nil || changed != changes {
			t.Errorf("but %q: %t, %v", but, changed, err)
		}
	}
	release(false, "a.example", "b.example", "c.example", "f.example", "new.example")
	release(true, "a.example", "c.example", "f.example", "new.example")
	if got := tenant(t, db, "acme"); !cmp.Equal(got.LinkHosts, postgres.Hosts{"c.example", "a.example"}) || !cmp.Equal(got.FormHosts, postgres.Hosts{"f.example"}) {
		t.Errorf("links at %q, forms at %q", got.LinkHosts, got.FormHosts)
	}
	if _, err := a.SetHosts(t.Context(), "brava", []string{"b.example"}, nil); err != nil {
		t.Error(err)
	}
	release(true)
	release(false)
	if _, err := a.SetHosts(t.Context(), "brava", []string{"a.example", "f.example"}, nil); err != nil {
		t.Error(err)
	}
}

// Functions run on the shared schema before 0002 as well, and need no new start when it comes.
func TestHostsComeWithTheirMigration(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db := d.Admin(t), d.Open(t, postgres.Config{MaxConns: 1})
	d.Own(t, "acme", "ALTER TABLE onda.tenant DROP COLUMN link_hosts, DROP COLUMN form_hosts", "DELETE FROM onda.migration WHERE version = 2")
	before := tenant(t, db, "acme")
	if before.Name != "acme" || len(before.LinkHosts)+len(before.FormHosts) > 0 {
		t.Errorf("before: %+v", before)
	}
	if m, err := a.Migrate(t.Context()); err != nil || m.Shared != 1 {
		t.Fatalf("migrate: %+v, %v", m, err)
	}
	if got := tenant(t, db, "acme"); !cmp.Equal(got, before) {
		t.Errorf("after: %+v", got)
	}
	if _, err := a.SetHosts(t.Context(), "acme", []string{"l.example"}, []string{"f.example"}); err != nil {
		t.Fatal(err)
	}
	if got := tenant(t, db, "acme"); !cmp.Equal(got.LinkHosts, postgres.Hosts{"l.example"}) || !cmp.Equal(got.FormHosts, postgres.Hosts{"f.example"}) {
		t.Errorf("after sync: %+v", got)
	}
}

func TestURLOfHosts(t *testing.T) {
	t.Parallel()
	const all = "http://127.0.0.1:8080"
	own := postgres.Hosts{"new.example", "old.example"}
	for _, c := range []struct {
		hosts         postgres.Hosts
		preproduction bool
		want          string
	}{{nil, false, all}, {own, false, "https://new.example"}, {nil, true, all}, {own, true, all}} {
		links, forms := postgres.Tenant{LinkHosts: c.hosts, Preproduction: c.preproduction}, postgres.Tenant{FormHosts: c.hosts, Preproduction: c.preproduction}
		if got := links.LinkURL(all); got != c.want {
			t.Errorf("links, %+v: %s", c, got)
		}
		if got := forms.FormURL(all); got != c.want {
			t.Errorf("forms, %+v: %s", c, got)
		}
	}
}

// A tenant's own relay is known to every transaction of it, and to nobody before the shared schema has it.
func TestSetSMTPSecret(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db := d.Admin(t), d.DB(t)
	ctx := context.Background()
	for _, c := range []struct {
		secret  string
		changed bool
	}{{"", false}, {"acme-relay", true}, {"acme-relay", false}, {"other", true}, {"", true}, {"acme-relay", true}} {
		changed, err := a.SetSMTPSecret(ctx, pgtest.Acme, c.secret)
		if err != nil || changed != c.changed {
			t.Errorf("%q: changed %t, %v", c.secret, changed, err)
		}
		if got := tenant(t, db, pgtest.Acme).SMTPSecret; got != c.secret {
			t.Errorf("the Secret is %q, want %q", got, c.secret)
		}
	}
	if got := tenant(t, db, pgtest.Brava).SMTPSecret; got != "" {
		t.Errorf("brava's is %q", got)
	}
	d.Own(t, pgtest.Acme, "ALTER TABLE onda.tenant DROP COLUMN smtp_secret", "DELETE FROM onda.migration WHERE version = 6")
	if got := tenant(t, db, pgtest.Acme).SMTPSecret; got != "" {
		t.Errorf("before 0006: %q", got)
	}
}
