package campaign

import (
	"context"
	"fmt"
	"time"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

// progress is how far a broadcast is planned: the row of its run, locked.
type progress struct {
	run      int64
	document int64
	to       int64 // the contact up to which the pass is planned
	all      bool
	count    int64     // how many were planned
	of       int64     // of how many, when it is spread over a time
	started  time.Time // what it is spread over a time from: later by its pauses
	pass     part
}

// part is which part of an audience is planned. In a warm-up the engaged come first: the few mails of its first days go to those who want them.
type part string

const (
	everybody part = ""
	engaged   part = "engaged"
	others    part = "others"
)

// engagedWithin is how long ago somebody clicked who counts as engaged. An open proves nothing about a person.
const engagedWithin = 90 // days

// ahead of the others: the kind of allowances that remember whom the first pass planned, so that the second does not, whatever they did in between.
func aheadOf(run int64) string { return fmt.Sprint("ahead:", run) }

// lookedAtOnce bounds how many contacts are looked at in one transaction for the few who are engaged.
const lookedAtOnce = 200_000

// lock reads the row. pgx.ErrNoRows when somebody else plans the run, or it does not run.
func (p *progress) lock(ctx context.Context, tx *postgres.Tx) error {
	own := "0::bigint, 0::bigint, ''"
	if tx.Tenant.Schema >= delivery.PaceSchema {
		own = "planned_count, planned_of, pass"
	}
	return tx.QueryRow(ctx, `SELECT document, planned_to, planned, greatest(started_at, starts_at), `+own+` FROM run
		WHERE id = $1 AND kind = 'broadcast' AND state = 'running' FOR NO KEY UPDATE SKIP LOCKED`, p.run).
		Scan(&p.document, &p.to, &p.all, &p.started, &p.count, &p.of, &p.pass)
}

// save writes it.
func (p *progress) save(ctx context.Context, tx *postgres.Tx) error {
	set, args := "", []any{p.run, p.to, p.all}
	if tx.Tenant.Schema >= delivery.PaceSchema {
		set, args = ", planned_count = $4, planned_of = $5, pass = $6", append(args, p.count, p.of, p.pass)
	}
	if _, err := tx.Exec(ctx, "UPDATE run SET planned_to = $2, planned = $3"+set+" WHERE id = $1", args...); err != nil {
		return fmt.Errorf("note how far run %d is planned: %w", p.run, err)
	}
	return nil
}

// atOnce is how many people are planned in one transaction for so many batches. One that is spread over a time has a batch for each minute of it.
func (p *progress) atOnce(b *spec.Broadcast, batches int) int {
	if b.Over == nil || p.of <= 0 {
		return batches * delivery.MaxBatch
	}
	minutes := max(1, int64(b.Over.Approx()/time.Minute))
	return batches * int(min(delivery.MaxBatch, 1+p.of/minutes))
}

// begin sees what has to be known before the first recipient is planned.
func (p *progress) begin(ctx context.Context, tx *postgres.Tx, b *spec.Broadcast, document int64, loc *time.Location) (err error) {
	if tx.Tenant.Schema < delivery.PaceSchema && b.Over != nil {
		return fmt.Errorf("to spread a broadcast over a time, tenant %s needs schema %d: %w", tx.Tenant.Name, delivery.PaceSchema, postgres.ErrSchemaTooOld)
	}
	if p.to != 0 || p.count != 0 || p.pass != everybody || tx.Tenant.Schema < delivery.PaceSchema {
		return nil
	}
	if b.Over != nil {
		if p.of, err = audienceSize(ctx, tx, b); err != nil {
			return err
		}
	}
	p.pass, err = firstPass(ctx, tx, document, loc)
	return err
}

// firstPass tells with whom a broadcast of an email begins.
func firstPass(ctx context.Context, tx *postgres.Tx, document int64, loc *time.Location) (part, error) {
	var from string
	if err := tx.QueryRow(ctx, "SELECT coalesce(spec #>> '{spec,from}', '') FROM document WHERE id = $1", document).Scan(&from); err != nil {
		return "", fmt.Errorf("look whom document %d is from: %w", document, err)
	}
	domain, err := senderdomain.DomainOf(from)
	if err != nil {
		return everybody, nil // send tells what is wrong with it
	}
	domains, err := senderdomain.Read(ctx, tx)
	if err != nil {
		return "", err
	}
	d, err := domains.Verified(domain)
	if err != nil || d == nil || d.Warmup == nil {
		return everybody, err
	}
	if _, limited := d.Warmup.Allows(tx.Now(), loc); limited {
		return engaged, nil
	}
	return everybody, nil
}

// people gives the next recipients, at most so many, and moves on to after them; from the end of one pass to the next.
func (p *progress) people(ctx context.Context, tx *postgres.Tx, b *spec.Broadcast, limit int) ([]recipient, error) {
	switch p.pass {
	case engaged:
		return p.engaged(ctx, tx, b, limit)
	case others:
		people, err := audience(ctx, tx, b, p.to, limit, "NOT EXISTS (SELECT FROM allowance a WHERE a.kind = $3 AND a.contact = c.id AND a.period = 'infinity')", aheadOf(p.run))
		return p.move(people, limit), err
	case everybody:
	}
	people, err := audience(ctx, tx, b, p.to, limit, "$3 = ''", "")
	return p.move(people, limit), err
}

func (p *progress) move(people []recipient, limit int) []recipient {
	if len(people) > 0 {
		p.to = people[len(people)-1].contact
	}
	p.all = len(people) < limit
	return people
}

// engaged gives some of those who clicked lately, and remembers them.
func (p *progress) engaged(ctx context.Context, tx *postgres.Tx, b *spec.Broadcast, limit int) ([]recipient, error) {
	var last, end int64
	if err := tx.QueryRow(ctx, "SELECT coalesce(max(id), 0), coalesce((SELECT id FROM contact WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1), max(id), 0) FROM contact", p.to, lookedAtOnce).
		Scan(&last, &end); err != nil {
		return nil, fmt.Errorf("look how many contacts there are: %w", err)
	}
	people, err := audience(ctx, tx, b, p.to, limit, `c.id <= $3 AND EXISTS (SELECT FROM fact f WHERE f.contact = c.id AND f.kind = 'email.clicked'
		AND f.at > onda.now() - interval '`+fmt.Sprint(engagedWithin)+` days' AND `+postgres.StillHuman(tx.Tenant.Schema)+`)`, end)
	if err != nil {
		return nil, err
	}
	contacts := make([]int64, len(people))
	for i, r := range people {
		contacts[i] = r.contact
	}
	if _, err := tx.Exec(ctx, "INSERT INTO allowance (kind, contact, period, n) SELECT $1, c, 'infinity', 1 FROM unnest($2::bigint[]) c", aheadOf(p.run), contacts); err != nil {
		return nil, fmt.Errorf("remember who comes first: %w", err)
	}
	switch {
	case len(people) == limit:
		p.to = contacts[limit-1]
	case end < last:
		p.to = end
	default:
		p.pass, p.to = others, 0
	}
	return people, nil
}
