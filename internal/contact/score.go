package contact

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// ScoresSchema is the tenant migration from which on contacts have scores; before it, all are 0.
const ScoresSchema = 14

// Points are added to a contact's score of a group; they may be below zero.
type Points struct {
	Contact int64
	Group   string
	Add     int64
}

// ScoreSQL is a contact's score in SQL: a bigint, 0 where nothing was given. contact is the row's alias, group SQL for the group's name.
func ScoreSQL(contact, group string) string {
	return "coalesce((" + contact + ".scores->>" + group + ")::bigint, 0)"
}

// scoresOfEvent is how many scores a doorbell holds: with the longest names of groups they stay within 64 KiB.
const scoresOfEvent = 300

// AddPoints adds all the points, in two statements however many there are (at most some thousands), and writes facts score.changed, one a group for many contacts, and rings their
// doorbells, for scores that are others then. Merged contacts stand for those they were merged into; erased ones are left alone. On a schema before ScoresSchema it is an error
// that matches postgres.ErrSchemaTooOld. cause is as in Update.
func AddPoints(ctx context.Context, tx *postgres.Tx, drainer string, points []Points, cause string) error {
	if len(points) == 0 {
		return nil
	}
	if tx.Tenant.Schema < ScoresSchema {
		return fmt.Errorf("to give points, tenant %s needs schema %d: %w", tx.Tenant.Name, ScoresSchema, postgres.ErrSchemaTooOld)
	}
	contacts, groups, add := make([]int64, len(points)), make([]string, len(points)), make([]int64, len(points))
	for i, p := range points {
		contacts[i], groups[i], add[i] = p.Contact, p.Group, p.Add
	}
	// The lock is a statement of its own, so that the next one sees what whoever held it wrote.
	if err := Lock(ctx, tx, slices.Compact(slices.Sorted(slices.Values(contacts)))); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `WITH d AS (
			SELECT coalesce(m.merged_into, m.id) AS id, u.name, sum(u.points)::bigint AS points
			  FROM unnest($1::bigint[], $2::text[], $3::bigint[]) u(contact, name, points) JOIN contact m ON m.id = u.contact GROUP BY 1, 2 HAVING sum(u.points) <> 0
		), s AS (
			SELECT c.id, jsonb_object_agg(d.name, coalesce((c.scores->>d.name)::bigint, 0) + d.points) AS scores FROM d JOIN contact c ON c.id = d.id WHERE c.erased_at IS NULL GROUP BY c.id
		), w AS (UPDATE contact c SET scores = c.scores || s.scores, changed_at = onda.now() FROM s WHERE c.id = s.id)
		SELECT n.key, s.id, n.value::bigint FROM s, jsonb_each_text(s.scores) n ORDER BY n.key, s.id`, contacts, groups, add)
	if err != nil {
		return fmt.Errorf("add points: %w", err)
	}
	type score struct {
		Group   string
		Contact int64
		Score   int64
	}
	scores, err := pgx.CollectRows(rows, pgx.RowToStructByPos[score])
	if err != nil {
		return fmt.Errorf("add points: %w", err)
	}
	w := &writer{drainer: drainer, cause: cause}
	of := map[string][]int64{}
	var names []string
	items := make([]event.Score, len(scores))
	for i, s := range scores {
		if of[s.Group] == nil {
			names = append(names, s.Group)
		}
		of[s.Group] = append(of[s.Group], s.Contact)
		items[i] = event.Score{Contact: s.Contact, Group: s.Group, Score: s.Score}
	}
	for _, name := range names {
		if err := w.addSet("score.changed", name, of[name], nil); err != nil {
			return err
		}
	}
	for chunk := range slices.Chunk(items, scoresOfEvent) {
		w.ring = append(w.ring, event.ScoreChanged{Items: chunk})
	}
	return w.flush(ctx, tx)
}
