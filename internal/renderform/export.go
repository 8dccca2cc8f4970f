package renderform

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// ErrUnknown says that there never was a form of a name.
var ErrUnknown = errors.New("there is no such form")

// exportedAtOnce is how many submissions are in memory while they are exported.
const exportedAtOnce = 100

// Export reads what was sent in with a form.
type Export struct {
	// Inputs are the keys of what the form asks for, or asked for in a version by which something was sent in: those of the newest first.
	Inputs []string
	form   int32
}

// Sent is a submission as it is exported.
type Sent struct {
	ID          int64      `json:"id"`
	At          time.Time  `json:"at"`
	State       string     `json:"state"` // pending, confirmed, or done where no confirmation is asked for
	Email       string     `json:"email"` // that the contact has now; "" for one who was erased
	Lang        string     `json:"lang"`
	ConfirmedAt *time.Time `json:"confirmed_at,omitempty"`
	// Answers are by the keys of inputs: values, true for a consent, and []SentFile.
	Answers map[string]any `json:"answers"`
}

// SentFile is a file of a submission. N is its place among the submission's Files, from 1.
type SentFile struct {
	file
	Path string `json:"path,omitempty"` // for whoever writes it
}

// Shown is where the file was written, or its name.
func (f SentFile) Shown() string { return cmp.Or(f.Path, f.Name) }

// OpenExport begins an export. ErrUnknown when there is no form of that name, and none was.
func OpenExport(ctx context.Context, tx *postgres.Tx, name string) (*Export, error) {
	e := &Export{}
	var current *int64
	err := tx.QueryRow(ctx, "SELECT id, current FROM entity WHERE kind = $1 AND name = $2", spec.KindForm, name).Scan(&e.form, &current)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrUnknown
	}
	if err != nil {
		return nil, fmt.Errorf("look for a form: %w", err)
	}
	rows, err := tx.Query(ctx, "SELECT spec FROM document WHERE id = $2 OR id IN (SELECT document FROM submission WHERE form = $1) ORDER BY id = $2 DESC NULLS LAST, id DESC", e.form, current)
	if err != nil {
		return nil, fmt.Errorf("read a form's versions: %w", err)
	}
	var doc []byte
	_, err = pgx.ForEachRow(rows, []any{&doc}, func() error {
		f, err := spec.DecodeAs[*spec.Form](spec.KindForm, doc)
		if err != nil {
			return err
		}
		for _, in := range f.Inputs {
			if in.Field != "email" && !slices.Contains(e.Inputs, in.Key()) {
				e.Inputs = append(e.Inputs, in.Key())
			}
		}
		doc = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read a form's versions: %w", err)
	}
	return e, nil
}

// Page gives the next submissions after the one of an id, in their order, and none at the end. What was rejected, or never confirmed in time, is not among them: nothing of it is kept.
func (e *Export) Page(ctx context.Context, tx *postgres.Tx, after int64) ([]Sent, error) {
	rows, err := tx.Query(ctx, `SELECT s.id, s.at, s.state, coalesce(t.email, ''), s.confirmed_at, s.data FROM submission s
		LEFT JOIN contact c ON c.id = s.contact LEFT JOIN contact t ON t.id = coalesce(c.merged_into, c.id)
		WHERE s.form = $1 AND s.id > $2 AND s.state IN ('pending', 'confirmed', 'done') ORDER BY s.id LIMIT $3`, e.form, after, exportedAtOnce)
	if err != nil {
		return nil, fmt.Errorf("read submissions: %w", err)
	}
	var page []Sent
	var s Sent
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&s.ID, &s.At, &s.State, &s.Email, &s.ConfirmedAt, &data}, func() error {
		var in entry
		if err := json.Unmarshal(data, &in); err != nil {
			return fmt.Errorf("submission %d: %w", s.ID, err)
		}
		s.Lang, s.Answers = in.Lang, map[string]any{}
		for k, v := range in.Fields {
			s.Answers[k] = v
		}
		for k, v := range in.Values {
			s.Answers[k] = v
		}
		for _, c := range in.Consents {
			s.Answers[spec.Input{Consent: c.Purpose}.Key()] = true
		}
		for k, list := range in.Files {
			files := make([]SentFile, len(list))
			for i, f := range list {
				files[i].file = f
			}
			s.Answers[k] = files
		}
		page = append(page, s)
		s, data = Sent{}, nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read submissions: %w", err)
	}
	return page, nil
}

// Files gives what is in the files of a submission, by their places; one that is forgotten meanwhile is nil, or is not there.
func (e *Export) Files(ctx context.Context, tx *postgres.Tx, id int64) ([][]byte, error) {
	var files [][]byte
	err := tx.QueryRow(ctx, "SELECT files FROM submission WHERE id = $1", id).Scan(&files)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read the files of submission %d: %w", id, err)
	}
	return files, nil
}
