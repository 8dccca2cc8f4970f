package track

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

// proofKeep is how long the hashed address of origin stays with an entry of the ledger.
const proofKeep = 2 * 365 * 24 * time.Hour

// person is who a token of a mail is about.
type person struct {
	contact int64 // 0: erased, or never there
	address string
	brand   string
	theme   spec.Theme
	locale  string         // of the tenant
	zone    *time.Location // the person's own, or the tenant's
}

// readPerson follows merges. Its address is shown in part only, since a link may have been passed on.
func readPerson(ctx context.Context, tx *postgres.Tx, id int64) (person, error) {
	settings, err := contact.Settings(ctx, tx)
	if err != nil {
		return person{}, err
	}
	p := person{brand: settings.Title, theme: settings.Theme, locale: settings.Locale}
	var email, zone string
	err = tx.QueryRow(ctx, `SELECT t.id, coalesce(t.email, ''), coalesce(t.fields->>$2, '') FROM contact c JOIN contact t ON t.id = coalesce(c.merged_into, c.id) WHERE c.id = $1 AND t.erased_at IS NULL`, id, spec.ZoneField).
		Scan(&p.contact, &email, &zone)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return p, fmt.Errorf("look for the contact of a token: %w", err)
	}
	p.address = page.Mask(email)
	p.zone = spec.ZoneContact.Location(zone, settings.Location())
	return p, nil
}

// topic is one that a person may have subscribed to.
type topic struct {
	id    int32
	name  string
	doc   *spec.Topic // nil: taken away
	state contact.State
}

// title gives how the topic is called in a language.
func (t topic) title(lang, fallback string) string {
	if t.doc == nil {
		return t.name
	}
	return t.doc.TitleIn(lang, fallback)
}

func (t topic) description(lang, fallback string) string {
	if t.doc == nil {
		return ""
	}
	return t.doc.DescriptionIn(lang, fallback)
}

// readTopics reads all topics, and how the contact stands to them.
func readTopics(ctx context.Context, tx *postgres.Tx, id int64) ([]topic, error) {
	rows, err := tx.Query(ctx, `SELECT e.id, e.name, d.spec, coalesce(s.state, '') FROM entity e LEFT JOIN document d ON d.id = e.current
		LEFT JOIN subscription s ON s.contact = $2 AND s.purpose = e.name WHERE e.kind = $1 ORDER BY e.name`, spec.KindTopic, id)
	if err != nil {
		return nil, fmt.Errorf("read topics: %w", err)
	}
	var out []topic
	var t topic
	var doc []byte
	_, err = pgx.ForEachRow(rows, []any{&t.id, &t.name, &doc, &t.state}, func() (err error) {
		t.doc = nil
		if doc != nil {
			t.doc, err = spec.DecodeAs[*spec.Topic](spec.KindTopic, doc)
		}
		doc = nil
		out = append(out, t)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read topics: %w", err)
	}
	return out, nil
}

// isOn tells whether a state is one that somebody can leave.
func isOn(s contact.State) bool { return s == contact.Granted || s == contact.Pending }

// leaving is what the unsubscribe page says.
type leaving struct {
	person
	topic string // its title; empty for all
	p     string // token of the preference centre
}

// readLeaving reads what the unsubscribe page shows.
func readLeaving(ctx context.Context, tx *postgres.Tx, c token.Claims, lang string) (leaving, error) {
	p, err := readPerson(ctx, tx, c.Contact)
	if err != nil {
		return leaving{}, err
	}
	l := leaving{person: p}
	if c.Topic != 0 {
		topics, err := readTopics(ctx, tx, p.contact)
		if err != nil {
			return leaving{}, err
		}
		if i := slices.IndexFunc(topics, func(t topic) bool { return t.id == c.Topic }); i >= 0 {
			l.topic = topics[i].title(lang, p.locale)
		}
	}
	keys, err := tx.Keys(ctx)
	if err != nil {
		return leaving{}, err
	}
	if l.p, err = token.Sign(keys.Signing, token.Claims{Purpose: token.Preferences, Tenant: tx.Tenant.Number, Contact: c.Contact, Topic: c.Topic}); err != nil {
		return leaving{}, err
	}
	return l, nil
}

// unsubscribe withdraws consent to the token's topic, or to all. To do it again changes nothing.
func (t *Tracker) unsubscribe(ctx context.Context, tx *postgres.Tx, c token.Claims, origin []byte) error {
	// Before it is looked for: whose time to confirm is over may be deleted at this moment, and the ledger would be of nobody.
	if err := contact.Lock(ctx, tx, []int64{c.Contact}); err != nil {
		return err
	}
	p, err := readPerson(ctx, tx, c.Contact)
	if err != nil || p.contact == 0 {
		return err
	}
	topics, err := readTopics(ctx, tx, p.contact)
	if err != nil {
		return err
	}
	var leave []string
	for _, tp := range topics {
		if tp.id == c.Topic || c.Topic == 0 && isOn(tp.state) {
			leave = append(leave, tp.name)
		}
	}
	return t.withdraw(ctx, tx, p.contact, leave, "unsubscribe", origin)
}

// withdraw records withdrawals, and counts it as one unsubscribe when something changed.
func (t *Tracker) withdraw(ctx context.Context, tx *postgres.Tx, id int64, purposes []string, basis string, origin []byte) error {
	entries := make([]contact.Consent, len(purposes))
	for i, p := range purposes {
		entries[i] = contact.Consent{Contact: id, Purpose: p, State: contact.Withdrawn, Basis: basis, Origin: origin, OriginUntil: tx.Now().Add(proofKeep)}
	}
	done, err := contact.Record(ctx, tx, "track", entries...)
	if err != nil {
		return err
	}
	return delivery.Unsubscribed(ctx, tx, id, contact.ChangedIDs(done))
}

// choice is one line of the preference centre.
type choice struct {
	Name, Title, Description string
	On                       bool
	state                    contact.State
}

// preferences is what the preference centre shows.
type preferences struct {
	person
	topics  []choice
	privacy []choice
	wishes  *contact.Wishes // nil before their migration
}

// readPreferences reads the public topics, those that the contact can leave, how it stands to the purposes of privacy, whose texts are given, and what else it wishes.
func readPreferences(ctx context.Context, tx *postgres.Tx, c token.Claims, lang string, privacy []choice) (preferences, error) {
	p, err := readPerson(ctx, tx, c.Contact)
	if err != nil || p.contact == 0 {
		return preferences{person: p}, err
	}
	out := preferences{person: p}
	topics, err := readTopics(ctx, tx, p.contact)
	if err != nil {
		return out, err
	}
	for _, t := range topics {
		if t.doc != nil && t.doc.Public || isOn(t.state) {
			out.topics = append(out.topics, choice{t.name, t.title(lang, p.locale), t.description(lang, p.locale), t.state == contact.Granted, t.state})
		}
	}
	mode, err := contact.Tracking(ctx, tx, []int64{p.contact})
	if err != nil {
		return out, err
	}
	for _, choice := range privacy {
		err := tx.QueryRow(ctx, "SELECT coalesce((SELECT state FROM subscription WHERE contact = $1 AND purpose = $2), '')", p.contact, choice.Name).Scan(&choice.state)
		if err != nil {
			return out, fmt.Errorf("read consent to tracking: %w", err)
		}
		choice.On = choice.state == contact.Granted
		if choice.Name == contact.TrackingEmail { // which has a default
			choice.On = mode[p.contact] == contact.Full
		}
		out.privacy = append(out.privacy, choice)
	}
	if tx.Tenant.Schema < contact.WishesSchema {
		return out, nil
	}
	var until *time.Time
	var frequency *string
	if err := tx.QueryRow(ctx, "SELECT "+contact.WishesSQL("c")+" FROM contact c WHERE id = $1", p.contact).Scan(&until, &frequency); err != nil {
		return out, fmt.Errorf("read what a contact wishes: %w", err)
	}
	wishes := contact.WishesOf(until, frequency)
	if !tx.Now().Before(wishes.PausedUntil) {
		wishes.PausedUntil = time.Time{}
	}
	out.wishes = &wishes
	return out, nil
}

// longestPause is how many days a pause may have: who wants none for longer leaves.
const longestPause = 366

// pauseOf reads a date, from whose beginning where the person is mails may come again. One that has come already is none.
func pauseOf(date string, now time.Time, zone *time.Location) (until time.Time, ok bool) {
	if date == "" {
		return time.Time{}, true
	}
	until, err := time.ParseInLocation(time.DateOnly, date, zone)
	if err != nil || until.After(now.AddDate(0, 0, longestPause)) {
		return time.Time{}, false
	}
	if !now.Before(until) {
		return time.Time{}, true
	}
	return until, true
}

// answers are what was ticked of what was shown.
type answers struct {
	shown, ticked []string // names of topics and of purposes of privacy
	everythingOff bool     // whatever is shown or ticked
	privacy       []choice // as they were shown
	wished        bool     // the next two were shown
	pause         string   // a date
	frequency     string
	lang          string
	origin        []byte
}

// fill puts what was answered, as far as it can be shown, in the place of what is stored.
func (a answers) fill(p *preferences) {
	for _, lines := range [][]choice{p.topics, p.privacy} {
		for i, line := range lines {
			if slices.Contains(a.shown, line.Name) {
				lines[i].On = slices.Contains(a.ticked, line.Name)
			}
		}
	}
	if !a.wished || p.wishes == nil {
		return
	}
	if frequency, known := contact.ParseFrequency(a.frequency); known {
		p.wishes.Frequency = frequency
	}
	p.wishes.PausedUntil, _ = time.ParseInLocation(time.DateOnly, a.pause, p.zone) // no date at all: no input can show it
}

// How saving the preferences ended.
type saved string

const (
	savedAll    saved = "all"
	savedPartly saved = "partly" // a complaint is in the way of the rest
	savedNone   saved = "none"   // the date of a pause is none, or too far away
)

// choose writes what was changed: consent into the ledger, with the text that was shown as proof.
func (t *Tracker) choose(ctx context.Context, tx *postgres.Tx, c token.Claims, a answers) (saved, error) {
	if err := contact.Lock(ctx, tx, []int64{c.Contact}); err != nil { // as unsubscribe does
		return savedNone, err
	}
	now, err := readPreferences(ctx, tx, c, a.lang, a.privacy)
	if err != nil || now.contact == 0 {
		return savedNone, err
	}
	if a.wished && now.wishes != nil && !a.everythingOff {
		until, ok := pauseOf(a.pause, tx.Now(), now.zone)
		frequency, known := contact.ParseFrequency(a.frequency)
		if !ok || !known {
			return savedNone, nil
		}
		if err := contact.SetWishes(ctx, tx, now.contact, contact.Wishes{PausedUntil: until, Frequency: frequency}); err != nil {
			return savedNone, err
		}
	}
	var grants []contact.Consent
	var leave []string
	for _, line := range slices.Concat(now.topics, now.privacy) {
		switch {
		case a.everythingOff:
			// Tracking is refused for good, where a tenant's default is to do it too; of topics, what nobody asked for need not be withdrawn.
			if isOn(line.state) || line.state == "" && strings.HasPrefix(line.Name, "tracking.") {
				leave = append(leave, line.Name)
			}
		case !slices.Contains(a.shown, line.Name):
		case !slices.Contains(a.ticked, line.Name):
			if line.On || isOn(line.state) {
				leave = append(leave, line.Name)
			}
		case !line.On:
			text := strings.TrimSpace(line.Title + "\n" + line.Description)
			sum := sha256.Sum256([]byte(text))
			grants = append(grants, contact.Consent{
				Contact: now.contact, Purpose: line.Name, State: contact.Granted, Basis: "preferences", Origin: a.origin, OriginUntil: tx.Now().Add(proofKeep),
				Proof: map[string]any{"page": "preferences", "lang": a.lang, "text": text, "sha256": hex.EncodeToString(sum[:])},
			})
		}
	}
	done, err := contact.Record(ctx, tx, "track", grants...)
	if err != nil {
		return savedNone, err
	}
	how := savedAll
	if slices.ContainsFunc(done, func(d contact.Recorded) bool { return d.Refused != "" }) {
		how = savedPartly
	}
	return how, t.withdraw(ctx, tx, now.contact, leave, "preferences", a.origin)
}
