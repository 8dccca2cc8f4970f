package renderform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
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
)

// errLimit says that too much came from one origin.
var errLimit = errors.New("too many submissions from one origin")

// sent is how a submission came in.
type sent struct {
	origin []byte
	once   []byte // of the page; nil for none
}

// count refuses an origin that sent more than the form takes in the time it names.
func (f *form) count(ctx context.Context, tx *postgres.Tx, origin []byte) error {
	limit := f.Protect.PerAddress
	if limit.Count == 0 || origin == nil {
		return nil
	}
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%s %d ", tx.Tenant.Name, f.entity)
	_, _ = h.Write(origin)
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", rateLock, int32(h.Sum32())); err != nil {
		return fmt.Errorf("count submissions: %w", err)
	}
	var n int
	err := tx.QueryRow(ctx, "SELECT count(*) FROM submission WHERE form = $1 AND origin = $2 AND at > $3", f.entity, origin, tx.Now().Add(-limit.Per)).Scan(&n)
	if err != nil {
		return fmt.Errorf("count submissions: %w", err)
	}
	if n >= limit.Count {
		return errLimit
	}
	return nil
}

// repeated tells whether the page was sent in before.
func repeated(ctx context.Context, tx *postgres.Tx, once []byte) (is bool, err error) {
	if once == nil {
		return false, nil
	}
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM submission WHERE once = $1)", once).Scan(&is); err != nil {
		return false, fmt.Errorf("look for an earlier submission: %w", err)
	}
	return is, nil
}

// insert stores a submission. id is 0 when the page was sent in at the same time by another request.
func (f *form) insert(ctx context.Context, tx *postgres.Tx, s sent, who int64, state, reason string, data any, expires time.Time) (id int64, err error) {
	body, err := json.Marshal(data)
	if err != nil {
		return 0, fmt.Errorf("encode a submission: %w", err)
	}
	keep := f.Keep
	if keep.IsZero() {
		keep = f.settings.Retention.Submissions
	}
	var until *time.Time
	if !keep.IsZero() {
		t := keep.AddTo(tx.Now(), f.settings.Location())
		until = &t
	}
	var expiry *time.Time
	if !expires.IsZero() {
		expiry = &expires
	}
	err = tx.QueryRow(ctx, `INSERT INTO submission (form, document, contact, state, reason, once, data, origin, expires_at, keep_until)
		VALUES ($1, $2, nullif($3::bigint, 0), $4, $5, $6, $7, $8, coalesce($9, 'infinity'::timestamptz), coalesce($10, 'infinity'::timestamptz)) ON CONFLICT (once) DO NOTHING RETURNING id`,
		f.entity, f.document, who, state, reason, s.once, body, s.origin, expiry, until).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("store a submission: %w", err)
	}
	for _, t := range []*time.Time{until, expiry} {
		if t != nil {
			tx.Wake(drainer, *t) // campaign forgets
		}
	}
	return id, nil
}

// reject keeps that somebody was kept out, and why; nothing of what they sent.
func (f *form) reject(ctx context.Context, tx *postgres.Tx, s sent, reason string) error {
	id, err := f.insert(ctx, tx, s, 0, "rejected", reason, struct{}{}, time.Time{})
	if err != nil || id == 0 {
		return err
	}
	return f.tell(ctx, tx, "form.rejected", id, 0, reason)
}

// submit takes in an entry that was checked. With a confirmation it is pending, and whoever has the address is asked; else it takes effect at once. A repeat
// changes nothing.
func (fs *Forms) submit(ctx context.Context, tx *postgres.Tx, f *form, e entry, s sent) error {
	// Nobody else's words are overwritten by what a form says of a contact that it makes.
	rows, err := contact.Upsert(ctx, tx, drainer, []contact.Row{{Email: e.email, Fields: f.firstFields(e), OnlyNew: true}}, "form "+f.Name)
	if err == nil {
		err = rows[0].Err
	}
	if err != nil {
		return err
	}
	who := rows[0].Contact
	state, expires := "done", time.Time{}
	if f.Confirm != nil {
		state = "pending"
		expires = f.Confirm.Expires.AddTo(tx.Now(), f.settings.Location()).UTC()
		if whole := expires.Truncate(time.Hour); whole.Before(expires) {
			expires = whole.Add(time.Hour) // as the token has it
		}
	}
	if !expires.IsZero() { // without a confirmation by then a contact that the form made goes; one who is asked once more has as long anew
		if _, err := tx.Exec(ctx, "UPDATE contact SET expires_at = $2 WHERE id = $1 AND ($3 OR expires_at < $2)", who, expires, rows[0].Made); err != nil {
			return fmt.Errorf("mark a contact as unconfirmed: %w", err)
		}
	}
	id, err := f.insert(ctx, tx, s, who, state, "", e, expires)
	if err != nil || id == 0 {
		return err
	}
	consent := contact.Pending
	if f.Confirm == nil {
		consent = contact.Granted
		if err := f.apply(ctx, tx, who, e, id); err != nil {
			return err
		}
	}
	if err := f.record(ctx, tx, who, e, consent, id, s.origin, false); err != nil {
		return err
	}
	if err := f.act(ctx, tx, who, f.Submitted, id); err != nil {
		return err
	}
	if err := f.tell(ctx, tx, "form.submitted", id, who, ""); err != nil {
		return err
	}
	if f.Confirm == nil {
		return nil
	}
	return fs.ask(ctx, tx, f, who, id, expires)
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

// apply writes the fields of an entry that is in force, and who the visitor is.
func (f *form) apply(ctx context.Context, tx *postgres.Tx, who int64, e entry, submission int64) error {
	if err := contact.Update(ctx, tx, drainer, []int64{who}, contact.Change{Fields: e.Fields}, "submission "+strconv.FormatInt(submission, 10)); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE contact SET expires_at = NULL WHERE id = $1 AND expires_at IS NOT NULL", who); err != nil {
		return fmt.Errorf("mark a contact as confirmed: %w", err)
	}
	if e.Visitor == "" {
		return nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO visitor AS v (key, contact) VALUES ($1, $2)
		ON CONFLICT (key) DO UPDATE SET contact = excluded.contact, last_at = onda.now()`, e.Visitor, who)
	if err != nil {
		return fmt.Errorf("attach a visitor: %w", err)
	}
	return nil
}

// record writes the consents of an entry into the ledger, with their proof.
func (f *form) record(ctx context.Context, tx *postgres.Tx, who int64, e entry, state contact.State, submission int64, origin []byte, confirmed bool) error {
	entries := make([]contact.Consent, len(e.Consents))
	for i, c := range e.Consents {
		entries[i] = contact.Consent{
			Contact: who, Purpose: c.Purpose, State: state, Basis: "form", Origin: origin, OriginUntil: tx.Now().Add(proofKeep),
			Proof: map[string]any{
				"form": f.Name, "version": f.version, "document": f.document, "submission": submission, "lang": e.Lang, "text": c.Text, "sha256": c.SHA256, "confirmed": confirmed,
			},
		}
	}
	_, err := contact.Record(ctx, tx, drainer, entries...)
	return err
}

// act does the actions of a form.
func (f *form) act(ctx context.Context, tx *postgres.Tx, who int64, steps []spec.Step, submission int64) error {
	cause := "submission " + strconv.FormatInt(submission, 10)
	for _, s := range steps {
		var err error
		switch {
		case s.Tag != nil:
			err = contact.Update(ctx, tx, drainer, []int64{who}, contact.Change{AddTags: s.Tag.Add, RemoveTags: s.Tag.Remove}, cause)
		case s.Set != nil:
			fields := map[string]any{}
			for _, a := range s.Set {
				fields[a.Field] = a.Value
			}
			err = contact.Update(ctx, tx, drainer, []int64{who}, contact.Change{Fields: fields}, cause)
		case s.Enter != nil:
			err = tx.AddFacts(ctx, postgres.Fact{
				Kind: "campaign.enter", Name: s.Enter.Campaign, Contact: who, Data: fmt.Appendf(nil, `{"submission":%d}`, submission),
			})
		default:
			err = fmt.Errorf("a form cannot do %q", s.Action())
		}
		if err != nil {
			return fmt.Errorf("action %s of form %s: %w", s.Node(), f.Name, err)
		}
	}
	return nil
}

// tell writes a fact about a submission and rings its doorbell.
func (f *form) tell(ctx context.Context, tx *postgres.Tx, kind string, submission, who int64, reason string) error {
	err := tx.AddFacts(ctx, postgres.Fact{Kind: kind, Name: f.Name, Contact: who, Data: fmt.Appendf(nil, `{"submission":%d}`, submission)})
	if err != nil {
		return err
	}
	items := event.Submissions{Items: []event.Submission{{Form: f.Name, Submission: submission, Contact: who, Reason: reason}}}
	var data event.Data
	switch kind {
	case "form.submitted":
		data = event.FormSubmitted{Submissions: items}
	case "form.confirmed":
		data = event.FormConfirmed{Submissions: items}
	default:
		data = event.FormRejected{Submissions: items}
	}
	id := event.DeriveID(tx.Tenant.Name, kind, strconv.FormatInt(submission, 10))
	e, err := event.New(tx.Tenant.Name, "render-form", strconv.FormatInt(submission, 10), id, data)
	if err != nil {
		return err
	}
	return tx.Publish(ctx, drainer, e)
}

// ask sends the mail with the link that confirms this very submission.
func (fs *Forms) ask(ctx context.Context, tx *postgres.Tx, f *form, who, id int64, expires time.Time) error {
	named := ""
	for _, in := range f.Consents() {
		if !strings.HasPrefix(in.Consent, "tracking.") {
			named = in.Consent
			break
		}
	}
	var asked int
	var topic int32
	err := tx.QueryRow(ctx, `SELECT (SELECT count(*) FROM submission WHERE contact = $1 AND form = $2 AND delivery IS NOT NULL AND at > onda.now() - interval '1 day'),
		(SELECT coalesce(max(id), 0) FROM entity WHERE kind = $3 AND name = $4)`, who, f.entity, spec.KindTopic, named).Scan(&asked, &topic)
	if err != nil {
		return fmt.Errorf("count confirmation mails: %w", err)
	}
	if asked >= maxConfirmations {
		return nil
	}
	keys, err := tx.Keys(ctx)
	if err != nil {
		return err
	}
	key, ok := keys.Tokens.Current()
	if !ok {
		return errors.New("the tenant has no key to sign with")
	}
	tok, err := token.Sign(key, token.Claims{
		Purpose: token.Confirm, Tenant: tx.Tenant.Number, Contact: who, Topic: topic, Form: int32(f.document), Expires: expires,
	})
	if err != nil {
		return err
	}
	sent, _, err := delivery.Request(ctx, tx, drainer, delivery.TransactionalMail{
		Email: f.Confirm.Email, Contact: who, Key: fmt.Sprintf("form:%d", id), Cause: fmt.Sprintf("submission:%d", id),
		Data: map[string]any{spec.VarConfirmURL: fmt.Sprintf("%s/y/%s?s=%d", tx.Tenant.FormURL(fs.cfg.FormURL), tok, id)},
	})
	if err != nil {
		return fmt.Errorf("ask for a confirmation: %w", err)
	}
	if _, err := tx.Exec(ctx, "UPDATE submission SET delivery = $2 WHERE id = $1", id, sent); err != nil {
		return fmt.Errorf("note the confirmation mail: %w", err)
	}
	return nil
}
