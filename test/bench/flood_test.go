package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// A flood tells what was answered from what was refused and what was cut off, mail by mail, and ends on time whatever the other side does.
func TestFloodTellsFatesApart(t *testing.T) {
	t.Parallel()
	targets := []string{"/answered", "/refused", "/cut", "/answered"}
	for name, rate := range map[string]float64{"as answered": 0, "at a rate": 1_000} {
		ctx, stop := context.WithCancel(t.Context())
		var came atomic.Int64
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if came.Add(1) == int64(len(targets)) {
				stop() // those that are out are waited for
			}
			switch r.URL.Path {
			case "/refused":
				w.Header().Set("Retry-After", "5")
				w.WriteHeader(http.StatusServiceUnavailable)
			case "/cut":
				panic(http.ErrAbortHandler)
			}
		}))
		t.Cleanup(s.Close)
		mails := sentMails{status: http.StatusOK, targets: targets}
		if rate > 0 { // it may not run out of them
			for range 1_000_000 {
				mails.targets = append(mails.targets, "/answered")
			}
		}
		f := &flood{mails: mails, to: strings.TrimPrefix(s.URL, "http://"), rate: rate, conns: 2}
		if err := f.run(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for n, want := range []fate{answered, refused, cutOff, answered} {
			if f.hits[n].came != want {
				t.Errorf("%s: %s came to %d, want %d", name, targets[n], f.hits[n].came, want)
			}
		}
	}
}
