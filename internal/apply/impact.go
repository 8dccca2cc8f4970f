package apply

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

// Members says what becomes of a segment's members.
type Members struct {
	// Now is how many are stored, Then how many there will be.
	Now  int64 `json:"now"`
	Then int64 `json:"then"`
	// Joins are in it then and not now, Leaves now and not then.
	Joins  int64 `json:"joins"`
	Leaves int64 `json:"leaves"`
	// Unknown says why nobody was counted.
	Unknown string `json:"unknown,omitempty"`
}

// Preview is who a segment's document puts in it, at this moment.
type Preview struct {
	Segment string `json:"segment"`
	// Stored: there is a segment of this name, with members.
	Stored bool `json:"stored"`
	Members
	// Took is how long counting took.
	Took time.Duration `json:"-"`
	// Fields are what the predicate asks about itself, Sample some of the contacts.
	Fields []string  `json:"fields"`
	Sample []Sampled `json:"sample"`
	// Plan is how Postgres finds them, a line each.
	Plan []string `json:"plan,omitempty"`
}

// Sampled is one of a segment's contacts; Values are of Preview.Fields.
type Sampled struct {
	Contact int64     `json:"contact"`
	Email   string    `json:"email"`
	Values  []*string `json:"values"`
}

// PreviewOptions are what is wanted of a preview.
type PreviewOptions struct {
	Sample int
	Plan   bool
	// Limit is how long each statement may take.
	Limit time.Duration
}

// ErrTooSlow says that something takes longer than the time that was given for it.
var ErrTooSlow = errors.New("it takes too long")

// world are a tenant's segments as they are stored, and as they would be with the documents of a set.
type world struct {
	tx       *postgres.Tx
	after    predicate.Env
	segments map[string]*counted // those that stay, or come
	gone     map[string]int64    // how many are in those that go
}

// counted is a segment that may be counted.
type counted struct {
	name   string
	entity int32 // 0: it is not stored
	// version is the number of the document in force.
	version int
	doc     *spec.Segment
	err     error // why it can be computed for nobody
	// changed: the documents of the set ask another question, in it or in what it asks about.
	changed bool
	// moves: its members are not, or will not be, those that are stored: it is changed, not up to date, or asks about one that is.
	moves bool
}

// worldOf looks at what the documents of a set make of the tenant's segments, and what becomes of them without those that are gone.
func worldOf(ctx context.Context, tx *postgres.Tx, set *spec.Set, gone ...spec.Ref) (*world, error) {
	before, err := predicate.Load(ctx, tx)
	if err != nil {
		return nil, err
	}
	stored, err := segment.All(ctx, tx)
	if err != nil {
		return nil, err
	}
	w := &world{tx: tx, after: before, segments: map[string]*counted{}, gone: map[string]int64{}}
	w.after.Fields = maps.Clone(before.Fields)
	for _, d := range set.Documents {
		switch doc := d.Doc.(type) {
		case *spec.Field:
			w.after.Fields[doc.Name] = doc.Type
		case *spec.Settings:
			w.after.Zone = doc.Location()
		case *spec.Segment:
			w.segments[doc.Name] = &counted{name: doc.Name, doc: doc, changed: true, moves: true}
		}
	}
	for _, r := range gone {
		if r.Kind == spec.KindSettings {
			w.after.Zone = time.UTC
		}
	}
	for _, s := range stored {
		if slices.Contains(gone, spec.Ref{Kind: spec.KindSegment, Name: s.Name}) {
			w.gone[s.Name] = s.Members
			continue
		}
		n := w.segments[s.Name]
		if n == nil {
			n = &counted{name: s.Name, doc: s.Doc}
			w.segments[s.Name] = n
		}
		n.entity, n.version = s.Entity, s.Version
		n.changed = !sameQuestion(s.Doc, before, n.doc, w.after)
		n.moves = n.changed || !s.Current || s.DueAt != nil && !s.DueAt.After(tx.Now())
	}
	for _, n := range w.segments {
		if n.doc == nil {
			n.err = errors.New("its document cannot be read")
			continue
		}
		_, n.err = segment.Condition(n.doc, w.after)
	}
	w.spread(func(n *counted) *bool { return &n.changed })
	w.spread(func(n *counted) *bool { return &n.moves })
	return w, nil
}

// sameQuestion tells whether two documents ask the same of each contact.
func sameQuestion(a *spec.Segment, before predicate.Env, b *spec.Segment, after predicate.Env) bool {
	if a == nil || b == nil {
		return a == b
	}
	was, errA := segment.Condition(a, before)
	is, errB := segment.Condition(b, after)
	return (errA == nil) == (errB == nil) && reflect.DeepEqual(was, is)
}

// spread sets what holds of a segment for those that ask about it too.
func (w *world) spread(of func(*counted) *bool) {
	for again := true; again; {
		again = false
		for _, n := range w.segments {
			if *of(n) || n.doc == nil || n.doc.Where == nil {
				continue
			}
			for _, name := range n.doc.Where.Segments() {
				if about := w.segments[name]; about != nil && *of(about) {
					*of(n), again = true, true
				}
			}
		}
	}
}

// question is SQL of who is in segments as they would be.
type question struct {
	w     *world
	env   predicate.Env
	items []string // of WITH
	args  []any
}

func (w *world) question() *question {
	q := &question{w: w, env: w.after}
	q.env.Members = map[string]string{}
	return q
}

func (q *question) arg(v any) string {
	q.args = append(q.args, v)
	return "$" + strconv.Itoa(len(q.args))
}

// contacts is a SELECT of the contacts that a segment's document puts in it. Segments that it asks about, and whose members will be others than those stored, become
// items of WITH.
func (q *question) contacts(s *counted) (string, error) {
	if s.err != nil {
		return "", s.err
	}
	if s.doc.Where != nil {
		for _, name := range s.doc.Where.Segments() {
			if err := q.include(q.w.segments[name]); err != nil {
				return "", err
			}
		}
	}
	env := q.env
	env.First = len(q.args) + 1
	cond, err := segment.Condition(s.doc, env)
	if err != nil {
		return "", err
	}
	q.args = append(q.args, cond.Args...)
	return "SELECT c.id AS contact FROM contact c WHERE " + cond.SQL, nil
}

func (q *question) include(s *counted) error {
	if s == nil || s.err != nil || !s.moves || q.env.Members[s.name] != "" { // one that cannot be computed stays as it is
		return nil
	}
	sql, err := q.contacts(s)
	if err != nil {
		return err
	}
	if s.entity != 0 {
		sql += " AND c.id NOT IN (SELECT m.contact FROM member m WHERE m.segment = " + q.arg(s.entity) + " AND m.kept = 'out')" +
			" UNION ALL SELECT m.contact FROM member m WHERE m.segment = $" + strconv.Itoa(len(q.args)) + " AND m.kept = 'in'"
	}
	item := "segment_" + strconv.Itoa(len(q.items)+1)
	q.items = append(q.items, item+" AS MATERIALIZED ("+sql+")")
	q.env.Members[s.name] = item
	return nil
}

// with is a statement with the items before it.
func (q *question) with(items []string, sql string) string {
	if len(items) == 0 {
		return sql
	}
	return "WITH " + strings.Join(items, ", ") + " " + sql
}

// count counts a segment's members, and takes a sample of those that its document gives.
func (w *world) count(ctx context.Context, s *counted, sample int, limit time.Duration) (m Members, ids []int64, err error) {
	q := w.question()
	sql, err := q.contacts(s)
	if err != nil {
		return m, nil, err
	}
	sql = q.with(append(q.items, "want AS MATERIALIZED ("+sql+")"), `SELECT count(*) FILTER (WHERE m.kept <> 'out'), count(*) FILTER (WHERE m.contact IS NULL), count(*) FILTER (WHERE w.contact IS NULL AND m.kept = ''),
			ARRAY(SELECT contact FROM want ORDER BY hashint8(contact) LIMIT `+q.arg(sample)+`)
		FROM want w FULL JOIN (SELECT contact, kept FROM member WHERE segment = `+q.arg(s.entity)+`) m ON m.contact = w.contact`)
	err = w.within(ctx, limit, func() error { return w.tx.QueryRow(ctx, sql, q.args...).Scan(&m.Now, &m.Joins, &m.Leaves, &ids) })
	m.Then = m.Now + m.Joins - m.Leaves
	return m, ids, err
}

// plan is how Postgres finds who is in a segment.
func (w *world) plan(ctx context.Context, s *counted, limit time.Duration) (lines []string, err error) {
	q := w.question()
	sql, err := q.contacts(s)
	if err != nil {
		return nil, err
	}
	err = w.within(ctx, limit, func() error {
		rows, err := w.tx.Query(ctx, "EXPLAIN (ANALYZE, BUFFERS) "+q.with(q.items, sql), q.args...)
		if err != nil {
			return err
		}
		lines, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return lines, err
}

// within runs one statement for at most so long; what takes longer is ErrTooSlow, and the transaction goes on.
func (w *world) within(ctx context.Context, limit time.Duration, f func() error) error {
	if limit < time.Millisecond {
		return ErrTooSlow
	}
	b := &pgx.Batch{}
	b.Queue("SAVEPOINT counting")
	b.Queue("SELECT set_config('statement_timeout', $1, true)", strconv.FormatInt(limit.Milliseconds(), 10))
	if err := w.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	err := f()
	if _, back := w.tx.Exec(ctx, "ROLLBACK TO counting"); back != nil && err == nil { // the limit too
		err = fmt.Errorf("set limits: %w", back)
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "57014" && ctx.Err() == nil {
		return ErrTooSlow
	}
	return err
}

// impact counts who joins and leaves the segments that change, and adds those whose own document does not.
func (w *world) impact(ctx context.Context, changes []Change, limit time.Duration) ([]Change, error) {
	end := time.Now().Add(limit)
	for _, name := range slices.Sorted(maps.Keys(w.segments)) {
		s := w.segments[name]
		if !s.changed {
			continue
		}
		m, _, err := w.count(ctx, s, 0, time.Until(end))
		switch {
		case errors.Is(err, ErrTooSlow):
			m = Members{Unknown: fmt.Sprintf("not counted: that takes longer than %v", limit)}
		case s.err != nil:
			m = Members{Unknown: "cannot be computed: " + s.err.Error()}
		case err != nil:
			return nil, fmt.Errorf("count segment %s: %w", name, err)
		}
		i := slices.IndexFunc(changes, func(c Change) bool { return c.Kind == spec.KindSegment && c.Name == name })
		if i < 0 {
			changes = append(changes, Change{Kind: spec.KindSegment, Name: name, Action: Affected, Version: s.version})
			i = len(changes) - 1
		}
		if changes[i].Members = &m; changes[i].Action == Keep {
			changes[i].Action = Affected
		}
	}
	return changes, nil
}

// TryTime is how long Slow should take at most.
const TryTime = 5 * segment.TryTime

// Slow warns of segments of the set, new or changed ones, that would be set aside since they cannot be computed in time or Postgres refuses them. They are tried with a few contacts, until the limit is over.
func Slow(ctx context.Context, tx *postgres.Tx, set *spec.Set, changes []Change, limit time.Duration) (warnings []string, err error) {
	w, err := worldOf(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	end := time.Now().Add(limit)
	untried := 0
	for _, d := range set.Documents {
		s := w.segments[d.Name]
		asks := slices.ContainsFunc(changes, func(c Change) bool {
			return c.Kind == d.Kind && c.Name == d.Name && (c.Action == Create || c.Action == Update)
		})
		if d.Kind != spec.KindSegment || !asks || s == nil || s.err != nil {
			continue
		}
		may := min(time.Until(end), segment.TryTime)
		err := w.within(ctx, may, func() error { return segment.Try(ctx, tx, s.doc, w.after) })
		why := ""
		var pe *pgconn.PgError
		switch {
		case errors.Is(err, ErrTooSlow) && may < segment.TryTime:
			untried++
			continue
		case errors.Is(err, ErrTooSlow):
			why = fmt.Sprintf("for a few contacts it takes longer than %v", segment.TryTime)
		case errors.As(err, &pe):
			why = "Postgres refuses it: SQLSTATE " + pe.Code // the rest may have a contact's value in it
		case err != nil:
			return nil, err
		default:
			continue
		}
		const remedy = "have it ask for less (onda segment preview %[1]s --plan shows what takes long)"
		p := spec.Problem{File: d.File, Line: d.Line, Col: d.Col, Msg: fmt.Sprintf("segment %[1]s cannot be computed, and is set aside: %[2]s; "+remedy, d.Name, why)}
		warnings = append(warnings, p.Error())
	}
	if untried > 0 {
		warnings = append(warnings, fmt.Sprintf("segments of which it was not tried whether they can be computed, since that takes longer than %[2]v: %[1]d; onda segment list tells which are set aside", untried, limit))
	}
	return warnings, nil
}

// PreviewOf counts who the document of a segment puts in it, that of the set or else the one in force, with the other documents of the set in place of those in force. It only
// reads. Where there is no segment of the name it is an error that matches segment.ErrUnknown; one that takes longer than the limit matches ErrTooSlow.
func PreviewOf(ctx context.Context, tx *postgres.Tx, set *spec.Set, name string, opts PreviewOptions) (*Preview, error) {
	w, err := worldOf(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	s := w.segments[name]
	if s == nil {
		return nil, fmt.Errorf("segment %s: %w", name, segment.ErrUnknown)
	}
	p := &Preview{Segment: name, Stored: s.entity != 0, Fields: []string{}, Sample: []Sampled{}}
	began := time.Now()
	var ids []int64
	if p.Members, ids, err = w.count(ctx, s, opts.Sample, opts.Limit); err != nil {
		return nil, fmt.Errorf("segment %s: %w", name, err)
	}
	p.Took = time.Since(began)
	if opts.Sample > 0 {
		if err := w.sample(ctx, p, s.doc, ids); err != nil {
			return nil, fmt.Errorf("segment %s: %w", name, err)
		}
	}
	if opts.Plan {
		if p.Plan, err = w.plan(ctx, s, opts.Limit); err != nil {
			return nil, fmt.Errorf("segment %s: %w", name, err)
		}
	}
	return p, nil
}

// sample reads contacts with the fields that a document asks about.
func (w *world) sample(ctx context.Context, p *Preview, doc *spec.Segment, ids []int64) error {
	if doc.Where != nil {
		for _, name := range predicate.DepsOf(doc.Where).Fields {
			if _, ok := w.after.Fields[name]; ok || name == "created" || name == "tags" {
				p.Fields = append(p.Fields, name)
			}
		}
	}
	rows, err := w.tx.Query(ctx, `SELECT c.id, coalesce(c.email, ''), ARRAY(SELECT CASE f WHEN 'created' THEN to_char(c.created_at AT TIME ZONE $3, 'YYYY-MM-DD HH24:MI') WHEN 'tags' THEN array_to_string(c.tags, ', ')
			ELSE c.fields->>f END FROM unnest($2::text[]) WITH ORDINALITY u(f, n) ORDER BY n)
		FROM contact c WHERE c.id = ANY ($1) ORDER BY c.id`, ids, p.Fields, w.after.Zone.String())
	if err != nil {
		return fmt.Errorf("read a sample: %w", err)
	}
	p.Sample, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (s Sampled, err error) {
		err = r.Scan(&s.Contact, &s.Email, &s.Values)
		return s, err
	})
	if err != nil {
		return fmt.Errorf("read a sample: %w", err)
	}
	return nil
}
