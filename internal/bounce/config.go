// Package bounce takes what comes back about mails: reports of delivery (RFC 3464) and of abuse (RFC 5965), automatic replies (RFC 3834), and mails to the
// address of List-Unsubscribe. It classifies, suppresses, and settles outcomes that were unknown.
//
// Only a token proves which mail a report is about: anyone can send a report, and anyone can write a Message-ID into it. A report may come any number of
// times; a repeat changes nothing.
package bounce

import "github.com/onda-run/onda/internal/postgres"

// Config is bounce's environment.
type Config struct {
	Postgres postgres.Config
}
