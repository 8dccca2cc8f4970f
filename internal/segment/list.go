package segment

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// Stored is a segment whose document is in force, as it is stored.
type Stored struct {
	Entity  int32
	Name    string
	Version int
	Doc     *spec.Segment // nil where Err says why it cannot be read
	Err     error
	// Members is how many are in it; of which version of the document it says, Current does.
	Members int64
	// Current: the members are those of the document in force, and no rebuild is wanted or under way.
	Current bool
	// RebuiltTo is up to which contact a rebuild is that is under way; 0 where none is, or it has just begun.
	Building  bool
	RebuiltTo int64
	// RebuiltAt is when the members were last computed in full, DueAt when time alone may next change them; nil for never.
	RebuiltAt, DueAt *time.Time
	// Failed says, of one that cannot be computed, what of; it is tried again at RetryAt.
	Failed  string
	RetryAt *time.Time
}

// All reads the tenant's segments that are in force, by name.
func All(ctx context.Context, tx *postgres.Tx) ([]Stored, error) {
	failed := "coalesce(s.failed, ''), s.retry_at"
	if tx.Tenant.Schema < SweepSchema {
		failed = "'', NULL::timestamptz"
	}
	rows, err := tx.Query(ctx, `SELECT e.id, e.name, d.version, d.spec, coalesce(s.members, 0), NOT `+stale(tx)+`, s.building IS NOT NULL, coalesce(s.rebuild_to, 0), s.rebuilt_at, nullif(s.due_at, 'infinity'), `+failed+`
		FROM entity e JOIN document d ON d.id = e.current LEFT JOIN segment s ON s.entity = e.id WHERE e.kind = 'Segment' ORDER BY e.name`)
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (s Stored, err error) {
		var doc []byte
		if err := r.Scan(&s.Entity, &s.Name, &s.Version, &doc, &s.Members, &s.Current, &s.Building, &s.RebuiltTo, &s.RebuiltAt, &s.DueAt, &s.Failed, &s.RetryAt); err != nil {
			return s, err
		}
		s.Doc, s.Err = spec.DecodeAs[*spec.Segment](spec.KindSegment, doc)
		return s, nil
	})
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	return all, nil
}

// Condition is SQL that says of a row of contact c whether a segment's document puts it in; what is kept by hand beside the document is not looked at. It fails where
// the document does not fit the fields, such as one that was taken away.
func Condition(doc *spec.Segment, env predicate.Env) (predicate.Query, error) {
	return (&kept{name: doc.Name, doc: doc}).condition(env, max(env.First, 1), env.Scope)
}

// State says in one word how a segment stands.
type State string

// The states of a segment.
const (
	// IsCurrent: its members are those that its document gives.
	IsCurrent State = "current"
	// Waiting: it will be computed in full with the next work.
	Waiting State = "waiting"
	// Rebuilding: it is being computed in full.
	Rebuilding State = "rebuilding"
	// SetAside: it cannot be computed, and its members stay as they are.
	SetAside State = "set aside"
)

// Status is how a segment stands.
type Status struct {
	Name    string `json:"segment"`
	Members int64  `json:"members"`
	State   State  `json:"state"`
	// Why says why it is set aside.
	Why string `json:"why,omitempty"`
	// Done is the share of the contacts that a rebuild has looked at, of 1.
	Done float64 `json:"done,omitempty"`
	// RebuiltAt is when it was last computed in full, NextAt when time alone may next change its members.
	RebuiltAt *time.Time `json:"rebuiltAt"`
	NextAt    *time.Time `json:"nextAt"`
	// RetryAt is when one that is set aside is tried again.
	RetryAt *time.Time `json:"retryAt,omitempty"`
}

// List tells how all segments stand.
func List(ctx context.Context, tx *postgres.Tx) ([]Status, error) {
	all, err := All(ctx, tx)
	if err != nil {
		return nil, err
	}
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return nil, err
	}
	var most int64
	if err := tx.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM contact").Scan(&most); err != nil {
		return nil, fmt.Errorf("count contacts: %w", err)
	}
	out := make([]Status, len(all))
	for i, s := range all {
		out[i] = s.status(env, most)
	}
	return out, nil
}

// status: most is the last contact's id.
func (s *Stored) status(env predicate.Env, most int64) Status {
	st := Status{Name: s.Name, Members: s.Members, State: IsCurrent, RebuiltAt: s.RebuiltAt, NextAt: s.DueAt}
	err := s.Err
	if err == nil && s.Doc.Where != nil {
		_, err = predicate.Compile(s.Doc.Where, env)
	}
	switch {
	case err != nil:
		st.State, st.Why = SetAside, err.Error()
	case s.Failed != "":
		st.State, st.Why, st.RetryAt = SetAside, s.Failed, s.RetryAt
	case s.Building:
		st.State = Rebuilding
		if most > 0 {
			st.Done = min(float64(s.RebuiltTo)/float64(most), 1)
		}
	case !s.Current:
		st.State = Waiting
	}
	return st
}
