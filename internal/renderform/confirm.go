package renderform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

// opting is what the confirmation page shows.
type opting struct {
	form    *form
	state   string // pending, confirmed, or expired
	address string // in part
	topics  []string
}

// find reads what a link of a confirmation mail is about. submission is from the link, too: the token says whose it is, and of which version of which form. 0 is the last one.
// lock is how its row is locked; empty for not at all.
func find(ctx context.Context, tx *postgres.Tx, c token.Claims, submission int64, lang, lock string) (o opting, id, who int64, e entry, err error) {
	if o.form, err = readForm(ctx, tx, "", int64(c.Form)); err != nil {
		return o, 0, 0, e, err
	}
	o.state = "expired"
	var email string
	var data []byte
	err = tx.QueryRow(ctx, `SELECT s.id, s.state, s.data, t.id, coalesce(t.email, '') FROM submission s JOIN contact c ON c.id = s.contact JOIN contact t ON t.id = coalesce(c.merged_into, c.id)
		WHERE s.contact = $1 AND s.document = $2 AND ($3 = 0 OR s.id = $3) AND s.state IN ('pending', 'confirmed') AND t.erased_at IS NULL ORDER BY s.id DESC LIMIT 1`+lock,
		c.Contact, int64(c.Form), submission).Scan(&id, &o.state, &data, &who, &email)
	if errors.Is(err, pgx.ErrNoRows) {
		return o, 0, 0, e, nil
	}
	if err != nil {
		return o, 0, 0, e, fmt.Errorf("look for a submission: %w", err)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return o, 0, 0, e, fmt.Errorf("read submission %d: %w", id, err)
	}
	if o.state == "pending" && c.Expired(tx.Now()) {
		o.state = "expired"
	}
	o.address = page.Mask(email)
	for _, g := range e.Consents {
		if strings.HasPrefix(g.Purpose, "tracking.") {
			continue
		}
		title, err := topicTitle(ctx, tx, g.Purpose, lang, o.form.settings.Locale)
		if err != nil {
			return o, 0, 0, e, err
		}
		o.topics = append(o.topics, title)
	}
	return o, id, who, e, nil
}

// confirm puts a pending submission in force: all of it in one transaction. One that is confirmed already stays as it is.
func confirm(ctx context.Context, tx *postgres.Tx, c token.Claims, number int64, lang string, origin []byte) (opting, error) {
	// Before it is looked for: whose time to confirm is over may be deleted at this moment, and the ledger would be of nobody.
	if err := contact.Lock(ctx, tx, []int64{c.Contact}); err != nil {
		return opting{}, err
	}
	o, id, who, e, err := find(ctx, tx, c, number, lang, " FOR UPDATE OF s")
	if err != nil || o.state != "pending" {
		return o, err
	}
	if _, err := tx.Exec(ctx, "UPDATE submission SET state = 'confirmed', confirmed_at = onda.now(), expires_at = 'infinity' WHERE id = $1", id); err != nil {
		return o, fmt.Errorf("confirm submission %d: %w", id, err)
	}
	one := []*submission{{form: o.form, origin: origin, entry: e, id: id, who: who}}
	if err := applyEntries(ctx, tx, one); err != nil {
		return o, err
	}
	if err := record(ctx, tx, one, true); err != nil {
		return o, err
	}
	if err := act(ctx, tx, one, func(f *form) []spec.Step { return f.Confirmed }); err != nil {
		return o, err
	}
	o.state = "confirmed"
	return o, tell(ctx, tx, "form.confirmed", one)
}

func topicTitle(ctx context.Context, tx *postgres.Tx, name, lang, fallback string) (string, error) {
	var doc []byte
	err := tx.QueryRow(ctx, "SELECT d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = $1 AND e.name = $2", spec.KindTopic, name).Scan(&doc)
	if errors.Is(err, pgx.ErrNoRows) {
		return name, nil
	}
	if err != nil {
		return "", fmt.Errorf("read a topic: %w", err)
	}
	t, err := spec.DecodeAs[*spec.Topic](spec.KindTopic, doc)
	if err != nil {
		return "", err
	}
	return t.TitleIn(lang, fallback), nil
}
