// Package delivery keeps what is known about every mail (design section 6): batches that are planned, leased, marked and closed, and the outcomes of their
// recipients.
//
// Invariants, whoever dies at any point: a recipient beyond its batch's mark was never handed to SMTP; one with an outcome is settled; the few between are
// unknown, and never tried again unless the email asks for it. Outcomes only move up, a fence guards the lease and the mark, and facts, counts and doorbells
// are written in the transaction of the outcome, only for what it changed.
//
// Locks are taken in one order, batch rows before delivery rows, each in order of id: whoever records an outcome holds its batch FOR KEY SHARE, which leaves
// marks alone, and whoever closes a batch or takes it over holds it FOR UPDATE, so that the counts of a closed batch are exact.
package delivery

import (
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// MaxBatch is how many recipients a batch has at most.
const MaxBatch = 500

// MaxWindow is how many recipients of a batch may be marked and not settled at once: what a crash can make unknown.
const MaxWindow = 64

// Life is how long after it was due a mail is still sent, unless said otherwise.
const Life = 24 * time.Hour

// Lanes: transactional mail never queues behind a blast.
const (
	Bulk          = 0
	Transactional = 1
)

// ID is the id of the delivery to the nth recipient of a batch; n counts from 1.
func ID(batch int64, n int) int64 { return batch<<9 | int64(n) }

// BatchOf is the batch that a delivery was planned in, whatever batches retried it.
func BatchOf(id int64) int64 { return id >> 9 }

// Number is a delivery's number in the batch that it was planned in, from 1.
func Number(id int64) int { return int(id & (postgres.BatchWidth - 1)) }

// Function is the function that works on a lane: its wake-ups and its outbox.
func Function(lane int) string {
	if lane == Transactional {
		return "send-api"
	}
	return "send"
}

// State is an outcome. A recipient without one is still queued.
type State string

// The outcomes.
const (
	Sent       State = "sent"       // the next server took it
	Deferred   State = "deferred"   // to be tried again
	Failed     State = "failed"     // refused for good, or tried until it expired
	Suppressed State = "suppressed" // not to be sent, for a Reason
	Unknown    State = "unknown"    // may have been sent: never guessed
)

// Reason says why a mail was not to be sent. The list is closed.
type Reason string

// The reasons.
const (
	NoConsent        Reason = "no_consent"
	Pending          Reason = "pending"
	IsSuppressed     Reason = "suppressed"
	Capped           Reason = "capped"
	Duplicate        Reason = "duplicate"
	Expired          Reason = "expired"
	Late             Reason = "late"
	Quota            Reason = "quota"
	Cancelled        Reason = "cancelled"
	DomainUnverified Reason = "domain_unverified"
	BadAddress       Reason = "bad_address"
	Erased           Reason = "erased"
	// Preproduction: the database is one where nobody real is mailed, and there is no address to mail instead (ONDA_PREPRODUCTION_TO).
	Preproduction Reason = "preproduction"
)

// steps are the times between the attempts of a mail that is refused with a class, soonest first; the last goes for all further ones. RFC 5321 section 4.5.4.1 wants a few soon
// and half an hour and more between the rest. A block is about us: to come back soon makes it worse.
func steps(class string) []time.Duration {
	switch class {
	case "block":
		return []time.Duration{15 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour}
	case "policy":
		return []time.Duration{5 * time.Minute, 30 * time.Minute, time.Hour, 4 * time.Hour}
	}
	return []time.Duration{time.Minute, 5 * time.Minute, 30 * time.Minute, time.Hour, 4 * time.Hour}
}

// backOff is how long after a refusal the next attempt is made, when the refusal before it, if any, was so long ago: a step longer than that, and not by the number of attempts,
// which mails that only waited have too.
func backOff(ago time.Duration, class string) time.Duration {
	all := steps(class)
	for _, s := range all {
		if 2*s > 3*ago { // retries are seldom made to the second
			return s
		}
	}
	return all[len(all)-1]
}
