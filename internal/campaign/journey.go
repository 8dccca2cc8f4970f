package campaign

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// The states of a journey.
const (
	active    = "active"
	done      = "done"
	goal      = "goal"
	left      = "left"
	cancelled = "cancelled"
)

const (
	// chunk is how many journeys are moved in one transaction.
	chunk = 500
	// maxImmediate bounds how many steps journeys take in one pass; what is left is due at once, for the next pass. A loop without a wait is refused at
	// apply, so nobody comes near it but in a campaign of very many steps.
	maxImmediate = 64
)

// journey is a contact in a campaign, as it moves during one pass. Its row is locked meanwhile.
type journey struct {
	id       int64
	contact  int64
	document int64
	state    string
	outcome  string
	step     string
	// stepAt is when it should have come to the step: the end of the wait before it, however late that was noticed.
	stepAt  time.Time
	visit   int
	due     time.Time
	until   *time.Time // nil until a wait was looked at for the first time
	entered time.Time
	zone    string // the contact's own

	parked bool // nothing more is to be done in this pass
}

// park leaves the journey at its step until it is due again, or touched by a fact.
func (j *journey) park(until *time.Time, due time.Time) {
	j.until, j.due, j.parked = until, due, true
}

// end ends the journey.
func (j *journey) end(state, outcome string) {
	j.state, j.outcome, j.parked = state, outcome, true
}

// past is a row of a journey's history.
type past struct {
	journey  int64
	visit    int
	step     string
	branch   string
	delivery *int64
	at       time.Time
}

// history collects rows until they are written.
type history struct{ rows []past }

// move takes a journey from its step to the next ("" ends it), and notes by which branch, and when the step was over.
func (h *history) move(j *journey, branch, next string, at time.Time) {
	h.sent(j, branch, next, at, nil)
}

func (h *history) sent(j *journey, branch, next string, at time.Time, delivery *int64) {
	h.rows = append(h.rows, past{j.id, j.visit, j.step, branch, delivery, at})
	j.visit++
	j.stepAt, j.until = at, nil
	if next == "" {
		j.end(done, j.outcome)
		return
	}
	j.step = next
}

// write inserts what was collected.
func (h *history) write(ctx context.Context, tx *postgres.Tx) error {
	if len(h.rows) == 0 {
		return nil
	}
	n := len(h.rows)
	journeys, visits, steps, branches := make([]int64, n), make([]int32, n), make([]string, n), make([]string, n)
	deliveries, ats := make([]*int64, n), make([]time.Time, n)
	for i, p := range h.rows {
		journeys[i], visits[i], steps[i], branches[i], deliveries[i], ats[i] = p.journey, int32(p.visit), p.step, p.branch, p.delivery, p.at
	}
	h.rows = h.rows[:0]
	_, err := tx.Exec(ctx, `INSERT INTO step (journey, visit, step, branch, delivery, at)
		SELECT * FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::bigint[], $6::timestamptz[])`,
		journeys, visits, steps, branches, deliveries, ats)
	if err != nil {
		return fmt.Errorf("write the history of journeys: %w", err)
	}
	return nil
}

// journeyFacts adds the facts that tell segments who is in a campaign: contacts entered it (active), or ended a journey there in another state. Nobody else follows them.
func journeyFacts(facts []postgres.Fact, campaign, state string, contacts []int64) []postgres.Fact {
	kind, data := "journey.entered", []byte(nil)
	if state != active {
		kind, data = "journey.left", []byte(`{"state":"`+state+`"}`)
	}
	slices.Sort(contacts)
	for chunk := range slices.Chunk(slices.Compact(contacts), event.MaxItems) { // some are in several journeys, by their keys
		facts = append(facts, postgres.Fact{Kind: kind, Name: campaign, Contacts: chunk, Data: data})
	}
	return facts
}

// ended are the facts of those of a campaign's journeys that are over.
func ended(campaign string, js []*journey) (facts []postgres.Fact) {
	over := slices.DeleteFunc(slices.Clone(js), func(j *journey) bool { return j.state == active })
	byState, states := groups(over, func(j *journey) string { return j.state })
	for _, state := range states {
		facts = journeyFacts(facts, campaign, state, contactsOf(byState[state]))
	}
	return facts
}

// lease locks up to limit of the run's journeys that are due and that nobody else has locked.
func lease(ctx context.Context, tx *postgres.Tx, run int64, limit int) ([]*journey, error) {
	rows, err := tx.Query(ctx, `SELECT j.id, j.contact, j.document, j.step, j.step_at, j.visit, j.until, j.entered_at, coalesce(c.fields ->> $3, '')
		FROM journey j JOIN run r ON r.id = j.run AND r.state = 'running' LEFT JOIN contact c ON c.id = j.contact
		WHERE j.run = $1 AND j.state = 'active' AND j.due_at <= onda.now()
		ORDER BY j.due_at LIMIT $2 FOR UPDATE OF j SKIP LOCKED`, run, limit, spec.ZoneField)
	if err != nil {
		return nil, fmt.Errorf("lease journeys: %w", err)
	}
	js, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*journey, error) {
		j := &journey{state: active, due: tx.Now()}
		return j, row.Scan(&j.id, &j.contact, &j.document, &j.step, &j.stepAt, &j.visit, &j.until, &j.entered, &j.zone)
	})
	if err != nil {
		return nil, fmt.Errorf("lease journeys: %w", err)
	}
	return js, nil
}

// save writes where the journeys have come to.
func save(ctx context.Context, tx *postgres.Tx, js []*journey) error {
	n := len(js)
	ids, states, outcomes, steps := make([]int64, n), make([]string, n), make([]string, n), make([]string, n)
	stepAts, visits, dues, untils := make([]time.Time, n), make([]int32, n), make([]time.Time, n), make([]*time.Time, n)
	for i, j := range js {
		ids[i], states[i], outcomes[i], steps[i] = j.id, j.state, j.outcome, j.step
		stepAts[i], visits[i], dues[i], untils[i] = j.stepAt, int32(j.visit), j.due, j.until
	}
	_, err := tx.Exec(ctx, `UPDATE journey j SET state = u.state, outcome = u.outcome, step = u.step, step_at = u.step_at, visit = u.visit,
			due_at = CASE WHEN u.state = 'active' THEN u.due ELSE 'infinity' END, until = u.until,
			ended_at = CASE WHEN u.state <> 'active' THEN onda.now() END
		FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::int[], $7::timestamptz[], $8::timestamptz[])
			AS u (id, state, outcome, step, step_at, visit, due, until)
		WHERE j.id = u.id`, ids, states, outcomes, steps, stepAts, visits, dues, untils)
	if err != nil {
		return fmt.Errorf("move journeys: %w", err)
	}
	return nil
}

func contactsOf(js []*journey) []int64 {
	out := make([]int64, len(js))
	for i, j := range js {
		out[i] = j.contact
	}
	return out
}

func idsOf(js []*journey) []int64 {
	out := make([]int64, len(js))
	for i, j := range js {
		out[i] = j.id
	}
	return out
}
