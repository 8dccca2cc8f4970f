//go:build !linux

package dev

import (
	"os/exec"
	"syscall"
)

// spawner starts processes in groups of their own. On this system nothing ends them when this process is killed hard.
type spawner struct{}

func newSpawner() *spawner { return &spawner{} }

func (s *spawner) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd.Start()
}

func (s *spawner) close() {}
