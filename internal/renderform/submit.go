package renderform

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/groupcommit"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

const (
	// proofKeep is how long the hashed address of origin stays with an entry of the consent ledger.
	proofKeep = 2 * 365 * 24 * time.Hour
	// maxConfirmations is how many confirmation mails a form sends to one address in a day: it must not be a way to annoy somebody.
	maxConfirmations = 3
	// rateLock is the class of the advisory lock under which submissions of one origin are counted.
	rateLock = 0x6f6e6466
	// commitMost is how many submissions one commit stores.
	commitMost = 300
	// ringChunk is how many submissions an event surely has room for.
	ringChunk = 300
)

var (
	// errLimit says that too much came from one origin.
	errLimit = errors.New("too many submissions from one origin")
	// errHeld says that somebody else is at rows of a submission, as an import may be for a while.
	errHeld = errors.New("somebody else is at the same contact")
)

// submission is a form that was sent in.
type submission struct {
	*form
	origin []byte
	once   []byte // of the page; nil for none
	values url.Values
	files  map[string][]upload
	// check reads what was sent as of a time on the tenant's clock.
	check func(now time.Time) (entry, []failed)
	// trapped: a program fell for the honeypot.
	trapped bool
	// known is who was recognised to send it; nil for nobody.
	known *recognised

	// What becomes of it.
	reason   string // why it is kept out, in one word; of such a one nothing is kept but that
	entry    entry
	problems []failed    // to be shown; nothing of it is kept
	used     bool        // its page is of a submission that is stored: what is shown again is another page
	first    *submission // with its page in the same commit; nil for none
	err      error       // of this one alone
	id       int64
	who      int64
	made     bool // its contact is new, and has its fields
	expires  time.Time
	delivery int64 // of the mail that asks for a confirmation; 0 for none
}

// sentIn is a form with what was sent, by whom it was recognised to be, nil for nobody.
func (f *form) sentIn(values url.Values, files map[string][]upload, lang string, who *recognised) *submission {
	return &submission{
		form: f, values: values, files: files, once: readOnce(values.Get(onceInput)), trapped: f.Protect.Honeypot && values.Get(honeypot) != "", known: who,
		check: func(now time.Time) (entry, []failed) { return f.check(values, files, lang, now, who) },
	}
}

// size is about how much memory it takes while it waits.
func (s *submission) size() int {
	n := 1_000
	for k, v := range s.values {
		n += len(k) + 100
		for _, v := range v {
			n += 2 * len(v) // and as an entry
		}
	}
	return n
}

// take stores a submission, together with others that come at the same time.
func (fs *Forms) take(ctx context.Context, s *submission) error {
	err := errHeld
	if len(s.files) > 0 {
		if err = fs.takeWithFiles(ctx, s); err == nil {
			err = s.err
		}
	} else {
		for _, c := range []*groupcommit.Committer[*submission]{fs.together, fs.alone} {
			if err = c.Add(ctx, s.tenant.Name, s); err == nil {
				err = s.err
			}
			if !errors.Is(err, errHeld) {
				break
			}
		}
	}
	switch {
	case errors.Is(err, errHeld):
		return fn.Unavailable(err)
	case errors.Is(err, postgres.ErrUnknownTenant), errors.Is(err, postgres.ErrForeignTenant):
		return errNotFound
	}
	return err
}

// lockTables waits for whoever has the tables, such as a migration, before all else: so that what a later statement waits for is known to be rows, which are those of a few
// submissions alone.
const lockTables = `LOCK TABLE ONLY entity, ONLY document, ONLY contact, ONLY consent, ONLY subscription, ONLY suppression, ONLY visitor, ONLY run, ONLY batch, ONLY request,
	ONLY submission, ONLY outbox, ONLY fact IN ROW EXCLUSIVE MODE`

// writeTogether stores submissions that came at the same time. One whose contact is in the hands of somebody else is left out and gets errHeld: the others do not wait for it.
func (fs *Forms) writeTogether(ctx context.Context, tx *postgres.Tx, all []*submission) error {
	return fs.write(ctx, tx, all, " SKIP LOCKED")
}

// writeAlone stores a submission, and waits for whoever has its contact.
func (fs *Forms) writeAlone(ctx context.Context, tx *postgres.Tx, all []*submission) error {
	return fs.write(ctx, tx, all, "")
}

// write stores submissions. skip is how rows of known contacts are locked.
func (fs *Forms) write(ctx context.Context, tx *postgres.Tx, all []*submission, skip string) error {
	if _, err := tx.Exec(ctx, lockTables); err != nil {
		return fmt.Errorf("wait for the tables of forms: %w", err)
	}
	err := fs.store(ctx, tx, all, skip)
	if postgres.IsLocked(err) { // whose row it is, nobody can tell
		return errHeld
	}
	for _, s := range all {
		if s.first != nil { // it repeats one that may not be stored after all
			s.err = cmp.Or(s.err, s.first.err)
		}
	}
	return err
}

// store writes submissions in as many statements as one takes. With a confirmation one is pending, and whoever has the address is asked; else it takes effect at once. A repeat
// changes nothing; the same page with other answers is to be shown again.
func (fs *Forms) store(ctx context.Context, tx *postgres.Tx, all []*submission, skip string) error {
	for _, s := range all {
		s.reason, s.entry, s.problems, s.used, s.first, s.err, s.id, s.who, s.made, s.expires, s.delivery = "", entry{}, nil, false, nil, nil, 0, 0, false, time.Time{}, 0
	}
	list, err := fs.admit(ctx, tx, all)
	if err != nil || len(list) == 0 {
		return err
	}
	if list, err = findContacts(ctx, tx, list, skip); err != nil {
		return err
	}
	if list, err = insert(ctx, tx, list); err != nil || len(list) == 0 {
		return err
	}
	rejected, accepted := parted(list, func(s *submission) bool { return s.reason != "" })
	if err := tell(ctx, tx, "form.rejected", rejected); err != nil || len(accepted) == 0 {
		return err
	}
	if err := storeFiles(ctx, tx, accepted); err != nil {
		return err
	}
	asked, done := parted(accepted, func(s *submission) bool { return s.Confirm != nil })
	if err := prolong(ctx, tx, asked); err != nil {
		return err
	}
	if err := applyEntries(ctx, tx, done); err != nil {
		return err
	}
	if err := record(ctx, tx, accepted, false); err != nil {
		return err
	}
	if err := act(ctx, tx, accepted, func(f *form) []spec.Step { return f.Submitted }); err != nil {
		return err
	}
	if err := tell(ctx, tx, "form.submitted", accepted); err != nil {
		return err
	}
	return fs.ask(ctx, tx, asked)
}

// parted sorts a list into those that are so, and those that are not.
func parted(list []*submission, is func(s *submission) bool) (yes, no []*submission) {
	for _, s := range list {
		if is(s) {
			yes = append(yes, s)
		} else {
			no = append(no, s)
		}
	}
	return yes, no
}

// admit gives ids to those that are to be stored: not repeats of a page that was sent before, not more from one origin than its form takes in the time it names, and what was
// checked.
func (fs *Forms) admit(ctx context.Context, tx *postgres.Tx, all []*submission) (list []*submission, err error) {
	var locks []int32
	var onces, origins [][]byte
	var forms []int32
	var since []time.Time
	for _, s := range all {
		if s.once != nil {
			onces = append(onces, s.once)
		}
		origin := s.origin
		if limit := s.Protect.PerAddress; limit.Count == 0 || origin == nil {
			origin = nil
		} else {
			locks = append(locks, originLock(tx.Tenant.Name, s.entity, origin))
		}
		forms, origins, since = append(forms, s.entity), append(origins, origin), append(since, tx.Now().Add(-s.Protect.PerAddress.Per))
	}
	b := &pgx.Batch{}
	if len(locks) > 0 {
		slices.Sort(locks) // so that two who wait for each other's are none
		b.Queue("SELECT pg_advisory_xact_lock($1, k) FROM unnest($2::integer[]) k", rateLock, slices.Compact(locks))
	}
	earlier := map[string]*entry{} // what a page was sent with: empty when it was rejected, nil when that is not known any more
	b.Queue("SELECT s.once, s.state, s.data, coalesce(c.email, '') FROM submission s LEFT JOIN contact c ON c.id = s.contact WHERE s.once = ANY ($1)", onces).Query(func(rows pgx.Rows) error {
		var once, data []byte
		var state, email string
		_, err := pgx.ForEachRow(rows, []any{&once, &state, &data, &email}, func() error {
			if state != "rejected" && (email == "" || string(data) == "{}") {
				earlier[string(once)] = nil
				return nil
			}
			before := entry{email: email}
			earlier[string(once)] = &before
			return json.Unmarshal(data, &before)
		})
		return err
	})
	counts := make([]int, len(all))
	if len(locks) > 0 {
		b.Queue(`SELECT u.n - 1, (SELECT count(*) FROM submission s WHERE s.form = u.form AND s.origin = u.origin AND s.at > u.since)
			FROM unnest($1::integer[], $2::bytea[], $3::timestamptz[]) WITH ORDINALITY u(form, origin, since, n) WHERE u.origin IS NOT NULL`, forms, origins, since).Query(func(rows pgx.Rows) error {
			var i, n int
			_, err := pgx.ForEachRow(rows, []any{&i, &n}, func() error { counts[i] = n; return nil })
			return err
		})
	}
	ids := make([]int64, 0, len(all))
	b.Queue("SELECT nextval(seq) FROM (SELECT pg_get_serial_sequence('submission', 'id')::regclass AS seq OFFSET 0) s, generate_series(1, $1)", len(all)).Query(func(rows pgx.Rows) (err error) {
		ids, err = pgx.AppendRows(ids, rows, pgx.RowTo[int64])
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("look for earlier submissions: %w", err)
	}
	came := map[int32]map[string]int{} // of a form, from an origin, in this commit
	first := map[string]*submission{}  // with a page, in this commit
	for i, s := range all {
		before, used := earlier[string(s.once)]
		if limit := s.Protect.PerAddress; !used && limit.Count > 0 && s.origin != nil && counts[i]+came[s.entity][string(s.origin)] >= limit.Count {
			s.err = errLimit
			continue
		}
		if s.trapped {
			s.reason = "honeypot"
		} else {
			s.entry, s.problems = s.check(tx.Now())
		}
		if used {
			s.used, s.first = true, first[string(s.once)]
			if s.reason == "" && len(s.problems) == 0 {
				s.problems, err = s.compare(before)
			}
			if err != nil {
				return nil, err
			}
			continue
		}
		switch {
		case slices.ContainsFunc(s.problems, func(p failed) bool { return p.Text == blockedDomain }):
			s.reason, s.used = blocked, true
		case len(s.problems) > 0:
			continue
		}
		if s.once != nil { // also within one commit
			first[string(s.once)] = s
			earlier[string(s.once)] = &entry{}
			if s.reason == "" {
				earlier[string(s.once)] = &s.entry
			}
		}
		if came[s.entity] == nil {
			came[s.entity] = map[string]int{}
		}
		came[s.entity][string(s.origin)]++
		s.id = ids[i]
		list = append(list, s)
	}
	return list, nil
}

// blocked is the reason of a submission with an address whose domain its form does not take. It is shown what is wrong, on another page.
const blocked = "domain"

// compare looks whether a submission says what was said before with its page, where that is known still: then it is a repeat. Of who is recognised, more may be known meanwhile
// than had to be asked then.
func (s *submission) compare(before *entry) ([]failed, error) {
	if before == nil {
		return nil, nil
	}
	earlier := *before // which may be stored in this commit, as it is
	earlier.Fields = maps.Clone(before.Fields)
	for _, in := range s.Inputs {
		if s.known.hides(in) {
			delete(earlier.Fields, in.Field)
		}
	}
	now, err := s.entry.answers()
	if err != nil {
		return nil, err
	}
	then, err := earlier.answers()
	if err != nil || s.entry.email == before.email && bytes.Equal(now, then) {
		return nil, err
	}
	return []failed{{Text: otherAnswers}}, nil
}

func originLock(tenant string, form int32, origin []byte) int32 {
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%s %d ", tenant, form)
	_, _ = h.Write(origin)
	return int32(h.Sum32())
}

// findContacts finds or makes the contacts of those that were accepted, and decides which of them are asked for a confirmation. Two of one address are of one contact.
func findContacts(ctx context.Context, tx *postgres.Tx, list []*submission, skip string) ([]*submission, error) {
	var rows []contact.Row
	row := map[string]int{} // by address
	for _, s := range list {
		if s.reason != "" {
			continue
		}
		if s.Confirm != nil {
			s.expires = s.Confirm.Expires.AddTo(tx.Now(), s.settings.Location()).UTC()
			if whole := s.expires.Truncate(time.Hour); whole.Before(s.expires) {
				s.expires = whole.Add(time.Hour) // as the token has it
			}
		}
		if _, ok := row[s.entry.email]; ok {
			continue
		}
		row[s.entry.email] = len(rows)
		s.made = true // unless it was there
		// Nobody else's words are overwritten by what a form says of a contact that it makes. Without a confirmation by then the contact goes.
		rows = append(rows, contact.Row{Email: s.entry.email, Typed: s.typed(), Fields: s.firstFields(s.entry), OnlyNew: true, Expires: s.expires})
	}
	if len(rows) == 0 {
		return list, nil
	}
	found, err := contact.Upsert(ctx, tx, drainer, rows, cause(list))
	if err != nil {
		return nil, err
	}
	known := map[int64]bool{}
	for _, s := range list {
		if s.reason != "" {
			continue
		}
		r := found[row[s.entry.email]]
		s.who, s.err, s.made = r.Contact, r.Err, s.made && r.Made
		if taken := (*contact.TakenError)(nil); errors.As(r.Err, &taken) {
			s.err, s.problems = nil, []failed{{Key: taken.Field, Text: "form.problem.taken"}}
			continue
		}
		if r.Err == nil && !r.Made {
			known[r.Contact] = true
		}
	}
	held, mails, err := lockKnown(ctx, tx, list, known, skip)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(s *submission) bool {
		if held[s.who] {
			s.err = errHeld
		}
		if s.err != nil || s.reason == "" && len(s.problems) > 0 { // what is rejected for a reason is stored as such
			return true
		}
		if p := (pair{s.who, s.entity}); s.Confirm != nil && s.reason == "" && mails[p] < maxConfirmations {
			mails[p]++
			s.delivery = toBeGiven
		}
		return false
	}), nil
}

// typed is the address as it was typed; empty where it was not, but known.
func (s *submission) typed() string {
	typed := strings.TrimSpace(s.values.Get("email"))
	if address, err := contact.Normalise(typed); err != nil || address != s.entry.email {
		return ""
	}
	return typed
}

// toBeGiven stands for a delivery until it has its id.
const toBeGiven = -1

// pair is a contact and a form.
type pair struct {
	contact int64
	form    int32
}

// lockKnown locks contacts that were there, and counts the mails of each form that asked them for a confirmation in the last day. held are those that somebody else is at.
func lockKnown(ctx context.Context, tx *postgres.Tx, list []*submission, known map[int64]bool, skip string) (held map[int64]bool, mails map[pair]int, err error) {
	mails = map[pair]int{}
	if len(known) == 0 {
		return nil, mails, nil
	}
	held = maps.Clone(known)
	var contacts []int64
	var forms []int32
	for _, s := range list {
		if p := (pair{s.who, s.entity}); s.Confirm != nil && known[s.who] {
			if _, there := mails[p]; !there {
				mails[p] = 0
				contacts, forms = append(contacts, s.who), append(forms, s.entity)
			}
		}
	}
	b := &pgx.Batch{}
	b.Queue("SELECT id FROM contact WHERE id = ANY ($1) ORDER BY id FOR UPDATE"+skip, slices.Sorted(maps.Keys(known))).Query(func(rows pgx.Rows) error {
		var id int64
		_, err := pgx.ForEachRow(rows, []any{&id}, func() error { delete(held, id); return nil })
		return err
	})
	b.Queue(`SELECT u.contact, u.form, (SELECT count(*) FROM submission s WHERE s.contact = u.contact AND s.form = u.form AND s.delivery IS NOT NULL AND s.at > onda.now() - interval '1 day')
		FROM unnest($1::bigint[], $2::integer[]) u(contact, form)`, contacts, forms).Query(func(rows pgx.Rows) error {
		var p pair
		var n int
		_, err := pgx.ForEachRow(rows, []any{&p.contact, &p.form, &n}, func() error { mails[p] = n; return nil })
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, nil, fmt.Errorf("lock contacts and count confirmation mails: %w", err)
	}
	return held, mails, nil
}

// cause names what changes contacts.
func cause(list []*submission) string {
	if len(list) == 1 {
		return "submission " + strconv.FormatInt(list[0].id, 10)
	}
	for _, s := range list {
		if s.Name != list[0].Name {
			return "forms"
		}
	}
	return "form " + list[0].Name
}

// insert stores the rows. Those whose page was sent in at the same time by another process are repeats, and are left out.
func insert(ctx context.Context, tx *postgres.Tx, list []*submission) ([]*submission, error) {
	mails, _ := parted(list, func(s *submission) bool { return s.delivery == toBeGiven })
	deliveries, err := delivery.ReserveIDs(ctx, tx, len(mails))
	if err != nil {
		return nil, err
	}
	for i, s := range mails {
		s.delivery = deliveries[i]
	}
	// Two who insert the same pages wait for each other in one order.
	slices.SortStableFunc(list, func(a, b *submission) int { return bytes.Compare(a.once, b.once) })
	n := len(list)
	id, document, who, mail := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	form, state, reason, data := make([]int32, n), make([]string, n), make([]string, n), make([]string, n)
	once, origin, expires, keep := make([][]byte, n), make([][]byte, n), make([]*time.Time, n), make([]*time.Time, n)
	for i, s := range list {
		id[i], form[i], document[i], who[i], reason[i], once[i], origin[i], mail[i] = s.id, s.entity, s.document, s.who, s.reason, s.once, s.origin, s.delivery
		var kept any = &s.entry
		switch {
		case s.reason != "":
			kept, state[i] = struct{}{}, "rejected"
		case s.Confirm != nil:
			state[i] = "pending"
		default:
			state[i] = "done"
		}
		if !s.expires.IsZero() {
			expires[i] = &s.expires
		}
		days := s.Keep
		if days.IsZero() {
			days = s.settings.Retention.Submissions
		}
		if !days.IsZero() {
			t := days.AddTo(tx.Now(), s.settings.Location())
			keep[i] = &t
		}
		if s.reason == "" {
			keep[i] = s.entry.forgetting(keep[i])
		}
		body, err := json.Marshal(kept)
		if err != nil {
			return nil, fmt.Errorf("encode a submission: %w", err)
		}
		data[i] = string(body)
	}
	rows, err := tx.Query(ctx, `INSERT INTO submission (id, form, document, contact, state, reason, once, data, origin, delivery, expires_at, keep_until) OVERRIDING SYSTEM VALUE
		SELECT id, form, document, nullif(contact, 0), state, reason, once, data::jsonb, origin, nullif(delivery, 0), coalesce(expires, 'infinity'), coalesce(keep, 'infinity')
		  FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bytea[], $8::text[], $9::bytea[], $10::bigint[], $11::timestamptz[], $12::timestamptz[])
		       u(id, form, document, contact, state, reason, once, data, origin, delivery, expires, keep)
		ON CONFLICT (once) DO NOTHING RETURNING id`, id, form, document, who, state, reason, once, data, origin, mail, expires, keep)
	if err != nil {
		return nil, fmt.Errorf("store submissions: %w", err)
	}
	stored := make(map[int64]bool, n)
	var got int64
	if _, err := pgx.ForEachRow(rows, []any{&got}, func() error { stored[got] = true; return nil }); err != nil {
		return nil, fmt.Errorf("store submissions: %w", err)
	}
	for _, t := range slices.Concat(keep, expires) {
		if t != nil {
			tx.Wake(drainer, *t) // campaign forgets
		}
	}
	list = slices.DeleteFunc(list, func(s *submission) bool { return !stored[s.id] })
	slices.SortFunc(list, func(a, b *submission) int { return int(a.id - b.id) }) // as they came
	return list, nil
}

// firstFields are what a form says of a contact that it makes.
func (f *form) firstFields(e entry) map[string]any {
	fields := map[string]any{}
	for k, v := range e.Fields {
		fields[k] = v
	}
	if _, asked := fields[spec.LocaleField]; !asked && f.fields[spec.LocaleField] != nil && f.fields[spec.LocaleField].Type == spec.TypeLanguage {
		fields[spec.LocaleField] = e.Lang
	}
	return fields
}

// prolong gives contacts who are asked once more as long for it as everybody: one that a form made does not go with its first submission.
func prolong(ctx context.Context, tx *postgres.Tx, list []*submission) error {
	until := map[int64]time.Time{}
	for _, s := range list {
		if !s.made && s.expires.After(until[s.who]) {
			until[s.who] = s.expires
		}
	}
	if len(until) == 0 {
		return nil
	}
	var expires []time.Time
	who := slices.Sorted(maps.Keys(until))
	for _, id := range who {
		expires = append(expires, until[id])
	}
	_, err := tx.Exec(ctx, "UPDATE contact c SET expires_at = u.expires FROM unnest($1::bigint[], $2::timestamptz[]) u(id, expires) WHERE c.id = u.id AND c.expires_at < u.expires", who, expires)
	if err != nil {
		return fmt.Errorf("give contacts longer to confirm: %w", err)
	}
	return nil
}

// applyEntries writes the fields of entries that are in force, and who the visitors are. Of two that say something of one contact the later one counts.
func applyEntries(ctx context.Context, tx *postgres.Tx, list []*submission) error {
	if len(list) == 0 {
		return nil
	}
	var who, attached []int64
	fields, visitors := map[int64]map[string]any{}, map[string]int64{}
	for _, s := range list {
		who = append(who, s.who)
		if s.entry.Visitor != "" {
			visitors[s.entry.Visitor] = s.who
		}
		if s.made || len(s.entry.Fields) == 0 { // one that was made has them
			continue
		}
		if fields[s.who] == nil {
			fields[s.who] = map[string]any{}
		}
		maps.Copy(fields[s.who], s.entry.Fields)
	}
	if err := contact.SetFields(ctx, tx, drainer, fields, cause(list)); err != nil {
		return err
	}
	keys := slices.Sorted(maps.Keys(visitors))
	for _, k := range keys {
		attached = append(attached, visitors[k])
	}
	b := &pgx.Batch{}
	b.Queue("UPDATE contact SET expires_at = NULL WHERE id = ANY ($1) AND expires_at IS NOT NULL", who)
	if len(keys) > 0 {
		b.Queue(`INSERT INTO visitor AS v (key, contact) SELECT key, contact FROM unnest($1::text[], $2::bigint[]) u(key, contact) ORDER BY key
			ON CONFLICT (key) DO UPDATE SET contact = excluded.contact, last_at = onda.now()`, keys, attached)
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("mark contacts as confirmed and attach visitors: %w", err)
	}
	return nil
}

// record writes the consents of entries into the ledger, with their proof.
func record(ctx context.Context, tx *postgres.Tx, list []*submission, confirmed bool) error {
	var entries []contact.Consent
	for _, s := range list {
		state := contact.Granted
		if s.Confirm != nil && !confirmed {
			state = contact.Pending
		}
		for _, c := range s.entry.Consents {
			entries = append(entries, contact.Consent{
				Contact: s.who, Purpose: c.Purpose, State: state, Basis: "form", Origin: s.origin, OriginUntil: tx.Now().Add(proofKeep),
				Proof: map[string]any{
					"form": s.Name, "version": s.version, "document": s.document, "submission": s.id, "lang": s.entry.Lang, "text": c.Text, "sha256": c.SHA256, "confirmed": confirmed,
				},
			})
		}
	}
	_, err := contact.Record(ctx, tx, drainer, entries...)
	return err
}

// act does the actions of forms, of each version of one for all its submissions at once.
func act(ctx context.Context, tx *postgres.Tx, list []*submission, steps func(f *form) []spec.Step) error {
	for len(list) > 0 {
		f := list[0].form
		ours, others := parted(list, func(s *submission) bool { return s.form == f })
		list = others
		for _, step := range steps(f) {
			if err := actOne(ctx, tx, ours, step); err != nil {
				return fmt.Errorf("action %s of form %s: %w", step.Node(), f.Name, err)
			}
		}
	}
	return nil
}

func actOne(ctx context.Context, tx *postgres.Tx, list []*submission, step spec.Step) error {
	who := make([]int64, len(list))
	for i, s := range list {
		who[i] = s.who
	}
	switch {
	case step.Tag != nil:
		return contact.Update(ctx, tx, drainer, who, contact.Change{AddTags: step.Tag.Add, RemoveTags: step.Tag.Remove}, cause(list))
	case step.Score != nil:
		points := make([]contact.Points, len(list)) // one for each submission
		for i, s := range list {
			points[i] = contact.Points{Contact: s.who, Group: step.Score.Group, Add: int64(step.Score.Add)}
		}
		return contact.AddPoints(ctx, tx, drainer, points, cause(list))
	case step.Stage != "":
		return contact.SetStage(ctx, tx, drainer, who, step.Stage, cause(list))
	case step.Set != nil:
		return contact.Assign(ctx, tx, drainer, who, step.Set, cause(list))
	case step.Enter != nil:
		facts := make([]postgres.Fact, len(list))
		for i, s := range list {
			facts[i] = postgres.Fact{Kind: "campaign.enter", Name: step.Enter.Campaign, Contact: s.who, Data: fmt.Appendf(nil, `{"submission":%d}`, s.id)}
		}
		return tx.AddFacts(ctx, facts...)
	}
	return groupcommit.OfItem(fmt.Errorf("a form cannot do %q", step.Action()))
}

// tell writes the facts about submissions and rings their doorbell.
func tell(ctx context.Context, tx *postgres.Tx, kind string, list []*submission) error {
	facts := make([]postgres.Fact, len(list))
	for i, s := range list {
		facts[i] = postgres.Fact{Kind: kind, Name: s.Name, Contact: s.who, Data: fmt.Appendf(nil, `{"submission":%d}`, s.id)}
	}
	if err := tx.AddFacts(ctx, facts...); err != nil {
		return err
	}
	for chunk := range slices.Chunk(list, ringChunk) {
		var items event.Submissions
		for _, s := range chunk {
			items.Items = append(items.Items, event.Submission{Form: s.Name, Submission: s.id, Contact: s.who, Reason: s.reason})
		}
		var data event.Data
		switch kind {
		case "form.submitted":
			data = event.FormSubmitted{Submissions: items}
		case "form.confirmed":
			data = event.FormConfirmed{Submissions: items}
		default:
			data = event.FormRejected{Submissions: items}
		}
		// A submission is told once: the first one names those that are told with it.
		first := strconv.FormatInt(chunk[0].id, 10)
		e, err := event.New(tx.Tenant.Name, "render-form", first, event.DeriveID(tx.Tenant.Name, kind, first), data)
		if err != nil {
			return err
		}
		if err := tx.Publish(ctx, drainer, e); err != nil {
			return err
		}
	}
	return nil
}

// ask sends the mails with the links that confirm these very submissions.
func (fs *Forms) ask(ctx context.Context, tx *postgres.Tx, list []*submission) error {
	list, _ = parted(list, func(s *submission) bool { return s.delivery != 0 })
	if len(list) == 0 {
		return nil
	}
	keys, err := tx.Keys(ctx)
	if err != nil {
		return err
	}
	mails := make([]delivery.Reserved, len(list))
	for i, s := range list {
		tok, err := token.Sign(keys.Signing, token.Claims{
			Purpose: token.Confirm, Tenant: tx.Tenant.Number, Contact: s.who, Topic: s.topic, Form: int32(s.document), Expires: s.expires,
		})
		if err != nil {
			return err
		}
		mails[i] = delivery.Reserved{Delivery: s.delivery, TransactionalMail: delivery.TransactionalMail{
			Email: s.Confirm.Email, Contact: s.who, Cause: fmt.Sprintf("submission:%d", s.id),
			Data: map[string]any{spec.VarConfirmURL: fmt.Sprintf("%s/y/%s?s=%d", tx.Tenant.FormURL(fs.cfg.FormURL), tok, s.id)},
		}}
	}
	err = delivery.RequestReserved(ctx, tx, drainer, mails)
	if errors.Is(err, delivery.ErrUnknownEmail) || errors.Is(err, delivery.ErrNotTransactional) || errors.Is(err, delivery.ErrData) {
		err = groupcommit.OfItem(err) // of one form's
	}
	if err != nil {
		return fmt.Errorf("ask for a confirmation: %w", err)
	}
	return nil
}

// askedFor is the topic that a confirmation is about: the first that is asked for and is no tracking.
func (f *form) askedFor() string {
	for _, in := range f.Consents() {
		if !strings.HasPrefix(in.Consent, "tracking.") {
			return in.Consent
		}
	}
	return ""
}
