package fn

import (
	"net/http"
	"slices"
	"testing"
)

// The limit follows the connections in steps, upwards at once and downwards only when half of them are gone, and is back where it was in the end.
func TestMemoryLimitFollowsConnections(t *testing.T) {
	t.Parallel()
	var limits []int64
	c := &connections{setLimit: func(bytes int64) int64 {
		limits = append(limits, (bytes-MemoryLimit)/connectionMemory)
		return 0
	}}
	change := func(n int, s http.ConnState) {
		for range n {
			c.changed(nil, s)
		}
	}
	change(1, http.StateNew)
	change(1, http.StateActive)
	change(64, http.StateNew)
	change(10, http.StateClosed)
	change(10, http.StateNew)
	change(191, http.StateNew)
	change(256, http.StateClosed)
	change(100_000, http.StateNew)
	last := limits[len(limits)-1]*connectionMemory + MemoryLimit
	if want := []int64{64, 128, 192, 256, 64}; !slices.Equal(limits[:len(want)], want) || last != MostMemory {
		t.Errorf("the limit is for %v connections, want %v, and then ever more until %d", limits[:len(want)], want, MostMemory)
	}
}
