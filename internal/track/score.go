package track

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// scoreFacts bounds what is folded into scores in one transaction: a fact is about one contact.
const scoreFacts = 5_000

// scored are the kinds of facts that may change scores.
func scored() []string { return append(spec.ScoredEvents(), "event.tracked", "hit.reclassified") }

// points are what is given, by group.
type points map[string]int64

// foldScores gives the points for a chunk of facts by the rules that were in force when it happened, and takes back those of hits that turned out to be a machine's. What it gives and
// how far it read commit together. more tells that there may be further ones; who reads at this moment does the work.
func (t *Tracker) foldScores(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	if tx.Tenant.Schema < contact.ScoresSchema {
		return false, nil
	}
	rules, err := readRules(ctx, tx)
	if err != nil {
		return false, err
	}
	if len(rules) == 0 {
		return false, passOverFacts(ctx, tx)
	}
	facts, more, err := tx.ReadFacts(ctx, "track", postgres.FactLimit{Facts: scoreFacts, Items: 4 * scoreFacts}, scored()...)
	if errors.Is(err, postgres.ErrBusy) {
		return false, nil
	}
	if err != nil || len(facts) == 0 {
		return more, err
	}
	facts = slices.DeleteFunc(facts, func(f postgres.Fact) bool { return f.Contact == 0 })
	facts, hits, err := hitsOf(ctx, tx, facts)
	if err != nil {
		return false, err
	}
	gives, err := rules.points(ctx, tx, facts)
	if err != nil {
		return false, err
	}
	var add []contact.Points
	for _, f := range facts {
		if h := hits[hitOf(f)]; h != nil {
			h.contact = f.Contact
			if h.human && f.Kind != "hit.reclassified" {
				h.due = gives[f.ID]
			}
			continue
		}
		for group, n := range gives[f.ID] {
			add = append(add, contact.Points{Contact: f.Contact, Group: group, Add: n})
		}
	}
	corrections, err := giveHits(ctx, tx, hits)
	if err != nil {
		return false, err
	}
	return more, contact.AddPoints(ctx, tx, "track", append(add, corrections...), "")
}

// scoresDue is when foldScores has work.
func (t *Tracker) scoresDue(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	if tx.Tenant.Schema < contact.ScoresSchema {
		return postgres.Never, nil
	}
	rules, err := readRules(ctx, tx)
	if err != nil || len(rules) == 0 {
		return postgres.Never, err
	}
	return tx.FactsDue(ctx, "track")
}

// withRules are the versions of the tenant's settings, unless these were taken away, when any of them has rules.
const withRules = `FROM entity e JOIN document d ON d.entity = e.id WHERE e.kind = 'Settings' AND e.name = 'settings' AND e.current IS NOT NULL`

const hasRules = `jsonb_array_length(coalesce(d.spec->'spec'->'scores', '[]')) > 0`

// rules are the versions of the tenant's settings from the first that has rules on, the latest first.
type rules []rulesSince

type rulesSince struct {
	from  time.Time
	rules []spec.ScoreRule
}

func readRules(ctx context.Context, tx *postgres.Tx) (rules, error) {
	rows, err := tx.Query(ctx, `SELECT d.applied_at, CASE WHEN `+hasRules+` THEN d.spec END `+withRules+`
		AND d.id >= (SELECT min(d.id) `+withRules+` AND `+hasRules+`) ORDER BY d.id DESC`)
	if err != nil {
		return nil, fmt.Errorf("read the rules of scores: %w", err)
	}
	var out rules
	var from time.Time
	var doc []byte
	_, err = pgx.ForEachRow(rows, []any{&from, &doc}, func() error {
		since := rulesSince{from: from}
		if doc != nil {
			settings, err := spec.DecodeAs[*spec.Settings](spec.KindSettings, doc)
			if err != nil {
				return err
			}
			since.rules = settings.Scores
		}
		out = append(out, since)
		doc = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the rules of scores: %w", err)
	}
	return out, nil
}

// passOverFacts moves the cursor to the end: without rules no fact gives anything. That there are still none is asked in the same statement, which sees no fact of after the first
// rule's commit without the rule. A cursor is never moved back.
func passOverFacts(ctx context.Context, tx *postgres.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE cursor c SET xid = n.xid, id = 0
		FROM (SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + base)::text::xid8 AS xid FROM cursor WHERE name = 'track') n
		WHERE c.name = 'track' AND c.xid < n.xid AND EXISTS (SELECT FROM fact f WHERE (f.xid, f.id) > (c.xid, c.id)) AND NOT EXISTS (SELECT `+withRules+` AND `+hasRules+`)`)
	if err != nil {
		return fmt.Errorf("pass over facts: %w", err)
	}
	return nil
}

// points tells what facts give, by their ids, by the rules that were in force when they happened.
func (r rules) points(ctx context.Context, tx *postgres.Tx, facts []postgres.Fact) (map[int64]points, error) {
	at := map[int][]postgres.Fact{} // by the version in force
	for _, f := range facts {
		if i := slices.IndexFunc(r, func(v rulesSince) bool { return !v.from.After(f.At) }); i >= 0 {
			at[i] = append(at[i], f)
		}
	}
	out := map[int64]points{}
	var env predicate.Env
	for i, facts := range at {
		for _, rule := range r[i].rules {
			ids := idsOf(facts, rule)
			if len(ids) == 0 {
				continue
			}
			if len(rule.Where) > 0 && env.Fields == nil {
				var err error
				if env, err = predicate.Load(ctx, tx); err != nil {
					return nil, err
				}
			}
			passes, err := predicate.Having(ctx, tx, env, rule.Event, rule.Where, ids)
			if err != nil {
				return nil, fmt.Errorf("points for %s: %w", rule.Event, err)
			}
			for id := range passes {
				if out[id] == nil {
					out[id] = points{}
				}
				out[id][rule.Group] += int64(rule.Add)
			}
		}
	}
	return out, nil
}

// idsOf are the facts that a rule may be about, whatever their properties.
func idsOf(facts []postgres.Fact, rule spec.ScoreRule) (ids []int64) {
	kind, name := rule.Event, rule.Of
	if !slices.Contains(spec.ScoredEvents(), rule.Event) {
		kind, name = "event.tracked", rule.Event
	}
	for _, f := range facts {
		if f.Kind == kind && (name == "" || f.Name == name) {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// scoredHit is an open or a click that is known still.
type scoredHit struct {
	human   bool
	contact int64
	given   points // what rules gave for it
	due     points // what they are to give
}

// hitOf is the hit that a fact is of; 0 for facts of other things.
func hitOf(f postgres.Fact) int64 {
	if f.Kind != "email.opened" && f.Kind != "email.clicked" && f.Kind != "hit.reclassified" {
		return 0
	}
	var data struct {
		Hit int64 `json:"hit"`
	}
	_ = json.Unmarshal(f.Data, &data) // a fact without a hit is of none
	return data.Hit
}

// hitsOf reads the hits that facts are of, and adds the facts by which those were told that are people's again. Nobody judges hits meanwhile, until the transaction's end. Of
// what is read of a hit only its verdict counts, so that the order of facts and corrections does not.
func hitsOf(ctx context.Context, tx *postgres.Tx, facts []postgres.Fact) ([]postgres.Fact, map[int64]*scoredHit, error) {
	all := map[int64]*scoredHit{}
	var ids, corrected, contacts []int64
	for _, f := range facts {
		id := hitOf(f)
		if id == 0 {
			continue
		}
		ids = append(ids, id)
		if f.Kind == "hit.reclassified" {
			corrected, contacts = append(corrected, id), append(contacts, f.Contact)
		}
	}
	if len(ids) == 0 {
		return facts, all, nil
	}
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", judgeLock, tx.Tenant.Number); err != nil {
		return nil, nil, fmt.Errorf("keep hits from being judged: %w", err)
	}
	rows, err := tx.Query(ctx, "SELECT id, verdict IS NOT DISTINCT FROM 'human', points FROM hit WHERE id = ANY ($1)", ids)
	if err != nil {
		return nil, nil, fmt.Errorf("read hits: %w", err)
	}
	var id int64
	var isHuman bool
	var given points
	_, err = pgx.ForEachRow(rows, []any{&id, &isHuman, &given}, func() error {
		all[id] = &scoredHit{human: isHuman, given: given}
		given = nil
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read hits: %w", err)
	}
	if len(corrected) == 0 {
		return facts, all, nil
	}
	rows, err = tx.Query(ctx, `SELECT id, kind, name, contact, data, at FROM fact
		WHERE contact = ANY ($1) AND kind IN ('email.opened', 'email.clicked') AND (data->>'hit')::bigint = ANY ($2)`, contacts, corrected)
	if err != nil {
		return nil, nil, fmt.Errorf("look what was told of hits: %w", err)
	}
	told, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (f postgres.Fact, err error) {
		err = r.Scan(&f.ID, &f.Kind, &f.Name, &f.Contact, &f.Data, &f.At)
		return f, err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look what was told of hits: %w", err)
	}
	// Of a hit that is no longer known nothing can be corrected.
	told = slices.DeleteFunc(told, func(f postgres.Fact) bool { return all[hitOf(f)] == nil })
	return append(facts, told...), all, nil
}

// giveHits notes with hits what is given for them, and tells by how much that is more than what was.
func giveHits(ctx context.Context, tx *postgres.Tx, hits map[int64]*scoredHit) (add []contact.Points, err error) {
	var ids []int64
	var given []*string
	for _, id := range slices.Sorted(maps.Keys(hits)) {
		h := hits[id]
		if maps.Equal(h.due, h.given) {
			continue
		}
		ids = append(ids, id)
		var noted *string
		if len(h.due) > 0 {
			b, err := json.Marshal(h.due)
			if err != nil {
				return nil, fmt.Errorf("encode points: %w", err)
			}
			s := string(b)
			noted = &s
		}
		given = append(given, noted)
		for group, n := range h.due {
			add = append(add, contact.Points{Contact: h.contact, Group: group, Add: n})
		}
		for group, n := range h.given {
			add = append(add, contact.Points{Contact: h.contact, Group: group, Add: -n})
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	if _, err := tx.Exec(ctx, "UPDATE hit h SET points = u.points FROM unnest($1::bigint[], $2::jsonb[]) u(id, points) WHERE h.id = u.id", ids, given); err != nil {
		return nil, fmt.Errorf("note the points of hits: %w", err)
	}
	return add, nil
}
