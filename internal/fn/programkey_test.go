package fn

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/onda-run/onda/internal/token"
)

func TestProgramKey(t *testing.T) {
	t.Parallel()
	key, err := token.NewProgramKey(token.SecretKey, 7)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set func(r *http.Request)
		ok  bool
	}{
		"basic":     {func(r *http.Request) { r.SetBasicAuth(key.Reveal(), "") }, true},
		"bearer":    {func(r *http.Request) { r.Header.Set("Authorization", "bearer "+key.Reveal()) }, true},
		"none":      {func(*http.Request) {}, false},
		"no scheme": {func(r *http.Request) { r.Header.Set("Authorization", key.Reveal()) }, false},
		"truncated": {func(r *http.Request) { r.SetBasicAuth(key.Reveal()[:20], "") }, false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		c.set(r)
		got, ok := ProgramKey(r)
		if ok != c.ok || ok && got.Hash() != key.Hash() {
			t.Errorf("%s: %v", name, ok)
		}
	}
}
