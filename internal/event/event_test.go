package event_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
)

// TestSamples sends a sample of every type through New, its schema and Decode.
func TestSamples(t *testing.T) {
	t.Parallel()
	for _, entry := range event.Catalogue() {
		t.Run(entry.Type, func(t *testing.T) {
			t.Parallel()
			e := eventtest.Sample(t, entry.Type)
			eventtest.Validate(t, e)
			got, err := event.Decode(e)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(eventtest.SampleData(t, entry.Type), got); diff != "" {
				t.Errorf("Decode (-want +got)\n%s", diff)
			}
		})
	}
}

func TestCatalogueIsConsistent(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, entry := range event.Catalogue() {
		if seen[entry.Type] {
			t.Errorf("%s is in the catalogue twice", entry.Type)
		}
		seen[entry.Type] = true
		if strings.Contains(entry.Type, ".requested.") && len(entry.Consumers) != 1 {
			t.Errorf("the command %s has the consumers %q, not one", entry.Type, entry.Consumers)
		}
		if len(entry.Producers) == 0 || entry.Description == "" {
			t.Errorf("%s has no producer or no description", entry.Type)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	e, err := event.New("acme", "send", "batch-7", event.DeriveID("7"), event.EmailBatchSent{Run: 3, Batch: 7, Counts: event.Outcomes{Sent: 5}},
		event.Correlation(3), event.Causation("cause"), event.PartitionKey(9), event.At(at))
	if err != nil {
		t.Fatal(err)
	}
	eventtest.Validate(t, e)
	want := map[string]any{"tenant": "acme", "correlationid": "3", "causationid": "cause", "partitionkey": "9"}
	if diff := cmp.Diff(want, e.Extensions()); diff != "" {
		t.Errorf("extensions (-want +got)\n%s", diff)
	}
	if e.Source() != "/tenants/acme/functions/send" || e.Subject() != "batch-7" || !e.Time().Equal(at) || e.DataContentType() != "application/json" {
		t.Errorf("attributes:\n%s", e)
	}
	if want := `{"run":3,"batch":7,"counts":{"sent":5,"deferred":0,"failed":0,"suppressed":0,"unknown":0}}`; string(e.Data()) != want {
		t.Errorf("data %s, want %s", e.Data(), want)
	}
}

type stranger struct{}

func (stranger) EventType() string { return event.TypeEmailSent }

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	work := event.EmailSendRequested{Run: 1}
	tags := make([]event.Tag, event.MaxItems)
	for i := range tags {
		tags[i] = event.Tag{Contact: int64(i + 1), Tag: strings.Repeat("é", 256), Change: "added"}
	}
	for name, c := range map[string]struct {
		tenant, function, id string
		data                 event.Data
		want                 string
	}{
		"no tenant":          {"", "send", "1", work, `"" is not a tenant's name`},
		"a path as a tenant": {"../brava", "send", "1", work, "is not a tenant's name"},
		"no function":        {"acme", "", "1", work, "is not a function's name"},
		"no id":              {"acme", "send", "", work, "id"},
		"zero run":           {"acme", "send", "1", event.EmailSendRequested{}, "data.run is less than 1"},
		"no items":           {"acme", "send", "1", event.EmailSent{}, "data.items"},
		"too many items":     {"acme", "send", "1", event.ContactErased{Contacts: make([]int64, event.MaxItems+1)}, "501 items"},
		"too large":          {"acme", "send", "1", event.TagChanged{Items: tags}, "fewer items"},
		"a pointer":          {"acme", "send", "1", &work, "unknown event type"},
		"not the type":       {"acme", "send", "1", stranger{}, "unknown event type"},
		"neither choice":     {"acme", "send", "1", event.EmailRequested{Email: "welcome"}, "data is none of {delivery} and {email, contact, key, data?}"},
		"both choices":       {"acme", "send", "1", event.EmailRequested{Delivery: 1, Email: "welcome", Contact: 1, Key: "k"}, "data is none of"},
		"a server's answer":  {"acme", "send", "1", event.EmailFailed{Deliveries: event.Deliveries{Items: []event.Delivery{{Delivery: 1, Reason: "550 <ada@example.com>"}}}}, "data.items[0].reason does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := event.New(c.tenant, c.function, "", c.id, c.data)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ eventType, data, want string }{
		"unknown type":      {"onda.email.sent.v2", `{}`, `unknown event type "onda.email.sent.v2"`},
		"no JSON":           {event.TypeEmailSendRequested, `{"run":1`, "data is not JSON"},
		"nothing":           {event.TypeEmailSendRequested, ``, "data is not JSON"},
		"no UTF-8":          {event.TypeSegmentRebuildRequested, "{\"segment\":\"\xff\"}", "data is not UTF-8"},
		"two documents":     {event.TypeEmailSendRequested, `{"run":1}{}`, "data goes on after its end"},
		"null":              {event.TypeEmailSendRequested, `null`, "data is not an object"},
		"a list":            {event.TypeEmailSendRequested, `[1]`, "data is not an object"},
		"missing":           {event.TypeEmailSendRequested, `{}`, "data.run is missing"},
		"unknown member":    {event.TypeEmailSendRequested, `{"run":1,"to":"x"}`, `data has an unknown member "to"`},
		"wrong case":        {event.TypeEmailSendRequested, `{"Run":1}`, "data.run is missing"},
		"text as a number":  {event.TypeEmailSendRequested, `{"run":"1"}`, "data.run is not a number"},
		"a fraction":        {event.TypeEmailSendRequested, `{"run":1.5}`, "data.run is not an integer of 64 bits"},
		"a negative id":     {event.TypeEmailSendRequested, `{"run":-1}`, "data.run is less than 1"},
		"65 bits":           {event.TypeEmailSendRequested, `{"run":9223372036854775808}`, "data.run is not an integer of 64 bits"},
		"deep":              {event.TypeEmailSent, `{"items":[{"delivery":1},{"delivery":1,"contact":true}]}`, "data.items[1].contact is not a number"},
		"unknown verdict":   {event.TypeEmailOpened, `{"items":[{"verdict":"perhaps"}]}`, "data.items[0].verdict is none of human, machine, unknown"},
		"no time":           {event.TypeUsageRecorded, `{"meter":"mails","quantity":1,"window":{"from":"today","to":"2026-11-25T00:00:00Z"}}`, "data.window.from is not a time"},
		"items of an empty": {event.TypeEmailSent, `{"items":[]}`, "data.items has 0 items"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := raw(c.eventType, []byte(c.data))
			data, err := event.Decode(e)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Decode gives %v and error %v, want %q", data, err, c.want)
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		t.Parallel()
		if _, err := event.Decode(raw(event.TypeEmailSendRequested, []byte(`{"run":1`+strings.Repeat(" ", event.MaxSize)+`}`))); err == nil || !strings.Contains(err.Error(), "65536 are allowed") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("another form", func(t *testing.T) {
		t.Parallel()
		e := raw(event.TypeEmailSendRequested, []byte(`{"run":1}`))
		e.SetDataContentType("text/xml")
		if _, err := event.Decode(e); err == nil || !strings.Contains(err.Error(), "datacontenttype") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("unknown type can be told", func(t *testing.T) {
		t.Parallel()
		if _, err := event.Decode(raw("order.placed", []byte(`{}`))); !errors.Is(err, event.ErrUnknownType) {
			t.Errorf("error %v", err)
		}
	})
}

// raw is an event as it may come from anyone.
func raw(eventType string, data []byte) ce.Event {
	e := ce.New()
	e.SetID("1")
	e.SetType(eventType)
	e.SetSource("/tenants/acme/functions/send")
	e.SetExtension(event.ExtTenant, "acme")
	e.SetDataContentType(ce.ApplicationJSON)
	e.DataEncoded = data
	return e
}

func TestTenant(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		source string
		tenant any
		want   string
	}{
		"ours":                 {"/tenants/acme/functions/send", "acme", "acme"},
		"a program's":          {"https://crm.example.com/", "acme", "acme"},
		"another in source":    {"/tenants/brava/functions/send", "acme", ""},
		"a prefix in source":   {"/tenants/acme2/functions/send", "acme", ""},
		"none":                 {"/tenants/acme/functions/send", nil, ""},
		"empty":                {"/tenants/acme/functions/send", "", ""},
		"SQL in the extension": {"x", `acme"; set role brava`, ""},
		"a number":             {"x", int32(1), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := raw(event.TypeEmailSendRequested, []byte(`{"run":1}`))
			e.SetSource(c.source)
			e.SetExtension(event.ExtTenant, c.tenant)
			got, err := event.Tenant(e)
			if got != c.want || (err == nil) != (c.want != "") {
				t.Errorf("Tenant gives %q and error %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestDeriveID(t *testing.T) {
	t.Parallel()
	if a, b := event.DeriveID("a", "bc"), event.DeriveID("ab", "c"); a == b {
		t.Error("other parts give the same id")
	}
	// It must never change: ids that were stored by an older version are compared with it.
	if got, want := event.DeriveID("run", "1"), "cfd066a8-b9b9-58e0-8efe-c6652770fe74"; got != want {
		t.Errorf("DeriveID is %s, want %s", got, want)
	}
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.String(), 0, 4)
		a, b := parts.Draw(t, "a"), parts.Draw(t, "b")
		same := slices.Equal(a, b)
		if got := event.DeriveID(a...) == event.DeriveID(b...); got != same {
			t.Errorf("ids of %q and %q: same is %t", a, b, got)
		}
	})
}

// FuzzDecode shows that whatever Decode takes is valid by the published schema, that nothing else makes it panic, and that what it read can be written again.
func FuzzDecode(f *testing.F) {
	for _, entry := range event.Catalogue() {
		f.Add(entry.Type, eventtest.Sample(f, entry.Type).Data())
	}
	f.Add(event.TypeEmailRequested, []byte(`{"email":"welcome","contact":1,"key":"k","data":{"n":1e400}}`))
	f.Add(event.TypeEmailSendRequested, []byte(`{"run":1,"run":2}`))
	f.Fuzz(func(t *testing.T, eventType string, body []byte) {
		data, err := event.Decode(raw(eventType, body))
		if err != nil {
			return
		}
		entry, _ := event.Lookup(eventType)
		if err := eventtest.CheckData(entry, body); err != nil {
			t.Errorf("Decode takes %s, its schema does not: %v", body, err)
		}
		if _, err := json.Marshal(data); err != nil {
			t.Errorf("Decode of %s: %v", body, err)
		}
	})
}

// TestValidateTells shows that the check which every test relies on can fail.
func TestValidateTells(t *testing.T) {
	t.Parallel()
	sample := func(change func(*ce.Event)) ce.Event {
		e := eventtest.Sample(t, event.TypeEmailSent)
		change(&e)
		return e
	}
	for name, e := range map[string]ce.Event{
		"no id":          sample(func(e *ce.Event) { e.SetID("") }),
		"no tenant":      sample(func(e *ce.Event) { e.SetExtension(event.ExtTenant, nil) }),
		"no stream":      sample(func(e *ce.Event) { e.SetExtension(event.ExtStream, nil) }),
		"another source": sample(func(e *ce.Event) { e.SetSource("https://example.com/") }),
		"unknown type":   sample(func(e *ce.Event) { e.SetType("onda.email.lost.v1") }),
		"an address":     sample(func(e *ce.Event) { e.DataEncoded = []byte(`{"items":[{"delivery":1,"to":"ada@example.com"}]}`) }),
		"too large":      sample(func(e *ce.Event) { e.SetSubject(strings.Repeat("x", event.MaxSize)) }),
	} {
		if eventtest.Check(e) == nil {
			t.Errorf("%s: Check is content", name)
		}
	}
}
