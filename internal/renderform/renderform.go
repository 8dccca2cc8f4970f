// Package renderform shows forms and takes in what is sent with them: contacts, and consent with its proof.
//
// Invariants: GET and HEAD change nothing; what a form says of somebody who is there already is written only when the address was confirmed, where the form asks for that;
// whether an address is known is told to nobody; one page that is sent twice is one submission; consent is recorded with the very text that was shown.
package renderform

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gabriel-vasile/mimetype"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/groupcommit"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// drainer is who posts the events that a process of this function did not live to post: it takes none itself.
const drainer = "campaign"

// Config is render-form's part of the environment.
type Config struct {
	Postgres postgres.Config
	// FormURL is where the function is reached from outside: it is in the links of confirmation mails, unless the tenant has a form host of its own.
	FormURL string `env:"ONDA_FORM_URL, required"`
	// Proxies is how many proxies stand before the function at the least; each adds an entry to X-Forwarded-For, and those of private networks, as Knative's, are passed over.
	Proxies int `env:"ONDA_PROXIES, default=1"`
	// PerMinute is how many submissions the forms of one tenant take in a minute, over all processes.
	PerMinute int `env:"ONDA_FORM_PER_MINUTE, default=6000"`
}

// Check tells what cannot be.
func (c *Config) Check() error {
	u, err := url.Parse(c.FormURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("ONDA_FORM_URL: %q is not a URL such as https://forms.example.com", c.FormURL)
	}
	if c.PerMinute < 1 {
		return fmt.Errorf("ONDA_FORM_PER_MINUTE: %d is below 1", c.PerMinute)
	}
	if c.Proxies < 0 {
		return fmt.Errorf("ONDA_PROXIES: %d is below 0", c.Proxies)
	}
	return nil
}

// Forms is the function.
type Forms struct {
	cfg   Config
	db    *postgres.DB
	now   func() time.Time
	cache *cache
	limit *limiter
	// bodies bounds what is being read.
	bodies *fn.Bodies
	// uploads bounds what is being read with files in it, and parts that of each tenant; storing is held by who stores such.
	uploads *fn.Bodies
	parts   sync.Map // of uploads, by the tenant's name
	storing chan struct{}
	// together stores what comes at the same time; alone what has to wait for somebody, on a connection of its own.
	together, alone *groupcommit.Committer[*submission]
}

// slots are how many commits of submissions are in flight, each of another tenant. What is left of the connections is for one that waits, for forms and for confirmations.
const slots = 2

// New makes the function on a database; nothing is connected to yet.
func New(cfg Config, db *postgres.DB) *Forms {
	return newForms(cfg, db, time.Now)
}

// newForms is New with a clock: what is kept is as old as that says.
func newForms(cfg Config, db *postgres.DB, now func() time.Time) *Forms {
	cfg.FormURL = strings.TrimRight(cfg.FormURL, "/")
	fs := &Forms{cfg: cfg, db: db, now: now, cache: newCache(db, now), limit: newLimiter(db, now, cfg.PerMinute), bodies: fn.NewBodies(maxBodies)}
	fs.uploads, fs.storing = fn.NewBodies(maxUploads), make(chan struct{}, 1)
	fs.uploads.Time = uploadTime
	mimetype.SetLimit(sniffed)
	fs.together = groupcommit.New(groupcommit.NewRoom(slots), commitMost, (*submission).size, groupcommit.In(db, fs.writeTogether))
	fs.alone = groupcommit.New(groupcommit.NewRoom(1), 1, (*submission).size, groupcommit.In(db, fs.writeAlone))
	return fs
}

// Build is the function render-form. It takes no events, since anyone could post them.
func Build(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
	var cfg Config
	if err := rt.Config(ctx, &cfg); err != nil {
		return fn.Handler{}, err
	}
	db, err := postgres.Open(cfg.Postgres)
	if err != nil {
		return fn.Handler{}, err
	}
	db.Watch(rt.Watch())
	h := fn.Handler{After: rt.Publishes(db), Close: func(context.Context) error { db.Close(); return nil }}
	if h.HTTP, err = New(cfg, db).Handler(); err != nil {
		return fn.Handler{}, err
	}
	return h, nil
}

// errNotFound answers 404.
var errNotFound = errors.New("not found")

// form is a version of a Form document with the fields that it asks for.
type form struct {
	*spec.Form
	entity   int32
	document int64
	version  int32
	tenant   postgres.Tenant
	fields   map[string]*spec.Field
	settings *spec.Settings
	topic    int32 // that a confirmation is about; 0 for none
	lists    *lists
	read     []int64 // the documents of fields, settings and topic
}

// same tells whether two readings of a form show and take in the same.
func (f *form) same(g *form) bool {
	t, u := f.tenant, g.tenant
	return f.document == g.document && slices.Equal(f.read, g.read) && slices.Equal(t.FormHosts, u.FormHosts) && t.Preproduction == u.Preproduction && t.Schema == u.Schema
}

// readForm reads the version of a form that is in force, or the one with that id when document is not 0.
func readForm(ctx context.Context, tx *postgres.Tx, name string, document int64) (*form, error) {
	f := &form{tenant: tx.Tenant, fields: map[string]*spec.Field{}, settings: spec.DefaultSettings()}
	var doc []byte
	err := tx.OnceRow(ctx, `SELECT e.id, d.id, d.version, d.spec FROM entity e JOIN document d ON d.entity = e.id
		WHERE e.kind = $1 AND CASE WHEN $3 > 0 THEN d.id = $3 ELSE e.name = $2 AND d.id = e.current END`, spec.KindForm, name, document).
		Scan(&f.entity, &f.document, &f.version, &doc)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, errNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read a form: %w", err)
	}
	if f.Form, err = spec.DecodeAs[*spec.Form](spec.KindForm, doc); err != nil {
		return nil, err
	}
	for _, b := range spec.BuiltinFields() {
		f.fields[b.Name] = b
	}
	names := []string{spec.LocaleField, "settings"}
	for _, in := range f.Inputs {
		names = append(names, in.Field)
	}
	rows, err := tx.Once(ctx, `SELECT e.kind, e.id, d.id, d.spec FROM entity e JOIN document d ON d.id = e.current
		WHERE e.kind IN ($1, $2) AND e.name = ANY ($3) OR e.kind = $4 AND e.name = $5 ORDER BY d.id`, spec.KindField, spec.KindSettings, names, spec.KindTopic, f.askedFor())
	if err != nil {
		return nil, fmt.Errorf("read the fields of a form: %w", err)
	}
	var kind string
	var entity int32
	var id int64
	_, err = pgx.ForEachRow(rows, []any{&kind, &entity, &id, &doc}, func() error {
		f.read = append(f.read, id)
		if kind == spec.KindTopic {
			f.topic = entity
			return nil
		}
		d, err := spec.Decode(kind, doc)
		switch d := d.(type) {
		case *spec.Field:
			f.fields[d.Name] = d
		case *spec.Settings:
			f.settings = d
		}
		doc = nil
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the fields of a form: %w", err)
	}
	return f, nil
}

// within is a visit; there is no page of a tenant that is unknown here.
func within(ctx context.Context, db *postgres.DB, tenant string, f func(ctx context.Context, tx *postgres.Tx) error) error {
	err := db.Visit(ctx, tenant, f)
	if errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) {
		return errNotFound
	}
	return err
}
