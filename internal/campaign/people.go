package campaign

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// matching tells of which of the contacts a predicate is true.
func matching(ctx context.Context, tx *postgres.Tx, env predicate.Env, p *spec.Predicate, contacts []int64) (map[int64]bool, error) {
	env.First = 2
	q, err := predicate.Compile(p, env)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, "SELECT c.id FROM contact c WHERE c.id = ANY ($1) AND "+q.SQL, append([]any{contacts}, q.Args...)...)
	if err != nil {
		return nil, fmt.Errorf("ask a predicate: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("ask a predicate: %w", err)
	}
	is := make(map[int64]bool, len(ids))
	for _, id := range ids {
		is[id] = true
	}
	return is, nil
}

// matching is the same for journeys. A predicate that is about dates is read by each contact's own clock, where the campaign says so.
func (p *pass) matching(ctx context.Context, v *version, pred *spec.Predicate, js []*journey) (map[int64]bool, error) {
	if v.campaign().Zone != spec.ZoneContact || !changesWithTime(pred) {
		return matching(ctx, p.tx, p.env, pred, contactsOf(js))
	}
	byZone, zones := groups(js, func(j *journey) string { return p.location(v, j).String() })
	is := map[int64]bool{}
	for _, zone := range zones {
		env := p.env
		env.Zone = p.location(v, byZone[zone][0])
		part, err := matching(ctx, p.tx, env, pred, contactsOf(byZone[zone]))
		if err != nil {
			return nil, err
		}
		for id := range part {
			is[id] = true
		}
	}
	return is, nil
}

// peopleSQL is the audience of a broadcast: from the members of a segment where it is one, else from all contacts. c is the contact's row. The parameters begin
// with number first.
func peopleSQL(b *spec.Broadcast, env predicate.Env, first int) (from, excluded string, args []any, err error) {
	from = "contact c WHERE "
	if b.To.Segment != "" { // a small segment of many contacts must not be looked for among all
		from = fmt.Sprintf("member m JOIN contact c ON c.id = m.contact WHERE m.segment = (SELECT e.id FROM entity e WHERE e.kind = 'Segment' AND e.name = $%d) AND m.kept <> 'out'", first)
		args = append(args, b.To.Segment)
	} else {
		env.First = first
		q, err := predicate.Compile(&b.To, env)
		if err != nil {
			return "", "", nil, fmt.Errorf("to: %w", err)
		}
		from += q.SQL
		args = append(args, q.Args...)
	}
	// who was merged into another, or erased, is nobody's audience
	from += " AND c.merged_into IS NULL AND c.erased_at IS NULL"
	excluded = "false"
	if b.Exclude != nil {
		env.First = first + len(args)
		q, err := predicate.Compile(b.Exclude, env)
		if err != nil {
			return "", "", nil, fmt.Errorf("exclude: %w", err)
		}
		excluded = q.SQL
		args = append(args, q.Args...)
	}
	return from, excluded, args, nil
}

// audience gives the next recipients of a broadcast after a contact, in order of contact: those of whom a condition is true, which may name c and the parameter $3.
func audience(ctx context.Context, tx *postgres.Tx, b *spec.Broadcast, after int64, limit int, condition string, value any) ([]recipient, error) {
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return nil, err
	}
	from, excluded, args, err := peopleSQL(b, env, 4)
	if err != nil {
		return nil, err
	}
	if b.To.Segment != "" { // else the members before are read again by each chunk
		from += " AND m.contact > $1"
	}
	zone := "''"
	if b.ByOwnClock() { // else their fields are not read
		zone = "coalesce(c.fields ->> '" + spec.ZoneField + "', '')"
	}
	// Two arrays: as many rows cost as much again, here and there.
	var ids []int64
	var zones []string
	sql := `SELECT coalesce(array_agg(id), '{}'), CASE WHEN ` + fmt.Sprint(b.ByOwnClock()) + ` THEN array_agg(zone) END FROM (
		SELECT c.id, ` + zone + ` AS zone FROM ` + from + ` AND c.id > $1 AND (` + excluded + `) IS NOT TRUE AND ` + condition + ` ORDER BY c.id LIMIT $2) a`
	if err := tx.QueryRow(ctx, sql, append([]any{after, limit, value}, args...)...).Scan(&ids, &zones); err != nil {
		return nil, fmt.Errorf("read the audience: %w", err)
	}
	out := make([]recipient, len(ids))
	for i, id := range ids {
		out[i].contact = id
		if zones != nil {
			out[i].zone = zones[i]
		}
	}
	return out, nil
}

// audienceSize counts the audience of a broadcast.
func audienceSize(ctx context.Context, tx *postgres.Tx, b *spec.Broadcast) (n int64, err error) {
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return 0, err
	}
	from, excluded, args, err := peopleSQL(b, env, 1)
	if err != nil {
		return 0, err
	}
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+from+" AND ("+excluded+") IS NOT TRUE", args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the audience: %w", err)
	}
	return n, nil
}
