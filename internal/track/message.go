package track

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/spec"
)

// Limits of the tracking API.
const (
	maxMessage = 32 << 10
	maxBatch   = 500 << 10
	maxName    = 256 // characters of an event's, a page's or an id's
	maxInBatch = 500
	longestAgo = 2 * 365 * 24 * time.Hour // that something happened: facts are kept for as long where Settings says nothing
)

// errTooLarge answers 413.
var errTooLarge = errors.New("too large")

// The types of messages.
const (
	typeIdentify = "identify"
	typeTrack    = "track"
	typePage     = "page"
	typeScreen   = "screen"
	typeGroup    = "group"
	typeAlias    = "alias"
	callBatch    = "batch" // no message, but a call of many
)

// forPublic tells whether messages of the type are taken with a public key. Of the others nothing is stored: whoever reads a page's source could write contacts.
func forPublic(kind string) bool {
	return kind != typeIdentify && kind != typeGroup && kind != typeAlias
}

// message is what a call of the tracking API says. Members that are not named here are of no use to us, and are let by.
type message struct {
	Type        string         `json:"type"`
	MessageID   string         `json:"messageId"`
	UserID      looseText      `json:"userId"`
	AnonymousID looseText      `json:"anonymousId"`
	Event       string         `json:"event"`
	Name        string         `json:"name"`
	Category    string         `json:"category"`
	GroupID     looseText      `json:"groupId"`
	PreviousID  looseText      `json:"previousId"`
	Timestamp   *time.Time     `json:"timestamp"`
	SentAt      *time.Time     `json:"sentAt"`
	Properties  map[string]any `json:"properties"`
	Traits      map[string]any `json:"traits"`
	Context     struct {
		Page   map[string]any `json:"page"`
		Traits map[string]any `json:"traits"`
	} `json:"context"`
}

// looseText is an id that some programs send as a number.
type looseText string

// UnmarshalJSON implements json.Unmarshaler.
func (t *looseText) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = looseText(s)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return errors.New("an id must be a text")
	}
	*t = looseText(n)
	return nil
}

// activity is a message that was checked, on its way into the database.
type activity struct {
	*activityResult

	kind       string // type of the message
	id         string // messageId
	visitor    string // anonymousId
	user       string // external id of a contact; only with a secret key
	previous   string // a visitor that turned out to be the contact
	name       string
	properties []byte // JSON
	traits     map[string]any
	ago        time.Duration // how long before it came in it happened
}

// size is about how much memory it takes.
func (a activity) size() int {
	return 300 + len(a.id) + len(a.visitor) + len(a.user) + len(a.previous) + len(a.name) + len(a.properties) + weight(a.traits)
}

// weight is about how much memory a value of JSON takes.
func weight(v any) int {
	n := 16
	switch v := v.(type) {
	case string:
		n += len(v)
	case []any:
		for _, e := range v {
			n += weight(e)
		}
	case map[string]any:
		for k, e := range v {
			n += 32 + len(k) + weight(e)
		}
	}
	return n
}

// activityResult is what became of an activity.
type activityResult struct {
	err     error
	ignored []string // traits that are no fields
}

func bad(format string, args ...any) error { return fn.Permanent(fmt.Errorf(format, args...)) }

// readMessage reads one message. kind is the call's name, or empty in a batch, where the message says it.
func readMessage(body []byte, kind string) (message, error) {
	var m message
	if len(body) > maxMessage {
		return m, bad("a message may have %d KB: %w", maxMessage>>10, errTooLarge)
	}
	if bytes.Contains(body, []byte(`\u0000`)) || !utf8.Valid(body) {
		return m, bad("the text must be UTF-8 without NUL characters")
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return m, bad("not a message in JSON: %s", jsonError(err))
	}
	if kind != "" {
		m.Type = kind
	}
	return m, nil
}

// jsonError says what is wrong without quoting what was sent.
func jsonError(err error) string {
	var wrong *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrong) && wrong.Field == "":
		return fmt.Sprintf("it must not be a %s", wrong.Value)
	case errors.As(err, &wrong):
		return fmt.Sprintf("%s must not be a %s", wrong.Field, wrong.Value)
	case errors.As(err, &syntax):
		return fmt.Sprintf("syntax error at byte %d", syntax.Offset)
	}
	return "a value has the wrong form"
}

// check turns a message into an activity. Those that are not forPublic need a secret key.
func (m message) check(secret bool, now time.Time) (activity, error) {
	a := activity{
		activityResult: &activityResult{}, kind: m.Type, id: m.MessageID, visitor: string(m.AnonymousID), user: string(m.UserID),
	}
	for _, id := range []struct{ name, value string }{
		{"messageId", a.id}, {"anonymousId", a.visitor}, {"userId", a.user}, {"groupId", string(m.GroupID)}, {"previousId", string(m.PreviousID)},
	} {
		if err := checkText(id.name, id.value); err != nil {
			return a, err
		}
	}
	if !slices.Contains([]string{typeIdentify, typeTrack, typePage, typeScreen, typeGroup, typeAlias}, m.Type) {
		return a, bad("type must be one of identify, track, page, screen, group and alias")
	}
	if !secret {
		a.user = "" // whoever holds a public key could claim to be anybody
	}
	if a.visitor == "" && a.user == "" {
		if secret {
			return a, bad("userId or anonymousId is missing")
		}
		return a, bad("anonymousId is missing: with a public key, only a visitor's events are taken")
	}
	properties := m.Properties
	switch m.Type {
	case typeTrack:
		a.name = m.Event
		if err := checkEventName(a.name); err != nil {
			return a, err
		}
	case typePage, typeScreen:
		a.name = m.Name
		properties = pageProperties(m)
	case typeGroup:
		if m.GroupID == "" {
			return a, bad("groupId is missing")
		}
		a.kind, a.name, properties = typeTrack, "group", map[string]any{"groupId": string(m.GroupID), "traits": m.Traits}
	case typeIdentify:
		if a.user == "" {
			return a, bad("userId is missing")
		}
		a.traits = m.Traits
	case typeAlias:
		if a.user == "" || m.PreviousID == "" {
			return a, bad("userId or previousId is missing")
		}
		a.previous = string(m.PreviousID)
	}
	if err := checkText("name", a.name); err != nil {
		return a, err
	}
	if properties == nil {
		properties = map[string]any{}
	}
	var err error
	if a.properties, err = json.Marshal(properties); err != nil {
		return a, bad("properties cannot be stored")
	}
	a.ago = m.ago(now)
	return a, nil
}

// ago is how long before now it happened, by the sender's clock where that says when it sent it: then it matters not how wrong that clock is. What would be in the future happens
// now, and what is older than longestAgo happened then.
func (m message) ago(now time.Time) time.Duration {
	if m.Timestamp == nil {
		return 0
	}
	if m.SentAt != nil {
		now = *m.SentAt
	}
	return min(max(0, now.Sub(*m.Timestamp)), longestAgo)
}

// pageProperties are a page's own, with what the context knows of it.
func pageProperties(m message) map[string]any {
	out := map[string]any{}
	for k, v := range m.Context.Page {
		out[k] = v
	}
	for k, v := range m.Properties {
		out[k] = v
	}
	if m.Category != "" {
		out["category"] = m.Category
	}
	if m.Name != "" {
		out["name"] = m.Name
	}
	return out
}

func checkText(name, s string) error {
	if utf8.RuneCountInString(s) > maxName {
		return bad("%s has more than %d characters", name, maxName)
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return bad("%s has control characters in it", name)
	}
	return nil
}

// checkEventName refuses names that would look like Onda's own events: a page could forge a click.
func checkEventName(name string) error {
	if strings.TrimSpace(name) == "" {
		return bad("event is missing: the event's name")
	}
	entity, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(name)), ".")
	if entity == "onda" || slices.Contains(spec.ReservedEntities(), entity) {
		return bad("an event's name must not begin with %q: such names are Onda's own", entity)
	}
	return nil
}
