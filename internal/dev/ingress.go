package dev

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strings"
	"sync"

	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"

	"github.com/onda-run/onda/internal/fn"
)

// ingress routes public paths to the services that have them, /functions/NAME/... to any service, and /broker to the broker. It counts the requests to
// functions that are in flight.
type ingress struct {
	dev     *Handle
	changed *bell

	mu       sync.Mutex
	inflight int
	total    int64
}

// handler makes the mux of everything on the port. Patterns that clash are an error.
func (g *ingress) handler() (_ http.Handler, err error) {
	defer func() {
		if v := recover(); v != nil { // http.ServeMux's way to refuse a pattern
			err = fmt.Errorf("routes: %v", v)
		}
	}()
	mux := http.NewServeMux()
	for _, s := range g.dev.cfg.Services {
		to := g.count(g.dev.backends[s.Name])
		for _, path := range s.Paths {
			mux.Handle(path, to)
		}
		// What a cluster keeps to itself is for this machine only, also when a name of elsewhere leads here.
		mux.Handle("/functions/"+s.Name, local(http.StripPrefix("/functions/"+s.Name, rooted(to))))
		mux.Handle("/functions/"+s.Name+"/", local(http.StripPrefix("/functions/"+s.Name, to)))
	}
	mux.HandleFunc("/functions/", func(w http.ResponseWriter, r *http.Request) {
		name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/functions/"), "/")
		fn.Problem(w, r, http.StatusNotFound, "No such function", fmt.Sprintf("There is no service %q here.", name))
	})
	mux.Handle("/broker", local(http.StripPrefix("/broker", g.dev.broker)))
	mux.Handle("/broker/", local(http.StripPrefix("/broker", g.dev.broker)))
	g.dev.control(mux)
	for pattern, h := range g.dev.cfg.Routes {
		mux.Handle(pattern, local(h))
	}
	return mux, nil
}

// rooted gives a request without a path the path /.
func rooted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "" {
			r.URL.Path = "/"
		}
		h.ServeHTTP(w, r)
	})
}

// count counts requests in and out, and shows events to OnEvent.
func (g *ingress) count(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		g.inflight++
		g.total++
		g.mu.Unlock()
		defer func() {
			g.mu.Lock()
			g.inflight--
			g.mu.Unlock()
			g.changed.ring()
		}()
		if g.dev.cfg.OnEvent != nil {
			if err := g.show(r); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// shownAtMost is how much of a body is read to show an event.
const shownAtMost = 1 << 20

// show gives a copy of an event that is posted directly to OnEvent. What the broker delivers, it has shown when it took it.
func (g *ingress) show(r *http.Request) error {
	if r.Method != http.MethodPost || r.Header.Get("Ce-Knativearrivaltime") != "" ||
		r.Header.Get("Ce-Specversion") == "" && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/cloudevents") {
		return nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, shownAtMost))
	if err != nil {
		return err
	}
	copied := r.Clone(r.Context())
	copied.Body = io.NopCloser(bytes.NewReader(body))
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	if e, err := cehttp.NewEventFromHTTPRequest(copied); err == nil { // what is no event is the function's to refuse
		g.dev.cfg.OnEvent(*e)
	}
	return nil
}

// load tells how many requests are in flight and how many there were.
func (g *ingress) load() (inflight int, total int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inflight, g.total
}

// answerFailure answers a request that no process of a service took: 502, and 503 when everything ends. Brokers retry both.
func answerFailure(w http.ResponseWriter, r *http.Request, service string, err error) {
	if r.Context().Err() != nil {
		return // nobody reads it
	}
	status, title := http.StatusBadGateway, service+" did not answer"
	var build *buildError
	switch {
	case errors.Is(err, errStopped):
		status, title = http.StatusServiceUnavailable, "Onda is ending"
	case errors.As(err, &build):
		title = build.function + " does not compile"
	}
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		http.Error(w, title+": "+err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	detail := err.Error()
	if build != nil {
		detail = build.output
	}
	_ = failurePage.Execute(w, map[string]string{"Title": title, "Detail": detail}) // the reader may be gone
}

var failurePage = template.Must(template.New("failure").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{{.Title}}</title>
<style>
body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#fff7f5;color:#2b1a17}
main{max-width:60rem;margin:0 auto;padding:3rem 1.25rem}
h1{font-size:1.5rem;margin:0 0 1rem;color:#9a2414}
pre{background:#2b1a17;color:#ffe9e4;padding:1rem 1.25rem;border-radius:.5rem;overflow:auto;font:14px/1.5 ui-monospace,monospace;white-space:pre-wrap}
</style></head><body><main><h1>{{.Title}}</h1><pre>{{.Detail}}</pre><p>Mend it and load this page again: it is built anew when a file changes.</p></main></body></html>
`))
