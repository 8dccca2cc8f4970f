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

// kept is one segment: its row and the version of its document that holds for it now.
type kept struct {
	entity  int32
	name    string
	current int64 // 0: it was taken away
	// document is the version that its members were made by, building the one that a rebuild is under way to (0: none).
	document, building int64
	rebuiltTo          int64
	requested          bool
	dueAt              *time.Time // nil: never

	doc  *spec.Segment // of building, else of document, else of current; nil when taken away
	deps predicate.Deps
	err  error // why doc cannot be read

	joined, left int64 // in this transaction
	firstJoined  []int64
	firstLeft    []int64
}

func (s *kept) stale(now time.Time) bool {
	return s.current == 0 || s.requested || s.building != 0 || s.document != s.current || s.dueAt != nil && !s.dueAt.After(now)
}

// documents are decoded once a process: a version never changes.
type documents struct {
	mu   sync.Mutex
	docs map[version]*spec.Segment
}

type version struct {
	tenant   int32
	document int64
}

// maxDocuments bounds the memory of a process that serves many tenants.
const maxDocuments = 2000

func (d *documents) decode(tenant int32, id int64, stored []byte) (*spec.Segment, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := version{tenant, id}
	if s, ok := d.docs[v]; ok {
		return s, nil
	}
	s, err := spec.DecodeAs[*spec.Segment](spec.KindSegment, stored)
	if err != nil {
		return nil, err
	}
	if d.docs == nil || len(d.docs) >= maxDocuments {
		d.docs = map[version]*spec.Segment{}
	}
	d.docs[v] = s
	return s, nil
}

// load reads all the tenant's segments, those that others ask about before these. The caller has the lock.
func (d *documents) load(ctx context.Context, tx *postgres.Tx) ([]*kept, error) {
	if _, err := tx.Exec(ctx, `INSERT INTO segment (entity) SELECT e.id FROM entity e WHERE e.kind = 'Segment' AND e.current IS NOT NULL
		AND NOT EXISTS (SELECT FROM segment s WHERE s.entity = e.id) ON CONFLICT DO NOTHING`); err != nil {
		return nil, fmt.Errorf("make rows of new segments: %w", err)
	}
	rows, err := tx.Query(ctx, `SELECT s.entity, e.name, coalesce(e.current, 0), coalesce(s.document, 0), coalesce(s.building, 0), s.rebuild_to, s.requested, nullif(s.due_at, 'infinity'),
		coalesce(d.id, 0), d.spec
		FROM segment s JOIN entity e ON e.id = s.entity LEFT JOIN document d ON d.id = coalesce(s.building, s.document, e.current) ORDER BY s.entity FOR NO KEY UPDATE OF s`)
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (*kept, error) {
		s := &kept{}
		var id int64
		var stored []byte
		if err := r.Scan(&s.entity, &s.name, &s.current, &s.document, &s.building, &s.rebuiltTo, &s.requested, &s.dueAt, &id, &stored); err != nil {
			return nil, err
		}
		if stored != nil {
			s.use(d.decode(tx.Tenant.Number, id, stored))
		}
		return s, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	return inOrder(all), nil
}

// use makes a document the one that holds.
func (s *kept) use(doc *spec.Segment, err error) {
	s.doc, s.err, s.deps = doc, err, predicate.Deps{}
	if doc != nil && doc.Where != nil {
		s.deps = predicate.DepsOf(doc.Where)
	}
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
		if s == nil || seen[s] {
			return
		}
		seen[s] = true
		for _, name := range s.deps.Segments {
			visit(byName[name])
		}
		out = append(out, s)
	}
	for _, s := range all {
		visit(s)
	}
	return out
}

// condition is SQL that says of a row of contact c whether it belongs in the segment; parameters from first.
func (s *kept) condition(env predicate.Env, first int) (predicate.Query, error) {
	q := predicate.Query{SQL: "false"}
	if s.err != nil {
		return q, fmt.Errorf("segment %s: %w", s.name, s.err)
	}
	if s.doc.Where != nil {
		var err error
		env.First = first
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
