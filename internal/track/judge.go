package track

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	judgeLock  = 0x6f6e6474 // class of the advisory lock: one judge a tenant
	judgeChunk = 1_000
	ringChunk  = 300 // items of a doorbell that surely stay within 64 KiB

	gatewayLook = 20_000 // clicks around those of a chunk
)

// judgeHits judges up to a chunk of the hits whose hold is over, folds the statistics, and writes the facts of what people did. n is how many it took; n == judgeChunk says that there may
// be more. Another judge at work makes it 0.
func (t *Tracker) judgeHits(ctx context.Context, tx *postgres.Tx) (n int, err error) {
	if mine, err := judges(ctx, tx); err != nil || !mine {
		return 0, err
	}
	due, err := readHits(ctx, tx, "verdict IS NULL AND at <= $1 ORDER BY at, id LIMIT $2", tx.Now().Add(-t.cfg.Hold), judgeChunk)
	if err != nil || len(due) == 0 {
		return 0, err
	}
	tx.Found(ctx, "hits", "track", due[0].At, len(due))
	var named []int64
	var counted []stored // those that nobody's name is to
	for _, h := range due {
		if h.Delivery > 0 {
			named = append(named, h.Delivery)
		} else {
			counted = append(counted, h)
		}
	}
	stats := map[statKey]count{}
	if err := t.foldCounted(ctx, tx, counted, stats); err != nil {
		return 0, err
	}
	gated, err := t.findGateways(ctx, tx, due)
	if err != nil {
		return 0, err
	}
	if err := t.judgeNamed(ctx, tx, due, append(named, gated...), stats); err != nil {
		return 0, err
	}
	return len(due), writeStats(ctx, tx, stats)
}

// judges tells whether nobody else judges the tenant's hits, until the transaction's end.
func judges(ctx context.Context, tx *postgres.Tx) (mine bool, err error) {
	if err := tx.QueryRow(ctx, "SELECT pg_try_advisory_xact_lock($1, $2)", judgeLock, tx.Tenant.Number).Scan(&mine); err != nil {
		return false, fmt.Errorf("look whether somebody judges hits: %w", err)
	}
	return mine, nil
}

func readHits(ctx context.Context, tx *postgres.Tx, where string, args ...any) ([]stored, error) {
	rows, err := tx.Query(ctx, `SELECT id, kind, delivery, coalesce(contact, 0), link, coalesce(run, 0), step, method, agent, origin, coalesce(verdict, ''), reason, at FROM hit WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read hits: %w", err)
	}
	hits, err := pgx.CollectRows(rows, pgx.RowToStructByPos[stored])
	if err != nil {
		return nil, fmt.Errorf("read hits: %w", err)
	}
	return hits, nil
}

// findGateways notes which clicks that are due, or came about the same time, are by a gateway, and gives the mails of those among them that are judged already. It looks at hits by their
// time, the earliest gatewayLook of them: of a tenant with thousands of clicks a second it sees none.
func (t *Tracker) findGateways(ctx context.Context, tx *postgres.Tx, due []stored) (deliveries []int64, err error) {
	if !slices.ContainsFunc(due, func(h stored) bool { return h.Kind == kindClick && h.Delivery > 0 && len(h.Origin) > 0 }) {
		return nil, nil
	}
	from, to := due[0].At.Add(-gatewaySpan), due[len(due)-1].At.Add(gatewaySpan)
	const at = "origin IS NOT NULL AND at BETWEEN $1 AND $2 AND kind = 'click' AND delivery > 0"
	rows, err := tx.Query(ctx, `SELECT origin FROM (SELECT origin, delivery FROM hit WHERE `+at+` ORDER BY at LIMIT $3) h
		WHERE origin <> '' GROUP BY origin HAVING count(DISTINCT delivery) >= $4`, from, to, gatewayLook, gatewayMails)
	if err != nil {
		return nil, fmt.Errorf("look for places with many clicks: %w", err)
	}
	places, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil || len(places) == 0 {
		return nil, err
	}
	clicks, err := readHits(ctx, tx, at+" AND origin = ANY ($4) ORDER BY at LIMIT $3", from, to, gatewayLook, places)
	if err != nil {
		return nil, err
	}
	for _, c := range clicks {
		deliveries = append(deliveries, c.Delivery)
	}
	mails, err := readMails(ctx, tx, deliveries)
	if err != nil {
		return nil, err
	}
	found, lists := gateways(clicks, mails), t.scanners.now()
	var ids []int64
	deliveries = nil
	for _, c := range clicks {
		if !found[c.ID] || lists.own(c) != "" {
			continue
		}
		if ids = append(ids, c.ID); c.Verdict != nobody {
			deliveries = append(deliveries, c.Delivery)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	if _, err := tx.Exec(ctx, "UPDATE hit SET reason = $1 WHERE id = ANY ($2)", gateway, ids); err != nil {
		return nil, fmt.Errorf("note clicks of gateways: %w", err)
	}
	return deliveries, nil
}

// foldCounted counts the hits of the aggregate and forgets them.
func (t *Tracker) foldCounted(ctx context.Context, tx *postgres.Tx, hits []stored, stats map[statKey]count) error {
	if len(hits) == 0 {
		return nil
	}
	runs, err := runsOfLinks(ctx, tx, hits)
	if err != nil {
		return err
	}
	ids, lists := make([]int64, len(hits)), t.scanners.now()
	for i := range hits {
		h := &hits[i]
		ids[i] = h.ID
		if h.Run == 0 {
			h.Run, h.Step = runs[h.Link].run, runs[h.Link].step
		}
		h.Verdict, h.Reason = lists.judge(*h, &evidence{}, mail{})
	}
	t.measure(ctx, hits, nil)
	tally(stats, hits, 1)
	if _, err := tx.Exec(ctx, "DELETE FROM hit WHERE id = ANY ($1)", ids); err != nil {
		return fmt.Errorf("forget counted hits: %w", err)
	}
	return nil
}

type runStep struct {
	run  int64
	step string
}

// runsOfLinks finds the run that an aggregate link most likely belongs to, since its token does not say: the one that planned the email of that version last.
func runsOfLinks(ctx context.Context, tx *postgres.Tx, hits []stored) (map[int64]runStep, error) {
	links := map[int64]bool{}
	for _, h := range hits {
		if h.Run == 0 && h.Link > 0 {
			links[h.Link] = true
		}
	}
	rows, err := tx.Query(ctx, `SELECT l.id, b.run, b.step FROM link l
		CROSS JOIN LATERAL (SELECT run, step FROM batch WHERE email = l.document ORDER BY id DESC LIMIT 1) b WHERE l.id = ANY ($1)`, slices.Sorted(maps.Keys(links)))
	if err != nil {
		return nil, fmt.Errorf("look for the runs of links: %w", err)
	}
	out := map[int64]runStep{}
	var link int64
	var rs runStep
	if _, err := pgx.ForEachRow(rows, []any{&link, &rs.run, &rs.step}, func() error { out[link] = rs; return nil }); err != nil {
		return nil, fmt.Errorf("look for the runs of links: %w", err)
	}
	return out, nil
}

// judgeNamed judges the due hits, and anew what was judged before, by all the hits of their deliveries.
func (t *Tracker) judgeNamed(ctx context.Context, tx *postgres.Tx, due []stored, deliveries []int64, stats map[statKey]count) error {
	if len(deliveries) == 0 {
		return nil
	}
	slices.Sort(deliveries)
	deliveries = slices.Compact(deliveries)
	all, err := readHits(ctx, tx, "delivery = ANY ($1) ORDER BY at, id", deliveries)
	if err != nil {
		return err
	}
	mails, err := readMails(ctx, tx, deliveries)
	if err != nil {
		return err
	}
	isDue := map[int64]bool{}
	for _, h := range due {
		isDue[h.ID] = true
	}
	of := map[int64][]stored{}
	for _, h := range all {
		of[h.Delivery] = append(of[h.Delivery], h)
	}
	lists := t.scanners.now()
	var fresh, corrected, explained []stored
	for _, d := range deliveries {
		hits := of[d]
		after := lists.revise(hits, isDue, mails[d], stats)
		for i, h := range hits {
			switch {
			case after[i].Verdict == nobody:
			case h.Verdict == nobody:
				fresh = append(fresh, after[i])
			case after[i].Verdict != h.Verdict:
				corrected = append(corrected, after[i])
			case after[i].Reason != h.Reason:
				explained = append(explained, after[i])
			}
		}
	}
	t.measure(ctx, fresh, mails)
	if err := writeVerdicts(ctx, tx, slices.Concat(fresh, corrected, explained)); err != nil {
		return err
	}
	return tell(ctx, tx, fresh, corrected, mails)
}

// measure counts hits that are judged for the first time. Of some that go by people's it is not known when their mail was sent, nor where they came from, nor what else came of it: these
// are blind.
func (t *Tracker) measure(ctx context.Context, hits []stored, mails map[int64]mail) {
	type kind struct {
		kind, verdict, reason string
		blind                 bool
	}
	n := map[kind]int64{}
	for _, h := range hits {
		n[kind{h.Kind, h.Verdict, h.Reason, h.Verdict == human && (h.Delivery == 0 || len(h.Origin) == 0 || mails[h.Delivery].sent.IsZero())}]++
	}
	for k, n := range n {
		t.judged.Add(ctx, n, metric.WithAttributes(attribute.String("onda.kind", k.kind), attribute.String("onda.verdict", k.verdict), attribute.String("onda.reason", k.reason), attribute.Bool("onda.blind", k.blind)))
	}
}

func readMails(ctx context.Context, tx *postgres.Tx, deliveries []int64) (map[int64]mail, error) {
	rows, err := tx.Query(ctx, `SELECT u.id, coalesce(e.name, ''), d.at, coalesce(d.attempt > 1, false), (SELECT count(*) FROM link l WHERE l.document = b.email)
		FROM unnest($1::bigint[]) u(id) LEFT JOIN batch b ON b.id = u.id >> 9 LEFT JOIN document o ON o.id = b.email LEFT JOIN entity e ON e.id = o.entity
		LEFT JOIN delivery d ON d.id = u.id AND d.state = 'sent'`, deliveries)
	if err != nil {
		return nil, fmt.Errorf("read the mails of hits: %w", err)
	}
	out := map[int64]mail{}
	var id int64
	var m mail
	var sent *time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &m.name, &sent, &m.again, &m.links}, func() error {
		m.sent = time.Time{}
		if sent != nil {
			m.sent = *sent
		}
		out[id] = m
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the mails of hits: %w", err)
	}
	return out, nil
}

func writeVerdicts(ctx context.Context, tx *postgres.Tx, hits []stored) error {
	ids, verdicts, reasons := make([]int64, len(hits)), make([]string, len(hits)), make([]string, len(hits))
	for i, h := range hits {
		ids[i], verdicts[i], reasons[i] = h.ID, h.Verdict, h.Reason
	}
	_, err := tx.Exec(ctx, `UPDATE hit h SET verdict = u.verdict, reason = u.reason FROM unnest($1::bigint[], $2::text[], $3::text[]) u(id, verdict, reason) WHERE h.id = u.id`,
		ids, verdicts, reasons)
	if err != nil {
		return fmt.Errorf("write verdicts: %w", err)
	}
	return nil
}

// writeStats adds what changed to the rows of stat, in one order, so that two writers never wait for each other.
func writeStats(ctx context.Context, tx *postgres.Tx, stats map[statKey]count) error {
	var run, n, firsts []int64
	var link []int32
	var step, kind, verdict []string
	var hour []time.Time
	var tracked []bool
	keys := slices.SortedFunc(maps.Keys(stats), func(a, b statKey) int {
		return cmp.Or(cmp.Compare(a.Run, b.Run), cmp.Compare(a.Step, b.Step), a.Hour.Compare(b.Hour), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Verdict, b.Verdict), cmp.Compare(a.Link, b.Link))
	})
	for _, k := range keys {
		c := stats[k]
		if c == (count{}) {
			continue
		}
		run, step, hour, kind, verdict = append(run, k.Run), append(step, k.Step), append(hour, k.Hour), append(kind, k.Kind), append(verdict, k.Verdict)
		link, tracked, n, firsts = append(link, int32(k.Link)), append(tracked, k.Tracked), append(n, c.N), append(firsts, c.Firsts)
	}
	if len(run) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `INSERT INTO stat AS s (run, step, hour, kind, verdict, link, tracked, n, firsts)
		SELECT * FROM unnest($1::bigint[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::integer[], $7::boolean[], $8::bigint[], $9::bigint[])
		ON CONFLICT (run, step, hour, kind, verdict, link, tracked) DO UPDATE SET n = s.n + excluded.n, firsts = s.firsts + excluded.firsts`,
		run, step, hour, kind, verdict, link, tracked, n, firsts)
	if err != nil {
		return fmt.Errorf("fold statistics: %w", err)
	}
	return nil
}

// tell writes the facts of what people did and of what was corrected, and rings their doorbells. What machines did is told to nobody.
func tell(ctx context.Context, tx *postgres.Tx, fresh, corrected []stored, mails map[int64]mail) error {
	var facts []postgres.Fact
	items := map[string][]event.Hit{}
	add := func(kind string, h stored) error {
		data := map[string]any{"link": h.Link, "hit": h.ID}
		if kind == "hit.reclassified" {
			data["verdict"], data["reason"], data["kind"] = h.Verdict, h.Reason, h.Kind
		}
		b, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("encode fact %s: %w", kind, err)
		}
		facts = append(facts, postgres.Fact{Kind: kind, Name: mails[h.Delivery].name, Contact: h.Contact, Run: h.Run, Deliveries: []int64{h.Delivery}, Data: b, At: h.At})
		items[kind] = append(items[kind], event.Hit{Delivery: h.Delivery, Contact: h.Contact, Run: h.Run, Link: h.Link, Verdict: h.Verdict, Reason: h.Reason})
		return nil
	}
	for _, h := range fresh {
		kind := factOf(h.Kind)
		if h.Verdict != human || kind == "" {
			continue
		}
		if err := add(kind, h); err != nil {
			return err
		}
	}
	told, err := mark(ctx, tx, corrected)
	if err != nil {
		return err
	}
	for _, h := range corrected {
		if err := add("hit.reclassified", h); err != nil {
			return err
		}
		if kind := factOf(h.Kind); h.Verdict == human && kind != "" && !told[h.ID] {
			if err := add(kind, h); err != nil {
				return err
			}
		}
	}
	if err := tx.AddFacts(ctx, facts...); err != nil {
		return err
	}
	for _, kind := range slices.Sorted(maps.Keys(items)) {
		for chunk := range slices.Chunk(items[kind], ringChunk) {
			var data event.Data
			switch h := (event.Hits{Items: chunk}); kind {
			case "email.opened":
				data = event.EmailOpened{Hits: h}
			case "email.clicked":
				data = event.EmailClicked{Hits: h}
			default:
				data = event.HitReclassified{Hits: h}
			}
			if err := ring(ctx, tx, data, hitIDs(facts, kind)...); err != nil {
				return err
			}
		}
	}
	return nil
}

// factOf is the kind of fact that a person's hit becomes; "" for none.
func factOf(kind string) string {
	return map[string]string{kindOpen: "email.opened", kindClick: "email.clicked"}[kind]
}

// mark gives those corrected hits that were told as people's before. Their facts say whether they are taken back, since who reads them later may find the hits forgotten: the database writes
// that when a hit is corrected, and on a schema before that this does.
func mark(ctx context.Context, tx *postgres.Tx, corrected []stored) (told map[int64]bool, err error) {
	var ids, contacts []int64
	var kinds []string
	var ats []time.Time
	var machines []bool
	for _, h := range corrected {
		if kind := factOf(h.Kind); kind != "" {
			ids, contacts, kinds, ats, machines = append(ids, h.ID), append(contacts, h.Contact), append(kinds, kind), append(ats, h.At), append(machines, h.Verdict != human)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	const (
		of   = " FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::timestamptz[], $5::boolean[]) u(hit, contact, kind, at, machine)"
		fact = " AND f.kind = u.kind AND f.at = u.at AND (f.data->>'hit')::bigint = u.hit"
	)
	// While what a merged contact had is moved, the hit may be the winner's already and its fact the loser's still, or the other way round. One contact after the other, as mark_taken does it.
	sql := "SELECT u.hit, true" + of + ` CROSS JOIN LATERAL (SELECT FROM (
			SELECT u.contact AS id
			UNION ALL SELECT c.merged_into FROM contact c WHERE c.id = u.contact AND c.merged_into IS NOT NULL
			UNION ALL SELECT (m.data->>'contact')::bigint FROM fact m WHERE m.contact = u.contact AND m.kind = 'contact.merged'
		) w CROSS JOIN LATERAL (SELECT FROM fact f WHERE f.contact = w.id` + fact + " LIMIT 1) f LIMIT 1) t"
	if tx.Tenant.Schema < postgres.TakenSchema {
		sql = `UPDATE fact f SET data = CASE WHEN u.machine THEN f.data || '{"taken": true}' ELSE f.data - 'taken' END` + of + " WHERE f.contact = u.contact" + fact + " RETURNING u.hit, true"
	}
	rows, err := tx.Query(ctx, sql, ids, contacts, kinds, ats, machines)
	if err != nil {
		return nil, fmt.Errorf("mark what was told of hits: %w", err)
	}
	told = map[int64]bool{}
	var id int64
	var yes bool
	if _, err := pgx.ForEachRow(rows, []any{&id, &yes}, func() error { told[id] = yes; return nil }); err != nil {
		return nil, fmt.Errorf("mark what was told of hits: %w", err)
	}
	return told, nil
}

// hitIDs names the facts of a kind, for an event's id: a hit is told once.
func hitIDs(facts []postgres.Fact, kind string) []string {
	var out []string
	for _, f := range facts {
		if f.Kind == kind {
			out = append(out, string(f.Data))
		}
	}
	return out
}

// ring publishes a doorbell. What it is about makes its id.
func ring(ctx context.Context, tx *postgres.Tx, data event.Data, parts ...string) error {
	e, err := event.New(tx.Tenant.Name, "track", "", "-", data)
	if err != nil {
		return fmt.Errorf("ring: %w", err)
	}
	e.SetID(event.DeriveID(append([]string{tx.Tenant.Name, data.EventType(), strconv.FormatInt(tx.Now().UnixNano(), 10), string(e.Data())}, parts...)...))
	return tx.Publish(ctx, "track", e)
}
