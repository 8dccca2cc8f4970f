package campaign

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// served is the function behind its handler, and what it publishes.
type served struct {
	*world
	instance *fn.Instance
	mu       sync.Mutex
	sink     []cloudevents.Event
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{}
	broker := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		e, err := cloudevents.NewEventFromHTTPRequest(r)
		if err != nil {
			t.Errorf("published: %v", err)
			return
		}
		eventtest.Validate(t, *e)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sink = append(s.sink, *e)
		rw.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(broker.Close)
	d := pgtest.New(t)
	s.world = &world{t: t, db: d.DB(t), admin: d.Admin(t)}
	s.apply(common)
	in, err := fn.Start(t.Context(), "campaign", Build, envconfig.MapLookuper(map[string]string{"ONDA_DATABASE_URL": d.URL, "K_SINK": broker.URL, "ONDA_SHARE": "2"}), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	s.instance = in
	t.Cleanup(func() {
		if err := in.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// post sends an event to a path and gives the status.
func (s *served) post(path string, e cloudevents.Event) int {
	s.t.Helper()
	body, err := json.Marshal(e)
	if err != nil {
		s.t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(string(body)))
	r.Header.Set("Content-Type", "application/cloudevents+json")
	rec := httptest.NewRecorder()
	s.instance.ServeHTTP(rec, r)
	return rec.Code
}

func (s *served) send(tenant string, data event.Data) int {
	s.t.Helper()
	e, err := event.New(tenant, "any", "", event.DeriveID(s.t.Name(), strconv.FormatInt(time.Now().UnixNano(), 10)), data)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.post("/", e)
}

func (s *served) published(typ string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, e := range s.sink {
		if e.Type() == typ {
			n++
		}
	}
	return n
}

func (s *served) wakeup(tenant string) (at time.Time) {
	s.t.Helper()
	s.in(tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, "SELECT least(at, timestamptz '9999-01-01') FROM onda.wakeup WHERE function = 'campaign'").Scan(&at)
	})
	return at
}

func TestEventsRingAndTheSweepNeedsNone(t *testing.T) {
	t.Parallel()
	s := serve(t)
	s.people(pgtest.Acme, 1600)
	s.broadcast("news", toEveryone)
	r := s.start("news")
	if at := s.wakeup(pgtest.Acme); at.After(s.now()) {
		t.Errorf("a run was started, and campaign is due at %v", at)
	}
	// the event and the sweep do the same work; whoever comes second finds nothing
	for range 2 {
		if code := s.send(pgtest.Acme, event.CampaignStarted{Campaign: event.Campaign{Run: r.ID, Campaign: "news"}}); code != http.StatusAccepted {
			t.Fatalf("campaign.started: %d", code)
		}
		if code := s.send(pgtest.Acme, event.ScheduleDue{Function: "campaign"}); code != http.StatusAccepted {
			t.Fatalf("schedule.due: %d", code)
		}
	}
	if n := s.count("SELECT sum(cardinality(contacts)) FROM batch"); n != 1600 {
		t.Errorf("%d recipients are planned, want 1600", n)
	}
	s.eventually("events are published", func() bool {
		return s.published(event.TypeEmailSendRequested) == 2 && s.published(event.TypeCampaignStarted) == 1
	})
	s.deliver()
	var batch int64
	for _, batch = range pgtest.All[int64](t, s.db, pgtest.Acme, "SELECT id FROM batch ORDER BY id") {
		if code := s.send(pgtest.Acme, event.EmailBatchSent{Run: r.ID, Batch: batch, Counts: event.Outcomes{Sent: 500}}); code != http.StatusAccepted {
			t.Fatalf("email.batch.sent: %d", code)
		}
	}
	s.wants(s.status("news").State, "completed")
	s.eventually("completion is published", func() bool { return s.published(event.TypeCampaignCompleted) == 1 })
	// at its end an idle tenant is left alone
	s.eventually("nothing is due", func() bool {
		s.send(pgtest.Acme, event.ScheduleDue{Function: "campaign"})
		return s.wakeup(pgtest.Acme).Equal(postgres.Never)
	})
	if at := s.wakeup(pgtest.Brava); !at.Equal(postgres.Never) {
		t.Errorf("another tenant is due at %v", at)
	}
}

func TestFactsAreDoorbells(t *testing.T) {
	t.Parallel()
	s := serve(t)
	c := s.people(pgtest.Acme, 1)
	s.campaign("welcome", welcome)
	s.start("welcome")
	s.send(pgtest.Acme, event.ScheduleDue{Function: "campaign"})
	s.deliver()
	s.click(s.mailed("first")[0], s.now())
	// every doorbell of a fact is answered, whatever it says; one that names another contact wakes the one that the row is about
	s.eventually("the journey went on", func() bool {
		hit := event.EmailClicked{Hits: event.Hits{Items: []event.Hit{{Contact: c + 99, Verdict: "human"}}}}
		if code := s.send(pgtest.Acme, hit); code != http.StatusAccepted {
			t.Fatalf("email.clicked: %d", code)
		}
		return s.places() == "later 1"
	})
	for _, entry := range event.Catalogue() {
		if !slices.Contains(entry.Consumers, "campaign") {
			continue
		}
		e := eventtest.Sample(t, entry.Type)
		e.SetExtension(event.ExtTenant, pgtest.Acme)
		e.SetSource("/tenants/acme/functions/test")
		if code := s.post("/", e); code/100 != 2 {
			t.Errorf("%s: %d", entry.Type, code)
		}
	}
	// the wake-up is the journey's own
	s.eventually("due in two days", func() bool {
		s.send(pgtest.Acme, event.ScheduleDue{Function: "campaign"})
		d := s.wakeup(pgtest.Acme).Sub(s.now())
		return d > 47*time.Hour && d <= 48*time.Hour
	})
}

func TestBadEvents(t *testing.T) {
	t.Parallel()
	s := serve(t)
	if code := s.send("nobody", event.ScheduleDue{Function: "campaign"}); code != http.StatusBadRequest {
		t.Errorf("an unknown tenant: %d", code)
	}
	e := eventtest.Sample(t, event.TypeEmailBatchSent)
	e.SetExtension(event.ExtTenant, pgtest.Acme)
	e.SetSource("/tenants/acme/functions/send")
	if err := e.SetData(cloudevents.ApplicationJSON, json.RawMessage(`{"run": "one"}`)); err != nil {
		t.Fatal(err)
	}
	if code := s.post("/", e); code != http.StatusBadRequest {
		t.Errorf("a broken body: %d", code)
	}
	if n := s.count("SELECT count(*) FROM failure WHERE function = 'campaign' AND event ->> 'id' = $1", e.ID()); n != 1 {
		t.Errorf("it is kept %d times", n)
	}
	// the broker gives it up as well: one is enough
	dead := e.Clone()
	dead.SetExtension("knativeerrordest", "http://campaign.acme.svc.cluster.local/")
	dead.SetExtension("knativeerrorcode", "400")
	if code := s.post("/dead-letters", dead); code/100 != 2 {
		t.Errorf("its dead letter: %d", code)
	}
	if n := s.count("SELECT count(*) FROM failure"); n != 1 {
		t.Errorf("%d failures are kept", n)
	}
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	s := serve(t)
	e := eventtest.Sample(t, event.TypeEmailSendRequested)
	e.SetExtension(event.ExtTenant, pgtest.Acme)
	e.SetSource("/tenants/acme/functions/campaign")
	e.SetExtension("knativeerrordest", "http://127.0.0.1:8080/functions/send")
	e.SetExtension("knativeerrorcode", "503")
	e.SetExtension("knativeerrordata", "c210cCBpcyBhd2F5Cg==") // smtp is away
	for range 2 {
		if code := s.post("/dead-letters", e); code/100 != 2 {
			t.Fatalf("answered %d", code)
		}
	}
	got := s.columnsOf(pgtest.Acme, "SELECT function || ': ' || error || ': ' || (event ? 'knativeerrordest') FROM failure")
	s.wants(strings.Join(got, "; "), "send: the broker gave up on it: 503: smtp is away: false")
	if n := pgtest.One[int64](t, s.db, pgtest.Brava, "SELECT count(*) FROM failure"); n != 0 {
		t.Error("another tenant has it")
	}
}

func TestFunctionOf(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"http://send.acme.svc.cluster.local/":      "send",
		"http://track-events.onda.svc":             "track",
		"http://127.0.0.1:8080/functions/send-api": "send",
		"http://send-api-events.onda.svc":          "send",
		"http://127.0.0.1:8080/functions/send/":    "send",
		"http://127.0.0.1:8080/functions/send":     "send",
		"":                                         "broker",
		"%":                                        "broker",
	} {
		if got := functionOf(address); got != want {
			t.Errorf("%q: %q, want %q", address, got, want)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	for env, want := range map[string]string{
		"":                  "ONDA_DATABASE_URL: is not set",
		"ONDA_SHARE=0":      "ONDA_SHARE: 0 is not a number of workers from 1 to 100",
		"ONDA_DATABASE_URL": "ONDA_DATABASE_URL: not a Postgres URL",
	} {
		vars := map[string]string{"ONDA_DATABASE_URL": "postgres://onda_pool@localhost/onda"}
		switch name, value, _ := strings.Cut(env, "="); name {
		case "":
			delete(vars, "ONDA_DATABASE_URL")
		case "ONDA_DATABASE_URL":
			vars[name] = "postgres://%%%"
		default:
			vars[name] = value
		}
		_, err := fn.Start(t.Context(), "campaign", Build, envconfig.MapLookuper(vars), zaptest.NewLogger(t))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", env, err, want)
		}
	}
}

// An error of one run does not keep the others from their work.
func TestOneBrokenRunHoldsNobodyBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 10)
	w.broadcast("broken", "email: gone\nto: {segment: everyone}")
	w.broadcast("news", toEveryone)
	w.start("broken")
	w.start("news")
	_, err := w.engine.work(t.Context(), pgtest.Acme, scope{facts: true, plan: true, walk: true, sweep: true})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "run 1") {
		t.Errorf("%v", err)
	}
	if n := w.count("SELECT count(*) FROM batch WHERE run = 2"); n != 1 {
		t.Errorf("%d batches of the other", n)
	}
}
