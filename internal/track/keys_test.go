package track

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/token"
)

func makeKey(t *testing.T) token.ProgramKey {
	t.Helper()
	made, err := token.NewProgramKey(token.PublicKey, 1)
	if err != nil {
		t.Fatal(err)
	}
	key, err := token.ParseProgramKey(made.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// However many keys are made up, few of them cost a look; those that were proven go on, also when it is time to look whether they are still keys.
func TestAFloodOfForgedKeysStopsNobody(t *testing.T) {
	t.Parallel()
	ours := makeKey(t)
	var looks atomic.Int64
	keys := newProgramKeys(func(_ context.Context, _ string, key token.ProgramKey) (bool, error) {
		looks.Add(1)
		return key.Hash() == ours.Hash(), nil
	})
	keys.strangers.SetLimit(0) // so that the time it takes decides nothing
	if ok, err := keys.prove(t.Context(), "acme", ours); !ok || err != nil {
		t.Fatal(ok, err)
	}
	refused := 0
	for range 10 * strangersAtOnce {
		if ok, err := keys.prove(t.Context(), "acme", makeKey(t)); ok || err != nil && !errors.Is(err, errStrangers) {
			t.Fatal(ok, err)
		} else if err != nil {
			refused++
		}
	}
	if n := looks.Load(); n != strangersAtOnce || refused != 9*strangersAtOnce+1 {
		t.Errorf("%d looks, %d refused", n, refused)
	}
	clear(keys.known.m) // a minute later
	if ok, err := keys.prove(t.Context(), "acme", ours); !ok || err != nil {
		t.Errorf("a key that was proven: %v, %v", ok, err)
	}
	if ok, err := keys.prove(t.Context(), "brava", ours); ok || !errors.Is(err, errStrangers) {
		t.Errorf("a key at another tenant: %v, %v", ok, err)
	}
}

// Whoever shows a key while it is looked for waits for that one look.
func TestAKeyIsLookedForOnceAtATime(t *testing.T) {
	t.Parallel()
	var looks atomic.Int64
	looking, goOn := make(chan struct{}), make(chan struct{})
	keys := newProgramKeys(func(ctx context.Context, _ string, _ token.ProgramKey) (bool, error) {
		looks.Add(1)
		close(looking)
		<-goOn
		return true, ctx.Err()
	})
	key := makeKey(t)
	first, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := keys.prove(first, "acme", key)
		gone <- err
	}()
	<-looking
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("who went away: %v", err)
	}
	var g errgroup.Group
	for range 20 {
		g.Go(func() error {
			ok, err := keys.prove(t.Context(), "acme", key)
			if !ok && err == nil {
				err = errUnauthorized
			}
			return err
		})
	}
	close(goOn)
	if err := g.Wait(); err != nil || looks.Load() != 1 {
		t.Errorf("%d looks: %v", looks.Load(), err)
	}
}
