package fn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestLogOfARequestOverHTTP(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /c/{token}", func(w http.ResponseWriter, r *http.Request) {
		LogTenant(r.Context(), "acme")
		http.Error(w, "no", http.StatusNotFound)
	})
	w := newWorld(t, nil, Handler{HTTP: mux})
	if a := w.must("GET", "/c/secrettoken?to=ada@example.com", ""); a.status != 404 {
		t.Errorf("answer %+v", a)
	}
	line := w.requestLog()
	if line["method"] != "GET" || line["route"] != "/c/{token}" || line["tenant"] != "acme" || line["status"] != int64(404) {
		t.Errorf("log %v", line)
	}
	if text := fmt.Sprint(line); strings.Contains(text, "secrettoken") || strings.Contains(text, "ada") {
		t.Errorf("the log holds the token or the query: %s", text)
	}
	if d, ok := line["duration"].(time.Duration); !ok || d <= 0 {
		t.Errorf("duration %v", line["duration"])
	}
}

// TestACallersMistakeIsNoError holds that nobody is woken by a wrong key or a path that is not there.
func TestACallersMistakeIsNoError(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403, 404, 409, 413, 422} {
		w := newWorld(t, nil, Handler{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			LogError(r.Context(), errors.New("the key is not known"))
			Problem(w, r, status, http.StatusText(status), "")
		})})
		w.must("POST", "/v1/emails", "{}")
		if line := w.requestLog(); line["level"] != "info" || line["error"] != "the key is not known" {
			t.Errorf("%d: log %v", status, line)
		}
	}
}

func TestFail(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		status int
		detail string
		retry  string
		level  string
	}{
		"permanent":   {Permanent(errors.New("email is missing")), 400, "email is missing", "", "info"},
		"throttled":   {Throttled(errors.New("quota"), time.Minute), 429, "no room for this now; try again later", "60", "warn"},
		"unavailable": {Unavailable(errors.New("secret")), 503, "something this needs is away; try again", "1", "warn"},
		"other":       {errors.New("secret"), 500, "internal error; the log has more", "", "error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, Handler{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { Fail(w, r, c.err) })})
			a := w.must("POST", "/v1/emails", "{}")
			var p struct {
				Type, Title, Detail string
				Status              int
			}
			if err := json.Unmarshal([]byte(a.body), &p); err != nil {
				t.Fatal(err)
			}
			if a.status != c.status || p.Status != c.status || p.Title != http.StatusText(c.status) || p.Detail != c.detail || p.Type != "about:blank" {
				t.Errorf("problem %+v of %+v", p, a)
			}
			if a.header.Get("Content-Type") != "application/problem+json" || a.header.Get("Retry-After") != c.retry {
				t.Errorf("header %v", a.header)
			}
			if line := w.requestLog(); line["error"] != c.err.Error() || line["level"] != c.level {
				t.Errorf("log %v", line)
			}
		})
	}
	w := newWorld(t, nil, Handler{HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { Problem(w, r, 410, "Gone", "") })})
	if a := w.must("HEAD", "/", ""); a.status != 410 || a.body != "" {
		t.Errorf("HEAD gives %+v", a)
	}
}

func TestPanicsOverHTTP(t *testing.T) {
	t.Parallel()
	t.Run("before the answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, nil, Handler{HTTP: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })})
		if a := w.must("GET", "/", ""); a.status != 500 || strings.Contains(a.body, "boom") {
			t.Errorf("answer %+v", a)
		}
		if line := w.requestLog(); line["panic"] != "boom" {
			t.Errorf("log %v", line)
		}
	})
	t.Run("in the middle of it", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, nil, Handler{HTTP: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte("half"))
			panic("boom")
		})})
		if a, err := w.do(t.Context(), "GET", "/", ""); err == nil {
			t.Errorf("half an answer passed for a whole one: %+v", a)
		}
		if line := w.requestLog(); line["panic"] != "boom" {
			t.Errorf("log %v", line)
		}
	})
}

func TestProbes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, Handler{})
	for _, path := range []string{"/health/readiness", "/health/liveness"} {
		if a := w.must("GET", path, ""); a.status != 200 {
			t.Errorf("%s answers %+v", path, a)
		}
	}
	w.in.drain()
	if a := w.must("GET", "/health/readiness", ""); a.status != 503 {
		t.Errorf("draining: readiness answers %+v", a)
	}
	if a := w.must("GET", "/health/liveness", ""); a.status != 200 {
		t.Errorf("draining: liveness answers %+v", a)
	}
	if n := w.logs.FilterMessage("request").Len(); n != 0 {
		t.Errorf("%d probes were logged", n)
	}
}
