package dev

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/localbroker"
)

// control adds what a developer sees and steers: the page at /, and /dev/status, /dev/timeline, /dev/chaos and /dev/kill.
func (h *Handle) control(mux *http.ServeMux) {
	api := http.NewServeMux()
	api.HandleFunc("GET /dev/status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, h.Status()) })
	api.HandleFunc("GET /dev/timeline", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"began": h.began, "spans": h.Timeline()})
	})
	api.HandleFunc("GET /dev/chaos", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, h.broker.Chaos()) })
	api.HandleFunc("POST /dev/chaos", h.postChaos)
	api.HandleFunc("POST /dev/kill", h.postKill)
	// No page of another site may steer it through the developer's browser.
	guard := http.NewCrossOriginProtection()
	mux.Handle("/dev/", local(guard.Handler(api)))
	mux.Handle("/{$}", local(http.HandlerFunc(h.page)))
}

// local answers 404 to everybody but this machine, also when a name of elsewhere leads here.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, err := net.SplitHostPort(r.RemoteAddr)
		if err != nil || !loopback(from) || !loopback(hostname(r.Host)) {
			http.NotFound(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.Trim(host, "[]")
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the reader may be gone
}

// readJSON fills v from the body, strictly, or answers 400.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return true
		}
		err = fmt.Errorf("more than one JSON value")
	}
	fn.Problem(w, r, http.StatusBadRequest, "Not understood", err.Error())
	return false
}

// postChaos changes how badly the broker behaves. What is left out is set to zero.
func (h *Handle) postChaos(w http.ResponseWriter, r *http.Request) {
	var c localbroker.Chaos
	if !readJSON(w, r, &c) {
		return
	}
	if err := h.broker.SetChaos(c); err != nil {
		fn.Problem(w, r, http.StatusBadRequest, "Not understood", err.Error())
		return
	}
	writeJSON(w, h.broker.Chaos())
}

// postKill sends a signal to the processes of a service.
func (h *Handle) postKill(w http.ResponseWriter, r *http.Request) {
	in := struct {
		Service string `json:"service"`
		Signal  string `json:"signal"`
	}{Signal: "KILL"}
	if !readJSON(w, r, &in) {
		return
	}
	signals := map[string]syscall.Signal{
		"KILL": syscall.SIGKILL, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "QUIT": syscall.SIGQUIT,
	}
	signal, ok := signals[strings.TrimPrefix(strings.ToUpper(in.Signal), "SIG")]
	if !ok {
		fn.Problem(w, r, http.StatusBadRequest, "Not understood", fmt.Sprintf("signal %q is not one of KILL, TERM, INT, STOP, CONT, QUIT", in.Signal))
		return
	}
	n, err := h.Kill(in.Service, signal)
	if err != nil {
		fn.Problem(w, r, http.StatusBadRequest, "Not sent", err.Error())
		return
	}
	writeJSON(w, map[string]int{"processes": n})
}

//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// page lists what there is to look at, and shows what runs.
func (h *Handle) page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_ = pageTemplate.Execute(w, map[string]any{"Links": h.cfg.Links, "Status": h.Status(), "OneProcess": h.cfg.Builds != nil}) // the reader may be gone
}
