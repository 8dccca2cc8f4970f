package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tick is the unit of processor time in /proc (USER_HZ, which Linux has fixed at 100).
const tick = 1.0 / 100

// cpuOf is the processor time that a process has used, in seconds; children that have ended and been waited for are counted where they are asked for.
func cpuOf(pid int, children bool) (float64, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	_, times, err := stat(b)
	if err != nil {
		return 0, err
	}
	n := times[0] + times[1]
	if children {
		n += times[2] + times[3]
	}
	return float64(n) * tick, nil
}

// stat reads a line of /proc/PID/stat: the parent's pid, and utime, stime, cutime and cstime (proc_pid_stat(5)).
func stat(line []byte) (parent int, times [4]int64, err error) {
	end := bytes.LastIndexByte(line, ')') // the name before it may hold anything
	if end < 0 {
		return 0, times, errors.New("read processor time: no stat line")
	}
	fields := strings.Fields(string(line[end+1:]))
	if len(fields) < 15 {
		return 0, times, errors.New("read processor time: a short stat line")
	}
	parent, err = strconv.Atoi(fields[1])
	for i := range times {
		if err == nil {
			times[i], err = strconv.ParseInt(fields[11+i], 10, 64)
		}
	}
	return parent, times, err
}

// postgresCPU is the processor time of a server on this machine, of all its processes.
func (l *lab) postgresCPU(ctx context.Context) (float64, error) {
	if l.postmaster == 0 {
		var err error
		if l.postmaster, err = l.findPostmaster(ctx); err != nil {
			return 0, err
		}
	}
	sum, err := cpuOf(l.postmaster, true)
	if err != nil {
		return 0, err
	}
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range all {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		if parent, times, err := stat(b); err == nil && parent == l.postmaster {
			sum += float64(times[0]+times[1]) * tick
		}
	}
	return sum, nil
}

// findPostmaster is the pid of the server's first process.
func (l *lab) findPostmaster(ctx context.Context) (int, error) {
	dir, err := superOne[string](ctx, l, "SHOW data_directory")
	if err != nil {
		return 0, fmt.Errorf("look for the server: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0, fmt.Errorf("look for the server, which must be on this machine: %w", err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return 0, fmt.Errorf("look for the server: %w", err)
	}
	return pid, nil
}
