package csvimport

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// ResumeSchema is the tenant migration from which on an import that was interrupted goes on where it was.
const ResumeSchema = 22

// mark is how far an import came: a row of cursor, which moves in the transactions of the chunks that write anything. So a chunk of rows that are so already writes nothing, and is
// read again after an interruption.
type mark struct {
	name string // of the row
	rows int    // of the file, that are done
	set  bool   // there is such a row
}

// marked is what the row has beside.
type marked struct {
	Result  Result    `json:"result"`
	Rejects string    `json:"rejects"` // the file, where it was made
	Size    int64     `json:"size"`    // of it, so far as it counts
	Sum     string    `json:"sum"`     // of that
	At      time.Time `json:"at"`
}

// markLock is the class of the advisory lock of a mark, which those who write hold together: who goes on with an import waits for what a process that was killed had asked for, and that
// may still be under way.
const markLock = 0x6f6e6469

func (m *mark) lock(ctx context.Context, tx *postgres.Tx) error {
	return m.hold(ctx, tx, "pg_advisory_xact_lock")
}

func (m *mark) share(ctx context.Context, tx *postgres.Tx) error {
	return m.hold(ctx, tx, "pg_advisory_xact_lock_shared")
}

func (m *mark) hold(ctx context.Context, tx *postgres.Tx, lock string) error {
	if _, err := tx.Exec(ctx, "SELECT "+lock+"($1, hashtext($2))", markLock, m.name); err != nil {
		return fmt.Errorf("lock how far the import came: %w", err)
	}
	return nil
}

// resume finds out whether there was an import of the same file that was interrupted, and has this one go on with it.
func (im *importer) resume(ctx context.Context, file io.ReadSeeker) error {
	name, err := im.markName(file)
	if err != nil {
		return err
	}
	im.mark = &mark{name: name}
	var data []byte
	err = im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if err := im.mark.lock(ctx, tx); err != nil {
			return err
		}
		if im.opts.Restart {
			_, err := tx.Exec(ctx, "DELETE FROM cursor WHERE name = $1", name)
			return err
		}
		err := tx.QueryRow(ctx, "SELECT id, data FROM cursor WHERE name = $1", name).Scan(&im.mark.rows, &data)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("look for an import that was interrupted: %w", err)
	}
	if data == nil {
		return nil
	}
	var m marked
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("read how far the import came: %w", err)
	}
	im.mark.set = true
	m.Result.Resumed = im.mark.rows
	im.res = m.Result
	im.rejects.unfinished = true
	if m.Rejects == "" {
		return nil
	}
	if im.headed, err = im.rejects.resume(m.Rejects, m.Size, m.Sum); err != nil {
		return fmt.Errorf("go on with the import that was interrupted: %w: --restart begins anew, what is in is left as it is", err)
	}
	im.res.RejectsLost = im.res.RejectsLost || !im.headed && im.res.Rejected > 0
	return nil
}

// markName tells this import of this file from others: by its size, its first and last MiB, what Resume says of it, and the options that count.
func (im *importer) markName(file io.ReadSeeker) (name string, err error) {
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return "", fmt.Errorf("read the file: %w", err)
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return "", fmt.Errorf("read the file: %w", err)
	}
	o := im.opts
	h := sha256.New()
	if err := json.NewEncoder(h).Encode([]any{size, o.Resume, o.Name, o.Dialect, o.Mapping, o.IgnoreUnknown, o.Policy, o.Consent, o.Basis, o.Proof, o.Tags}); err != nil {
		return "", fmt.Errorf("name the import: %w", err)
	}
	for _, from := range []int64{0, max(0, size-maxLine)} {
		if _, err := file.Seek(from, io.SeekStart); err != nil {
			return "", fmt.Errorf("read the file: %w", err)
		}
		if _, err := io.Copy(h, io.LimitReader(file, maxLine)); err != nil {
			return "", fmt.Errorf("read the file: %w", err)
		}
	}
	if _, err := file.Seek(at, io.SeekStart); err != nil {
		return "", fmt.Errorf("read the file: %w", err)
	}
	return "import:" + hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// setMark writes the chunk's rejected rows, and notes that all of it is done.
func (im *importer) setMark(ctx context.Context, tx *postgres.Tx, c *chunk, o *outcome) error {
	if err := im.reject(ctx, o); err != nil {
		return err
	}
	res := im.res
	res.add(c, *o)
	return im.moveMark(ctx, tx, res, o.text)
}

// beginMark sets the mark for the first time, and forgets those of imports that nobody has gone on with for long.
func (im *importer) beginMark(ctx context.Context) error {
	err := im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM cursor WHERE name LIKE 'import:%' AND (data->>'at')::timestamptz < onda.now() - interval '30 days'"); err != nil {
			return fmt.Errorf("forget old imports: %w", err)
		}
		return im.moveMark(ctx, tx, Result{}, nil)
	})
	im.mark.set = err == nil
	return err
}

// moveMark notes what became of the rows so far, and which file has those that were rejected, to which a text was put that counts with them.
func (im *importer) moveMark(ctx context.Context, tx *postgres.Tx, res Result, text []byte) error {
	res.Problems, res.LeftOut, res.ReadAs = nil, nil, Dialect{} // problems may show what is in the file
	m := marked{Result: res, At: tx.Now()}
	if path := im.rejects.Path(); path != "" {
		var err error
		if m.Rejects, err = filepath.Abs(path); err != nil {
			return fmt.Errorf("note how far the import came: %w", err)
		}
		if m.Sum, err = im.rejects.with(text); err != nil {
			return err
		}
		m.Size = im.rejects.size + int64(len(text))
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("note how far the import came: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO cursor (name, xid, id, base, data) SELECT $1, NULL, $2, base, $3 FROM cursor WHERE name = 'segment'
		ON CONFLICT (name) DO UPDATE SET id = excluded.id, data = excluded.data`, im.mark.name, res.Rows, data)
	if err != nil {
		return fmt.Errorf("note how far the import came: %w", err)
	}
	return nil
}

// reject adds a chunk's rejected rows to the others, once.
func (im *importer) reject(ctx context.Context, o *outcome) error {
	if im.opts.Rejects == nil || im.opts.DryRun || len(o.rejects) == 0 || o.text != nil {
		return nil
	}
	if err := im.beginRejects(ctx); err != nil {
		return err
	}
	o.text = im.rejected(o.rejects)
	if im.rejects != nil {
		return im.rejects.put(o.text)
	}
	if _, err := im.opts.Rejects.Write(o.text); err != nil {
		return fmt.Errorf("write rejected rows: %w", err)
	}
	return nil
}

// beginRejects writes the header of the rejected rows. That there is a file of them is noted before a row is in it: else an import that goes on would not know it for its own.
func (im *importer) beginRejects(ctx context.Context) error {
	if im.headed {
		return nil
	}
	if im.rejects == nil {
		if _, err := im.opts.Rejects.Write(im.header()); err != nil {
			return fmt.Errorf("write rejected rows: %w", err)
		}
	} else if err := im.rejects.make(im.header()); err != nil {
		return err
	}
	if im.mark != nil {
		if err := im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error { return im.moveMark(ctx, tx, im.res, nil) }); err != nil {
			return err
		}
	}
	im.headed = true
	return nil
}

// forget takes the mark away when all is in.
func (im *importer) forget(ctx context.Context) error {
	if im.mark == nil || !im.mark.set {
		return nil
	}
	return im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "DELETE FROM cursor WHERE name = $1", im.mark.name)
		return err
	})
}
