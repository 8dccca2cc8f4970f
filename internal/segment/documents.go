package segment

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// SweepSchema is the tenant migration from which on it is known until when a segment was swept, and what failed. Before it, what time changes is found by computing all anew.
const SweepSchema = 17

// kept is one segment: its row and the version of its document that holds for it now.
type kept struct {
	entity  int32
	name    string
	current int64 // 0: it was taken away
	// document is the version that its members were last made by in full, building the one that a rebuild is under way to (0: none). Whatever is computed is by the current one: who asks about
	// whom has no circles then, while by old and new ones at once it may have.
	document, building int64
	rebuiltTo          int64 // how far a rebuild is, or a sweep
	requested          bool
	dueAt              *time.Time // nil: never
	sweptAt, sweepTo   *time.Time
	failures           int
	retryAt            *time.Time

	doc   *spec.Segment // of current; nil when taken away
	deps  predicate.Deps
	err   error // why doc cannot be read
	level int   // those that it asks about are below

	touched      []int64 // in order; not to be changed: others may have the same
	joined, left int64   // in this transaction
	firstJoined  []int64
	firstLeft    []int64
	dueKnown     bool // dueAt is of all contacts, as they are
	spent        time.Duration
	columns      []string // of its row, to be written with values
	values       []any
}

// set has a column of the segment's row written at the end of the turn.
func (s *kept) set(column string, value any) {
	if i := slices.Index(s.columns, column); i >= 0 {
		s.values[i] = value
		return
	}
	s.columns, s.values = append(s.columns, column), append(s.values, value)
}

// queue has the row written with the commit, if there is anything to write.
func (s *kept) queue(tx *postgres.Tx) {
	var sets []string
	args := []any{s.entity}
	for i, column := range s.columns {
		args = append(args, s.values[i])
		sets = append(sets, fmt.Sprintf("%s = $%d", column, len(args)))
	}
	if s.joined > 0 || s.left > 0 {
		args = append(args, s.joined-s.left)
		sets = append(sets, fmt.Sprintf("members = members + $%d", len(args)))
	}
	if len(sets) > 0 {
		tx.Finally("UPDATE segment SET "+strings.Join(sets, ", ")+" WHERE entity = $1", args...)
	}
}

// mustRebuild tells whether it has to be computed in full, or be taken away.
func (s *kept) mustRebuild(now time.Time) bool {
	if s.current == 0 || s.requested || s.building != 0 || s.document != s.current {
		return true
	}
	if s.sweptAt == nil { // what time changes is not found in any other way
		return s.dueAt != nil && !s.dueAt.After(now)
	}
	return s.sweptAt.After(now.Add(clockSlack)) // the clock was moved back
}

// clock measures for how long it was computed, until what it gives is called.
func (s *kept) clock() func() {
	began := time.Now()
	return func() { s.spent += time.Since(began) }
}

// follows tells whether what happens is to be computed at once. One that was never made is made in full.
func (s *kept) follows() bool {
	return s.current != 0 && s.doc != nil && (s.document != 0 || s.building != 0)
}

// documents are read and decoded once a process: a version never changes.
type documents struct {
	mu sync.Mutex
	of map[int32]*known // by tenant
	n  int              // how many are in all
}

// known are the documents of a tenant's segments by version, and what else predicates are read with, as long as it is the current.
type known struct {
	mu    sync.Mutex
	stamp string
	env   predicate.Env
	docs  map[int64]*decoded
}

type decoded struct {
	doc  *spec.Segment
	deps predicate.Deps
	err  error
}

// maxDocuments bounds the memory of a process that serves many tenants.
const maxDocuments = 2000

// get gives what is known of a tenant.
func (d *documents) get(tenant int32) *known {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil || d.n > maxDocuments {
		d.of, d.n = map[int32]*known{}, 0
	}
	k := d.of[tenant]
	if k == nil {
		k = &known{docs: map[int64]*decoded{}}
		d.of[tenant] = k
	}
	return k
}

func (d *documents) grown(by int) {
	d.mu.Lock()
	d.n += by
	d.mu.Unlock()
}

const (
	// stampOf changes whenever a field or the settings do.
	stampOf = `SELECT coalesce(string_agg(id || ' ' || current, ',' ORDER BY id), '-') FROM entity WHERE kind IN ('Field', 'Settings') AND current IS NOT NULL`

	// segmentRows gives the stamp too: by that of a statement before it a document would be read with the fields before it.
	segmentRows = `SELECT e.id, e.name, coalesce(e.current, 0), s.entity IS NULL, coalesce(s.document, 0), coalesce(s.building, 0), coalesce(s.rebuild_to, 0), coalesce(s.requested, false),
		nullif(s.due_at, 'infinity'), %s, (` + stampOf + `) FROM entity e LEFT JOIN segment s ON s.entity = e.id WHERE e.kind = 'Segment' AND (e.current IS NOT NULL OR s.entity IS NOT NULL) ORDER BY e.id`
	sweepColumns = "s.swept_at, s.sweep_to, coalesce(s.failures, 0), s.retry_at"
	noSweeps     = "NULL::timestamptz, NULL::timestamptz, 0, NULL::timestamptz"
)

// How Postgres plans: for the few contacts of facts it would plan longer than it computes, and the plan is the same for any; for a range of them, or of time, it depends on how large that is.
const plansOnce, plansEach = "force_generic_plan", "force_custom_plan"

// load takes the tenant's lock and reads all its segments, those that others ask about before these, in one round trip where no document is new.
func (d *documents) load(ctx context.Context, tx *postgres.Tx, plans string) (all []*kept, env predicate.Env, err error) {
	columns := sweepColumns
	if tx.Tenant.Schema < SweepSchema {
		columns = noSweeps
	}
	var stamp string
	var unmade []int32
	b := &pgx.Batch{}
	b.Queue("SELECT set_config('lock_timeout', '1s', true), set_config('statement_timeout', $1, true), set_config('plan_cache_mode', $2, true)", fmt.Sprint(statementTime.Milliseconds()), plans)
	b.Queue("SELECT pg_advisory_xact_lock($1, $2)", lockClass, tx.Tenant.Number)
	b.Queue(fmt.Sprintf(segmentRows, columns)).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			s := &kept{}
			var isNew bool
			if err := rows.Scan(&s.entity, &s.name, &s.current, &isNew, &s.document, &s.building, &s.rebuiltTo, &s.requested, &s.dueAt, &s.sweptAt, &s.sweepTo, &s.failures, &s.retryAt, &stamp); err != nil {
				return err
			}
			if isNew {
				unmade = append(unmade, s.entity)
			}
			all = append(all, s)
		}
		return rows.Err()
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, env, fmt.Errorf("read segments: %w", err)
	}
	if len(unmade) > 0 {
		if _, err := tx.Exec(ctx, "INSERT INTO segment (entity) SELECT unnest($1::int[]) ON CONFLICT DO NOTHING", unmade); err != nil {
			return nil, env, fmt.Errorf("make rows of new segments: %w", err)
		}
	}
	if len(all) == 0 {
		return nil, env, nil
	}
	k := d.get(tx.Tenant.Number)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stamp != stamp {
		if k.env, err = predicate.Load(ctx, tx); err != nil {
			return nil, env, err
		}
		k.stamp = stamp
	}
	if err := d.read(ctx, tx, k, all); err != nil {
		return nil, env, err
	}
	env = k.env.At(tx) // it may have been migrated since
	env.Now = latest(tx.Now(), all)
	return inOrder(all), env, nil
}

// read gives each segment its document.
func (d *documents) read(ctx context.Context, tx *postgres.Tx, k *known, all []*kept) error {
	var missing []int64
	for _, s := range all {
		if s.current != 0 && k.docs[s.current] == nil {
			missing = append(missing, s.current)
		}
	}
	if len(missing) > 0 {
		rows, err := tx.Query(ctx, "SELECT id, spec FROM document WHERE id = ANY ($1)", missing)
		if err != nil {
			return fmt.Errorf("read segments: %w", err)
		}
		var id int64
		var stored []byte
		_, err = pgx.ForEachRow(rows, []any{&id, &stored}, func() error {
			k.docs[id] = decode(stored)
			return nil
		})
		if err != nil {
			return fmt.Errorf("read segments: %w", err)
		}
		d.grown(len(missing))
	}
	for _, s := range all {
		if c := k.docs[s.current]; c != nil {
			s.doc, s.deps, s.err = c.doc, c.deps, c.err
		}
	}
	return nil
}

func decode(stored []byte) *decoded {
	doc, err := spec.DecodeAs[*spec.Segment](spec.KindSegment, stored)
	c := &decoded{doc: doc, err: err}
	if err == nil && doc.Where != nil {
		c.deps = predicate.DepsOf(doc.Where)
	}
	return c
}

// inOrder puts segments behind those that they ask about. There are no circles: they are refused at apply.
func inOrder(all []*kept) []*kept {
	byName := map[string]*kept{}
	for _, s := range all {
		byName[s.name] = s
	}
	out := make([]*kept, 0, len(all))
	seen := map[*kept]bool{}
	var visit func(s *kept)
	visit = func(s *kept) {
		seen[s] = true
		for _, name := range s.deps.Segments {
			below := byName[name]
			if below == nil {
				continue
			}
			if !seen[below] {
				visit(below)
			}
			s.level = max(s.level, below.level+1)
		}
		out = append(out, s)
	}
	for _, s := range all {
		if !seen[s] {
			visit(s)
		}
	}
	return out
}

// condition is SQL that says of a row of contact c whether it belongs in the segment; parameters from first, scope as in predicate.Env.
func (s *kept) condition(env predicate.Env, first int, scope string) (predicate.Query, error) {
	q := predicate.Query{SQL: "false"}
	if s.err != nil {
		return q, fmt.Errorf("segment %s: %w", s.name, s.err)
	}
	if s.doc.Where != nil {
		var err error
		env.First, env.Scope = first, scope
		if q, err = predicate.Compile(s.doc.Where, env); err != nil {
			return q, fmt.Errorf("segment %s: %w", s.name, err)
		}
	}
	listed := func(who []string) string {
		emails, ids := split(who)
		q.Args = append(q.Args, emails, ids)
		n := first + len(q.Args) - 2
		return fmt.Sprintf("coalesce(c.email = ANY ($%d::text[]), false) OR coalesce(c.external_id = ANY ($%d::text[]), false)", n, n+1)
	}
	if len(s.doc.In) > 0 {
		q.SQL = "(" + q.SQL + " OR " + listed(s.doc.In) + ")"
	}
	if len(s.doc.Out) > 0 {
		q.SQL = "(" + q.SQL + " AND NOT (" + listed(s.doc.Out) + "))"
	}
	q.SQL = "(c.erased_at IS NULL AND c.merged_into IS NULL AND " + q.SQL + ")"
	return q, nil
}

// split parts addresses from external ids. What has an @ and is no address can only be an id.
func split(who []string) (emails, ids []string) {
	emails, ids = []string{}, []string{}
	for _, w := range who {
		if strings.Contains(w, "@") {
			if a, err := contact.Normalise(w); err == nil {
				emails = append(emails, a)
			}
		}
		ids = append(ids, w)
	}
	return emails, slices.Clip(ids)
}
