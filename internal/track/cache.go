package track

import (
	"sync"
	"time"
)

// cache remembers up to a number of entries, each for a while (0: for ever, of what never changes); when it is full it forgets all, which costs one read each.
type cache[K comparable, V any] struct {
	most int
	keep time.Duration
	mu   sync.Mutex
	m    map[K]cached[V]
}

type cached[V any] struct {
	value V
	until time.Time
}

func newCache[K comparable, V any](most int, keep time.Duration) *cache[K, V] {
	return &cache[K, V]{most: most, keep: keep, m: map[K]cached[V]{}}
}

func (c *cache[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.m[k]
	if !ok || c.keep > 0 && time.Now().After(e.until) {
		return v, false
	}
	return e.value, true
}

func (c *cache[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.m) >= c.most {
		clear(c.m)
	}
	c.m[k] = cached[V]{v, time.Now().Add(c.keep)}
}
