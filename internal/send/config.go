package send

import (
	"errors"
	"fmt"
	"time"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// Config is what send reads from its environment.
type Config struct {
	Postgres postgres.Config
	Compose  compose.Config
	// SMTP is the relay: smtp://user:pass@host:587?tls=starttls. Several are separated by spaces, each with a weight: weight=3 has three times the connections of
	// weight=1, and weight=0 stands by until the others are away. rate=14 hands it at most 14 mails a second, from all processes together; messages=100 and age=5m end a connection after
	// as many mails or as long (1000, 10m).
	SMTP string `env:"ONDA_SMTP_URL, required"`
	// Secrets is the directory in which the Secrets of tenants with a relay of their own are mounted (spec.smtpSecret in a tenant's file): NAME/url has the relay, as ONDA_SMTP_URL has the
	// cell's. It is read again when it changes. Where it cannot be read, the tenant's mails wait.
	Secrets string `env:"ONDA_SECRETS"`
	// PreproductionTo is where all mails go in a database that is marked as pre-production: one address, such as qa@example.com, or %@qa.example.com for one of each contact.
	// Without it nobody gets any there. In other databases it says nothing.
	PreproductionTo string `env:"ONDA_PREPRODUCTION_TO"`
	// Connections is how many connections to the relay a process makes at most, for each lane.
	Connections int `env:"ONDA_SMTP_CONNECTIONS, default=8"`
	// Batches is how many batches a process holds at most, for each lane.
	Batches int `env:"ONDA_BATCHES, default=4"`
	// Lease is how long a batch is held without a word of its holder.
	Lease time.Duration `env:"ONDA_LEASE, default=60s"`
	// MessageLimit is the longest that one message may take; a takeover waits it out after the lease.
	MessageLimit time.Duration `env:"ONDA_MESSAGE_LIMIT, default=30s"`
	// Lane is which mail is sent: bulk, transactional or both.
	Lane string `env:"ONDA_LANE, default=both"`
	// Turn is how long one event's worker goes on taking batches, before it leaves the rest to a follow-up.
	Turn time.Duration `env:"ONDA_TURN, default=20s"`
}

// Check looks at what has bounds.
func (c *Config) Check() error {
	if _, err := mail.ParseURLs(c.SMTP); err != nil {
		return fmt.Errorf("ONDA_SMTP_URL: %w", err)
	}
	switch {
	case c.Connections < 1 || c.Connections > 256:
		return fmt.Errorf("ONDA_SMTP_CONNECTIONS: %d is not between 1 and 256", c.Connections)
	case c.Batches < 1 || c.Batches > 64:
		return fmt.Errorf("ONDA_BATCHES: %d is not between 1 and 64", c.Batches)
	case c.Lease < 100*time.Millisecond:
		return fmt.Errorf("ONDA_LEASE: %s is too short to mark a batch in", c.Lease)
	case c.MessageLimit < 100*time.Millisecond:
		return fmt.Errorf("ONDA_MESSAGE_LIMIT: %s is too short for a message", c.MessageLimit)
	case c.Turn <= 0:
		return errors.New("ONDA_TURN: is not above 0")
	case c.Lane != "bulk" && c.Lane != "transactional" && c.Lane != "both":
		return fmt.Errorf("ONDA_LANE: %q is not one of bulk, transactional, both", c.Lane)
	}
	var err error
	if c.Compose.StandIn, err = mail.ParseStandIn(c.PreproductionTo); err != nil {
		return fmt.Errorf("ONDA_PREPRODUCTION_TO: %w", err)
	}
	return c.Compose.Check()
}

// MaxConns bounds the connections of a process to Postgres: a holder of a batch has one, the recorder of its lane one, HTTP one. A lower setting is raised
// to that.
func (c *Config) MaxConns() int32 {
	return max(c.Postgres.MaxConns, int32(c.Batches+2))
}

func (c *Config) terms() delivery.Terms {
	return delivery.Terms{Lease: c.Lease, MessageLimit: c.MessageLimit}
}

// serves tells whether mail of the lane is sent by this process.
func (c *Config) serves(lane int) bool {
	return c.Lane == "both" || (c.Lane == "transactional") == (lane == delivery.Transactional)
}
