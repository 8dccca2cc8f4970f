package track

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/token"
)

// Keys that nobody has shown before cost a look into Postgres each, and anybody can make them up: so many at once, and so many a second after that, are looked for. Those that were
// proven once are not counted.
const (
	strangersAtOnce    = 100
	strangersPerSecond = 20
	lookupsAtOnce      = 2 // connections that these take at most
)

var errStrangers = errors.New("too many keys are shown that were not seen before")

// programKeys proves the keys of programs.
type programKeys struct {
	known     *cache[string, struct{}] // proven a short while ago
	none      *cache[string, struct{}] // are no keys, as a short while ago
	proven    *cache[string, struct{}] // were keys at some time
	strangers *rate.Limiter
	lookups   chan struct{}
	once      singleflight.Group
	// look tells whether a tenant has the key.
	look func(ctx context.Context, tenant string, key token.ProgramKey) (bool, error)
}

func newProgramKeys(look func(ctx context.Context, tenant string, key token.ProgramKey) (bool, error)) *programKeys {
	return &programKeys{
		known: newCache[string, struct{}](10_000, time.Minute), none: newCache[string, struct{}](10_000, unknownFor), proven: newCache[string, struct{}](10_000, 0),
		strangers: rate.NewLimiter(strangersPerSecond, strangersAtOnce), lookups: make(chan struct{}, lookupsAtOnce), look: look,
	}
}

// prove tells whether a tenant has the key. Of one that was retired it is known within a minute.
func (k *programKeys) prove(ctx context.Context, tenant string, key token.ProgramKey) (bool, error) {
	sum := key.Hash()
	id := tenant + " " + string(key.Kind) + " " + string(sum[:])
	if _, known := k.known.get(id); known {
		return true, nil
	}
	if _, none := k.none.get(id); none {
		return false, nil
	}
	// Many who show the same key at once ask once, and are answered though the first of them goes away.
	answer := k.once.DoChan(id, func() (any, error) {
		if _, proven := k.proven.get(id); !proven && !k.strangers.Allow() {
			return false, fn.Unavailable(errStrangers)
		}
		k.lookups <- struct{}{}
		defer func() { <-k.lookups }()
		ok, err := k.look(context.WithoutCancel(ctx), tenant, key)
		switch {
		case err != nil:
		case ok:
			k.known.put(id, struct{}{})
			k.proven.put(id, struct{}{})
		default:
			k.none.put(id, struct{}{})
		}
		return ok, err
	})
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case r := <-answer:
		return r.Val.(bool), r.Err
	}
}
