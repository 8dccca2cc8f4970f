package campaign

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// Lag is how far what is counted and done is behind what happened, for all of the tenant.
type Lag struct {
	// CountedTo is until when opens and clicks are in statistics; HitsWaiting how many are not, the last few seconds' of them for being held.
	CountedTo   time.Time `json:"countedTo"`
	HitsWaiting int64     `json:"hitsWaiting"`
	// SegmentsWait and JourneysWait are how many facts segments and journeys have not come to, of the oldest at SegmentsTo and JourneysTo, or now.
	SegmentsTo   time.Time `json:"segmentsTo"`
	SegmentsWait int64     `json:"segmentsWait"`
	JourneysTo   time.Time `json:"journeysTo"`
	JourneysWait int64     `json:"journeysWait"`
}

// GetLag measures it.
func GetLag(ctx context.Context, tx *postgres.Tx) (Lag, error) {
	l := Lag{CountedTo: tx.Now(), SegmentsTo: tx.Now(), JourneysTo: tx.Now()}
	if err := tx.QueryRow(ctx, "SELECT coalesce(min(at), $1), count(*) FROM hit WHERE verdict IS NULL", tx.Now()).Scan(&l.CountedTo, &l.HitsWaiting); err != nil {
		return Lag{}, fmt.Errorf("count the hits that wait: %w", err)
	}
	for _, r := range []struct {
		name string
		to   *time.Time
		n    *int64
	}{{"segment", &l.SegmentsTo, &l.SegmentsWait}, {"campaign", &l.JourneysTo, &l.JourneysWait}} {
		since, n, err := tx.Unread(ctx, r.name)
		if err != nil {
			return Lag{}, err
		}
		if *r.n = n; !since.IsZero() {
			*r.to = since
		}
	}
	return l, nil
}

// String says it in a line, with times in UTC.
func (l Lag) String() string { return strings.Join(l.Lines(), "; ") }

// Lines are what String says, for each of what is behind, or that nothing is.
func (l Lag) Lines() []string {
	parts := []string{"opens and clicks are all counted"}
	if l.HitsWaiting > 0 {
		parts[0] = fmt.Sprintf("opens and clicks are counted up to %s, %s", clock(l.CountedTo), wait(l.HitsWaiting, "hit"))
	}
	if l.SegmentsWait > 0 {
		parts = append(parts, fmt.Sprintf("segments know what happened up to %s, %s", clock(l.SegmentsTo), wait(l.SegmentsWait, "fact")))
	}
	if l.JourneysWait > 0 {
		parts = append(parts, fmt.Sprintf("journeys know what happened up to %s, %s", clock(l.JourneysTo), wait(l.JourneysWait, "fact")))
	}
	return parts
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") }

// wait is a number, with commas between thousands, of things that wait.
func wait(n int64, of string) string {
	if n == 1 {
		return "1 " + of + " waits"
	}
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s + " " + of + "s wait"
}
