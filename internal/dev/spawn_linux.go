package dev

import (
	"os/exec"
	"runtime"
	"syscall"
)

// spawner starts processes that the kernel kills when this process ends, however it ends. The kernel watches the thread that forked, not the process: so
// all are forked from one thread, which stays until close.
type spawner struct {
	todo chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{todo: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, and takes what is left with it
		for f := range s.todo {
			f()
		}
	}()
	return s
}

// start starts cmd in a process group of its own, so that Ctrl-C at the terminal does not reach it before it was drained.
func (s *spawner) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	s.todo <- func() { started <- cmd.Start() }
	return <-started
}

// close ends the thread, once no more processes are to be started.
func (s *spawner) close() {
	close(s.todo)
	<-s.done
}
