package fn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
)

// fromSecret are the settings that come from a Secret, which is made outside Git: it may be missing, or wrong, when everything else is right.
func fromSecret() []string { return []string{"ONDA_DATABASE_URL", "ONDA_SMTP_URL"} }

// unsetSecret is why a function has nothing to work with.
type unsetSecret struct{ err error }

func (u *unsetSecret) Error() string {
	return u.err.Error() + ": mend the Secret that the service names, then delete this pod, which has read it"
}

func (u *unsetSecret) Unwrap() error { return u.err }

// Transient has a request answered with 503: an event comes again, and none is lost.
func (*unsetSecret) Transient() bool { return true }

// secretAtFault gives a reason to serve nothing but that reason: under Knative, where a process that ends is started again and again, with ever longer pauses, and
// whoever asks is told nothing. Anything else that is wrong was applied with the service: there the revision before goes on, since this one is never ready.
func secretAtFault(err error, env envconfig.Lookuper) error {
	if _, knative := env.Lookup("K_SERVICE"); !knative {
		return nil
	}
	name, _, _ := strings.Cut(err.Error(), ":")
	if !slices.Contains(fromSecret(), name) {
		return nil
	}
	return &unsetSecret{err}
}

// refusing builds a function that answers every request with a reason.
func refusing(why error) Build {
	return func(_ context.Context, rt *Runtime) (Handler, error) {
		rt.Log.Error("nothing can be done", zap.Error(why))
		refuse := func(context.Context, ce.Event) error { return why }
		return Handler{
			Event:      func(ctx context.Context, e ce.Event) (*ce.Event, error) { return nil, refuse(ctx, e) },
			DeadLetter: refuse,
			HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				LogError(r.Context(), why)
				w.Header().Set("Retry-After", "60")
				http.Error(w, fmt.Sprintf("%s is not set up: %v", rt.Name, errors.Unwrap(why)), http.StatusServiceUnavailable)
			}),
		}, nil
	}
}
