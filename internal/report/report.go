// Package report tells what became of a campaign's mails: every recipient is in exactly one of its counts, people are told apart from machines, and mails
// that could be observed from those that could not. It prints itself on a terminal and as one HTML page that loads nothing.
package report

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// ErrNoRun says that a campaign has not been started.
var ErrNoRun = errors.New("it has not been started")

// Count is how often something was so.
type Count struct {
	Name string `json:"name"`
	N    int64  `json:"n"`
}

// Engagement is how often mails were opened, or clicked. Hits counts requests, Mails the mails they came from; those of mails tracked in aggregate are known
// by number only.
type Engagement struct {
	Hits      int64 `json:"hits"`
	Mails     int64 `json:"mails"`
	Aggregate int64 `json:"aggregate"`
}

// Link is how often a link was clicked.
type Link struct {
	URL     string `json:"url"`
	Label   string `json:"label,omitempty"`
	Human   int64  `json:"human"`
	Machine int64  `json:"machine"`
}

// Hour is what happened in an hour.
type Hour struct {
	At     time.Time `json:"at"`
	Sent   int64     `json:"sent"`
	Opens  int64     `json:"opens"`
	Clicks int64     `json:"clicks"`
}

// Variant is what became of one of the variants of an email. Opens and clicks are those of people, in mails tracked one by one.
type Variant struct {
	Email   string `json:"email"`
	Name    string `json:"name"`
	Sent    int64  `json:"sent"`
	Tracked int64  `json:"tracked"`
	Opened  int64  `json:"opened"`
	Clicked int64  `json:"clicked"`
}

// Report is of one run. Sent, Deferred, Failed, Suppressed, Unknown and Queued add up to Recipients.
type Report struct {
	Run     int64      `json:"run"`
	Kind    string     `json:"kind"`
	Name    string     `json:"name"`
	Title   string     `json:"title"`
	State   string     `json:"state"`
	Started *time.Time `json:"started,omitempty"`
	Ended   *time.Time `json:"ended,omitempty"`
	Made    time.Time  `json:"made"`
	// Preproduction says that it is of a database from which nobody real is mailed.
	Preproduction bool `json:"preproduction,omitempty"`
	// Lag is how far statistics, segments and journeys were behind when it was made.
	Lag campaign.Lag `json:"lag"`
	// Held are the breakers that keep marketing mail of the tenant back, while the run goes on.
	Held []delivery.Breaker `json:"held,omitempty"`

	Recipients int64 `json:"recipients"`
	Queued     int64 `json:"queued"`
	Sent       int64 `json:"sent"`
	Deferred   int64 `json:"deferred"`
	Failed     int64 `json:"failed"`
	Suppressed int64 `json:"suppressed"`
	Unknown    int64 `json:"unknown"`
	// NotKept are those of whom only the counts above are kept, since retention.deliveries of the Settings is over: the rest of the report is of the others.
	NotKept int64 `json:"notKept,omitempty"`
	// SuppressedBy is by reason, FailedBy by class and SMTP reply.
	SuppressedBy []Count `json:"suppressedBy"`
	FailedBy     []Count `json:"failedBy"`
	// Of those that were sent: how they were tracked, and what came back.
	Tracking     []Count `json:"tracking"`
	Delivered    int64   `json:"delivered"`
	BouncedBy    []Count `json:"bouncedBy"`
	Complaints   int64   `json:"complaints"`
	Unsubscribes int64   `json:"unsubscribes"`

	// OpensHuman were not shown to be machines', which proves no person; ClicksHuman are by people.
	OpensHuman    Engagement `json:"opensHuman"`
	OpensMachine  Engagement `json:"opensMachine"`
	ClicksHuman   Engagement `json:"clicksHuman"`
	ClicksMachine Engagement `json:"clicksMachine"`
	Links         []Link     `json:"links"`
	Variants      []Variant  `json:"variants,omitempty"` // of emails that have some
	Hours         []Hour     `json:"hours"`

	// Seconds from the first outcome to the last, and mails sent in one of them.
	Seconds float64 `json:"seconds"`
	Rate    float64 `json:"rate"`

	// Graph is of a campaign: its steps, with how many contacts are at each.
	Graph *campaign.Graph `json:"graph,omitempty"`
}

// Tracked is how many of the sent mails can be observed one by one.
func (r *Report) Tracked() int64 { return find(r.Tracking, "full") }

// Bounced is how many came back, of all classes.
func (r *Report) Bounced() int64 { return sum(r.BouncedBy) }

// Blast tells that the mails were sent in one go, so that there is a rate to speak of.
func (r *Report) Blast() bool { return r.Kind == "broadcast" && r.Seconds > 0 }

func find(counts []Count, name string) int64 {
	for _, c := range counts {
		if c.Name == name {
			return c.N
		}
	}
	return 0
}

func sum(counts []Count) (n int64) {
	for _, c := range counts {
		n += c.N
	}
	return n
}

// Load reads the report of the newest run of the campaign or broadcast. ErrNoRun when there is none.
func Load(ctx context.Context, tx *postgres.Tx, name string) (*Report, error) {
	r := &Report{Made: tx.Now(), Preproduction: tx.Tenant.Preproduction}
	err := tx.QueryRow(ctx, `SELECT r.id, r.kind, e.name, coalesce(nullif(d.spec->'metadata'->>'title', ''), e.name), r.state, r.started_at, r.ended_at
		FROM run r JOIN entity e ON e.id = r.entity JOIN document d ON d.id = r.document
		WHERE e.name = $1 AND e.kind IN ('Campaign', 'Broadcast', 'Email') ORDER BY r.id DESC LIMIT 1`, name).
		Scan(&r.Run, &r.Kind, &r.Name, &r.Title, &r.State, &r.Started, &r.Ended)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("campaign %s: %w", name, ErrNoRun)
	}
	if err != nil {
		return nil, fmt.Errorf("read run of %s: %w", name, err)
	}
	for _, part := range []func(context.Context, *postgres.Tx) error{r.outcomes, r.engagement, r.links, r.hours, r.variants} {
		if err := part(ctx, tx); err != nil {
			return nil, fmt.Errorf("report on %s: %w", name, err)
		}
	}
	if r.Lag, err = campaign.GetLag(ctx, tx); err != nil {
		return nil, fmt.Errorf("report on %s: %w", name, err)
	}
	if r.Ended == nil {
		if r.Held, err = delivery.Breakers(ctx, tx, ""); err != nil {
			return nil, fmt.Errorf("report on %s: %w", name, err)
		}
	}
	if r.Kind == "campaign" {
		g, err := campaign.GetGraph(ctx, tx, name)
		if err != nil {
			return nil, err
		}
		r.Graph = &g
	}
	return r, nil
}

// ofRun are the deliveries of a run: those planned in its first batches, whatever batches retried them. The bounds let Postgres leave out partitions.
const ofRun = `b AS (SELECT id, contacts, mark FROM batch WHERE run = $1 AND attempt = 1),
	d AS (SELECT d.* FROM delivery d JOIN b ON b.id = d.id >> 9
		WHERE d.id BETWEEN (SELECT min(id) << 9 FROM b) AND (SELECT (max(id) + 1) << 9 FROM b))`

func (r *Report) outcomes(ctx context.Context, tx *postgres.Tx) error {
	err := tx.QueryRow(ctx, `WITH `+ofRun+` SELECT coalesce((SELECT sum(greatest(cardinality(contacts), mark)) FROM b), 0), coalesce((SELECT sum(mark) FROM b WHERE contacts = '{}'), 0),
		count(*) FILTER (WHERE state = 'sent'), count(*) FILTER (WHERE state = 'deferred'), count(*) FILTER (WHERE state = 'failed'),
		count(*) FILTER (WHERE state = 'suppressed'), count(*) FILTER (WHERE state = 'unknown'),
		count(delivered_at), count(complained_at),
		coalesce(extract(epoch FROM max(at) FILTER (WHERE attempt = 1 AND state IN ('sent', 'failed')) - min(at) FILTER (WHERE attempt = 1 AND state IN ('sent', 'failed'))), 0)::float8 FROM d`, r.Run).
		Scan(&r.Recipients, &r.NotKept, &r.Sent, &r.Deferred, &r.Failed, &r.Suppressed, &r.Unknown, &r.Delivered, &r.Complaints, &r.Seconds)
	if err != nil {
		return err
	}
	if r.NotKept > 0 {
		st, err := campaign.RunStatus(ctx, tx, r.Run)
		if err != nil {
			return err
		}
		c := st.Counts
		r.Sent, r.Deferred, r.Failed, r.Suppressed, r.Unknown = c.Sent, c.Deferred, c.Failed, c.Suppressed, c.Unknown
	}
	r.Queued = r.Recipients - r.Sent - r.Deferred - r.Failed - r.Suppressed - r.Unknown
	if r.Seconds > 0 {
		r.Rate = float64(r.Sent+r.Failed) / r.Seconds
	}
	for _, c := range []struct {
		into *[]Count
		by   string
		only string
	}{
		{&r.SuppressedBy, "reason", "state = 'suppressed'"},
		{&r.FailedBy, "concat_ws(', ', class, 'SMTP ' || code, status)", "state = 'failed'"},
		{&r.Tracking, "coalesce(tracking, 'none')", "state = 'sent'"},
		{&r.BouncedBy, "bounce_class", "bounced_at IS NOT NULL"},
	} {
		rows, err := tx.Query(ctx, "WITH "+ofRun+" SELECT coalesce(nullif("+c.by+", ''), 'no reason given'), count(*) FROM d WHERE "+c.only+" GROUP BY 1 ORDER BY 2 DESC, 1", r.Run)
		if err != nil {
			return err
		}
		if *c.into, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Count]); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) engagement(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, "SELECT kind, verdict, tracked, sum(n)::bigint, sum(firsts)::bigint FROM stat WHERE run = $1 GROUP BY 1, 2, 3", r.Run)
	if err != nil {
		return err
	}
	var kind, verdict string
	var tracked bool
	var n, firsts int64
	_, err = pgx.ForEachRow(rows, []any{&kind, &verdict, &tracked, &n, &firsts}, func() error {
		var e *Engagement
		switch kind + " " + verdict {
		case "open human":
			e = &r.OpensHuman
		case "open machine":
			e = &r.OpensMachine
		case "click human":
			e = &r.ClicksHuman
		case "click machine":
			e = &r.ClicksMachine
		default:
			if kind == "unsubscribe" {
				r.Unsubscribes += n
			}
			return nil
		}
		if !tracked {
			e.Aggregate += n
			return nil
		}
		e.Hits += n
		e.Mails += firsts
		return nil
	})
	return err
}

func (r *Report) links(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, `SELECT l.url, max(l.label), coalesce(sum(s.n) FILTER (WHERE s.verdict = 'human'), 0)::bigint, coalesce(sum(s.n) FILTER (WHERE s.verdict = 'machine'), 0)::bigint
		FROM link l LEFT JOIN stat s ON s.link = l.id AND s.run = $1 AND s.kind = 'click'
		WHERE l.document IN (SELECT DISTINCT email FROM batch WHERE run = $1) GROUP BY l.url ORDER BY 3 DESC, 4 DESC, 1`, r.Run)
	if err != nil {
		return err
	}
	r.Links, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Link])
	return err
}

func (r *Report) hours(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, `WITH `+ofRun+`, h AS (
			SELECT date_trunc('hour', at) AS hour, count(*) AS sent, 0::bigint AS opens, 0::bigint AS clicks FROM d WHERE state = 'sent' GROUP BY 1
			UNION ALL SELECT hour, 0, sum(n) FILTER (WHERE kind = 'open'), sum(n) FILTER (WHERE kind = 'click') FROM stat
				WHERE run = $1 AND verdict = 'human' AND kind IN ('open', 'click') GROUP BY 1)
		SELECT hour, coalesce(sum(sent), 0)::bigint, coalesce(sum(opens), 0)::bigint, coalesce(sum(clicks), 0)::bigint FROM h GROUP BY 1 ORDER BY 1`, r.Run)
	if err != nil {
		return err
	}
	r.Hours, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Hour])
	return err
}

// variants counts by variant, which is a matter of who a delivery was to.
func (r *Report) variants(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, `SELECT id, spec FROM document WHERE id IN (SELECT DISTINCT email FROM batch WHERE run = $1) AND spec->'spec' ? 'variants' ORDER BY id`, r.Run)
	if err != nil {
		return err
	}
	emails := map[int64]*spec.Email{}
	var id int64
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &stored}, func() (err error) {
		emails[id], err = spec.DecodeAs[*spec.Email](spec.KindEmail, stored)
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(emails)) {
		if err := r.variantsOf(ctx, tx, id, emails[id]); err != nil {
			return err
		}
	}
	return nil
}

// variantsOf counts those of a version of an email, by the same arithmetic as spec.Email.VariantOf. Versions of one email are counted together.
func (r *Report) variantsOf(ctx context.Context, tx *postgres.Tx, document int64, e *spec.Email) error {
	var ends []int64 // of each variant's part of the weights
	var all int64
	for _, v := range e.Variants {
		all += int64(v.Weight)
		ends = append(ends, all)
	}
	rows, err := tx.Query(ctx, `WITH `+ofRun+`, v AS (
			SELECT d.id, d.tracking = 'full' AS tracked, (SELECT min(n) FROM unnest($3::bigint[]) WITH ORDINALITY e (upto, n)
				WHERE (('x' || left(md5($4::text || '/' || planned.contacts[d.id & 511]), 8))::bit(32)::bigint * $5::bigint) >> 32 < upto) AS variant
			FROM d JOIN batch planned ON planned.id = d.id >> 9 WHERE planned.email = $2 AND d.state = 'sent')
		SELECT variant, count(*), count(*) FILTER (WHERE tracked),
			count(*) FILTER (WHERE EXISTS (SELECT FROM hit h WHERE h.delivery = v.id AND h.kind = 'open' AND h.verdict = 'human')),
			count(*) FILTER (WHERE EXISTS (SELECT FROM hit h WHERE h.delivery = v.id AND h.kind = 'click' AND h.verdict = 'human'))
		FROM v GROUP BY 1 ORDER BY 1`, r.Run, document, ends, "email:"+e.Name, all)
	if err != nil {
		return err
	}
	counted := make([]Variant, len(e.Variants))
	var n int
	var c Variant
	_, err = pgx.ForEachRow(rows, []any{&n, &c.Sent, &c.Tracked, &c.Opened, &c.Clicked}, func() error {
		counted[n-1] = c
		return nil
	})
	if err != nil {
		return err
	}
	for i, v := range e.Variants {
		c := counted[i]
		if had := slices.IndexFunc(r.Variants, func(w Variant) bool { return w.Email == e.Name && w.Name == v.Name }); had >= 0 {
			w := &r.Variants[had]
			w.Sent, w.Tracked, w.Opened, w.Clicked = w.Sent+c.Sent, w.Tracked+c.Tracked, w.Opened+c.Opened, w.Clicked+c.Clicked
			continue
		}
		c.Email, c.Name = e.Name, v.Name
		r.Variants = append(r.Variants, c)
	}
	return nil
}

// Run is a run that there is a report of.
type Run struct {
	ID      int64      `json:"run"`
	Kind    string     `json:"kind"`
	Name    string     `json:"name"`
	Title   string     `json:"title"`
	State   string     `json:"state"`
	Started *time.Time `json:"started,omitempty"`
}

// List lists the runs of a tenant, newest first, one a campaign.
func List(ctx context.Context, tx *postgres.Tx) ([]Run, error) {
	rows, err := tx.Query(ctx, `SELECT * FROM (SELECT DISTINCT ON (r.entity) r.id, r.kind, e.name, coalesce(nullif(d.spec->'metadata'->>'title', ''), e.name), r.state, r.started_at
		FROM run r JOIN entity e ON e.id = r.entity JOIN document d ON d.id = r.document ORDER BY r.entity, r.id DESC) newest ORDER BY id DESC`)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Run])
}
