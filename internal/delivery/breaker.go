package delivery

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/provider"
)

// Everywhere and Others are receivers of breakers beside the mailbox providers: all of them together, and all that are behind no known provider.
const (
	Everywhere = ""
	Others     = "others"
)

// Traffic is what became of mails from a sender domain to a receiver.
type Traffic struct {
	Sent    int
	Bounced int // hard, at once: the address is wrong
	Blocked int // for what we are or what we send
	// What was told later, of mails that were sent.
	Returned   int // hard
	Complained int
}

// Plus adds two.
func (t Traffic) Plus(u Traffic) Traffic {
	return Traffic{Sent: t.Sent + u.Sent, Bounced: t.Bounced + u.Bounced, Blocked: t.Blocked + u.Blocked, Returned: t.Returned + u.Returned, Complained: t.Complained + u.Complained}
}

// counted is what is known of mails: of some hours what came of them at once, of some days what came later, and of how many.
type counted struct {
	Traffic
	Mailed int
}

// breakerRule says when a breaker opens: of at least so many mails, a share.
type breakerRule struct {
	what  string
	count func(counted) int
	of    func(counted) int
	mails int // of
	least int // of count
	share float64
}

// breakerRules are what mailbox providers are known to act on: from 0.3 % of complaints on mail is filtered, and lists with more than a tenth of wrong addresses were not asked.
func breakerRules() []breakerRule {
	at := func(c counted) int { return c.Sent + c.Bounced + c.Blocked }
	later := func(c counted) int { return c.Mailed }
	return []breakerRule{
		{"complained", func(c counted) int { return c.Complained }, later, 500, 5, 0.003},
		{"bounced", func(c counted) int { return c.Bounced }, at, 200, 20, 0.10},
		{"came back", func(c counted) int { return c.Returned }, later, 200, 20, 0.10},
		{"were blocked", func(c counted) int { return c.Blocked }, at, 100, 20, 0.25},
	}
}

// tripped tells which rule opens the breaker, in words; "" for none.
func (c counted) tripped() string {
	for _, r := range breakerRules() {
		n, of := r.count(c), r.of(c)
		if of >= r.mails && n >= r.least && float64(n) > r.share*float64(of) {
			return fmt.Sprintf("%d of %d %s (%.1f %%, at most %.1f %%)", n, of, r.what, 100*float64(n)/float64(of), 100*r.share)
		}
	}
	return ""
}

// Times of a breaker.
const (
	breakerOpen = time.Hour // the first time; each further time twice as long
	breakerMost = 4         // doublings
)

// Breaker is an open breaker: marketing mail from a domain to a receiver waits.
type Breaker struct {
	Domain   string    `json:"domain"`
	Receiver string    `json:"receiver,omitempty"` // Everywhere, Others or a mailbox provider
	Until    time.Time `json:"until"`
	Why      string    `json:"why"`
}

// String says it as reports do.
func (b Breaker) String() string {
	to := b.Receiver
	switch to {
	case Everywhere:
		to = "everybody"
	case Others:
		to = "others than the large providers"
	}
	return fmt.Sprintf("marketing mail from %s to %s waits until %s: %s", b.Domain, to, b.Until.UTC().Format("2006-01-02 15:04 UTC"), b.Why)
}

// ReceiverOf is the receiver behind a normalised address: a mailbox provider, or Others.
func ReceiverOf(address string) string {
	_, name := provider.OfAddress(address)
	return cmp.Or(name, Others)
}

// TellOpened has the log say that breakers opened.
func TellOpened(log *zap.Logger, tenant string, opened []Breaker) {
	for _, b := range opened {
		log.Warn("a breaker opened: marketing mail waits", zap.String("tenant", tenant), zap.String("from", b.Domain), zap.String("to", cmp.Or(b.Receiver, "everybody")),
			zap.Time("until", b.Until), zap.String("why", b.Why))
	}
}

// CountTraffic adds what became of mails from a sender domain, by receiver, and opens the breakers that are to open: nothing of marketing goes out to a receiver then, for an hour
// at first. It gives those that it opened. What came at once is halved each hour, what came later each day.
func CountTraffic(ctx context.Context, tx *postgres.Tx, domain string, by map[string]Traffic) ([]Breaker, error) {
	if len(by) == 0 || tx.Tenant.Schema < PaceSchema {
		return nil, nil
	}
	all := maps.Clone(by)
	var sum Traffic
	for _, t := range by {
		sum = sum.Plus(t)
	}
	all[Everywhere] = sum
	receivers := slices.Sorted(maps.Keys(all)) // in one order: others do the same at this moment
	columns := make([][]int, 5)
	for _, r := range receivers {
		for i, n := range []int{all[r].Sent, all[r].Bounced, all[r].Blocked, all[r].Returned, all[r].Complained} {
			columns[i] = append(columns[i], n)
		}
	}
	rows, err := tx.Query(ctx, `INSERT INTO throttle AS t (domain, provider, sent, bounced, blocked, mailed, returned, complained)
			SELECT $1, provider, s, h, b, s, r, c FROM unnest($2::text[], $3::integer[], $4::integer[], $5::integer[], $6::integer[], $7::integer[]) u (provider, s, h, b, r, c) ORDER BY provider
		ON CONFLICT (domain, provider) DO UPDATE SET (since, sent, bounced, blocked, since_day, mailed, returned, complained) = (
			SELECT t.since + k * interval '1 hour', (t.sent >> k) + excluded.sent, (t.bounced >> k) + excluded.bounced, (t.blocked >> k) + excluded.blocked,
				t.since_day + d * interval '1 day', (t.mailed >> d) + excluded.mailed, (t.returned >> d) + excluded.returned, (t.complained >> d) + excluded.complained
			FROM (SELECT least(30, greatest(0, floor(extract(epoch FROM now() - t.since) / 3600)))::integer AS k,
				least(30, greatest(0, floor(extract(epoch FROM now() - t.since_day) / 86400)))::integer AS d) halves)
		RETURNING provider, sent, bounced, blocked, mailed, returned, complained, open_until > onda.now(), trips`, domain, receivers, columns[0], columns[1], columns[2], columns[3], columns[4])
	if err != nil {
		return nil, fmt.Errorf("count mails from %s: %w", domain, err)
	}
	type trip struct {
		receiver, why string
		trips         int
	}
	var trips []trip
	var well []string
	var receiver string
	var c counted
	var open bool
	var before int
	_, err = pgx.ForEachRow(rows, []any{&receiver, &c.Sent, &c.Bounced, &c.Blocked, &c.Mailed, &c.Returned, &c.Complained, &open, &before}, func() error {
		switch why := c.tripped(); {
		case open:
		case why != "":
			trips = append(trips, trip{receiver, why, before})
		case before > 0 && c.Sent >= 500:
			well = append(well, receiver)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count mails from %s: %w", domain, err)
	}
	if len(well) > 0 {
		if _, err := tx.Exec(ctx, "UPDATE throttle SET trips = 0, why = '' WHERE domain = $1 AND provider = ANY ($2)", domain, well); err != nil {
			return nil, fmt.Errorf("forget breakers of %s: %w", domain, err)
		}
	}
	var opened []Breaker
	for _, t := range trips {
		b := Breaker{Domain: domain, Receiver: t.receiver, Until: tx.Now().Add(breakerOpen << min(t.trips, breakerMost)), Why: t.why}
		_, err := tx.Exec(ctx, `UPDATE throttle SET open_until = $3, why = $4, trips = trips + 1, since = now(), sent = 0, bounced = 0, blocked = 0,
				since_day = now(), mailed = 0, returned = 0, complained = 0
			WHERE domain = $1 AND provider = $2`, domain, b.Receiver, b.Until, b.Why)
		if err != nil {
			return nil, fmt.Errorf("open the breaker of %s: %w", domain, err)
		}
		opened = append(opened, b)
	}
	return opened, nil
}

// Breakers lists the open breakers of a sender domain, of all domains where it is empty.
func Breakers(ctx context.Context, tx *postgres.Tx, domain string) ([]Breaker, error) {
	if tx.Tenant.Schema < PaceSchema {
		return nil, nil
	}
	rows, err := tx.Query(ctx, `SELECT domain, provider, open_until, why FROM throttle WHERE (domain = $1 OR $1 = '') AND domain <> '' AND open_until > onda.now()
		ORDER BY domain, provider`, domain)
	if err != nil {
		return nil, fmt.Errorf("look for open breakers: %w", err)
	}
	var out []Breaker
	var b Breaker
	_, err = pgx.ForEachRow(rows, []any{&b.Domain, &b.Receiver, &b.Until, &b.Why}, func() error {
		out = append(out, b)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for open breakers: %w", err)
	}
	return out, nil
}

// CloseBreakers lets mails from a domain go again, to a receiver or, where that is nil, to all, and gives how many were open. What waits for them is let go by Release, or looks
// again within HeldFor.
func CloseBreakers(ctx context.Context, tx *postgres.Tx, domain string, receiver *string) (n int64, err error) {
	if tx.Tenant.Schema < PaceSchema {
		return 0, nil
	}
	tag, err := tx.Exec(ctx, "UPDATE throttle SET open_until = '-infinity', trips = 0, why = '' WHERE domain = $1 AND ($2::text IS NULL OR provider = $2) AND open_until > onda.now()", domain, receiver)
	if err != nil {
		return 0, fmt.Errorf("close the breakers of %s: %w", domain, err)
	}
	return tag.RowsAffected(), nil
}

// releasedAtOnce is how many mails Release lets go in one transaction.
const releasedAtOnce = 5000

// Release has some of the mails that wait for breakers tried at once: those whose breaker is still open wait for it again. more tells that there are others.
func Release(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	tag, err := tx.Exec(ctx, `UPDATE delivery SET retry_at = onda.now() WHERE id IN (
		SELECT id FROM delivery WHERE state = 'deferred' AND retry_at > onda.now() AND starts_with(detail, $1) ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED)`, held, releasedAtOnce)
	if err != nil {
		return false, fmt.Errorf("let mails go that wait for a breaker: %w", err)
	}
	tx.Wake(Function(Bulk), tx.Now())
	return tag.RowsAffected() == releasedAtOnce, nil
}

// HeldFor is how long a batch is put off at once for a breaker that holds everything: it looks again then.
const HeldFor = 5 * time.Minute

// held is what the detail of a mail begins with that waits for a breaker.
const held = "held: "

// HeldBack is the outcome of a mail that waits until a breaker closes.
func HeldBack(r Recipient, b Breaker) Outcome {
	if !b.Until.Before(r.Expires) {
		return Refusal(r, Late)
	}
	return Waits(r, b.Until, held+b.Why)
}
