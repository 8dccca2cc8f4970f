package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// PaceSchema is the tenant migration from which on mails can be paced and breakers opened; before it, neither is.
const PaceSchema = 8

// Ahead is how long somebody who holds a batch waits for the time of its next mails. What has to wait longer is put off.
const Ahead = time.Second

// saved is the time that a slow rate, of less than a mail a second, may make up for: work that is put off is found again once a minute.
const saved = time.Minute

// Slots takes the time of n mails at a rate a second, shared by all who send for the tenant to a receiver: a mailbox provider, a domain, or "" for all of them. first is how long
// from now the first may go out, the others follow at the rate. When that is further ahead than Ahead, nothing is taken, and first says when to ask again.
func Slots(ctx context.Context, tx *postgres.Tx, receiver string, rate float64, n int) (first time.Duration, taken bool, err error) {
	burst := time.Duration(0)
	if rate < 1 {
		burst = saved
	}
	// Nobody takes more than two seconds ahead, or a mail at a slow rate: what is further away was taken at a slower rate than there is now, and counts for nothing.
	most := Ahead + max(time.Second, length(rate, 1)) + time.Second
	var seconds float64
	err = tx.QueryRow(ctx, `INSERT INTO throttle AS t (domain, provider, next_at) VALUES ('', $1, clock_timestamp() + $2::interval)
		ON CONFLICT (domain, provider) DO UPDATE SET next_at =
				CASE WHEN t.next_at > clock_timestamp() + $5::interval THEN clock_timestamp() ELSE greatest(t.next_at, clock_timestamp() - $3::interval) END + $2::interval
			WHERE t.next_at <= clock_timestamp() + $4::interval OR t.next_at > clock_timestamp() + $5::interval
		RETURNING extract(epoch FROM next_at - $2::interval - clock_timestamp())::float8`, receiver, length(rate, n), burst, Ahead, most).Scan(&seconds)
	if taken = err == nil; errors.Is(err, pgx.ErrNoRows) {
		err = tx.QueryRow(ctx, "SELECT extract(epoch FROM next_at - clock_timestamp())::float8 FROM throttle WHERE domain = '' AND provider = $1", receiver).Scan(&seconds)
	}
	if err != nil {
		return 0, false, fmt.Errorf("take the time of mails: %w", err)
	}
	return max(0, seconded(seconds)), taken, nil
}

// Queue takes the time of up to n mails to a receiver, of as many as have it within a time from now. first is how long from now the first may go out, the others follow at the rate;
// got is how many got theirs. First attempts and further ones have a queue each: the former may be hours ahead, and have given the latter their time already.
func Queue(ctx context.Context, tx *postgres.Tx, receiver string, rate float64, n int, again bool, within time.Duration) (first time.Duration, got int, err error) {
	column := "next_at"
	if again {
		column = "again_at"
	}
	// Where the pace is another than before, what is taken already takes as much longer or shorter.
	const left = "clock_timestamp() + greatest(t.%[1]s - clock_timestamp(), '0') * CASE WHEN t.rate > 0 THEN t.rate / excluded.rate ELSE 1 END"
	_, err = tx.Exec(ctx, `INSERT INTO throttle AS t (domain, provider, rate) VALUES ('', $1, $2) ON CONFLICT (domain, provider) DO UPDATE SET rate = excluded.rate,
		next_at = `+fmt.Sprintf(left, "next_at")+`, again_at = `+fmt.Sprintf(left, "again_at")+` WHERE t.rate <> excluded.rate`, receiver, rate)
	if err != nil {
		return 0, 0, fmt.Errorf("take the time of mails to %s: %w", receiver, err)
	}
	// The row is locked before what is left of the time is reckoned.
	var seconds float64
	var from time.Time
	err = tx.QueryRow(ctx, `SELECT extract(epoch FROM f - clock_timestamp())::float8, f FROM (
		SELECT greatest(`+column+`, clock_timestamp()) AS f FROM throttle WHERE domain = '' AND provider = $1 FOR UPDATE) t`, receiver).Scan(&seconds, &from)
	if err != nil {
		return 0, 0, fmt.Errorf("take the time of mails to %s: %w", receiver, err)
	}
	first = max(0, seconded(seconds))
	if within >= first {
		got = min(n, 1+int((within-first).Seconds()*rate))
	}
	if got == 0 {
		return first, 0, nil
	}
	if _, err = tx.Exec(ctx, "UPDATE throttle SET "+column+" = $2 WHERE domain = '' AND provider = $1", receiver, from.Add(length(rate, got))); err != nil {
		return 0, 0, fmt.Errorf("take the time of mails to %s: %w", receiver, err)
	}
	return first, got, nil
}

// paced is what the detail of a mail begins with that waits for its time in a queue.
const paced = "paced: "

// Paced is the outcome of a mail that waits for its time in the queue to a receiver. It was not tried, so it says nothing against the address.
func Paced(r Recipient, receiver string, at time.Time) Outcome {
	return Waits(r, at, paced+receiver)
}

// Unqueue gives back the time in queues that was taken for mails of runs that have been cancelled, as far as nobody has a later one.
func Unqueue(ctx context.Context, tx *postgres.Tx) error {
	if tx.Tenant.Schema < PaceSchema {
		return nil
	}
	if _, err := tx.Exec(ctx, "SELECT FROM throttle WHERE domain = '' ORDER BY provider FOR UPDATE"); err != nil { // in the order in which others wait for them
		return fmt.Errorf("give the time of cancelled mails back: %w", err)
	}
	_, err := tx.Exec(ctx, `UPDATE throttle t SET next_at = greatest(now(), coalesce((SELECT max(d.retry_at) FROM delivery d JOIN batch b ON b.id = d.id >> 9 JOIN run r ON r.id = b.run
			WHERE d.state = 'deferred' AND d.retry_at IS NOT NULL AND d.detail = $1 || t.provider AND r.state <> 'cancelled') - (onda.now() - now()), now()))
		WHERE t.domain = '' AND t.provider <> '' AND t.next_at > now()`, paced)
	if err != nil {
		return fmt.Errorf("give the time of cancelled mails back: %w", err)
	}
	return nil
}

func length(rate float64, n int) time.Duration { return seconded(float64(n) / rate) }

func seconded(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
