// Package compose makes mails: it turns a version of an Email document and a recipient into a message, with the recipient's fields, signed links and the
// headers that receiving servers expect. It is used wherever a mail is shown: by send, by the web view and by onda email preview.
//
// Invariant: what a mail holds is decided by the version of its email, the recipient and the tenant's link host as they are at that moment and the delivery alone, so
// that the same delivery is the same mail wherever it is made.
package compose

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

// A process keeps so many emails ready, and of those with attachments no more than have so many bytes of them: they are kept as files and as encoded.
const (
	cacheSize     = 256
	cacheAttached = 12 << 20
)

// Errors of loading an email.
var (
	// ErrUnknown says that there is no email of the name or id.
	ErrUnknown = errors.New("there is no such email")
	// ErrBroken says that the stored email cannot be made into mails: it has passed apply, so this is a fault of ours.
	ErrBroken = errors.New("the email cannot be made")
	// ErrPreproduction says that the database is marked as pre-production, and that there is no address to mail instead of the recipient's.
	ErrPreproduction = errors.New("this database is marked as pre-production, where nobody real is mailed: set ONDA_PREPRODUCTION_TO to an address that all mails go to, such as qa@example.com")
)

// Config is what mails need to know of the outside.
type Config struct {
	// LinkURL is where track answers, and where links of mails lead unless the tenant has a link host of its own: https://links.example.com.
	LinkURL string `env:"ONDA_LINK_URL, required"`
	// FormURL is where render-form answers, for links to forms of tenants without a form host of their own.
	FormURL string `env:"ONDA_FORM_URL"`
	// ReturnPathDomain is where bounces go; empty for the domain that a mail is from.
	ReturnPathDomain string `env:"ONDA_RETURN_PATH_DOMAIN"`
	// StandIn is where mails go in a pre-production. Those who send them set it; to others it is nowhere.
	StandIn mail.StandIn
	// References are header fields for the webhooks of the relays' providers. Those who send mails set them.
	References []mail.Reference
}

// Check looks at the link URL: one-click unsubscription works over https only (RFC 8058 section 3.1), but for this machine.
func (c *Config) Check() error {
	u, err := url.Parse(c.LinkURL)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("ONDA_LINK_URL: %q is not a URL such as https://links.example.com", c.LinkURL)
	}
	host := u.Hostname()
	local := host == "localhost" || strings.HasSuffix(host, ".localhost") || strings.HasPrefix(host, "127.") || host == "::1"
	if u.Scheme != "https" && (u.Scheme != "http" || !local) {
		return fmt.Errorf("ONDA_LINK_URL: %q must begin with https: mail programs do not unsubscribe over anything else", c.LinkURL)
	}
	return nil
}

// Composer loads emails and keeps the last ones ready. Safe for concurrent use.
type Composer struct {
	base    string // of links of tenants without a host of their own; no slash at the end
	forms   string // the same of forms; empty where that is not said
	domain  string
	standIn mail.StandIn
	refs    []mail.Reference

	mu    sync.Mutex
	ready map[cacheKey]*Email
}

type cacheKey struct {
	tenant   int32
	document int64
}

// New makes a composer.
func New(cfg Config) *Composer {
	return &Composer{base: strings.TrimRight(cfg.LinkURL, "/"), forms: strings.TrimRight(cfg.FormURL, "/"), domain: cfg.ReturnPathDomain, standIn: cfg.StandIn, refs: cfg.References, ready: map[cacheKey]*Email{}}
}

// Email is a version of an Email document, ready to be rendered. It is not changed after it was made.
type Email struct {
	// Document is the version's id, Name the document's name.
	Document int64
	Name     string
	// Topic is the topic's name; empty for a transactional email.
	Topic         string
	Transactional bool
	// Resend says that a mail whose outcome is unknown is sent again.
	Resend bool
	// Settings are the tenant's, as they were when the email was loaded.
	Settings *spec.Settings

	composer    *Composer
	attachments []mail.Attachment
	spec        *spec.Email
	topic       *spec.Topic
	from        mail.Address
	replyTo     mail.Address
	compiled    *spec.Compiled
	laid        *layouts
	ownTopic    map[string]any // what topicVars gives in the tenant's language
	fields      []string       // of contacts that the texts name
	whole       bool           // the texts take the contact as a whole
	own         bool           // the texts name what else a contact has: its tags and their like
	useData     bool
	needs       []string         // data.* that the texts name
	forms       []string         // that the texts link to, by form_url
	links       map[string]int64 // ids by URL
	sender      sender
	on          versions
}

// versions are the documents that an email depends on besides its own; they may change under it.
type versions struct {
	topic, settings int64
	topicID         int32 // of the topic's entity: its number in tokens
	domains         string
	preproduction   bool
	indexed         bool // see contact.MergesIndexed
}

// ByName loads the version of an email that is in force.
func (c *Composer) ByName(ctx context.Context, tx *postgres.Tx, name string) (*Email, error) {
	var document int64
	err := tx.QueryRow(ctx, "SELECT current FROM entity WHERE kind = 'Email' AND name = $1 AND current IS NOT NULL", name).Scan(&document)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("email %q: %w", name, ErrUnknown)
	}
	if err != nil {
		return nil, fmt.Errorf("look for email %q: %w", name, err)
	}
	return c.Load(ctx, tx, document)
}

// Load loads a version of an email, with the topic and settings that are in force. It is asked once a batch; what has not changed is not read again.
func (c *Composer) Load(ctx context.Context, tx *postgres.Tx, document int64) (*Email, error) {
	key := cacheKey{tx.Tenant.Number, document}
	c.mu.Lock()
	e := c.ready[key]
	c.mu.Unlock()
	if e == nil {
		var err error
		if e, err = c.read(ctx, tx, document); err != nil {
			return nil, err
		}
	}
	on, stored, domains, err := e.dependencies(ctx, tx)
	if err != nil {
		return nil, err
	}
	if e.Settings != nil && on == e.on {
		return e, nil
	}
	made, err := e.with(on, stored)
	if err != nil {
		return nil, fmt.Errorf("email %q, version %d: %w: %w", e.Name, document, ErrBroken, err)
	}
	if made.sender, err = made.readSender(ctx, tx, domains); err != nil {
		return nil, fmt.Errorf("email %q: %w", e.Name, err)
	}
	c.keep(key, made)
	return made, nil
}

func (c *Composer) keep(key cacheKey, e *Email) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ready, key)
	attached := e.attached()
	for _, other := range c.ready {
		attached += other.attached()
	}
	for k, other := range c.ready { // any: which one is the oldest is not worth keeping
		heavy := e.attached() > 0 && attached > cacheAttached && other.attached() > 0
		if heavy || len(c.ready) >= cacheSize {
			delete(c.ready, k)
			attached -= other.attached()
		}
	}
	c.ready[key] = e
}

// attached is how many bytes the email's attachments have.
func (e *Email) attached() (n int) {
	for _, a := range e.attachments {
		n += len(a.Data)
	}
	return n
}

// read reads what belongs to the version itself and never changes.
func (c *Composer) read(ctx context.Context, tx *postgres.Tx, document int64) (*Email, error) {
	e := &Email{Document: document, composer: c, links: map[string]int64{}, laid: newLayouts()}
	var stored, compiled []byte
	err := tx.QueryRow(ctx, `SELECT e.name, d.spec, d.compiled FROM document d JOIN entity e ON e.id = d.entity WHERE d.id = $1 AND e.kind = 'Email'`, document).Scan(&e.Name, &stored, &compiled)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("email with version %d: %w", document, ErrUnknown)
	}
	if err != nil {
		return nil, fmt.Errorf("read email %d: %w", document, err)
	}
	if e.spec, err = spec.DecodeAs[*spec.Email](spec.KindEmail, stored); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	if e.compiled, err = spec.ReadCompiled(compiled); err != nil {
		return nil, fmt.Errorf("email %q, version %d: %w: %w", e.Name, document, ErrBroken, err)
	}
	e.readNames()
	if err := e.readAttachments(ctx, tx); err != nil {
		return nil, fmt.Errorf("read attachments of email %q: %w", e.Name, err)
	}
	e.Topic, e.Transactional, e.Resend = e.spec.Topic, e.spec.Transactional, e.spec.Unknown == spec.UnknownResend
	if e.from, err = mailbox(e.spec.From); err == nil && e.spec.ReplyTo != "" {
		e.replyTo, err = mailbox(e.spec.ReplyTo)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	rows, err := tx.Query(ctx, "SELECT id, url FROM link WHERE document = $1", document)
	if err != nil {
		return nil, fmt.Errorf("read links of email %q: %w", e.Name, err)
	}
	var id int64
	var to string
	if _, err = pgx.ForEachRow(rows, []any{&id, &to}, func() error { e.links[to] = id; return nil }); err != nil {
		return nil, fmt.Errorf("read links of email %q: %w", e.Name, err)
	}
	return e, nil
}

// readAttachments reads the files that go out with every mail.
func (e *Email) readAttachments(ctx context.Context, tx *postgres.Tx) error {
	for _, a := range e.spec.Attachments {
		file := mail.Attachment{Name: a.Name, Type: a.Type, Inline: a.Inline}
		err := tx.QueryRow(ctx, "SELECT content FROM attachment WHERE sha256 = decode($1, 'hex')", a.SHA256).Scan(&file.Data)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("%w: %s is not stored", ErrBroken, a.Name)
		}
		if err != nil {
			return err
		}
		e.attachments = append(e.attachments, file)
	}
	return nil
}

// dependencies gives the versions in force of what the email depends on, with the documents that are not the ones it was made with.
func (e *Email) dependencies(ctx context.Context, tx *postgres.Tx) (on versions, stored map[string][]byte, domains senderdomain.Set, err error) {
	stored = map[string][]byte{}
	b := &pgx.Batch{}
	b.Queue(`SELECT e.kind, e.id, d.id, CASE WHEN d.id IN ($2, $3) THEN NULL ELSE d.spec END FROM entity e JOIN document d ON d.id = e.current
		WHERE e.kind = 'Topic' AND e.name = $1 OR e.kind = 'Settings' AND e.name = 'settings'`,
		e.spec.Topic, e.on.topic, e.on.settings).Query(func(rows pgx.Rows) error {
		var kind string
		var entity int32
		var id int64
		var doc []byte
		_, err := pgx.ForEachRow(rows, []any{&kind, &entity, &id, &doc}, func() error {
			if kind == spec.KindTopic {
				on.topic, on.topicID = id, entity
			} else {
				on.settings = id
			}
			stored[kind] = doc
			doc = nil
			return nil
		})
		return err
	})
	b.Queue(contact.MergesIndexed).QueryRow(func(row pgx.Row) error { return row.Scan(&on.indexed) })
	senderdomain.Queue(tx, b, &domains)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return on, nil, domains, fmt.Errorf("read what email %q depends on: %w", e.Name, err)
	}
	on.domains, on.preproduction = domains.Stamp(), tx.Tenant.Preproduction
	return on, stored, domains, nil
}

// MissingData lists the data.* that the email's texts name and the request does not bring. What is brought may be null, and
// then is empty.
func (e *Email) MissingData(data map[string]any) (missing []string) {
	for _, name := range e.needs {
		var at any = data
		for _, part := range strings.Split(name, ".") {
			m, ok := at.(map[string]any)
			if !ok {
				break // size, first and their like, of a list
			}
			if at, ok = m[part]; !ok {
				missing = append(missing, "data."+name)
				break
			}
		}
	}
	return missing
}
