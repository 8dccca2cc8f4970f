package fn

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
)

// identity is the file with the token that proves to a broker who publishes, as Knative's SinkBinding mounts it where authentication-oidc is enabled. Empty for none.
type identity string

// token is what is to be shown to the broker in a namespace; empty where there is no file. It is read anew each time, since Knative replaces it before it expires.
// A token is for one broker, and is given out for no other, which would refuse it and must not learn it.
func (id identity) token(namespace string) (string, error) {
	if id == "" {
		return "", nil
	}
	text, err := os.ReadFile(string(id))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("ONDA_OIDC_TOKEN: %w", err)
	}
	token := strings.TrimSpace(string(text))
	of, ok := brokerNamespace(token)
	switch {
	case !ok:
		return "", fmt.Errorf("ONDA_OIDC_TOKEN: %s holds no token for a broker of Knative's: let the SinkBinding of config/components/event-policy make it", id)
	case of != namespace:
		return "", fmt.Errorf("the token in %s is for the broker in namespace %s, and the event for that in %s: it waits for the functions there, or for a token of that broker's", id, of, namespace)
	}
	return token, nil
}

// brokerNamespace is where the broker is that a token is for, by its audience, which Knative makes of the broker's group, kind, namespace and name. The signature is
// the broker's to verify.
func brokerNamespace(token string) (namespace string, ok bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", false
	}
	var claims struct {
		Audience []string `json:"aud"`
	}
	if json.Unmarshal(payload, &claims) != nil || len(claims.Audience) != 1 {
		return "", false
	}
	rest, ok := strings.CutPrefix(claims.Audience[0], "eventing.knative.dev/broker/")
	if !ok {
		return "", false
	}
	namespace, _, ok = strings.Cut(rest, "/")
	return namespace, ok
}

// remedy is what mends a broker's refusal; empty for an answer that has nothing to do with who publishes.
func (id identity) remedy(code int, shown bool) string {
	const component = "config/components/event-policy"
	switch {
	case code != http.StatusUnauthorized && code != http.StatusForbidden:
		return ""
	case !shown && id == "":
		return "the broker asks who publishes: name a file with a token in ONDA_OIDC_TOKEN"
	case !shown:
		return fmt.Sprintf("the broker asks who publishes, and there is no token at %s: compose %s, which mounts one", id, component)
	case code == http.StatusUnauthorized:
		return fmt.Sprintf("the broker does not take the token at %s: see that the SinkBinding of %s is Ready and that its sink is this broker", id, component)
	}
	return fmt.Sprintf("who has the token at %s may not publish on this broker: add its SinkBinding or service account to spec.from of the EventPolicy of %s", id, component)
}
