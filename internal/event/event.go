// Package event is the catalogue of Onda's CloudEvents (design section 5): one Go type for each type of event, from which its JSON Schema and its
// EventType manifest are generated.
//
// An event is a doorbell: whoever gets it looks into Postgres for what is to be done. So it may be lost, repeated or late, its payload holds ids
// and counts only, and nothing personal is ever in it. What an event causes has an id derived from its cause (DeriveID), so that a repeat is a
// repeat to everyone.
package event

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/uuid"
)

const (
	// MaxSize is how many bytes an event may have, its data and its attributes together (CloudEvents 1.0.2, "Size Limits").
	MaxSize = 64 << 10
	// MaxItems is how many items or ids a doorbell may carry.
	MaxItems = 500
)

// The extension attributes of Onda's events.
const (
	ExtTenant       = "tenant"
	ExtPartitionKey = "partitionkey"
	ExtCorrelation  = "correlationid"
	ExtCausation    = "causationid"
	ExtStream       = "stream"
	ExtTraceparent  = "traceparent"
)

// ErrUnknownType says that an event's type is not in the catalogue.
var ErrUnknownType = errors.New("unknown event type")

// Option sets an optional attribute of a new event.
type Option func(*ce.Event)

// Correlation names the campaign run that the event belongs to.
func Correlation(run int64) Option {
	return func(e *ce.Event) { e.SetExtension(ExtCorrelation, strconv.FormatInt(run, 10)) }
}

// Causation names the event that caused this one.
func Causation(eventID string) Option {
	return func(e *ce.Event) { e.SetExtension(ExtCausation, eventID) }
}

// PartitionKey names the contact whose events a broker that keeps order should keep in order.
func PartitionKey(contact int64) Option {
	return func(e *ce.Event) { e.SetExtension(ExtPartitionKey, strconv.FormatInt(contact, 10)) }
}

// At sets when it happened, instead of now.
func At(t time.Time) Option {
	return func(e *ce.Event) { e.SetTime(t) }
}

// New makes an event of a tenant. Function is who makes it ("onda" for the command line), subject an opaque id or "", id what makes a repeat a
// repeat (see DeriveID). It fails when data is not in the catalogue, breaks its schema, or the event is larger than MaxSize.
func New(tenant, function, subject, id string, data Data, opts ...Option) (ce.Event, error) {
	if !isTenant(tenant) {
		return ce.Event{}, fmt.Errorf("event %s: %q is not a tenant's name", data.EventType(), tenant)
	}
	if !isTenant(function) {
		return ce.Event{}, fmt.Errorf("event %s: %q is not a function's name", data.EventType(), function)
	}
	entry, ok := Lookup(data.EventType())
	if !ok || entry.GoType != reflect.TypeOf(data) {
		return ce.Event{}, fmt.Errorf("event %s from %T: %w", data.EventType(), data, ErrUnknownType)
	}
	body, err := entry.encode(data)
	if err != nil {
		return ce.Event{}, fmt.Errorf("event %s: %w", entry.Type, err)
	}
	e := ce.New()
	e.SetID(id)
	e.SetType(entry.Type)
	e.SetSource("/tenants/" + tenant + "/functions/" + function)
	if subject != "" {
		e.SetSubject(subject)
	}
	e.SetTime(time.Now())
	e.SetExtension(ExtTenant, tenant)
	if entry.Stream != "" {
		e.SetExtension(ExtStream, entry.Stream)
	}
	for _, opt := range opts {
		opt(&e)
	}
	e.SetDataContentType(ce.ApplicationJSON)
	e.DataEncoded = body // SetData would read it all once more
	if err := e.Validate(); err != nil {
		return ce.Event{}, fmt.Errorf("event %s: %w", entry.Type, err)
	}
	if n := Size(e); n > MaxSize {
		return ce.Event{}, fmt.Errorf("event %s has %d bytes, %d are allowed: give it fewer items", entry.Type, n, MaxSize)
	}
	return e, nil
}

// encode encodes data, and checks it against the schema.
func (e Entry) encode(data Data) ([]byte, error) {
	if d, ok := data.(interface{ plain() ([]byte, bool) }); ok {
		if body, ok := d.plain(); ok {
			return body, nil
		}
	}
	body, err := json.Marshal(data)
	if err != nil {
		return nil, err
	}
	return body, e.check(body)
}

// Decode reads an event's data into the Go type of the catalogue, which comes as a value, not a pointer. It refuses a type that is not in the
// catalogue, an event larger than MaxSize, and data that breaks the schema, naming the place.
func Decode(e ce.Event) (Data, error) {
	entry, ok := Lookup(e.Type())
	if !ok {
		return nil, fmt.Errorf("%w %q", ErrUnknownType, e.Type())
	}
	if n := Size(e); n > MaxSize {
		return nil, fmt.Errorf("event %s has %d bytes, %d are allowed", e.Type(), n, MaxSize)
	}
	if mt := e.DataMediaType(); mt != ce.ApplicationJSON {
		return nil, fmt.Errorf("event %s: datacontenttype is %q, not %q", e.Type(), mt, ce.ApplicationJSON)
	}
	if err := entry.check(e.Data()); err != nil {
		return nil, fmt.Errorf("event %s: %w", e.Type(), err)
	}
	p := reflect.New(entry.GoType)
	if err := json.Unmarshal(e.Data(), p.Interface()); err != nil {
		return nil, fmt.Errorf("event %s: %w", e.Type(), err)
	}
	data, ok := p.Elem().Interface().(Data)
	if !ok {
		return nil, fmt.Errorf("event %s: %s is no payload", e.Type(), entry.GoType)
	}
	return data, nil
}

// Tenant is the name of the tenant that an event belongs to, from the extension "tenant". Where the source is one of ours it must name the same
// tenant. An event without a tenant, or with one that cannot be a tenant's name, is an error.
func Tenant(e ce.Event) (string, error) {
	tenant, ok := e.Extensions()[ExtTenant].(string)
	if !ok || !isTenant(tenant) {
		return "", fmt.Errorf("event %s: the extension %q names no tenant", e.Type(), ExtTenant)
	}
	if rest, ours := strings.CutPrefix(e.Source(), "/tenants/"); ours {
		if name, _, _ := strings.Cut(rest, "/"); name != tenant {
			return "", fmt.Errorf("event %s: its source and the extension %q name different tenants", e.Type(), ExtTenant)
		}
	}
	return tenant, nil
}

// DeriveID makes an id from what causes an event: the same parts always give the same id, other parts another (UUIDv5, RFC 9562 section 5.5).
func DeriveID(parts ...string) string {
	namespace := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/onda-run/onda/events"))
	var name []byte
	for _, p := range parts { // the length goes before each part, so that ("a", "bc") is not ("ab", "c")
		name = strconv.AppendInt(name, int64(len(p)), 10)
		name = append(name, ':')
		name = append(name, p...)
	}
	return uuid.NewSHA1(namespace, name).String()
}

// Size is how many bytes an event has: its data, and the names and values of its attributes.
func Size(e ce.Event) int {
	n := len(e.Data())
	for _, s := range []string{e.ID(), e.Type(), e.Source(), e.Subject(), e.DataContentType(), e.DataSchema()} {
		n += len(s)
	}
	for name, value := range e.Extensions() {
		n += len(name)
		if s, ok := value.(string); ok {
			n += len(s)
		}
	}
	return n
}

// isTenant tells whether s can be a tenant's, and a function's, name: it stands in the path of a source.
func isTenant(s string) bool {
	return len(s) <= 63 && matches(`^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$`, s)
}
