package pgtest

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { Main(m) }

// The kernel ends the server with the thread that started it, and threads end: with goroutines that were locked to them. The server is to outlive the thread that
// happens to ask for it.
func TestTheServerOutlivesTheThreadThatAsksForIt(t *testing.T) {
	t.Parallel()
	var admin string
	var stop func()
	var err error
	onThreadThatEnds(func() { admin, stop, err = initdb() })
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for range 30 { // the end of a server takes a moment
		<-again.C
		conn, err := pgx.Connect(t.Context(), admin)
		if err != nil {
			t.Fatalf("the server has ended: %v", err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// onThreadThatEnds calls f on a thread that ends after it. The process's first thread never does.
func onThreadThatEnds(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if syscall.Gettid() == syscall.Getpid() {
			onThreadThatEnds(f) // while this one is taken
			return
		}
		f()
	}()
	<-done
}
