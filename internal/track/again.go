package track

import (
	"context"
	"fmt"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// ListsSchema is the tenant migration from which on it is known by which lists hits were judged; before it, lists that change count for mails alone of which something comes in.
const ListsSchema = 16

const (
	againAfter = 10 * time.Minute // for so long all who judge must have the same lists: processes read them, and are replaced, one after the other
	againMost  = 20               // chunks of hits that are looked at again in one sweep, so that those wait little which were never judged
	againLook  = 24 * time.Hour   // a tenant without hits of its own is asked so often whether its lists are others
)

// lookedAgain is by which lists the tenant's hits are judged, and how far the earlier ones are looked at again.
type lookedAgain struct {
	lists string
	since time.Time
	at    *time.Time // nil: all are
	id    int64
}

func readLookedAgain(ctx context.Context, tx *postgres.Tx) (l lookedAgain, err error) {
	err = tx.QueryRow(ctx, "SELECT coalesce(lists, ''), coalesce(since, 'epoch'), at, id FROM cursor WHERE name = 'scanners'").Scan(&l.lists, &l.since, &l.at, &l.id)
	if err != nil {
		return l, fmt.Errorf("read by which lists hits were judged: %w", err)
	}
	return l, nil
}

// judgeAgain looks at a chunk of the hits that were judged by other lists of agents than those in force, and judges anew the mails of which the lists say something else now. It goes by
// the time of hits, as far back as their agents are kept. Those of networks cannot be looked up anew: no address is stored. more tells that there may be further ones to look at now.
func (t *Tracker) judgeAgain(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	if tx.Tenant.Schema < ListsSchema {
		return false, nil
	}
	if mine, err := judges(ctx, tx); err != nil || !mine {
		return false, err
	}
	l, err := readLookedAgain(ctx, tx)
	if err != nil {
		return false, err
	}
	lists := t.scanners.now()
	if l.lists != lists.hash {
		// By which lists those of before the migration were judged is not known.
		_, err := tx.Exec(ctx, "UPDATE cursor SET lists = $1, since = onda.now(), at = CASE WHEN lists IS NOT NULL THEN $2::timestamptz END, id = 0 WHERE name = 'scanners'",
			lists.hash, tx.Now().Add(-t.cfg.OriginKeep))
		if err != nil {
			return false, fmt.Errorf("note new lists of scanners: %w", err)
		}
		return false, nil
	}
	if l.at == nil || tx.Now().Before(l.since.Add(againAfter)) {
		return false, nil
	}
	hits, err := readHits(ctx, tx, "origin IS NOT NULL AND (at, id) > ($1, $2) ORDER BY at, id LIMIT $3", *l.at, l.id, judgeChunk)
	if err != nil {
		return false, err
	}
	var others []int64
	for _, h := range hits {
		if h.Delivery > 0 && h.Verdict != nobody && lists.saysOther(h) {
			others = append(others, h.Delivery)
		}
	}
	if len(others) > 0 {
		if err := tx.EnsurePartitionsLately(ctx); err != nil {
			return false, err
		}
		stats := map[statKey]count{}
		if err := t.judgeNamed(ctx, tx, nil, others, stats); err != nil {
			return false, err
		}
		if err := writeStats(ctx, tx, stats); err != nil {
			return false, err
		}
	}
	more = len(hits) == judgeChunk
	l.at = nil
	if more {
		last := hits[len(hits)-1]
		l.at, l.id = &last.At, last.ID
	}
	if _, err := tx.Exec(ctx, "UPDATE cursor SET at = $1, id = $2 WHERE name = 'scanners'", l.at, l.id); err != nil {
		return false, fmt.Errorf("note how far hits are judged again: %w", err)
	}
	return more, nil
}

// saysOther tells whether the lists give a judged hit another reason than it has. What the other hits of its mail say of it goes by no list.
func (l *lists) saysOther(h stored) bool {
	switch own := l.own(h); {
	case own != "":
		return own != h.Reason
	default:
		return h.Reason != "" && h.Reason != unseen && h.Reason != tooEarly && h.Reason != "burst" && h.Reason != "probe"
	}
}

// againDue is when judgeAgain has work, or is to see whether it has.
func (t *Tracker) againDue(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	if tx.Tenant.Schema < ListsSchema {
		return postgres.Never, nil
	}
	l, err := readLookedAgain(ctx, tx)
	if err != nil {
		return postgres.Never, err
	}
	if l.at != nil {
		return l.since.Add(againAfter), nil
	}
	var kept bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM hit WHERE origin IS NOT NULL)").Scan(&kept); err != nil || !kept {
		return postgres.Never, err
	}
	return tx.Now().Add(againLook), nil
}
