package fn

import (
	"net/http"
	"strings"

	"github.com/onda-run/onda/internal/token"
)

// ProgramKey reads the key that a program authenticates with: as the user of basic authentication (RFC 7617), without a password, or as a bearer token
// (RFC 6750). It proves nothing yet: the tenant's stored hash does. false when there is none, or none that is well formed.
func ProgramKey(r *http.Request) (token.ProgramKey, bool) {
	text, _, ok := r.BasicAuth()
	if !ok {
		scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return token.ProgramKey{}, false
		}
		text = strings.TrimSpace(rest)
	}
	key, err := token.ParseProgramKey(text)
	return key, err == nil
}
