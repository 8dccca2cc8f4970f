package fn

import (
	"net"
	"net/http"
	"runtime/debug"
	"sync"
)

const (
	connectionMemory = 32 << 10 // that a connection holds while its request waits: buffers, stacks and headers
	connectionStep   = 64       // connections, for which the limit is set anew
)

// MostMemory is where the limit stops growing: of the 192 MiB of pods that anybody may connect to. Past it, work for the collector is better than being killed.
const MostMemory = 144 << 20

// connections lets the limit of memory grow with what is connected: where most of what it allows is held by connections, the collector takes half of the processor to find nothing.
type connections struct {
	setLimit func(bytes int64) int64 // debug.SetMemoryLimit

	mu      sync.Mutex
	open    int
	counted int // for how many the limit is set
}

func newConnections() *connections { return &connections{setLimit: debug.SetMemoryLimit} }

// changed is the hook of http.Server.
func (c *connections) changed(_ net.Conn, s http.ConnState) {
	change := 0
	switch s {
	case http.StateNew:
		change = 1
	case http.StateClosed, http.StateHijacked:
		change = -1
	case http.StateActive, http.StateIdle: // twice a request
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += change
	if c.open <= c.counted && c.open >= c.counted/2-connectionStep { // not to and fro: the program stands still for a moment each time
		return
	}
	c.counted = (c.open + connectionStep - 1) / connectionStep * connectionStep
	c.setLimit(min(MemoryLimit+int64(c.counted)*connectionMemory, MostMemory))
}
