package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// ErrNotFound says that there is no campaign, run or document of that name.
var ErrNotFound = errors.New("not found")

// cachedDocuments bounds how many decoded versions a process keeps, over all tenants.
const cachedDocuments = 512

// version is one version of a document, decoded. It never changes.
type version struct {
	id     int64
	entity int32
	number int
	name   string
	doc    spec.Doc
	flow   *spec.Flow // of a campaign
}

func (v *version) campaign() *spec.Campaign {
	c, _ := v.doc.(*spec.Campaign)
	return c
}

func (v *version) broadcast() *spec.Broadcast {
	b, _ := v.doc.(*spec.Broadcast)
	return b
}

// documents decodes versions and keeps them: a version is immutable, so what was decoded once is right for ever. A nil *documents decodes each time.
type documents struct {
	mu   sync.Mutex
	kept map[versionKey]*version
}

type versionKey struct {
	tenant int32
	id     int64
}

func (d *documents) get(key versionKey) *version {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept[key]
}

func (d *documents) keep(key versionKey, v *version) {
	if d == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept == nil || len(d.kept) >= cachedDocuments {
		d.kept = map[versionKey]*version{}
	}
	d.kept[key] = v
}

// load gives a version by its document id.
func (d *documents) load(ctx context.Context, tx *postgres.Tx, id int64) (*version, error) {
	key := versionKey{tx.Tenant.Number, id}
	if v := d.get(key); v != nil {
		return v, nil
	}
	var kind string
	var stored []byte
	v := &version{id: id}
	err := tx.QueryRow(ctx, `SELECT e.kind, e.id, e.name, d.version, d.spec FROM document d JOIN entity e ON e.id = d.entity WHERE d.id = $1`, id).
		Scan(&kind, &v.entity, &v.name, &v.number, &stored)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("document %d: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read document %d: %w", id, err)
	}
	if v.doc, err = spec.Decode(kind, stored); err != nil {
		return nil, fmt.Errorf("document %d: %w", id, err)
	}
	if c := v.campaign(); c != nil {
		v.flow = c.Flow()
	}
	d.keep(key, v)
	return v, nil
}

// current gives the version in force of a document, by kind and name. ErrNotFound where there is none, or where it was taken away.
func (d *documents) current(ctx context.Context, tx *postgres.Tx, kind, name string) (*version, error) {
	var id int64
	err := tx.QueryRow(ctx, "SELECT current FROM entity WHERE kind = $1 AND name = $2 AND current IS NOT NULL", kind, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%s %s: %w", strings.ToLower(kind), name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("look for %s %s: %w", strings.ToLower(kind), name, err)
	}
	return d.load(ctx, tx, id)
}

// email gives the document id of an email to be sent now: the version in force, or the last one of an email that was taken away while an older
// version of a campaign still sends it.
func email(ctx context.Context, tx *postgres.Tx, name string) (int64, error) {
	var id int64
	err := tx.QueryRow(ctx, `SELECT d.id FROM entity e JOIN document d ON d.entity = e.id WHERE e.kind = $1 AND e.name = $2
		ORDER BY d.id = e.current DESC NULLS LAST, d.version DESC LIMIT 1`, spec.KindEmail, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, fmt.Errorf("email %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("look for email %s: %w", name, err)
	}
	return id, nil
}

// settings are the tenant's, or the defaults where it has none.
func (d *documents) settings(ctx context.Context, tx *postgres.Tx) (*spec.Settings, error) {
	v, err := d.current(ctx, tx, spec.KindSettings, "settings")
	if errors.Is(err, ErrNotFound) {
		return spec.DefaultSettings(), nil
	}
	if err != nil {
		return nil, err
	}
	s, ok := v.doc.(*spec.Settings)
	if !ok {
		return nil, fmt.Errorf("settings: the document is a %T", v.doc)
	}
	return s, nil
}
