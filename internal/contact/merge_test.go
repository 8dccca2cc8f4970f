package contact

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Every column that names a contact is moved by a merge, or here with what becomes of it; and every column of the contact's own row is joined.
func TestAllThatNamesAContactIsMerged(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	known := apart()
	for _, o := range owned {
		known[o.table+".contact"] = "moved"
	}
	columns := pgtest.All[string](t, db, pgtest.Acme, `SELECT c.table_name || '.' || c.column_name FROM information_schema.columns c JOIN pg_class k ON k.oid = format('%I.%I', c.table_schema, c.table_name)::regclass
		WHERE c.table_schema = current_schema() AND NOT k.relispartition AND c.column_name IN ('contact', 'contacts', 'merged_into')`)
	for _, c := range columns {
		if known[c] == "" {
			t.Errorf("%s names contacts, and a merge does not say what becomes of it", c)
		}
		delete(known, c)
	}
	for c := range known {
		t.Errorf("a merge says what becomes of %s, which there is not", c)
	}
	for _, l := range listings { // a table that is of a contact by another name is known by what Stored lists
		for _, table := range l.tables {
			if !slices.ContainsFunc(columns, func(c string) bool { return strings.HasPrefix(c, table+".") }) && !slices.Contains([]string{"request", "feedback", "step", "outbox", "failure", "document"}, table) {
				t.Errorf("%s has something of a contact, and names it by no column that is looked at here", table)
			}
		}
	}
	want := []string{
		"changed_at", "created_at", "email", "erased_at", "erasure", "expires_at", "external_id", "fields", "frequency", "id", "merge", "merged_into", "paused_until", "scores", "stage", "tags", "typed",
	}
	if diff := cmp.Diff(want, pgtest.All[string](t, db, pgtest.Acme, "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = 'contact' ORDER BY 1")); diff != "" {
		t.Errorf("a contact has other columns than those that a merge joins and an unmerge gives back (self, join, split): %s", diff)
	}
}

func merge(t testing.TB, db *postgres.DB, loser, winner int64) Merged {
	t.Helper()
	var out Merged
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		out, err = Merge(ctx, tx, "campaign", loser, winner, PreferWinner, "test")
		return err
	})
	return out
}

func unmerge(t testing.TB, db *postgres.DB, loser int64) {
	t.Helper()
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Unmerge(ctx, tx, "campaign", loser, "test")
		return err
	})
}

// dump is every row of every table, but for facts of merges and what posts them.
func dump(t testing.TB, db *postgres.DB, tenant string) []string {
	t.Helper()
	var all []string
	for _, table := range tables(t, db, tenant) {
		all = append(all, fmt.Sprintf("SELECT '%s ' || to_jsonb(r)::text AS row FROM %[1]s r WHERE coalesce(to_jsonb(r)->>'kind', '') NOT IN ('contact.merged', 'contact.unmerged', 'consent.withdrawn', 'suppression.added')", table))
	}
	return pgtest.All[string](t, db, tenant, strings.Join(all, " UNION ALL ")+" ORDER BY 1")
}

func tables(t testing.TB, db *postgres.DB, tenant string) []string {
	t.Helper()
	return pgtest.All[string](t, db, tenant, `SELECT c.relname FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'outbox' ORDER BY 1`)
}

// A merge that is undone leaves all as it was, row by row, in every table.
func TestMergeAndUnmergeLeaveAllAsItWas(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	populate(t, db, pgtest.Brava, "stranger")
	stranger := dump(t, db, pgtest.Brava)
	n := 0
	rapid.Check(t, func(r *rapid.T) {
		if n++; n > 30 { // each takes some tens of statements
			return
		}
		for _, table := range []string{"batch", "delivery", "fact", "hit", "journey", "step", "consent", "subscription", "suppression", "allowance", "member", "visitor", "submission", "request", "feedback", "contact"} { // of the round before
			pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM "+table)
		}
		populate(t, db, pgtest.Acme, fmt.Sprintf("bystander%d", n))
		var ids [3]int64
		for i := range ids {
			ids[i] = populate(t, db, pgtest.Acme, fmt.Sprintf("c%d-%d", n, i))
			vary(r, t, db, ids[i], ids[0])
		}
		if rapid.Bool().Draw(r, "in one campaign") {
			pgtest.Exec(t, db, pgtest.Acme, "UPDATE journey SET run = (SELECT run FROM journey WHERE contact = $1), key = '', due_at = CASE WHEN contact = $2 THEN 'infinity' ELSE due_at END WHERE contact IN ($1, $2)", ids[0], ids[1])
		}
		prefer := rapid.SampledFrom([]Prefer{PreferWinner, PreferLoser}).Draw(r, "prefer")
		order := rapid.Permutation(ids[:]).Draw(r, "order")
		before := dump(t, db, pgtest.Acme)
		var states [][]string
		for i := range 2 { // a chain, or two into one
			states = append(states, dump(t, db, pgtest.Acme))
			winner := order[2]
			if i == 0 && rapid.Bool().Draw(r, "chain") {
				winner = order[1]
			}
			pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := Merge(ctx, tx, "campaign", order[i], winner, prefer, "test")
				return err
			})
			if left := pgtest.One[int](t, db, pgtest.Acme, `SELECT (SELECT count(*) FROM delivery WHERE contact = $1) + (SELECT count(*) FROM consent WHERE contact = $1) + (SELECT count(*) FROM fact WHERE contact = $1)
				+ (SELECT count(*) FROM journey WHERE contact = $1) + (SELECT count(*) FROM subscription WHERE contact = $1) + (SELECT count(*) FROM allowance WHERE contact = $1)`, order[i]); left > 0 {
				t.Fatalf("%d rows of who was merged are left", left)
			}
		}
		for i := range 2 {
			unmerge(t, db, order[1-i])
			if diff := cmp.Diff(states[1-i], dump(t, db, pgtest.Acme)); diff != "" {
				t.Fatalf("undone, it is not as it was (- before, + after): %s", diff)
			}
		}
		if diff := cmp.Diff(before, dump(t, db, pgtest.Acme)); diff != "" {
			t.Fatal(diff)
		}
	})
	if diff := cmp.Diff(stranger, dump(t, db, pgtest.Brava)); diff != "" {
		t.Errorf("another tenant's rows are others: %s", diff)
	}
}

// vary makes of a contact one of the many that there may be.
func vary(r *rapid.T, t testing.TB, db *postgres.DB, id, first int64) {
	maybe := func(what, sql string, args ...any) {
		if rapid.Bool().Draw(r, what) {
			pgtest.Exec(t, db, pgtest.Acme, sql, args...)
		}
	}
	maybe("no address", "UPDATE contact SET email = NULL WHERE id = $1", id)
	maybe("no id", "UPDATE contact SET external_id = NULL WHERE id = $1", id)
	maybe("fields", `UPDATE contact SET fields = (fields || '{"city": "Östersund <&>", "n": 1.50, "deep": {"a": [1, 2]}}'::jsonb) - 'name' WHERE id = $1`, id)
	maybe("tags", "UPDATE contact SET tags = '{zeta,alpha}' WHERE id = $1", id)
	maybe("scores", `UPDATE contact SET scores = jsonb_build_object('lead', id % 7 - 3) WHERE id = $1`, id)
	maybe("pause", "UPDATE contact SET paused_until = onda.now() + id * interval '1 day', frequency = CASE id % 2 WHEN 0 THEN '3/week' ELSE '5/month' END WHERE id = $1", id)
	maybe("stage", "UPDATE contact SET stage = 's' || $1::bigint WHERE id = $1", id)
	maybe("typed", "UPDATE contact SET typed = upper(email) WHERE id = $1", id)
	maybe("expires", "UPDATE contact SET expires_at = onda.now() + id * interval '1 hour' WHERE id = $1", id)
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE suppression SET contact = NULL WHERE contact = $1", id) // its hash is no address's
	var hash []byte
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		var email string
		err = tx.QueryRow(ctx, "SELECT coalesce(email, '') FROM contact WHERE id = $1", id).Scan(&email)
		hash = keys.HashAddress(email)
		return err
	})
	for _, reason := range []string{"complaint", "manual", "bounce"} {
		if rapid.IntRange(0, 3).Draw(r, reason) == 0 {
			pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO suppression (hash, reason, contact, until) SELECT $2, $3, id, CASE id % 2 WHEN 0 THEN onda.now() + id * interval '1 day' ELSE 'infinity' END FROM contact WHERE id = $1 AND email IS NOT NULL", id, hash, reason)
		}
	}
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		for _, purpose := range []string{"news", "offers", TrackingWeb} {
			for range rapid.IntRange(0, 2).Draw(r, "entries") {
				_, err := Record(ctx, tx, "campaign", Consent{
					Contact: id, Purpose: purpose, Basis: "form", State: rapid.SampledFrom([]State{Pending, Granted, Withdrawn}).Draw(r, "state"),
					At: tx.Now().Add(-time.Duration(rapid.IntRange(0, 9).Draw(r, "ago")) * time.Hour),
				})
				if err != nil {
					return err
				}
			}
		}
		return nil
	})
	maybe("cap", "INSERT INTO allowance (kind, contact, period, n) SELECT kind, $1::bigint, period, n + $1::bigint FROM (VALUES ('cap:*', '2026-11-01'::timestamptz, 0), ('cap:news', '2026-11-02', 1), ('duplicate:1', 'infinity', 1000)) v(kind, period, n)", id)
	maybe("more facts", "INSERT INTO fact (kind, name, contact) SELECT 'event.tracked', 'e', $1 FROM generate_series(1, 3)", id)
	maybe("merged before", "INSERT INTO contact (merged_into) SELECT $1::bigint WHERE $1 <> $2::bigint", id, first)
}

// people makes contacts with addresses.
func people(t testing.TB, db *postgres.DB, tenant string, names ...string) (ids []int64) {
	t.Helper()
	pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		for _, name := range names {
			id, _, err := Ensure(ctx, tx, name+"@example.com")
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	})
	return ids
}

func do(t testing.TB, db *postgres.DB, f func(ctx context.Context, tx *postgres.Tx) error) {
	t.Helper()
	pgtest.In(t, db, pgtest.Acme, f)
}

func state(t testing.TB, db *postgres.DB, id int64, purpose string) string {
	t.Helper()
	return pgtest.One[string](t, db, pgtest.Acme, "SELECT coalesce((SELECT state FROM subscription WHERE contact = $1 AND purpose = $2), '')", id, purpose)
}

// Of what two said, the stricter counts; of what they are, the winner's, and the loser's where it said nothing.
func TestMergeKeepsTheStricter(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ids := people(t, db, pgtest.Acme, "old", "new")
	loser, winner := ids[0], ids[1]
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		if err := Update(ctx, tx, "campaign", []int64{loser}, Change{Fields: map[string]any{"city": "Oslo", "plan": "free"}, AddTags: []string{"a", "b"}}, ""); err != nil {
			return err
		}
		if err := Update(ctx, tx, "campaign", []int64{winner}, Change{Fields: map[string]any{"plan": "pro"}, AddTags: []string{"b", "c"}}, ""); err != nil {
			return err
		}
		if err := AddPoints(ctx, tx, "campaign", []Points{{loser, "lead", 5}, {winner, "lead", 2}, {loser, "web", -1}}, ""); err != nil {
			return err
		}
		hour := func(n int) time.Time { return tx.Now().Add(time.Duration(n) * time.Hour) }
		_, err := Record(ctx, tx, "campaign",
			Consent{Contact: loser, Purpose: "news", State: Withdrawn, Basis: "unsubscribe", At: hour(-9)}, Consent{Contact: winner, Purpose: "news", State: Granted, Basis: "form", At: hour(-1)},
			Consent{Contact: loser, Purpose: "offers", State: Granted, Basis: "form", At: hour(-1)}, Consent{Contact: winner, Purpose: "offers", State: Withdrawn, Basis: "form", At: hour(-9)},
			Consent{Contact: loser, Purpose: "events", State: Granted, Basis: "form", At: hour(-1)},
			Consent{Contact: loser, Purpose: TrackingEmail, State: Withdrawn, Basis: "preferences", At: hour(-5)}, Consent{Contact: winner, Purpose: TrackingEmail, State: Granted, Basis: "form", At: hour(-1)})
		if err != nil {
			return err
		}
		if _, err := Suppress(ctx, tx, "campaign", Suppression{Contact: loser, Reason: Bounce}); err != nil {
			return err
		}
		if err := SetWishes(ctx, tx, loser, Wishes{PausedUntil: hour(48), Frequency: Frequency{Count: 1, Per: "month"}}); err != nil {
			return err
		}
		return SetWishes(ctx, tx, winner, Wishes{PausedUntil: hour(24), Frequency: Frequency{Count: 3, Per: "week"}})
	})
	out := merge(t, db, loser, winner)
	if diff := cmp.Diff(Merged{
		Loser: loser, Winner: winner, Rows: out.Rows, Total: out.Total, Fields: []string{"city"}, Tags: []string{"a"}, Scores: map[string]int64{"lead": 5, "web": -1},
		Withdrawn: []string{"news", TrackingEmail},
	}, out); diff != "" {
		t.Error(diff)
	}
	if got := pgtest.One[string](t, db, pgtest.Acme, "SELECT concat_ws(' ', email, fields, tags, scores, paused_until > onda.now() + interval '30 hours', frequency) FROM contact WHERE id = $1", winner); got != `new@example.com {"city": "Oslo", "plan": "pro"} {a,b,c} {"web": -1, "lead": 7} t 1/month` {
		t.Errorf("the winner is %s", got)
	}
	for purpose, want := range map[string]string{"news": "withdrawn", "offers": "withdrawn", "events": "granted", TrackingEmail: "withdrawn"} {
		if got := state(t, db, winner, purpose); got != want {
			t.Errorf("%s is %q, want %q", purpose, got, want)
		}
	}
	if why := gate(t, db, winner, "events"); why != "" {
		t.Errorf("a bounce of the loser's address stops mail to the winner's: %s", why)
	}
	if why := gate(t, db, loser, "events"); why != "duplicate" {
		t.Errorf("mail to the loser: %q", why)
	}
	// Its address leads to the winner, who agreed to nothing anew by being merged.
	if again := people(t, db, pgtest.Acme, "old"); again[0] != winner {
		t.Errorf("the loser's address is of %d, want %d", again[0], winner)
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE kind = 'consent.granted' AND contact = $1 AND name = 'events'", winner); n != 1 { // the loser's own
		t.Errorf("%d facts tell that events was granted", n)
	}
	// A grant that comes later counts.
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Record(ctx, tx, "campaign", Consent{Contact: winner, Purpose: "news", State: Granted, Basis: "form"})
		return err
	})
	if got := state(t, db, winner, "news"); got != "granted" {
		t.Errorf("granted anew it is %s", got)
	}
}

func gate(t testing.TB, db *postgres.DB, id int64, topic string) string {
	t.Helper()
	return pgtest.One[string](t, db, pgtest.Acme, "SELECT coalesce("+GateSQL("c", "$2::text")+", '') FROM contact c WHERE id = $1", id, topic)
}

// While onda migrate has yet to make the index on who was merged, it is known without reading all contacts.
func TestWhomOthersWereMergedInto(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	ids := people(t, db, pgtest.Acme, "a", "b", "c", "d")
	merge(t, db, ids[0], ids[1])
	merge(t, db, ids[1], ids[2])
	for _, index := range []string{"", "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'contact_merged'::regclass", "DROP INDEX contact_merged"} {
		if index != "" {
			d.Own(t, pgtest.Acme, "RESET ROLE", index)
		}
		indexed := pgtest.One[bool](t, db, pgtest.Acme, MergesIndexed)
		if indexed != (index == "") {
			t.Errorf("%s: indexed is %v", index, indexed)
		}
		for since, want := range map[string][]int64{"onda.now() - interval '1 hour'": {ids[2], ids[2], ids[2], 0}, "onda.now() + interval '1 hour'": {ids[2], ids[2], 0, 0}} {
			sql := "SELECT " + PersonSQL("c", since, indexed) + " FROM contact c WHERE c.id = ANY ($1) ORDER BY c.id"
			if diff := cmp.Diff(want, pgtest.All[int64](t, db, pgtest.Acme, sql, ids)); diff != "" {
				t.Errorf("%s: since %s: %s", index, since, diff)
			}
			plan := strings.Join(pgtest.All[string](t, db, pgtest.Acme, "EXPLAIN "+sql, ids), "\n")
			if strings.Contains(plan, "on contact gl") != indexed {
				t.Errorf("%s: %s", index, plan)
			}
		}
	}
}

// Who complained, or was stopped by hand, stays so under the other address; and one of several who were is enough.
func TestMergeKeepsWhoIsStoppedStopped(t *testing.T) {
	t.Parallel()
	for _, reason := range []Reason{Complaint, Manual, Erasure} {
		t.Run(string(reason), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t).DB(t)
			ids := people(t, db, pgtest.Acme, "a", "b", "winner")
			do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
				if _, err := Record(ctx, tx, "campaign", Consent{Contact: ids[2], Purpose: "news", State: Granted, Basis: "form"}); err != nil {
					return err
				}
				_, err := Suppress(ctx, tx, "campaign", Suppression{Contact: ids[0], Reason: reason}, Suppression{Contact: ids[1], Reason: reason, Until: tx.Now().Add(time.Hour)})
				return err
			})
			if out := merge(t, db, ids[0], ids[2]); !slices.Equal(out.Suppressed, []string{string(reason)}) {
				t.Errorf("%+v", out)
			}
			merge(t, db, ids[1], ids[2])
			for _, undone := range []struct {
				loser int64
				want  string
			}{{ids[0], "suppressed"}, {ids[1], ""}} {
				if got := gate(t, db, ids[2], "news"); got != "suppressed" {
					t.Errorf("with %d in it the winner is %q", undone.loser, got)
				}
				unmerge(t, db, undone.loser)
			}
			if got := gate(t, db, ids[2], "news"); got != "" {
				t.Errorf("with both undone the winner is %q", got)
			}
		})
	}
}

func TestMergesThatAreRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	p := people(t, db, pgtest.Acme, "a", "b", "c", "erased", "many", "e", "f")
	a, b, c, erased, many := p[0], p[1], p[2], p[3], p[4]
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE contact SET erased_at = onda.now() WHERE id = $1", erased)
	merge(t, db, a, b)
	try := func(f func(ctx context.Context, tx *postgres.Tx) error) error {
		return db.InTenant(t.Context(), pgtest.Acme, f)
	}
	for name, test := range map[string]struct {
		loser, winner int64
		want          error
	}{
		"with itself":        {c, c, ErrItself},
		"one that is erased": {erased, c, ErrErased},
		"into an erased":     {c, erased, ErrErased},
		"one that is merged": {a, c, ErrMerged},
		"into a merged":      {c, a, ErrMerged},
		"nobody":             {9999, c, ErrGone},
		"into nobody":        {c, 9999, ErrGone},
	} {
		before := dump(t, db, pgtest.Acme)
		err := try(func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Merge(ctx, tx, "campaign", test.loser, test.winner, PreferWinner, "")
			return err
		})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if diff := cmp.Diff(before, dump(t, db, pgtest.Acme)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	merge(t, db, b, c) // a is part of c now
	if into := pgtest.One[int64](t, db, pgtest.Acme, "SELECT merged_into FROM contact WHERE id = $1", a); into != c {
		t.Errorf("the first of a chain leads to %d, want %d", into, c)
	}
	merge(t, db, p[5], p[6])
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE contact SET erased_at = onda.now() WHERE id = $1", p[6])
	for name, test := range map[string]struct {
		loser int64
		want  error
	}{"that was not": {c, ErrNotMerged}, "merged on": {a, ErrMergedOn}, "nobody": {9999, ErrGone}, "whose winner is erased": {p[5], ErrErased}} {
		err := try(func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Unmerge(ctx, tx, "campaign", test.loser, "")
			return err
		})
		if !errors.Is(err, test.want) {
			t.Errorf("undo one %s: %v, want %v", name, err, test.want)
		}
	}
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, contact) SELECT 'page.viewed', $1 FROM generate_series(1, $2)", many, MergeMost+1)
	err := try(func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Merge(ctx, tx, "campaign", many, c, PreferWinner, "")
		return err
	})
	if !errors.Is(err, ErrTooMany) {
		t.Errorf("with too many rows: %v", err)
	}
	unmerge(t, db, b)
	unmerge(t, db, a)
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM contact WHERE id IN ($1, $2, $3) AND merged_into IS NULL AND merge IS NULL", a, b, c); n != 3 {
		t.Errorf("%d of 3 are contacts of their own again", n)
	}
}

// What came since a merge stays with the winner when it is undone.
func TestWhatCameSinceStays(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ids := people(t, db, pgtest.Acme, "loser", "winner")
	change := func(id int64, c Change) {
		do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
			return Update(ctx, tx, "campaign", []int64{id}, c, "")
		})
	}
	points := func(id, n int64) {
		do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
			return AddPoints(ctx, tx, "campaign", []Points{{id, "lead", n}}, "")
		})
	}
	change(ids[0], Change{Fields: map[string]any{"city": "Oslo", "plan": "pro"}, AddTags: []string{"old"}})
	points(ids[0], 10)
	merge(t, db, ids[0], ids[1])
	change(ids[1], Change{Fields: map[string]any{"city": "Bergen", "phone": "1"}, AddTags: []string{"new"}})
	points(ids[0], 3) // by its old number
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contact) VALUES ('event.tracked', 'since', $1)", ids[1])
	unmerge(t, db, ids[0])
	for i, want := range []string{`{"city": "Oslo", "plan": "pro"} {old} {"lead": 10}`, `{"city": "Bergen", "phone": "1"} {new} {"lead": 3}`} {
		if got := pgtest.One[string](t, db, pgtest.Acme, "SELECT concat_ws(' ', fields, tags, scores) FROM contact WHERE id = $1", ids[i]); got != want {
			t.Errorf("%d: %s, want %s", i, got, want)
		}
	}
	if of := pgtest.One[int64](t, db, pgtest.Acme, "SELECT contact FROM fact WHERE name = 'since'"); of != ids[1] {
		t.Errorf("the fact is of %d", of)
	}
}

// Two merges that cross, imports of the loser's address and points for it all at once: whoever comes last, one contact is left, which has all.
func TestMergesAtOnce(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for round := range 8 {
		ids := people(t, db, pgtest.Acme, fmt.Sprintf("a%d", round), fmt.Sprintf("b%d", round))
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i := range 2 {
			wg.Go(func() {
				errs[i] = db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
					_, err := Merge(ctx, tx, "campaign", ids[i], ids[1-i], PreferWinner, "")
					return err
				})
			})
		}
		for k := range 4 {
			wg.Go(func() {
				name := []string{"a", "b"}[k%2]
				err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
					_, err := Upsert(ctx, tx, "campaign", []Row{{Email: fmt.Sprintf("%s%d@example.com", name, round), Fields: map[string]any{fmt.Sprintf("f%d", k): "x"}}}, "")
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
			wg.Go(func() {
				err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
					return AddPoints(ctx, tx, "campaign", []Points{{ids[k%2], "lead", 1}}, "")
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if (errs[0] == nil) == (errs[1] == nil) || errs[0] != nil && !errors.Is(errs[0], ErrMerged) || errs[1] != nil && !errors.Is(errs[1], ErrMerged) {
			t.Fatalf("round %d: %v, %v", round, errs[0], errs[1])
		}
		got := pgtest.One[string](t, db, pgtest.Acme, `SELECT concat_ws(' ', (SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(fields) k), scores->>'lead') FROM contact WHERE id = ANY ($1) AND merged_into IS NULL`, ids)
		if got != "f0,f1,f2,f3 4" {
			t.Errorf("round %d: the contact that is left has %s", round, got)
		}
		if n := pgtest.One[int](t, db, pgtest.Acme, `SELECT count(*) FROM contact WHERE id = ANY ($1) AND merged_into IS NOT NULL AND fields = '{}' AND scores = '{}'`, ids); n != 1 {
			t.Errorf("round %d: something was written to the one that is no more", round)
		}
	}
}

// What is written of the loser after the merge, by who had looked before it, becomes the winner's when the facts are read.
func TestStragglersAreGathered(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	loser, winner := populate(t, db, pgtest.Acme, "loser"), populate(t, db, pgtest.Acme, "winner")
	merge(t, db, loser, winner)
	gather := func() {
		do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Gather(ctx, tx, "campaign", []int64{loser, winner})
			return err
		})
	}
	facts := func() int {
		return pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM fact WHERE kind = 'contact.merged'")
	}
	gather()
	if n := facts(); n != 1 {
		t.Fatalf("%d facts of the merge, where nothing came since", n)
	}
	pgtest.Exec(t, db, pgtest.Acme, `WITH f AS (INSERT INTO fact (kind, name, contact) VALUES ('event.tracked', 'late', $1)),
		c AS (INSERT INTO consent (contact, purpose, state, basis) VALUES ($1, 'news', 'withdrawn', 'unsubscribe') RETURNING id, contact),
		s AS (INSERT INTO subscription (contact, purpose, state, consent, at) SELECT contact, 'news', 'withdrawn', id, onda.now() FROM c),
		v AS (INSERT INTO visitor (key, contact) VALUES ('late', $1))
		INSERT INTO journey (run, contact, document, step, key) SELECT run, $1, document, step, key FROM journey WHERE contact = $2`, loser, winner)
	gather()
	for _, table := range slices.Sorted(maps.Keys(map[string]bool{"fact": true, "consent": true, "subscription": true, "visitor": true, "journey": true})) {
		if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM "+table+" WHERE contact = $1", loser); n != 0 {
			t.Errorf("%d of %s are the loser's still", n, table)
		}
	}
	if got := state(t, db, winner, "news"); got != "withdrawn" {
		t.Errorf("who left by a link of before the merge is %s", got)
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM journey WHERE contact = $1 AND state = 'active' AND key = 'winner'", winner); n != 1 {
		t.Errorf("%d journeys of one key are active", n)
	}
	if n := facts(); n != 2 {
		t.Errorf("%d facts tell of the merge, want one more", n)
	}
	gather()
	if n := facts(); n != 2 {
		t.Errorf("%d facts tell of the merge, though there was nothing more", n)
	}
}

// What came of a loser after its merge, and was gathered, is its own again when that is undone, also from beyond a further merge.
func TestWhatWasGatheredIsGivenBack(t *testing.T) {
	t.Parallel()
	for _, chain := range []bool{false, true} {
		db := pgtest.New(t).DB(t)
		ids := []int64{populate(t, db, pgtest.Acme, "loser"), populate(t, db, pgtest.Acme, "middle"), populate(t, db, pgtest.Acme, "winner")}
		pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM suppression")
		loser := ids[0]
		merge(t, db, loser, ids[1])
		if chain {
			merge(t, db, ids[1], ids[2])
		}
		pgtest.Exec(t, db, pgtest.Acme, `WITH f AS (INSERT INTO fact (kind, name, contact) VALUES ('event.tracked', 'late', $1)),
			c AS (INSERT INTO consent (contact, purpose, state, basis) VALUES ($1, 'offers', 'granted', 'form') RETURNING id, contact),
			s AS (INSERT INTO subscription (contact, purpose, state, consent, at) SELECT contact, 'offers', 'granted', id, onda.now() FROM c)
			INSERT INTO visitor (key, contact) VALUES ('late', $1)`, loser)
		for range 2 { // the second time there is nothing more
			do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := Gather(ctx, tx, "campaign", ids)
				return err
			})
		}
		late := func() string {
			return pgtest.One[string](t, db, pgtest.Acme, `SELECT concat_ws(' ', (SELECT contact FROM fact WHERE name = 'late'), (SELECT contact FROM visitor WHERE key = 'late'),
				(SELECT contact FROM consent WHERE purpose = 'offers' AND basis = 'form'), (SELECT contact || ' ' || state FROM subscription WHERE purpose = 'offers'))`)
		}
		person := ids[1]
		if chain {
			person = ids[2]
		}
		if got, want := late(), fmt.Sprintf("%d %[1]d %[1]d %[1]d granted", person); got != want {
			t.Errorf("gathered: %s, want %s", got, want)
		}
		if chain {
			unmerge(t, db, ids[1])
			if got, want := late(), fmt.Sprintf("%d %[1]d %[1]d %[1]d granted", ids[1]); got != want {
				t.Errorf("half undone: %s, want %s", got, want)
			}
		}
		unmerge(t, db, loser)
		if got, want := late(), fmt.Sprintf("%d %[1]d %[1]d %[1]d granted", loser); got != want {
			t.Errorf("undone: %s, want %s", got, want)
		}
	}
}

// What is too much for one transaction becomes the winner's in steps, and may be given back between them.
func TestManyFactsAreMergedInSteps(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	loser, winner := populate(t, db, pgtest.Acme, "loser"), populate(t, db, pgtest.Acme, "winner")
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM suppression")
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, name, contact) SELECT 'event.tracked', 'many', $1 FROM generate_series(1, $2)", loser, 2*mergeAtOnce)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO hit (kind, delivery, contact, link, agent) SELECT h.kind, h.delivery, h.contact, h.link, 'many' FROM hit h, generate_series(1, $2) WHERE h.contact = $1", loser, mergeAtOnce)
	left := func() string {
		return pgtest.One[string](t, db, pgtest.Acme, "SELECT concat_ws(' ', (SELECT count(*) FROM fact WHERE contact = $1 AND kind <> 'contact.unmerged'), (SELECT count(*) FROM hit WHERE contact = $1))", loser)
	}
	before, had := dump(t, db, pgtest.Acme), left()
	for steps := range 4 {
		if out := merge(t, db, loser, winner); out.Rows["fact"] != 2*mergeAtOnce+1 || out.Rows["hit"] != mergeAtOnce+1 {
			t.Errorf("the merge tells of %v", out.Rows)
		}
		if got, want := left(), fmt.Sprintf("%d 1", mergeAtOnce+1); got != want {
			t.Errorf("%s are left to be moved, want %s", got, want)
		}
		for step := range steps {
			do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
				more, err := Gather(ctx, tx, "campaign", []int64{loser})
				if more != (step == 0) {
					t.Errorf("after step %d there is more: %v", step, more)
				}
				return err
			})
		}
		if got := left(); steps > 1 && got != "0 0" {
			t.Errorf("%s are left", got)
		}
		unmerge(t, db, loser)
		if got := left(); got != had {
			t.Errorf("undone after %d steps it has %s, want %s", steps, got, had)
		}
		if diff := cmp.Diff(before, dump(t, db, pgtest.Acme)); diff != "" {
			t.Errorf("undone after %d steps, it is not as it was: %s", steps, diff)
		}
	}
}

// A click that is found to be a machine's while facts are moved in steps is taken back, whoever has the fact and the hit by then.
func TestAClickIsTakenBackBetweenTheStepsOfAMerge(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	loser, winner := populate(t, db, pgtest.Acme, "loser"), populate(t, db, pgtest.Acme, "winner")
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM suppression")
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE hit SET verdict = 'human' WHERE contact = $1", loser)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO fact (kind, contact, data, at) SELECT 'email.clicked', contact, jsonb_build_object('hit', id), at FROM hit WHERE contact = $1", loser)
	merge(t, db, loser, winner)
	for _, hit := range []int64{winner, loser} {
		for _, fact := range []int64{winner, loser} {
			pgtest.Exec(t, db, pgtest.Acme, "UPDATE hit SET contact = $1 WHERE verdict IS NOT NULL", hit)
			pgtest.Exec(t, db, pgtest.Acme, "UPDATE fact SET contact = $1 WHERE kind = 'email.clicked'", fact)
			for _, verdict := range []string{"machine", "human"} {
				pgtest.Exec(t, db, pgtest.Acme, "UPDATE hit SET verdict = $1 WHERE verdict IS NOT NULL", verdict)
				if taken := pgtest.One[bool](t, db, pgtest.Acme, "SELECT data ? 'taken' FROM fact WHERE kind = 'email.clicked'"); taken != (verdict == "machine") {
					t.Errorf("corrected to %s, the hit is of %d and the fact of %d: taken is %v", verdict, hit, fact, taken)
				}
			}
		}
	}
}

// A mail of before the merge bounces: the address that it went to is stopped, and not the winner's. A complaint stops the person.
func TestABounceIsOfTheAddressItWentTo(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	loser, winner := populate(t, db, pgtest.Acme, "loser"), populate(t, db, pgtest.Acme, "winner")
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM suppression")
	mail := pgtest.One[int64](t, db, pgtest.Acme, "SELECT id FROM delivery WHERE contact = $1", loser)
	merge(t, db, loser, winner)
	for i, of := range []int64{winner, loser} { // as it is stored, and as who sent it knew it
		do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
			n, err := Suppress(ctx, tx, "campaign", Suppression{Contact: of, Reason: Bounce, Delivery: mail})
			if n != 1-i {
				t.Errorf("%d addresses are stopped", n)
			}
			return err
		})
	}
	if why := gate(t, db, winner, "news"); why != "" {
		t.Errorf("the winner gets no mail: %s", why)
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM suppression WHERE contact = $1", loser); n != 1 {
		t.Errorf("%d suppressions of the loser's address", n)
	}
	// One of which it was unknown until it came back went to the loser's.
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE contact SET changed_at = changed_at - interval '1 hour' WHERE id = $1", loser)
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE delivery SET at = onda.now() WHERE id = $1", mail)
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE batch SET state = 'closed', closed_at = onda.now() - interval '2 hours' WHERE id = $1 >> 9", mail)
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Suppress(ctx, tx, "campaign", Suppression{Contact: winner, Reason: Bounce, Delivery: mail})
		return err
	})
	if why := gate(t, db, winner, "news"); why != "" {
		t.Errorf("by a mail of which it was unknown until it came back, the winner gets no mail: %s", why)
	}
	// One that waited, and was sent after the merge, went to the winner's.
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE delivery SET attempt = 2 WHERE id = $1", mail)
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Suppress(ctx, tx, "campaign", Suppression{Contact: winner, Reason: Bounce, Delivery: mail})
		return err
	})
	if why := gate(t, db, winner, "news"); why != "suppressed" {
		t.Errorf("with a bounce of its own address the winner is %q", why)
	}
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM suppression WHERE contact = $1", winner)
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Suppress(ctx, tx, "campaign", Suppression{Contact: winner, Reason: Complaint, Delivery: mail})
		return err
	})
	if why := gate(t, db, winner, "news"); why != "suppressed" {
		t.Errorf("who complained is %q", why)
	}
}

// Merges into one contact are undone in any order: what the one gave comes back by no other's record, and is in none when its contact is erased.
func TestMergesAreUndoneInAnyOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for i, first := range []int{0, 1} {
		names := []string{fmt.Sprint("first", i), fmt.Sprint("second", i), fmt.Sprint("winner", i)}
		ids := people(t, db, pgtest.Acme, names...)
		for k, id := range ids[:2] {
			pgtest.Exec(t, db, pgtest.Acme, `UPDATE contact SET fields = jsonb_build_object('code', 'secret-' || $2::text, 'only-' || $2::text, 'secret-' || $2::text), tags = ARRAY['tag-' || $2::text],
				scores = jsonb_build_object('lead', $3::bigint), external_id = 'secret-' || $2::text WHERE id = $1`, id, names[k], k+1)
		}
		row := func(id int64) string {
			return pgtest.One[string](t, db, pgtest.Acme, "SELECT concat_ws(' ', email, external_id, fields, tags, scores) FROM contact WHERE id = $1", id)
		}
		before := []string{row(ids[0]), row(ids[1]), row(ids[2])}
		for _, id := range ids[:2] {
			do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
				_, err := Merge(ctx, tx, "campaign", id, ids[2], PreferLoser, "test")
				return err
			})
		}
		unmerge(t, db, ids[first])
		if got := row(ids[first]); got != before[first] {
			t.Errorf("%s: %s, want %s", names[first], got, before[first])
		}
		erase(t, db, pgtest.Acme, ids[first])
		if left := marked(t, db, pgtest.Acme, "secret-"+names[first]); len(left) > 0 {
			t.Errorf("of %s, who was erased, there is still %q", names[first], left)
		}
		unmerge(t, db, ids[1-first])
		for _, k := range []int{1 - first, 2} {
			if got := row(ids[k]); got != before[k] {
				t.Errorf("%s: %s, want %s", names[k], got, before[k])
			}
		}
	}
}

// The address of one who was merged leads to the winner, whose own external id another does not take the place of.
func TestAnIDOfTheWinnerStays(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	ids := people(t, db, pgtest.Acme, "loser", "winner")
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE contact SET external_id = 'W1' WHERE id = $1", ids[1])
	merge(t, db, ids[0], ids[1])
	do(t, db, func(ctx context.Context, tx *postgres.Tx) error {
		rows := []Row{{Email: "loser@example.com", ExternalID: "X9"}, {Email: "loser@example.com", ExternalID: "W1"}}
		results, err := Upsert(ctx, tx, "campaign", rows, "")
		if err != nil {
			return err
		}
		standing, err := Compare(ctx, tx, rows)
		for i, want := range []error{ErrTwoContacts, nil} {
			if !errors.Is(results[i].Err, want) || !errors.Is(standing[i].Err, want) {
				t.Errorf("%s: %v, compared %v, want %v", rows[i].ExternalID, results[i].Err, standing[i].Err, want)
			}
		}
		return err
	})
	if id := pgtest.One[string](t, db, pgtest.Acme, "SELECT external_id FROM contact WHERE id = $1", ids[1]); id != "W1" {
		t.Errorf("the winner's id is %s", id)
	}
}
