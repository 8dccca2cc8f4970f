package renderform

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// atOnce posts forms at the same time, and gives how many answers there were of each status and text.
func (w *world) atOnce(path string, forms ...url.Values) map[string]int {
	var mu sync.Mutex
	var all sync.WaitGroup
	answers := map[string]int{}
	for _, values := range forms {
		all.Go(func() {
			a := w.post(path, values)
			mu.Lock()
			defer mu.Unlock()
			answers[fmt.Sprint(a.status, a.body)]++
		})
	}
	all.Wait()
	return answers
}

// stored are submissions as store takes them, of a form as it is in force.
func (w *world) stored(fs *Forms, tenant, name string, all ...url.Values) (list []*submission) {
	w.t.Helper()
	k, err := fs.cache.get(w.t.Context(), tenant, name)
	if err != nil {
		w.t.Fatal(err)
	}
	for i, values := range all {
		s := k.form.sentIn(values, nil, "en", nil)
		s.origin = fmt.Append(nil, "origin", i)
		list = append(list, s)
	}
	return list
}

// One page that is sent in twice at the same time, from one process or from two, is one submission, and both are answered alike.
func TestOnePageSentTwiceAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	values := w.fill(good())
	answers := w.atOnce(newsletter, slices.Repeat([]url.Values{values}, 6)...)
	if len(answers) != 1 || !strings.HasPrefix(slices.Collect(maps.Keys(answers))[0], "200") {
		t.Errorf("answered in %d ways: %v", len(answers), answers)
	}
	if s, m, c := w.count("acme", "submission"), w.count("acme", "request"), w.count("acme", "contact"); s != 1 || m != 1 || c != 1 {
		t.Errorf("%d submissions, %d mails and %d contacts, want one of each", s, m, c)
	}
	values = w.fill(good())
	var processes sync.WaitGroup
	for range 3 {
		fs := w.forms(60_000)
		s := w.stored(fs, "acme", "newsletter", values)[0]
		processes.Go(func() {
			if err := fs.take(context.Background(), s); err != nil || len(s.problems) > 0 {
				t.Errorf("%v %v", err, s.problems)
			}
		})
	}
	processes.Wait()
	if s, m := w.count("acme", "submission"), w.count("acme", "request"); s != 2 || m != 2 {
		t.Errorf("%d submissions and %d mails, want one more", s, m)
	}
}

// However many forms come of an address at once, and however they meet, they are of one contact, and all are there.
func TestOneAddressAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var forms []url.Values
	for i := range 7 {
		v := good()
		v.Set("email", []string{"ada@example.com", "ADA@Example.com ", "luc@example.com"}[i%3])
		v.Set("message", fmt.Sprint("number ", i))
		forms = append(forms, v)
	}
	offers := []url.Values{
		{"email": {"ada@example.com"}, "consent.offers": {"on"}, "onda_visitor": {"v1"}}, {"email": {"new@example.com"}, "consent.offers": {"on"}, "onda_visitor": {"v1"}},
	}
	check := func(name string) {
		t.Helper()
		got := pgtest.All[string](t, w.db, "acme", `SELECT c.email || ' ' || count(*) || ' ' || count(DISTINCT s.data) || ' ' || count(s.delivery) || ' ' || coalesce(bool_or(c.expires_at - now() > '6 days')::text, '-')
			FROM submission s JOIN contact c ON c.id = s.contact GROUP BY c.email ORDER BY 1`)
		// Of five mails to Ada in a day she gets three; and she has agreed to the offers, and stays.
		if diff := cmp.Diff([]string{"ada@example.com 6 6 3 -", "luc@example.com 2 2 2 true", "new@example.com 1 1 0 -"}, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		got = pgtest.All[string](t, w.db, "acme", `SELECT c.email || ' ' || purpose || ' ' || state FROM subscription s JOIN contact c ON c.id = s.contact WHERE purpose NOT LIKE 'tracking.%' ORDER BY 1`)
		if diff := cmp.Diff([]string{"ada@example.com newsletter pending", "ada@example.com offers granted", "luc@example.com newsletter pending", "new@example.com offers granted"}, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM fact WHERE kind = 'form.submitted'"); n != 9 {
			t.Errorf("%s: %d are told, want 9", name, n)
		}
		if got := pgtest.One[string](t, w.db, "acme", "SELECT key || count(*) FROM visitor GROUP BY key"); got != "v11" {
			t.Errorf("%s: visitors %s", name, got)
		}
		w.drain("acme")
		pgtest.Exec(t, w.db, "acme", "DELETE FROM submission; DELETE FROM consent; DELETE FROM subscription; DELETE FROM fact; DELETE FROM request; DELETE FROM visitor; DELETE FROM contact")
	}
	fs := w.forms(60_000)
	all := slices.Concat(w.stored(fs, "acme", "newsletter", forms...), w.stored(fs, "acme", "offers", offers...))
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeTogether(ctx, tx, all) })
	check("in one commit")
	slices.Reverse(all)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeTogether(ctx, tx, all) })
	check("in one commit, the other way round")
	for _, s := range all {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeTogether(ctx, tx, []*submission{s}) })
	}
	check("one after the other")
	var each sync.WaitGroup
	for i, s := range all { // as from two processes
		other := []*Forms{fs, w.forms(60_000)}[i%2]
		each.Go(func() {
			if err := other.take(context.Background(), s); err != nil {
				t.Error(err)
			}
		})
	}
	each.Wait()
	check("from two processes")
}

// What comes together is told together, and each for itself where it matters.
func TestStoredTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var forms []url.Values
	for i := range 20 {
		v := good()
		v.Set("email", fmt.Sprintf("u%d@example.com", i))
		forms = append(forms, v)
	}
	forms[3].Set("email", "u3@mailinator.com")
	forms[4].Del("consent.newsletter")
	forms[5].Set(honeypot, "x")
	w.drain("acme") // of the documents
	fs := w.forms(60_000)
	all := w.stored(fs, "acme", "newsletter", forms...)
	for _, s := range all[10:15] {
		s.origin = []byte("one")
	}
	for i, s := range w.stored(fs, "acme", "offers", slices.Repeat([]url.Values{{"email": {"o@example.com"}, "consent.offers": {"on"}}}, 3)...) {
		s.origin = []byte("two") // of offers, two may come from one
		all = append(all, s)
		if i == 0 {
			all[len(all)-1].once = []byte("sixteen bytes...")
		}
	}
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeTogether(ctx, tx, all) })
	for i, s := range all {
		wrong, limited := i == 3 || i == 4, i == 22
		if (len(s.problems) > 0) != wrong || errors.Is(s.err, errLimit) != limited {
			t.Errorf("%d: %v, %v", i, s.problems, s.err)
		}
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT state || ' ' || reason || ' ' || count(*) || ' ' || count(delivery) FROM submission GROUP BY state, reason ORDER BY 1")
	if diff := cmp.Diff([]string{"done  2 0", "pending  17 17", "rejected domain 1 0", "rejected honeypot 1 0"}, got); diff != "" {
		t.Error(diff)
	}
	types := map[string]int{}
	for _, kind := range w.drain("acme") {
		types[kind]++
	}
	want := map[string]int{"form.submitted": 1, "form.rejected": 1, "email.requested": 17, "consent.pending": 1, "consent.granted": 1, "contact.changed": 1, "tag.changed": 1}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Error(diff)
	}
	mails := pgtest.One[int](t, w.db, "acme", `SELECT count(*) FROM submission s JOIN request r ON r.delivery = s.delivery JOIN batch b ON b.id = s.delivery >> 9
		WHERE b.contacts = ARRAY[s.contact] AND r.data->>'confirm_url' LIKE '%?s=' || s.id AND b.cause = 'submission:' || s.id`)
	if mails != 17 {
		t.Errorf("%d mails are of their submissions, want 17", mails)
	}
}

// Whoever is at a contact keeps those alone waiting who are the same; a form that cannot be taken in fails alone.
func TestSubmissionsFailAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.post(newsletter, w.fill(good()))
	fs := w.forms(60_000)
	locked, free := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "SELECT FROM contact FOR UPDATE")
			close(locked)
			<-free
			return err
		})
	})
	<-locked
	var others []url.Values
	for i := range 5 {
		v := good()
		v.Set("email", fmt.Sprintf("u%d@example.com", i))
		others = append(others, v)
	}
	twice := good() // the same page, at once
	twice.Set(onceInput, newOnce())
	all := w.stored(fs, "acme", "newsletter", append(others, twice, twice)...)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeTogether(ctx, tx, all) })
	for i, s := range all {
		if errors.Is(s.err, errHeld) != (i >= 5) {
			t.Errorf("%d: %v", i, s.err)
		}
	}
	if n := w.count("acme", "submission"); n != 6 {
		t.Errorf("%d submissions, want all but that of the one who is held", n)
	}
	held := w.stored(fs, "acme", "newsletter", good())
	if err := fs.take(context.Background(), held[0]); !errors.Is(err, errHeld) {
		t.Errorf("held for longer than a visitor waits: %v", err)
	} else if status, _ := fn.Status(err); status != 503 {
		t.Errorf("it is answered with %d", status)
	}
	var waits sync.WaitGroup
	waits.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeAlone(ctx, tx, held) })
	})
	w.awaitLock()
	close(free)
	holder.Wait()
	waits.Wait()
	if held[0].err != nil || w.count("acme", "submission") != 7 {
		t.Errorf("once the contact is free: %v", held[0].err)
	}
	// The email that asks for a confirmation is gone, as after an apply that this process did not see.
	pgtest.Exec(t, w.db, "acme", "UPDATE entity SET name = 'gone' WHERE kind = 'Email' AND name = 'confirm-newsletter'")
	var each sync.WaitGroup
	for i, s := range slices.Concat(w.stored(fs, "acme", "newsletter", others...), w.stored(fs, "acme", "offers", slices.Repeat([]url.Values{{"email": {"o@example.com"}, "consent.offers": {"on"}}}, 5)...)) {
		each.Go(func() {
			if err := fs.take(context.Background(), s); (err != nil) != (i < 5) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	each.Wait()
}

// A tenant whose tables are locked is told to come back, and stops no other.
func TestALockedTenantStopsNobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	locked, free := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "LOCK TABLE fact IN ACCESS EXCLUSIVE MODE")
			close(locked)
			<-free
			return err
		})
	})
	<-locked
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if a := w.post(newsletter, good()); a.status != 503 || a.header.Get("Retry-After") == "" {
				t.Errorf("acme, locked: %d %v", a.status, a.header)
			}
			if a := w.post("/f/brava/newsletter", good()); a.status != 200 {
				t.Errorf("brava: %d", a.status)
			}
		})
	}
	all.Wait()
	close(free)
	holder.Wait()
	if n := w.count("acme", "submission"); n != 0 {
		t.Errorf("%d are stored of those that were told to come back", n)
	}
	if n := w.count("brava", "submission"); n != 5 {
		t.Errorf("brava has %d of 5", n)
	}
}

// A page is one submission: what is sent with it again is a repeat where it says the same, and is shown on another page where it does not. Of an address that is refused, one row is kept.
func TestAPageSentAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const sentBefore = "This form was sent before, with other answers."
	form := func(values url.Values, set ...string) url.Values {
		out := maps.Clone(values)
		for i := 0; i < len(set); i += 2 {
			out.Set(set[i], set[i+1])
		}
		return out
	}
	shown := func(values url.Values, a answer) url.Values {
		out := maps.Clone(values)
		for _, m := range hiddenInput.FindAllStringSubmatch(a.body, -1) {
			out.Set(m[1], m[2])
		}
		return out
	}
	rows := func(want string) {
		t.Helper()
		got := strings.Join(pgtest.All[string](t, w.db, "acme", "SELECT state || ' ' || count(*) FROM submission GROUP BY state ORDER BY state"), ", ")
		if facts := w.count("acme", "fact WHERE kind LIKE 'form.%'"); got != want || facts != w.count("acme", "submission") {
			t.Errorf("%s and %d facts, want %s", got, facts, want)
		}
	}
	page := w.fill(good())
	for _, again := range []url.Values{page, form(page, "email", "ADA@example.com", visitorInput, "v1"), form(page, "unheard", "of")} {
		if a := w.post(newsletter, again); a.status != 200 {
			t.Errorf("the same: %d %s", a.status, a.body)
		}
	}
	rows("pending 1")
	for _, set := range [][]string{{"email", "eve@example.com"}, {"first_name", "Eve"}, {"message", ""}, {"consent.tracking.email", ""}, {"utm", "autumn"}} {
		other := form(page, set...)
		a := w.post(newsletter, other)
		if a.status != 422 || !strings.Contains(a.body, sentBefore) || !strings.Contains(a.body, set[1]) {
			t.Fatalf("with other %s: %d %s", set[0], a.status, a.body)
		}
		rows("pending 1")
		next := shown(other, a)
		if next.Get(onceInput) == page.Get(onceInput) {
			t.Error("it is the same page again")
		}
		if set[0] != "email" {
			continue
		}
		for range 2 {
			if a := w.post(newsletter, next); a.status != 200 {
				t.Errorf("sent from the page that was shown then: %d %s", a.status, a.body)
			}
		}
		rows("pending 2")
		pgtest.Exec(t, w.db, "acme", "DELETE FROM submission s USING contact c WHERE c.id = s.contact AND c.email = 'eve@example.com'; DELETE FROM fact WHERE contact = (SELECT id FROM contact WHERE email = 'eve@example.com')")
	}
	if a := w.post(newsletter, form(page, "email", "nobody@")); a.status != 422 || strings.Contains(a.body, sentBefore) || shown(url.Values{}, a).Get(onceInput) == page.Get(onceInput) {
		t.Errorf("with a mistake: %d %s", a.status, a.body)
	}
	if a := w.post(newsletter, form(page, honeypot, "x")); a.status != 200 {
		t.Errorf("filled in by a program: %d", a.status)
	}
	rows("pending 1")
	pgtest.Exec(t, w.db, "acme", "UPDATE submission SET data = '{}'")
	if a := w.post(newsletter, form(page, "first_name", "Eve")); a.status != 200 {
		t.Errorf("once nobody knows what it said: %d", a.status)
	}
	pgtest.Exec(t, w.db, "acme", "DELETE FROM submission; DELETE FROM fact")

	refused := form(w.fill(good()), "email", "ada@mailinator.com")
	var a answer
	for range 3 {
		if a = w.post(newsletter, refused); a.status != 422 || !strings.Contains(a.body, "Addresses of this provider") {
			t.Fatalf("an address that is refused: %d %s", a.status, a.body)
		}
	}
	rows("rejected 1")
	if a := w.post(newsletter, form(refused, "email", "ada@example.com")); a.status != 422 || !strings.Contains(a.body, sentBefore) {
		t.Errorf("mended, on the page of before: %d %s", a.status, a.body)
	}
	rows("rejected 1")
	if a := w.post(newsletter, form(shown(refused, a), "email", "ada@example.com")); a.status != 200 {
		t.Errorf("mended, on the page that was shown: %d %s", a.status, a.body)
	}
	rows("pending 1, rejected 1")

	fs := w.forms(60_000)
	two := w.stored(fs, "acme", "newsletter", page, form(page, "first_name", "Eve"), page)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return fs.writeTogether(ctx, tx, two) })
	if len(two[0].problems) > 0 || len(two[1].problems) != 1 || two[1].problems[0].Text != otherAnswers || len(two[2].problems) > 0 {
		t.Errorf("in one commit: %v, %v and %v", two[0].problems, two[1].problems, two[2].problems)
	}
	rows("pending 2, rejected 1")
}
