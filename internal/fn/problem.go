package fn

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"
)

// problem is the body of an error for programs (RFC 9457 section 3).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// Problem answers a program with problem details (RFC 9457). Title is the same for every problem of its kind; detail says what to do about this one, and
// may be empty. Neither may hold anything personal that the sender did not send.
func Problem(w http.ResponseWriter, r *http.Request, status int, title, detail string) {
	body, err := json.Marshal(problem{Type: "about:blank", Title: title, Status: status, Detail: detail})
	if err != nil { // strings and a number always can be marshalled
		panic(err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
}

// Fail answers a program that sent a request over HTTP with the problem that an error maps to (see Status), and gives the error to the request's log line.
// The error's text is told only where it is Permanent.
func Fail(w http.ResponseWriter, r *http.Request, err error) {
	LogError(r.Context(), err)
	status, after := Status(err)
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable { // what is away may be back at any time
		setRetryAfter(w.Header(), after)
	}
	Problem(w, r, status, http.StatusText(status), publicText(status, err))
}

// PublicText is what a sender may know of an error, as Fail tells it: for answers that tell of several.
func PublicText(err error) string {
	status, _ := Status(err)
	return publicText(status, err)
}

// publicText is what the sender may know of an error.
func publicText(status int, err error) string {
	switch status {
	case http.StatusBadRequest:
		return scrub(short(err.Error()))
	case http.StatusTooManyRequests:
		return "no room for this now; try again later"
	case http.StatusServiceUnavailable:
		return "something this needs is away; try again"
	}
	return "internal error; the log has more"
}

// setRetryAfter says when to come back (RFC 9110 section 10.2.3), in whole seconds, at least one.
func setRetryAfter(h http.Header, after time.Duration) {
	h.Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(after.Seconds())))))
}
