package system

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Goals of each function, which are recorded here and decide nothing; only a binary that has doubled is an error.
const (
	goalSize   = 25 << 20
	goalReady  = 10 * time.Millisecond
	goalMemory = 20 << 20
	mostSize   = 40 << 20
	starts     = 10
)

// It records each function's size, the time from exec to ready, and the memory when ready: go test ./test/system -run TestBinaries -v
func TestBinaries(t *testing.T) {
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%-12s %14s %16s %16s", "function", "size", "ready (median)", "memory (median)")
	for name := range builds() {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		var took []time.Duration
		var memory []int64
		for range starts {
			d, rss := startOnce(t, path)
			took, memory = append(took, d), append(memory, rss)
		}
		slices.Sort(took)
		slices.Sort(memory)
		ready, rss := took[starts/2], memory[starts/2]
		t.Logf("%-12s %7.1f MB %-5s %8.1f ms %-5s %7.1f MB %-5s", name, float64(info.Size())/(1<<20), short(info.Size() > goalSize),
			float64(ready.Microseconds())/1000, short(ready > goalReady), float64(rss)/(1<<20), short(rss > goalMemory))
		if info.Size() > mostSize {
			t.Errorf("%s has %d MB: see what it links", name, info.Size()>>20)
		}
	}
}

func short(is bool) string {
	if is {
		return "short"
	}
	return "ok"
}

// startOnce starts a function, and tells how long it took to be ready and what memory it has then.
func startOnce(t *testing.T, path string) (took time.Duration, rss int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	_, port, _ := net.SplitHostPort(addr)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = []string{
		"PORT=" + port, "ONDA_DATABASE_URL=postgres://onda_pool@127.0.0.1:1/onda", "ONDA_SMTP_URL=smtp://127.0.0.1:1?tls=none",
		"ONDA_LINK_URL=" + linkURL, "ONDA_FORM_URL=" + formURL,
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	again := time.NewTicker(300 * time.Microsecond) // it needs the processor that asking would take
	defer again.Stop()
	for {
		resp, err := client.Get("http://" + addr + "/health/readiness")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				break
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("%s is not ready: %s", filepath.Base(path), out.String())
		}
		<-again.C
	}
	took = time.Since(began)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		return took, 0 // no such system
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			rss = kb << 10
		}
	}
	return took, rss
}
