package track

import "sync"

// cache remembers what never changes, up to a number of entries; then it forgets all, which costs one read each.
type cache[K comparable, V any] struct {
	most int
	mu   sync.Mutex
	m    map[K]V
}

func newCache[K comparable, V any](most int) *cache[K, V] {
	return &cache[K, V]{most: most, m: map[K]V{}}
}

func (c *cache[K, V]) get(k K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.m[k]
	return v, ok
}

func (c *cache[K, V]) put(k K, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.m) >= c.most {
		clear(c.m)
	}
	c.m[k] = v
}
