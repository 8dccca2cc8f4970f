package page

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestOriginIsWhatOurOwnProxySaw(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		peer      string
		forwarded []string
		proxies   int
		want      string
	}{
		{"192.0.2.1:1234", nil, 1, "192.0.2.1"},
		{"10.0.0.1:1234", []string{"203.0.113.9"}, 1, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"1.1.1.1, 203.0.113.9"}, 1, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"1.1.1.1", "203.0.113.9, 10.0.0.7"}, 2, "203.0.113.9"},
		{"10.0.0.1:1234", []string{"203.0.113.9"}, 2, "203.0.113.9"},
		{"192.0.2.1:1234", []string{"203.0.113.9"}, 0, "192.0.2.1"},
		{"[2001:db8:1:2:3:4:5:6]:80", nil, 1, "2001:db8:1:2::/64"},
		{"[::ffff:192.0.2.1]:80", nil, 1, "192.0.2.1"},
		{"10.0.0.1:1234", []string{"unknown"}, 1, ""},
		{"10.0.0.1:1234", []string{"", "203.0.113.9"}, 1, "203.0.113.9"},
		{"10.0.0.1:1234", []string{", 203.0.113.9"}, 1, "203.0.113.9"},
		{"@", nil, 1, ""},
		{"127.0.0.1:1234", []string{"203.0.113.9, 10.0.0.7"}, 1, "203.0.113.9"},                      // Knative's sidecar
		{"127.0.0.1:1234", []string{"1.1.1.1, 203.0.113.9, 10.0.0.7", "10.0.0.8"}, 1, "203.0.113.9"}, // and its activator
		{"127.0.0.1:1234", []string{"2001:db8:1:2:3:4:5:6, fd00::7, 100.64.0.8"}, 1, "2001:db8:1:2::/64"},
		{"127.0.0.1:1234", []string{"10.0.0.5, 10.0.0.7"}, 1, "10.0.0.5"},
		{"127.0.0.1:1234", []string{"nobody, 10.0.0.5, 10.0.0.7"}, 1, "10.0.0.5"},
		{"127.0.0.1:1234", []string{"203.0.113.9, unknown, 10.0.0.7"}, 1, "10.0.0.7"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.peer
		for _, f := range c.forwarded {
			r.Header.Add("X-Forwarded-For", f)
		}
		if got := Origin(r, c.proxies); got != c.want {
			t.Errorf("%s %v: %q, want %q", c.peer, c.forwarded, got, c.want)
		}
	}
}
