package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
)

// Previewed is what a preview is made as.
type Previewed struct {
	Contact int64 // 0 for nobody, whose fields all are empty
	Data    map[string]any
	Locale  string // "" for the contact's
	Variant string // "" for the contact's
}

// ErrVariant says that the email has no such variant.
var ErrVariant = errors.New("the email has no such variant")

// Preview is a mail that belongs to no delivery, of an email in force. Its links are plain. For onda email preview and test.
func (c *Composer) Preview(ctx context.Context, tx *postgres.Tx, name string, as Previewed) (*Mail, error) {
	e, err := c.ByName(ctx, tx, name)
	if err != nil {
		return nil, err
	}
	var contacts []int64
	if as.Contact > 0 {
		contacts = []int64{as.Contact}
	}
	a, err := e.Audience(ctx, tx, contacts)
	if err != nil {
		return nil, err
	}
	if as.Contact == 0 {
		a.people[0] = person{address: "somebody@example.com", vars: map[string]any{"email": "somebody@example.com"}}
	}
	m, err := a.Mail(as.Contact, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("preview to contact %d: %w", as.Contact, ErrNobody)
	}
	m.Data, m.person.locale, m.variant = as.Data, cmp.Or(as.Locale, m.person.locale), cmp.Or(as.Variant, m.variant)
	if e.compiled.For("", m.variant) == nil {
		names := make([]string, len(e.spec.Variants))
		for i, v := range e.spec.Variants {
			names[i] = v.Name
		}
		return nil, fmt.Errorf("%w as %q: it has %s", ErrVariant, m.variant, cmp.Or(strings.Join(names, ", "), "none"))
	}
	return m, nil
}

// ErrNobody says that there is no such contact (any more).
var ErrNobody = errors.New("there is no such contact")

// OfDelivery is the mail of a delivery as it would be made now: for the web view. Attachments, and the data of transactional mails, are kept seven days. ErrUnknown
// when there is no such delivery, ErrNobody when its contact was erased.
func (c *Composer) OfDelivery(ctx context.Context, tx *postgres.Tx, id int64) (*Mail, error) {
	var document, run, to, planned int64
	err := tx.QueryRow(ctx, `SELECT b.email, b.run, coalesce(c.merged_into, c.id, 0), b.contacts[$2] FROM batch b LEFT JOIN contact c ON c.id = b.contacts[$2] AND c.erased_at IS NULL
		WHERE b.id = $1 AND b.attempt = 1 AND $2 BETWEEN 1 AND cardinality(b.contacts)`, delivery.BatchOf(id), delivery.Number(id)).Scan(&document, &run, &to, &planned)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("delivery %d: %w", id, ErrUnknown)
	}
	if err != nil {
		return nil, fmt.Errorf("look for delivery %d: %w", id, err)
	}
	if to == 0 {
		return nil, fmt.Errorf("delivery %d: %w", id, ErrNobody)
	}
	e, err := c.Load(ctx, tx, document)
	if err != nil {
		return nil, err
	}
	a, err := e.Audience(ctx, tx, []int64{to})
	if err != nil {
		return nil, err
	}
	m, err := a.Mail(to, id, run)
	if err != nil {
		return nil, fmt.Errorf("delivery %d: %w", id, ErrNobody)
	}
	all, err := e.Data(ctx, tx, []int64{id})
	if err != nil {
		return nil, err
	}
	m.variant = e.spec.VariantOf(planned) // a contact that was merged since keeps what it got
	m.Data, m.Attachments = all[id].Data, all[id].Attachments
	return m, nil
}

// WebView is the HTML of a delivery's mail for a browser.
func (c *Composer) WebView(ctx context.Context, tx *postgres.Tx, id int64) (Content, error) {
	m, err := c.OfDelivery(ctx, tx, id)
	if err != nil {
		return Content{}, err
	}
	return m.Page()
}
