package postgres

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
)

// drain names an outbox: whose rows, of which tenant.
type drain struct{ tenant, drainer string }

const (
	drainRows    = 200              // leased at once
	drainCount   = 10_000           // counted at most
	drainLease   = 30 * time.Second // a drainer that died is followed by another after this
	doorbellPace = time.Second      // a doorbell (an event of items) is posted at most once a second a process
	doorbellMax  = 500              // items an event carries
	mergedID     = 64               // bytes at most by which a merged event's attributes may be larger than those of its first
)

// Publish puts events into the outbox, in the round trip of the commit; they are posted after it. The drainer is the function that posts it if this process
// does not live to: send, send-api, track, segment or campaign (for the others, and for the command line).
func (tx *Tx) Publish(_ context.Context, drainer string, events ...cloudevents.Event) error {
	if len(events) == 0 {
		return nil
	}
	for _, e := range events {
		if err := of(tx.Tenant.Name, e); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		body, err := e.MarshalJSON() // json.Marshal would read it all once more
		if err != nil {
			return fmt.Errorf("encode event %s: %w", e.Type(), err)
		}
		tx.out.drainers, tx.out.types, tx.out.events = append(tx.out.drainers, drainer), append(tx.out.types, e.Type()), append(tx.out.events, string(body))
	}
	tx.Wake(drainer, tx.now.Add(tx.db.tick))
	tx.rang[drain{tx.Tenant.Name, drainer}] = struct{}{}
	return nil
}

// queueOutbox queues the rows of what was published.
func (tx *Tx) queueOutbox(b *pgx.Batch) {
	if len(tx.out.events) > 0 {
		b.Queue("INSERT INTO outbox (drainer, type, event) SELECT * FROM unnest($1::text[], $2::text[], $3::jsonb[])", tx.out.drainers, tx.out.types, tx.out.events)
	}
}

// of gives an error for an event that is another tenant's: a broker of the pool's believes what an event says of its tenant, and the tenant's role can write
// anything into its outbox.
func of(tenant string, e cloudevents.Event) error {
	named, err := event.Tenant(e)
	if err == nil && named != tenant {
		err = fmt.Errorf("event %s: it is of tenant %s, in the outbox of %s", e.Type(), named, tenant)
	}
	return err
}

func (db *DB) published(rang map[drain]struct{}) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for d := range rang {
		db.pending[d] = struct{}{}
	}
}

// Post posts one event to the broker in the namespace of its tenant's functions.
type Post = func(ctx context.Context, namespace string, e cloudevents.Event) error

// DrainPending posts what this process published and has not posted yet. A function calls it after its answer. It returns the first
// error; rows that were not posted stay for their drainer's sweep.
func (db *DB) DrainPending(ctx context.Context, post Post) error {
	db.mu.Lock()
	todo := make([]drain, 0, len(db.pending))
	for d := range db.pending {
		todo = append(todo, d)
		delete(db.pending, d)
	}
	db.mu.Unlock()
	var errs []error
	for _, d := range todo {
		if err := db.pace(ctx, d); err != nil {
			return err
		}
		for {
			n, err := db.Drain(ctx, d.tenant, d.drainer, post)
			if err != nil {
				errs = append(errs, err)
			}
			if err != nil || n < drainRows {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// pace waits until a doorbell may be rung again for the tenant; meanwhile others gather, and are merged with it.
func (db *DB) pace(ctx context.Context, d drain) error {
	db.mu.Lock()
	wait := time.Until(db.rungAt[d].Add(doorbellPace))
	db.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

type outboxRow struct {
	ID    int64
	Type  string
	Event []byte
	Tries int
	At    time.Time
}

// Drain leases up to 200 of the drainer's outbox rows, commits, posts them, and deletes those that were taken; n is how many were leased. Doorbells
// of one type are merged, up to 500 items an event, under an id derived from the rows'. A row whose post fails stays, and is tried again by
// the next drain, after those that were tried less often: so one that nobody ever takes does not stand before the others. A row that is no event of the tenant's,
// which Publish did not write, is deleted, and told with the error.
func (db *DB) Drain(ctx context.Context, tenant, drainer string, post Post) (n int, err error) {
	var rows []outboxRow
	var namespace string
	err = db.InTenant(ctx, tenant, func(ctx context.Context, tx *Tx) error {
		namespace = tx.Tenant.Namespace
		got, err := tx.Query(ctx, `UPDATE outbox SET lease_until = now() + $2, tries = tries + 1 WHERE id IN (
			SELECT id FROM outbox WHERE drainer = $1 AND lease_until < now() ORDER BY tries, id LIMIT $3 FOR UPDATE SKIP LOCKED)
			RETURNING id, type, event, tries, at`, drainer, drainLease, drainRows)
		if err != nil {
			return err
		}
		rows, err = pgx.CollectRows(got, pgx.RowToStructByPos[outboxRow])
		if err != nil || len(rows) == 0 {
			return err
		}
		oldest, n := tx.now, len(rows)
		for _, r := range rows {
			if r.At.Before(oldest) {
				oldest = r.At
			}
		}
		if n == drainRows { // else these are all
			if err := tx.QueryRow(ctx, "SELECT count(*) FROM (SELECT FROM outbox WHERE drainer = $1 LIMIT $2) o", drainer, drainCount).Scan(&n); err != nil {
				return err
			}
		}
		tx.Found(ctx, "outbox", drainer, oldest, n)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("lease outbox of %s: %w", drainer, err)
	}
	if len(rows) == 0 {
		return 0, nil
	}
	slices.SortFunc(rows, func(x, y outboxRow) int { return cmp.Or(cmp.Compare(x.Tries, y.Tries), cmp.Compare(x.ID, y.ID)) })
	postings, done, strays := merge(tenant, rows)
	refused := []int64{}
	var failed error
	for _, g := range postings {
		if failed == nil {
			if failed = post(ctx, namespace, g.event); failed != nil {
				refused = g.rows
			}
			if g.texts != nil {
				db.rung(drain{tenant, drainer})
			}
		}
		if failed == nil {
			done = append(done, g.rows...)
		}
	}
	ctx = context.WithoutCancel(ctx)
	err = db.InTenant(ctx, tenant, func(ctx context.Context, tx *Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM outbox WHERE id = ANY ($1)", done); err != nil {
			return err
		}
		if failed != nil { // not to be waited for by those that come next
			_, err := tx.Exec(ctx, `UPDATE outbox SET lease_until = '-infinity', tries = tries - CASE WHEN id = ANY ($4) THEN 0 ELSE 1 END
				WHERE drainer = $1 AND NOT id = ANY ($2) AND id = ANY ($3)`, drainer, done, ids(rows), refused)
			return err
		}
		return nil
	})
	return len(rows), errors.Join(failed, strays, err)
}

func (db *DB) rung(d drain) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.rungAt[d] = time.Now()
}

func ids(rows []outboxRow) []int64 {
	out := make([]int64, len(rows))
	for i, r := range rows {
		out[i] = r.ID
	}
	return out
}

// posting is an event to post and the outbox rows that it stands for.
type posting struct {
	event cloudevents.Event
	rows  []int64
	texts [][]byte // the items of each row; of a doorbell alone
	items int      // how many there are
	size  int      // bytes, no less than it has
}

// merge joins the doorbells of one type: events whose data is nothing but items. It sorts out rows that are no event of the tenant's.
func merge(tenant string, rows []outboxRow) (out []*posting, strays []int64, why error) {
	open := map[string]*posting{}
	strays = []int64{}
	for _, r := range rows {
		e := cloudevents.NewEvent()
		err := e.UnmarshalJSON(r.Event) // json.Unmarshal would read it all once more
		if err == nil {
			err = of(tenant, e)
		}
		if err != nil {
			strays, why = append(strays, r.ID), errors.Join(why, fmt.Errorf("row %d of the outbox: %w", r.ID, err))
			continue
		}
		text, items, doorbell := doorbellItems(e.Data())
		if p := open[r.Type]; doorbell && p != nil && p.items+items <= doorbellMax && p.size+1+len(text) <= event.MaxSize {
			p.rows, p.texts, p.items, p.size = append(p.rows, r.ID), append(p.texts, text), p.items+items, p.size+1+len(text)
			continue
		}
		p := &posting{event: e, rows: []int64{r.ID}, items: items, size: event.Size(e) + mergedID}
		if doorbell {
			p.texts = append(p.texts, text)
			open[r.Type] = p
		}
		out = append(out, p)
	}
	for _, p := range out {
		if len(p.rows) > 1 {
			p.event.DataEncoded = slices.Concat([]byte(`{"items":[`), bytes.Join(p.texts, []byte(",")), []byte("]}")) // SetData would read it all once more
			p.event.SetID(event.DeriveID(p.event.ID(), "merged", strconv.Itoa(len(p.rows))))
		}
	}
	return out, strays, why
}

// doorbellItems is the text of the items in data that is nothing but items, as jsonb writes it, and how many they are; they are objects. Thousands of them may be drained in a second.
func doorbellItems(data []byte) (text []byte, n int, ok bool) {
	text, begins := bytes.CutPrefix(bytes.TrimSpace(data), []byte(`{"items": [`))
	text, ends := bytes.CutSuffix(text, []byte("]}"))
	if !begins || !ends || len(text) == 0 {
		return nil, 0, false
	}
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth == 0 {
				n++
			}
			depth++
		case c == '}' || c == ']':
			if depth--; depth < 0 { // the items ended, and there is more
				return nil, 0, false
			}
		}
	}
	return text, n, true
}

// outboxDue is when the drainer's outbox should be looked at: within a tick while it has rows, and less and less often while they are refused.
func (tx *Tx) outboxDue(ctx context.Context, drainer string) (time.Time, error) {
	var tries *int
	if err := tx.QueryRow(ctx, "SELECT min(tries) FROM outbox WHERE drainer = $1", drainer).Scan(&tries); err != nil {
		return Never, fmt.Errorf("look into outbox: %w", err)
	}
	if tries == nil {
		return Never, nil
	}
	const doublings = 6
	return tx.now.Add(tx.db.tick << min(*tries, doublings)), nil
}
