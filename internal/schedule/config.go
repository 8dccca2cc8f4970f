// Package schedule tells functions that they have work due: at each tick of a PingSource it reads the wake-ups of all tenants and posts
// schedule.due straight to the functions, so that idle tenants stay at zero and nothing depends on a broker.
//
// It keeps no state: a tick that is lost, repeated or cut short is made good by the next, since only the function itself clears its wake-up. Should a wake-up
// have been lost in a way that nobody thought of, a sweep finds its work: each function is called for each tenant at least once a day, and Postgres knows when
// it was.
package schedule

import (
	"cmp"
	"fmt"
	"strings"
	"time"
)

// MaxConns bounds the connections of a process to Postgres.
const MaxConns = 2

// Config is schedule's environment. Its login may read who has work due, note who was swept, and nothing else.
type Config struct {
	// URL is of the login onda_schedule.
	URL string `env:"ONDA_DATABASE_URL, required"`
	// FunctionURL is the pattern of functions' addresses; {function} and {namespace} are filled in.
	FunctionURL string `env:"ONDA_FUNCTION_URL, default=http://{function}.{namespace}.svc.cluster.local"`
	// Namespace is where the pool's functions are, of which a sandbox's rest is.
	Namespace string `env:"ONDA_NAMESPACE, default=onda"`
	// Spread is the time over which the posts of one tick are spread when there are many.
	Spread time.Duration `env:"ONDA_SPREAD, default=45s"`
	// Patience is how long a function may take to answer; what it had not done by then it is rung for again.
	Patience time.Duration `env:"ONDA_PATIENCE, default=30s"`
}

// Check tells what is malformed.
func (c *Config) Check() error {
	if !strings.Contains(c.FunctionURL, "{function}") {
		return fmt.Errorf("ONDA_FUNCTION_URL: %q has no {function} in it", c.FunctionURL)
	}
	if c.Spread < 0 {
		return fmt.Errorf("ONDA_SPREAD: %v is negative", c.Spread)
	}
	if c.Patience <= 0 {
		return fmt.Errorf("ONDA_PATIENCE: %v is no time to wait, such as 30s", c.Patience)
	}
	return nil
}

// url is a function's address. What track has due is done by the service that takes its events.
func (c Config) url(namespace, function string) string {
	if function == "track" || function == "send-api" { // public, and so takes no events
		function += "-events"
	}
	return strings.NewReplacer("{function}", function, "{namespace}", cmp.Or(namespace, c.Namespace)).Replace(c.FunctionURL)
}
