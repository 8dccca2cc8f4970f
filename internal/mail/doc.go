// Package mail builds messages, hands them to a relay over SMTP and reads what comes back.
//
// The invariant of sending: the outcome of every message is known precisely or said to be unknown, and never guessed. A
// message is Unknown only when the connection broke after the end of its content may have reached the relay and before the
// relay's answer was read; before that it is NotTried, and after that it is what the relay said.
//
// Nothing in this package knows tenants, contacts or Postgres. Addresses never appear in errors and in the texts of results.
package mail
