package campaign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// enrolledAtOnce is how many members of segments are looked at in one transaction.
const enrolledAtOnce = 2000

// entrant is a contact who may enter a campaign.
type entrant struct {
	contact int64
	key     string
	data    []byte    // JSON of the event that lets it in, or nil
	at      time.Time // when that happened
	cause   string
}

// openCampaign is a run that contacts can enter.
type openCampaign struct {
	run     int64
	entity  int32
	name    string
	starts  time.Time
	version *version // the one in force, which those who enter now keep; nil when it was taken away
}

// enrolMembers enrols the next members of the segments that a campaign is entered by, after its start. more tells that there are further ones.
func (d *documents) enrolMembers(ctx context.Context, tx *postgres.Tx, run int64) (more bool, err error) {
	var after int64
	c := openCampaign{run: run}
	var current *int64
	err = tx.QueryRow(ctx, `SELECT r.planned_to, r.entity, e.name, r.starts_at, e.current FROM run r JOIN entity e ON e.id = r.entity
		WHERE r.id = $1 AND r.kind = 'campaign' AND r.state = 'running' AND NOT r.planned FOR NO KEY UPDATE OF r SKIP LOCKED`, run).
		Scan(&after, &c.entity, &c.name, &c.starts, &current)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock run %d: %w", run, err)
	}
	var segments []string
	if current != nil {
		if c.version, err = d.load(ctx, tx, *current); err != nil {
			return false, err
		}
		for _, way := range c.version.campaign().Enter {
			if way.Segment != "" {
				segments = append(segments, way.Segment)
			}
		}
	}
	var members []int64
	if len(segments) > 0 {
		rows, err := tx.Query(ctx, `SELECT DISTINCT m.contact FROM member m JOIN entity e ON e.id = m.segment AND e.kind = 'Segment' AND e.name = ANY ($1)
			WHERE m.contact > $2 AND m.kept <> 'out' ORDER BY 1 LIMIT $3`, segments, after, enrolledAtOnce)
		if err != nil {
			return false, fmt.Errorf("read the members of %s: %w", strings.Join(segments, ", "), err)
		}
		if members, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return false, fmt.Errorf("read the members of %s: %w", strings.Join(segments, ", "), err)
		}
	}
	entrants := make([]entrant, len(members))
	for i, m := range members {
		entrants[i] = entrant{contact: m, at: tx.Now(), cause: "run " + strconv.FormatInt(run, 10)}
	}
	if err := d.enrol(ctx, tx, c, entrants, true); err != nil {
		return false, err
	}
	more = len(members) == enrolledAtOnce
	if len(members) > 0 {
		after = members[len(members)-1]
	}
	if _, err := tx.Exec(ctx, "UPDATE run SET planned_to = $2, planned = $3 WHERE id = $1", run, after, !more); err != nil {
		return false, fmt.Errorf("note how far run %d is enrolled: %w", run, err)
	}
	tx.Wake(drainer, tx.Now())
	return more, nil
}

// enrol puts those into the campaign who may enter it. At its start those are left out who are or were in this run already, by an
// event. The run's row is locked, so that nobody else enrols into it meanwhile.
func (d *documents) enrol(ctx context.Context, tx *postgres.Tx, c openCampaign, entrants []entrant, start bool) error {
	if c.version == nil || c.version.flow.Start == "" || len(entrants) == 0 {
		return nil
	}
	spc := c.version.campaign()
	if spc.Exclude != nil {
		ids := make([]int64, len(entrants))
		for i, e := range entrants {
			ids[i] = e.contact
		}
		env, err := predicate.Load(ctx, tx)
		if err != nil {
			return err
		}
		out, err := matching(ctx, tx, env, spc.Exclude, ids)
		if err != nil {
			return fmt.Errorf("campaign %s, exclude: %w", c.name, err)
		}
		entrants = slices.DeleteFunc(entrants, func(e entrant) bool { return out[e.contact] })
	}
	settings, err := d.settings(ctx, tx)
	if err != nil {
		return err
	}
	again, err := mayReenter(spc.Reentry.Mode, start)
	if err != nil {
		return err
	}
	n := len(entrants)
	contacts, keys, data := make([]int64, n), make([]string, n), make([]string, n)
	ats, oldest, causes := make([]time.Time, n), make([]time.Time, n), make([]string, n)
	for i, e := range entrants {
		contacts[i], keys[i], ats[i], causes[i], data[i] = e.contact, e.key, e.at, e.cause, "{}"
		if len(e.data) > 0 {
			data[i] = string(e.data)
		}
		oldest[i] = spc.Reentry.After.Neg().AddTo(e.at, settings.Location())
	}
	// entered_at is when it happened that let it in, so that an event which comes right after it is seen by the first wait
	var entered []int64
	err = tx.QueryRow(ctx, `WITH entered AS (INSERT INTO journey (run, contact, key, document, step, step_at, due_at, entered_at, data, cause)
		SELECT $1, u.contact, u.key, $2, $3, u.at, onda.now(), u.at, u.data, u.cause
		FROM (SELECT DISTINCT ON (contact, key) * FROM unnest($4::bigint[], $5::text[], $6::jsonb[], $7::timestamptz[], $8::timestamptz[], $9::text[])
				AS u (contact, key, data, at, oldest, cause) ORDER BY contact, key, at) u
			JOIN contact c ON c.id = u.contact AND c.erased_at IS NULL AND c.merged_into IS NULL
		WHERE NOT EXISTS (SELECT FROM journey p JOIN run q ON q.id = p.run
				WHERE p.contact = u.contact AND q.entity = $10 AND (`+again+`))
		ORDER BY u.contact, u.key
		ON CONFLICT (run, contact, key) WHERE state = 'active' DO NOTHING RETURNING contact)
		SELECT array_agg(contact) FROM entered`,
		c.run, c.version.id, c.version.flow.Start, contacts, keys, data, ats, oldest, causes, c.entity).Scan(&entered)
	if err != nil {
		return fmt.Errorf("enrol into campaign %s: %w", c.name, err)
	}
	if len(entered) > 0 {
		tx.Wake(drainer, tx.Now())
	}
	return tx.AddFacts(ctx, journeyFacts(nil, c.name, active, entered)...)
}

// mayReenter is the SQL condition under which a journey p in the campaign, of any of its runs, keeps an entrant u out. Journeys that were cancelled with
// their run do not count. An event that happened before a journey began in the same run is what that journey began with, or older.
func mayReenter(mode spec.ReentryMode, start bool) (string, error) {
	const older = "p.key = u.key AND p.run = $1 AND p.entered_at >= u.at"
	var keep string
	switch mode {
	case spec.ReentryNever:
		keep = "p.key = u.key AND p.state <> 'cancelled'"
	case spec.ReentryAlways:
		keep = older
	case spec.ReentryAfter:
		keep = "p.key = u.key AND p.state <> 'cancelled' AND (p.ended_at IS NULL OR p.ended_at > u.oldest) OR " + older
	default:
		return "", fmt.Errorf("reentry %q is unknown", mode)
	}
	if start {
		keep += " OR p.run = $1"
	}
	return keep, nil
}

// openCampaigns are the runs that contacts can enter, those that are held and those whose time is to come too: what happens after their start
// counts whenever it is read. Their rows are locked in order, so that nobody else enrols meanwhile.
func (d *documents) openCampaigns(ctx context.Context, tx *postgres.Tx) ([]openCampaign, error) {
	rows, err := tx.Query(ctx, `SELECT r.id, r.entity, e.name, coalesce(r.started_at, r.starts_at), coalesce(e.current, 0) FROM run r JOIN entity e ON e.id = r.entity
		WHERE r.kind = 'campaign' AND r.state IN ('scheduled', 'running', 'paused') ORDER BY r.id FOR NO KEY UPDATE OF r`)
	if err != nil {
		return nil, fmt.Errorf("look for open campaigns: %w", err)
	}
	var out []openCampaign
	var currents []int64
	var c openCampaign
	var current int64
	_, err = pgx.ForEachRow(rows, []any{&c.run, &c.entity, &c.name, &c.starts, &current}, func() error {
		out, currents = append(out, c), append(currents, current)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for open campaigns: %w", err)
	}
	for i, id := range currents {
		if id == 0 {
			continue
		}
		if out[i].version, err = d.load(ctx, tx, id); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// enrolByFacts enrols those whom facts let in.
func (d *documents) enrolByFacts(ctx context.Context, tx *postgres.Tx, facts []postgres.Fact) error {
	if !slices.ContainsFunc(facts, letsIn) {
		return nil
	}
	campaigns, err := d.openCampaigns(ctx, tx)
	if err != nil {
		return err
	}
	for _, c := range campaigns {
		if c.version == nil {
			continue
		}
		var entrants []entrant
		for _, way := range c.version.campaign().Enter {
			more, err := c.entrants(ctx, tx, way, facts)
			if err != nil {
				return err
			}
			entrants = append(entrants, more...)
		}
		for _, f := range facts { // by an action of a form, whatever the ways in
			if f.Kind == "campaign.enter" && f.Name == c.name && f.Contact != 0 && !f.At.Before(c.starts) {
				entrants = append(entrants, entrant{contact: f.Contact, data: f.Data, at: f.At, cause: factCause(f)})
			}
		}
		if err := d.enrol(ctx, tx, c, entrants, false); err != nil {
			return err
		}
	}
	return nil
}

// letsIn tells whether a fact may let somebody into some campaign.
func letsIn(f postgres.Fact) bool {
	switch f.Kind {
	case "segment.joined", "campaign.enter", "event.tracked":
		return true
	}
	return slices.Contains(spec.BuiltinEvents(), f.Kind)
}

func factCause(f postgres.Fact) string { return "fact " + strconv.FormatInt(f.ID, 10) }

// entrants are those whom facts let in by one way.
func (c openCampaign) entrants(ctx context.Context, tx *postgres.Tx, way spec.Entry, facts []postgres.Fact) ([]entrant, error) {
	if way.Segment != "" {
		return c.joined(ctx, tx, way.Segment, facts)
	}
	kind, name := factOf(way.Event)
	var hits []postgres.Fact
	for _, f := range facts {
		if f.Kind == kind && (name == "" || f.Name == name) && !f.At.Before(c.starts) {
			hits = append(hits, f)
		}
	}
	if len(hits) == 0 {
		return nil, nil
	}
	ids := make([]int64, len(hits))
	for i, f := range hits {
		ids[i] = f.ID
	}
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return nil, err
	}
	passes, err := predicate.Having(ctx, tx, env, way.Event, way.Where, ids)
	if err != nil {
		return nil, fmt.Errorf("campaign %s, enter by %s: %w", c.name, way.Event, err)
	}
	var out []entrant
	for _, f := range hits {
		if !passes[f.ID] {
			continue
		}
		contacts := f.Contacts
		if f.Contact != 0 {
			contacts = []int64{f.Contact}
		}
		key := ""
		if way.Key != "" {
			key = propertyText(f.Data, way.Key)
		}
		for _, id := range contacts {
			out = append(out, entrant{contact: id, key: key, data: f.Data, at: f.At, cause: factCause(f)})
		}
	}
	return out, nil
}

// joined are those who joined a segment since the run's start; who joined before it, and was read late, is let in while being a member still.
func (c openCampaign) joined(ctx context.Context, tx *postgres.Tx, segment string, facts []postgres.Fact) ([]entrant, error) {
	var out, early []entrant
	for _, f := range facts {
		if f.Kind != "segment.joined" || f.Name != segment {
			continue
		}
		for _, id := range f.Contacts {
			e := entrant{contact: id, at: f.At, cause: factCause(f)}
			if f.At.Before(c.starts) {
				e.at = c.starts
				early = append(early, e)
			} else {
				out = append(out, e)
			}
		}
	}
	if len(early) == 0 {
		return out, nil
	}
	ids := make([]int64, len(early))
	for i, e := range early {
		ids[i] = e.contact
	}
	rows, err := tx.Query(ctx, `SELECT m.contact, true FROM member m JOIN entity e ON e.id = m.segment AND e.kind = 'Segment' AND e.name = $1
		WHERE m.contact = ANY ($2) AND m.kept <> 'out'`, segment, ids)
	if err != nil {
		return nil, fmt.Errorf("read the members of %s: %w", segment, err)
	}
	still := map[int64]bool{}
	if err := eachRow(rows, func(id int64, yes bool) { still[id] = yes }); err != nil {
		return nil, fmt.Errorf("read the members of %s: %w", segment, err)
	}
	for _, e := range early {
		if still[e.contact] {
			out = append(out, e)
		}
	}
	return out, nil
}

// propertyText is the value of an event's property as text, "" where it has none; a.b is a property within a property.
func propertyText(data []byte, name string) string {
	var v any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // 1e21 and 10000000000000001 stay what they are
	if dec.Decode(&v) != nil {
		return ""
	}
	for _, part := range strings.Split(name, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[part]
	}
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}
