package renderform

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/bits"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

const (
	// minAge is how long a page is open at the least before a person has filled it in; minAgeUnproven where it asks for work and none was done, as without scripts.
	minAge         = 2 * time.Second
	minAgeUnproven = 10 * time.Second
	// maxAge is how long a page may stay open before it has to be sent once more.
	maxAge = 24 * time.Hour
	// workBits are the zero bits that the hash of a proof of work begins with: some 65,000 tries, a moment for a person's device.
	workBits = 16
	// unprovenCost is what a submission without the work that was asked for takes of the tenant's allowance.
	unprovenCost = 10
	// domain separates the MAC of a moment from all else that is signed with a tenant's key.
	domain  = "onda form moment 1\x00"
	macSize = 12
)

// Keys of texts of what is wrong with no single input.
const (
	tooFast = "form.problem.fast"
	tooOld  = "form.problem.old"
)

// mac is what proves a moment: that this version of the tenant's form was shown in that second. What is sent with another version's is not consent to this one's texts.
func (f *form) mac(key token.Key, second int64) []byte {
	m := hmac.New(sha256.New, key.Secret)
	_, _ = fmt.Fprintf(m, "%s%d %d %d", domain, f.tenant.Number, f.document, second)
	return m.Sum(nil)[:macSize]
}

// moment is the signed second in which the form is shown.
func (f *form) moment(key token.Key, now time.Time) string {
	return strconv.FormatInt(now.Unix(), 36) + "-" + base64.RawURLEncoding.EncodeToString(f.mac(key, now.Unix()))
}

// shownFor is how long ago the form was shown with a moment; ok is false for one that is of another form or of another version of it, or nobody's.
func (f *form) shownFor(moment string, keys token.Keys, now time.Time) (age time.Duration, ok bool) {
	number, sum, _ := strings.Cut(moment, "-")
	second, err := strconv.ParseInt(number, 36, 64)
	if err != nil {
		return 0, false
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(sum)
	if err != nil {
		return 0, false
	}
	for _, k := range keys {
		ok = ok || hmac.Equal(mac, f.mac(k, second))
	}
	return now.Sub(time.Unix(second, 0)), ok
}

// worked tells whether proof is the answer to the page's question: a number that makes the hash of it, the moment and the page's id begin with enough zeros. The id is in it,
// and one id is one submission: so an answer that is sent again is a repeat, and nothing has to be kept of it.
func worked(values url.Values) bool {
	proof := values.Get(proofInput)
	if readOnce(values.Get(onceInput)) == nil || proof == "" || len(proof) > 20 {
		return false
	}
	sum := sha256.Sum256([]byte(values.Get(momentInput) + "." + values.Get(onceInput) + "." + proof))
	zeros := 0
	for _, b := range sum {
		zeros += bits.LeadingZeros8(b)
		if b != 0 {
			break
		}
	}
	return zeros >= workBits
}

// tooSoon looks at when the page was shown and at the work that was done on it: the key of what is wrong, or what a submission costs. A program, or a page of somebody's
// own, shows no moment; it must where the form asks for work.
func (f *form) tooSoon(values url.Values, keys token.Keys, now time.Time) (problem string, cost int) {
	moment := values.Get(momentInput)
	if moment == "" && !f.Protect.ProofOfWork {
		return "", 1
	}
	age, ok := f.shownFor(moment, keys, now)
	switch {
	case !ok || age > maxAge:
		return tooOld, 0
	case age < minAge:
		return tooFast, 0
	case !f.Protect.ProofOfWork || worked(values):
		return "", 1
	case age < minAgeUnproven:
		return tooFast, 0
	}
	return "", unprovenCost
}

// errFull says that a tenant's forms take in no more for the time being.
var errFull = errors.New("too many submissions for this tenant at once: try again in a minute")

// limiter bounds the submissions of each tenant in a minute, over all processes. A process reserves many at a time, so that the row that they share is seldom written.
type limiter struct {
	db        *postgres.DB
	now       func() time.Time
	perMinute int

	mu      sync.Mutex
	tenants map[string]*reserved
}

// reserved is what a process may still take in a minute.
type reserved struct {
	mu     sync.Mutex
	minute int64
	left   int
	next   int // how many it reserves next
	full   bool
}

func newLimiter(db *postgres.DB, now func() time.Time, perMinute int) *limiter {
	return &limiter{db: db, now: now, perMinute: perMinute, tenants: map[string]*reserved{}}
}

// take counts a submission, or gives errFull. The tenant is one that is served.
func (l *limiter) take(ctx context.Context, tenant string, cost int) error {
	l.mu.Lock()
	r := l.tenants[tenant]
	if r == nil {
		r = &reserved{}
		l.tenants[tenant] = r
	}
	l.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if minute := l.now().Unix() / 60; minute != r.minute {
		r.minute, r.left, r.next, r.full = minute, 0, 0, false
	}
	if r.left < cost && !r.full {
		// Few at first: what a process has reserved is lost with it, and many may live but for one submission.
		chunk := max(cost, min(r.next, l.perMinute/20))
		err := l.reserve(ctx, tenant, chunk)
		if errors.Is(err, errFull) && chunk > cost {
			chunk = cost
			err = l.reserve(ctx, tenant, chunk)
		}
		switch {
		case errors.Is(err, errFull):
			r.full = true
		case err != nil:
			return fmt.Errorf("reserve submissions: %w", err)
		default:
			r.left += chunk
			r.next = 2 * chunk
		}
	}
	if r.left < cost {
		return errFull
	}
	r.left -= cost
	return nil
}

// reserve takes a number of submissions for this process from those of the minute; errFull when there are not as many.
func (l *limiter) reserve(ctx context.Context, tenant string, n int) error {
	return within(ctx, l.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		tag, err := tx.Exec(ctx, `INSERT INTO allowance AS a (kind, contact, period, n) VALUES ('forms', 0, date_trunc('minute', onda.now()), $1)
			ON CONFLICT (kind, contact, period) DO UPDATE SET n = a.n + $1 WHERE a.n + $1 <= $2`, n, max(l.perMinute, n))
		if err == nil && tag.RowsAffected() == 0 {
			return errFull
		}
		return err
	})
}
