package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// owned is a file of a user.
type owned struct {
	fs.FileInfo
	user uint32
}

func (o owned) Sys() any { return &syscall.Stat_t{Uid: o.user} }

func TestOnlyOnesOwnAndRootsFilesAreTrusted(t *testing.T) {
	t.Parallel()
	for user, want := range map[uint32]bool{0: true, 1000: true, 1001: false} {
		if got := trusted(owned{user: user}, 1000); got != want {
			t.Errorf("a file of user %d is trusted by user 1000: %t", user, got)
		}
	}
}

// The env file is looked for above the present directory, which may be another user's: t.Chdir lets this test run alone.
func TestEnvFileOfAnotherUser(t *testing.T) {
	dir := t.TempDir()
	below := filepath.Join(dir, "a", "b")
	if err := os.MkdirAll(below, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, ".onda"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeEnv(filepath.Join(dir, envFile), map[string]string{"ONDA_TENANT": "acme"}); err != nil {
		t.Fatal(err)
	}
	t.Chdir(below)
	var stderr strings.Builder
	s := &session{stderr: &stderr}
	if err := s.loadEnv(); err != nil || s.file["ONDA_TENANT"] != "acme" || stderr.Len() != 0 {
		t.Errorf("one's own: %v, %v, %q", s.file, err, stderr.String())
	}
	if os.Geteuid() != 0 {
		return // only root can give a file away
	}
	for _, path := range []string{envFile, ".onda"} {
		if err := os.Chown(filepath.Join(dir, path), 4711, -1); err != nil {
			t.Fatal(err)
		}
		s := &session{stderr: &stderr}
		if err := s.loadEnv(); err != nil || s.file != nil || !strings.Contains(stderr.String(), "is not read: it belongs to neither you nor root") {
			t.Errorf("another's %s: %v, %v, %q", path, s.file, err, stderr.String())
		}
		stderr.Reset()
		if err := os.Chown(filepath.Join(dir, path), 0, -1); err != nil {
			t.Fatal(err)
		}
	}
}
