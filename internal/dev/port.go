package dev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode"
)

// PortTaken says that somebody listens at a port already, who where that can be known, and what to do about it. What names the port and what it is for,
// flag the option that changes it.
func PortTaken(what string, port int, flag string) error {
	if who := listener(port); who != "" {
		return fmt.Errorf("%s is in use by %s: end it, or choose another with %s", what, who, flag)
	}
	return fmt.Errorf("%s is in use: end what listens there (perhaps another onda dev), or choose another with %s", what, flag)
}

// listener names the program that listens at a TCP port of this machine, with its process. It is "" where that is not told: the program is another
// user's, or this is no Linux.
func listener(port int) string {
	sockets := map[string]bool{}
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line) // proc(5): sl, local_address, rem_address, st (0A listens), ..., the tenth is the inode
			if len(f) > 9 && f[3] == "0A" && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) {
				sockets["socket:["+f[9]+"]"] = true
			}
		}
	}
	if len(sockets) == 0 {
		return ""
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well-formed
	for _, file := range files {
		if to, err := os.Readlink(file); err != nil || !sockets[to] {
			continue
		}
		process := filepath.Dir(filepath.Dir(file))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue
		}
		shown := strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return -1
			}
			return r
		}, string(name))
		return fmt.Sprintf("%s (process %s)", shown, filepath.Base(process))
	}
	return ""
}
