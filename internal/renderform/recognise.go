package renderform

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

const (
	// tokenQuery is where a link in a mail says whose it is: with a token of the preference centre. tokenInput is how the page passes it on.
	tokenQuery = "p"
	tokenInput = "onda_contact"
)

// recognised is a contact whose token somebody has: the contact, or whoever got the mail from them. nil for a stranger.
type recognised struct {
	email  string
	fields map[string]any // what is known of the fields of the form
}

// recognise gives the contact of a token. Whatever is wrong with it, who comes is a stranger.
func (s *server) recognise(ctx context.Context, f *form, tok string) (*recognised, error) {
	c, err := token.Peek(tok, token.Preferences)
	if err != nil || c.Tenant != f.tenant.Number {
		return nil, nil
	}
	keys, err := s.db.Keys(ctx, f.tenant.Name)
	if err != nil {
		return nil, err
	}
	if c, err = keys.Verifier.Verify(tok, token.Preferences, s.now()); err != nil {
		return nil, nil
	}
	who := &recognised{fields: map[string]any{}}
	var stored []byte
	err = within(ctx, s.db, f.tenant.Name, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, `SELECT t.email, t.fields FROM contact c JOIN contact t ON t.id = coalesce(c.merged_into, c.id)
			WHERE c.id = $1 AND t.erased_at IS NULL AND t.email IS NOT NULL`, c.Contact).Scan(&who.email, &stored)
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	var all map[string]any
	if err == nil {
		err = json.Unmarshal(stored, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("read the contact of a token: %w", err)
	}
	for _, in := range f.Inputs {
		if fd := f.fields[in.Field]; fd != nil && in.Field != "email" {
			if v, err := fieldvalue.FromJSON(fd, all[in.Field]); err == nil && v != nil {
				who.fields[in.Field] = v
			}
		}
	}
	who.fields["email"] = who.email
	return who, nil
}

// meant gives who a submission is of: the contact who was recognised, or a stranger, where another address was given.
func (f *form) meant(who *recognised, values url.Values) *recognised {
	if who == nil || slices.ContainsFunc(f.Inputs, func(in spec.Input) bool { return in.Field == "email" && who.hides(in) }) {
		return who
	}
	if address, err := contact.Normalise(values.Get("email")); err == nil && address != who.email {
		return nil
	}
	return who
}

// hides tells whether an input need not be shown, since the answer is known.
func (who *recognised) hides(in spec.Input) bool {
	return who != nil && in.HideWhenKnown && who.fields[in.Field] != nil
}

// tells tells whether the page may say what is known of a field: a link can be passed on, and then nothing personal is told to who has it.
func (f *form) tells(field string) bool {
	fd := f.fields[field]
	return fd != nil && !fd.Personal
}

// unknowable tells whether a condition hangs on what is known and not told: its input is shown, and asked of nobody.
func (f *form) unknowable(who *recognised, fields []string) bool {
	return slices.ContainsFunc(f.Inputs, func(in spec.Input) bool {
		return who.hides(in) && slices.Contains(fields, in.Field) && (!f.tells(in.Field) || f.fields[in.Field].Type == spec.TypeMultiselect)
	})
}

// shownTo gives the form as a contact sees it who was recognised: without the inputs whose answer is known. What conditions of others need of those, and may be told, is hidden.
func (f *form) shownTo(who *recognised, now time.Time) *form {
	if who == nil {
		return f
	}
	g, doc := *f, *f.Form
	g.Form, doc.Inputs = &doc, nil
	conditions := f.conditions(now)
	for _, in := range f.Inputs {
		if who.hides(in) {
			if !f.tells(in.Field) || f.fields[in.Field].Type == spec.TypeMultiselect {
				continue
			}
			in = spec.Input{Hidden: in.Field}
		}
		if f.unknowable(who, conditions[in.Key()].Fields()) {
			in.ShowIf, in.Required = nil, false
		}
		doc.Inputs = append(doc.Inputs, in)
	}
	return &g
}

// prefill puts what is known, and may be told, among the values of a page: of hidden inputs whatever else was sent, and of all where nothing was sent yet.
func (f *form) prefill(who *recognised, values url.Values, all bool) {
	if who == nil {
		return
	}
	for _, in := range f.Inputs {
		v := who.fields[in.Field]
		if v == nil || !f.tells(in.Field) || !all && !who.hides(in) {
			continue
		}
		switch v := v.(type) {
		case []string:
			values[in.Field] = v
		case float64:
			values.Set(in.Field, strconv.FormatFloat(v, 'f', -1, 64))
		case string:
			if t, err := time.Parse(time.RFC3339, v); err == nil && f.fields[in.Field].Type == spec.TypeDatetime {
				v = t.In(f.settings.Location()).Format("2006-01-02T15:04")
			}
			values.Set(in.Field, v)
		default:
			values.Set(in.Field, fmt.Sprint(v))
		}
	}
}
