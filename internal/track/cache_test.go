package track

import (
	"testing"
	"time"
)

func TestCacheForgets(t *testing.T) {
	t.Parallel()
	forever, hour, moment := newCache[int, string](2, 0), newCache[int, string](2, time.Hour), newCache[int, string](2, time.Nanosecond)
	for _, c := range []*cache[int, string]{forever, hour, moment} {
		c.put(1, "one")
	}
	moment.m[1] = cached[string]{"one", time.Now().Add(-time.Second)}
	for name, c := range map[string]struct {
		*cache[int, string]
		want bool
	}{"forever": {forever, true}, "an hour": {hour, true}, "a moment": {moment, false}} {
		if v, ok := c.get(1); ok != c.want || ok && v != "one" {
			t.Errorf("%s: %q, %t", name, v, ok)
		}
	}
	hour.put(2, "two")
	hour.put(3, "three")
	if len(hour.m) != 1 {
		t.Errorf("%d are kept of at most two", len(hour.m))
	}
}
