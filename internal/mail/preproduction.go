package mail

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// PreproductionHeader stands in every mail of a pre-production.
const PreproductionHeader = "X-Onda-Preproduction"

// ErrCredential is of a relay that a pre-production must not have.
var ErrCredential = errors.New("this database is marked as pre-production, and its relay (ONDA_SMTP_URL, or a tenant's own) has a user and password, with which real people could be mailed: " +
	"name a relay that wants none, such as one that keeps what it gets")

// CheckPreproduction refuses relays that a pre-production must not have: those that a credential opens, since that is what lets mail go out to everybody.
func CheckPreproduction(relays []Relay) error {
	if slices.ContainsFunc(relays, func(r Relay) bool { return r.User != "" || r.Password != "" }) {
		return ErrCredential
	}
	return nil
}

// StandIn is where the mails of a pre-production go instead of to those whom they are for. The zero value is nowhere.
type StandIn struct {
	before, after string
	each          bool // what a recipient is called comes between them
}

// longestName is how long Address may call a recipient: a tenant's name, a hyphen and a number.
const longestName = 40 + 1 + 19

// ParseStandIn reads ONDA_PREPRODUCTION_TO: one address for all, or one with a % for what each recipient is called; empty for nowhere.
func ParseStandIn(s string) (in StandIn, err error) {
	in.before, in.after, in.each = strings.Cut(s, "%")
	longest := in.before + in.after
	if in.each {
		longest = in.before + strings.Repeat("x", longestName) + in.after
	}
	if s != "" && (!PlainAddress(longest) || in.each && (strings.Contains(in.after, "%") || !strings.Contains(in.after, "@"))) {
		return StandIn{}, fmt.Errorf("%q is neither an address, such as qa@example.com, nor one with a %% for each recipient, such as %%@qa.example.com", s)
	}
	return in, nil
}

// Nowhere tells that there is no address.
func (s StandIn) Nowhere() bool { return s == StandIn{} }

// Address is where the mails go that are for a contact. It says which one, to those who may look into the database, and nothing personal.
func (s StandIn) Address(tenant string, contact int64) string {
	if !s.each {
		return s.before + s.after
	}
	return s.before + tenant + "-" + strconv.FormatInt(contact, 10) + s.after
}
