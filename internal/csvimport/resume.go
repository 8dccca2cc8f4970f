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

	rejects *Rejects
}

// marked is what the row has beside.
type marked struct {
	Result  Result    `json:"result"`
	Rejects string    `json:"rejects"` // the file
	Size    int64     `json:"size"`    // of it
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
func (im *importer) resume(ctx context.Context, file io.ReadSeeker, rejects *Rejects) error {
	name, err := im.markName(file)
	if err != nil {
		return err
	}
	im.mark = &mark{name: name, rejects: rejects}
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
	im.res, im.size = m.Result, m.Size
	if err := rejects.resume(m.Rejects, m.Size); err != nil {
		return fmt.Errorf("go on with the import that was interrupted: %w: --restart begins anew, what is in is left as it is", err)
	}
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
func (im *importer) setMark(ctx context.Context, tx *postgres.Tx, c *chunk, o *outcome) (err error) {
	rejects := im.mark.rejects
	if im.ahead {
		if err := rejects.cut(im.size); err != nil {
			return err
		}
	}
	if len(o.rejects) > 0 {
		if o.text, err = im.rejected(o.rejects, im.size == 0); err != nil {
			return err
		}
		im.ahead = true
		if _, err := rejects.Write(o.text); err != nil {
			return fmt.Errorf("write rejected rows: %w", err)
		}
	}
	o.written = true
	res := im.res
	res.add(c, *o)
	res.Problems, res.ReadAs = nil, Dialect{} // problems may show what is in the file
	return im.mark.move(ctx, tx, res, im.size+int64(len(o.text)))
}

// beginMark sets the mark for the first time, and forgets those of imports that nobody has gone on with for long.
func (im *importer) beginMark(ctx context.Context) error {
	err := im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM cursor WHERE name LIKE 'import:%' AND (data->>'at')::timestamptz < onda.now() - interval '30 days'"); err != nil {
			return fmt.Errorf("forget old imports: %w", err)
		}
		return im.mark.move(ctx, tx, Result{}, 0)
	})
	im.mark.set = err == nil
	return err
}

// move notes what became of the rows so far, and how large the file of rejected ones is.
func (m *mark) move(ctx context.Context, tx *postgres.Tx, res Result, size int64) error {
	path, err := filepath.Abs(m.rejects.path)
	if err != nil {
		return fmt.Errorf("note how far the import came: %w", err)
	}
	data, err := json.Marshal(marked{res, path, size, tx.Now()})
	if err != nil {
		return fmt.Errorf("note how far the import came: %w", err)
	}
	_, err = tx.Exec(ctx, `INSERT INTO cursor (name, xid, id, base, data) SELECT $1, NULL, $2, base, $3 FROM cursor WHERE name = 'segment'
		ON CONFLICT (name) DO UPDATE SET id = excluded.id, data = excluded.data`, m.name, res.Rows, data)
	if err != nil {
		return fmt.Errorf("note how far the import came: %w", err)
	}
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
