package track

import (
	"bytes"
	"cmp"
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
	kind                       string // type
	id, user, anonymous, group string // messageId, userId, anonymousId, groupId
	previous                   string // previousId
	event, name, category      string
	timestamp, sentAt          *time.Time
	properties, traits, page   []byte // objects in JSON, as they came; page is the context's. nil: there is none
}

// activity is a message that was checked, on its way into the database.
type activity struct {
	*activityResult

	kind       string // type of the message
	id         string // messageId
	visitor    string // anonymousId
	user       string // external id of a contact; only with a secret key
	previous   string // a visitor that turned out to be the contact
	delivery   int64  // of the click that the visitor came by, 0: none that is proven
	link       int64
	name       string
	properties string // JSON
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

// readBatch reads the text of each message of a batch, and when all of it was sent.
func readBatch(body []byte) (messages [][]byte, sentAt *time.Time, err error) {
	s := &scan{b: body}
	for s.open('{'); s.more('}'); {
		switch string(s.name()) {
		case "batch":
			messages = nil
			if c := s.peek(); c != '[' {
				return nil, nil, bad("not a batch in JSON: batch must not be %s", article(c))
			}
			for s.open('['); s.more(']'); {
				messages = append(messages, s.value())
				s.deep = false // which is for the message to say
			}
		case "sentAt":
			if sentAt, err = moment(s.value()); err != nil {
				return nil, nil, bad("not a batch in JSON: sentAt %w", err)
			}
		default:
			s.value()
		}
	}
	if err := s.end(); err != nil {
		return nil, nil, bad("not a batch in JSON: %w", err)
	}
	if len(messages) == 0 || len(messages) > maxInBatch {
		return nil, nil, bad("batch must have 1 to %d messages", maxInBatch)
	}
	return messages, sentAt, nil
}

// writeKey is the key in a call or a batch; empty where there is none.
func writeKey(body []byte) (key string) {
	s := &scan{b: body}
	for s.open('{'); s.more('}'); {
		if string(s.name()) == "writeKey" {
			key, _ = s.string()
		} else {
			s.value()
		}
	}
	return key
}

// checkBody is what holds for the text of every message.
func checkBody(body []byte) error {
	if len(body) > maxMessage {
		return bad("a message may have %d KB: %w", maxMessage>>10, errTooLarge)
	}
	if bytes.Contains(body, []byte(`\u0000`)) || !utf8.Valid(body) {
		return bad("the text must be UTF-8 without NUL characters")
	}
	return nil
}

// readMessage reads one message. kind is the call's name, or empty in a batch, where the message says it.
func readMessage(body []byte, kind string) (m message, err error) {
	err = readMembers(body, m.member)
	if kind != "" {
		m.kind = kind
	}
	return m, err
}

// readMembers has the members of a message read, one after the other.
func readMembers(body []byte, read func(s *scan, name string) error) error {
	if err := checkBody(body); err != nil {
		return err
	}
	s := &scan{b: body}
	if c := s.peek(); c != '{' && c != 0 {
		return bad("not a message in JSON: it must not be %s", article(c))
	}
	var wrong error // the first member that is
	for s.open('{'); s.more('}'); {
		name := string(s.name())
		if err := read(s, name); err != nil && wrong == nil {
			wrong = fmt.Errorf("%s %w", name, err)
		}
	}
	if err := cmp.Or(s.end(), wrong); err != nil {
		return bad("not a message in JSON: %w", err)
	}
	return nil
}

// pageEvent is what onda.js says: a message, and of which page. name is its event, or the page's name.
type pageEvent struct {
	message

	key, visitor, url, title, referrer, click string
}

// member reads one.
func (e *pageEvent) member(s *scan, name string) (err error) {
	switch name {
	case "key":
		e.key, err = s.string()
	case "visitor":
		e.visitor, err = s.string()
	case "url":
		e.url, err = s.string()
	case "title":
		e.title, err = s.string()
	case "referrer":
		e.referrer, err = s.string()
	case "click":
		e.click, err = s.string()
	case "type", "messageId", "name", "properties":
		err = e.message.member(s, name)
	default:
		s.value()
	}
	return err
}

// member reads one, and nothing else where the text itself is wrong.
func (m *message) member(s *scan, name string) (err error) {
	switch name {
	case "type":
		m.kind, err = s.string()
	case "messageId":
		m.id, err = s.string()
	case "userId":
		m.user, err = s.looseString()
	case "anonymousId":
		m.anonymous, err = s.looseString()
	case "groupId":
		m.group, err = s.looseString()
	case "previousId":
		m.previous, err = s.looseString()
	case "event":
		m.event, err = s.string()
	case "name":
		m.name, err = s.string()
	case "category":
		m.category, err = s.string()
	case "timestamp":
		m.timestamp, err = moment(s.value())
	case "sentAt":
		m.sentAt, err = moment(s.value())
	case "properties":
		m.properties, err = s.object()
	case "traits":
		m.traits, err = s.object()
	case "context":
		m.page, err = pageOf(s)
	default:
		s.value()
	}
	return err
}

// pageOf is what a context says of the page.
func pageOf(s *scan) (page []byte, err error) {
	if c := s.peek(); c != '{' {
		s.value()
		if c == 'n' {
			return nil, nil
		}
		return nil, errors.New("must not be " + article(c))
	}
	for s.open('{'); s.more('}'); {
		if string(s.name()) != "page" {
			s.value()
		} else if page, err = s.object(); err != nil {
			err = fmt.Errorf("page %w", err)
		}
	}
	return page, err
}

// moment reads a time; nil of null and of nothing.
func moment(text []byte) (*time.Time, error) {
	if len(text) == 0 || text[0] == 'n' {
		return nil, nil
	}
	var t time.Time
	if t.UnmarshalJSON(text) != nil {
		return nil, errors.New("must be a time as in RFC 3339")
	}
	return &t, nil
}

// check turns a message into an activity. Those that are not forPublic need a secret key.
func (m message) check(secret bool, now time.Time) (activity, error) {
	a := activity{
		activityResult: &activityResult{}, kind: m.kind, id: m.id, visitor: m.anonymous, user: m.user,
	}
	for _, id := range []struct{ name, value string }{
		{"messageId", a.id}, {"anonymousId", a.visitor}, {"userId", a.user}, {"groupId", m.group}, {"previousId", m.previous},
	} {
		if err := checkText(id.name, id.value); err != nil {
			return a, err
		}
	}
	if !slices.Contains([]string{typeIdentify, typeTrack, typePage, typeScreen, typeGroup, typeAlias}, m.kind) {
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
	a.properties = cmp.Or(string(m.properties), "{}")
	switch m.kind {
	case typeTrack:
		a.name = m.event
		if err := checkEventName(a.name); err != nil {
			return a, err
		}
	case typePage, typeScreen:
		a.name = m.name
		a.properties = m.pageProperties()
	case typeGroup:
		if m.group == "" {
			return a, bad("groupId is missing")
		}
		a.kind, a.name, a.properties = typeTrack, "group", `{"groupId":`+quote(m.group)+`,"traits":`+cmp.Or(string(m.traits), "null")+"}"
	case typeIdentify:
		if a.user == "" {
			return a, bad("userId is missing")
		}
		if m.traits != nil {
			if err := json.Unmarshal(m.traits, &a.traits); err != nil {
				return a, bad("traits cannot be read")
			}
		}
	case typeAlias:
		if a.user == "" || m.previous == "" {
			return a, bad("userId or previousId is missing")
		}
		a.previous = m.previous
	}
	if err := checkText("name", a.name); err != nil {
		return a, err
	}
	a.ago = m.ago(now)
	return a, nil
}

// ago is how long before now it happened, by the sender's clock where that says when it sent it: then it matters not how wrong that clock is. What would be in the future happens
// now, and what is older than longestAgo happened then.
func (m message) ago(now time.Time) time.Duration {
	if m.timestamp == nil {
		return 0
	}
	if m.sentAt != nil {
		now = *m.sentAt
	}
	return min(max(0, now.Sub(*m.timestamp)), longestAgo)
}

// pageProperties are a page's own, with what the context knows of it.
func (m message) pageProperties() string {
	var own []byte
	if m.category != "" {
		own = []byte(`{"category":` + quote(m.category) + "}")
	}
	if m.name != "" {
		own = []byte(join(own, []byte(`{"name":`+quote(m.name)+"}")))
	}
	return join(m.page, m.properties, own)
}

// join puts objects in JSON together, any of which may be nil. Of members of one name, the last is what Postgres keeps.
func join(objects ...[]byte) string {
	out := []byte("{")
	for _, o := range objects {
		if len(o) < len("{}") {
			continue
		}
		if members := bytes.TrimSpace(o[1 : len(o)-1]); len(members) > 0 {
			if len(out) > 1 {
				out = append(out, ',')
			}
			out = append(out, members...)
		}
	}
	return string(append(out, '}'))
}

// quote is a text in JSON.
func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // cannot be, of a text
		panic(err)
	}
	return string(b)
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
