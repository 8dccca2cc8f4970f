package fn

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// failure is an error that says what its sender should do.
type failure struct {
	err    error
	status int
	after  time.Duration
}

func (f *failure) Error() string { return f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

// Permanent marks an error that will be the same each time: a broken payload, an unknown tenant. It answers 400, which no broker retries. Its text goes
// into the answer and into dead letters: it must hold nothing personal. Nil stays nil.
func Permanent(err error) error { return mark(err, http.StatusBadRequest, 0) }

// Throttled marks an error of having no room for the work now; the sender may come back after the given time, rounded up to a second. It answers 429. Nil
// stays nil.
func Throttled(err error, after time.Duration) error {
	return mark(err, http.StatusTooManyRequests, after)
}

// Unavailable marks an error of something that is away and will come back, such as Postgres or an SMTP server. It answers 503. Nil stays nil.
func Unavailable(err error) error { return mark(err, http.StatusServiceUnavailable, 0) }

func mark(err error, status int, after time.Duration) error {
	if err == nil {
		return nil
	}
	return &failure{err: err, status: status, after: after}
}

// IsPermanent tells whether an error will be the same each time.
func IsPermanent(err error) bool {
	status, _ := Status(err)
	return status == http.StatusBadRequest
}

// Status is the one mapping from errors to HTTP: 202 for nil, 400 for Permanent, 429 for Throttled with the time to wait, 503 for Unavailable, an error that
// says itself that it is Transient, a context that ended, Postgres being away or a transaction that lost to another, 500 for any other. Brokers retry 429 and
// 5xx, not 400.
func Status(err error) (status int, retryAfter time.Duration) {
	var f *failure
	var p *panicked
	switch {
	case err == nil:
		return http.StatusAccepted, 0
	case errors.As(err, &p):
		return http.StatusInternalServerError, 0
	case errors.As(err, &f):
		return f.status, f.after
	case isTransient(err):
		return http.StatusServiceUnavailable, 0
	}
	return http.StatusInternalServerError, 0
}

// isTransient tells whether an error that nobody marked is of the kind that passes by itself.
func isTransient(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, io.ErrUnexpectedEOF) { // the last: a Postgres that died says nothing
		return true
	}
	var passes interface{ Transient() bool }
	if errors.As(err, &passes) {
		return passes.Transient()
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) {
		return true
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch {
	case strings.HasPrefix(pg.Code, "08"), // connection exception
		strings.HasPrefix(pg.Code, "40"),  // transaction rollback: serialization failure, deadlock
		strings.HasPrefix(pg.Code, "53"),  // insufficient resources: too many connections, disk full
		strings.HasPrefix(pg.Code, "57P"), // operator intervention: shutdown, cannot connect now
		pg.Code == "55P03",                // lock not available
		pg.Code == "57014",                // query cancelled: statement time-out
		pg.Code == "25006":                // read-only transaction: failed over
		return true
	}
	return false
}

// panicked is a panic that was caught, with its stack.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return "panic" }
