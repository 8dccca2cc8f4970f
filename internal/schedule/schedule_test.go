package schedule

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// functions stands for all functions: it keeps who was rung, and answers with status.
type functions struct {
	mu     sync.Mutex
	rung   []string
	status int
}

func (f *functions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e, err := cloudevents.NewEventFromHTTPRequest(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || e.Type() != event.TypeScheduleDue {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	tenant, _ := event.Tenant(*e)
	f.rung = append(f.rung, strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/functions/"), "onda/")+" for "+tenant)
	w.WriteHeader(f.status)
}

func (f *functions) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := slices.Sorted(slices.Values(f.rung))
	f.rung = nil
	return out
}

func start(t *testing.T, d *pgtest.Database, env map[string]string) (tick func() int, f *functions) {
	t.Helper()
	f = &functions{status: http.StatusAccepted}
	d.Own(t, "acme", "UPDATE onda.wakeup SET swept = 'infinity'") // how old the tests' template is decides nothing
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	vars := map[string]string{"ONDA_DATABASE_URL": d.ScheduleURL, "ONDA_FUNCTION_URL": srv.URL + "/functions/{namespace}/{function}", "ONDA_SPREAD": "0s"}
	for k, v := range env {
		vars[k] = v
	}
	in, err := fn.Start(context.Background(), "schedule", Build, envconfig.MapLookuper(vars), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Stop(context.Background()) })
	return func() int {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		for k, v := range map[string]string{"ce-id": "1", "ce-type": "dev.knative.sources.ping", "ce-source": "/apis/v1/namespaces/onda-system/pingsources/tick", "ce-specversion": "1.0"} {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		in.ServeHTTP(w, r)
		return w.Code
	}, f
}

func TestRingsWhoHasWorkDue(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	tick, f := start(t, d, nil)
	wake := func(tenant, function, at string) {
		pgtest.Exec(t, db, tenant, "UPDATE onda.wakeup SET at = $2::text::timestamptz WHERE function = $1", function, at)
	}
	wake("acme", "send", "2020-01-01")
	wake("acme", "track", "2020-01-01")
	wake("brava", "campaign", "2020-01-01")
	wake("brava", "segment", "2100-01-01")
	if code := tick(); code != http.StatusAccepted {
		t.Errorf("tick: %d", code)
	}
	want := []string{"campaign for brava", "send for acme", "track-events for acme"}
	if diff := cmp.Diff(want, f.take()); diff != "" {
		t.Error(diff)
	}
	// Only the function clears its wake-up: until it does, it is rung at every tick, also when it answers with an error.
	f.status = http.StatusServiceUnavailable
	if code := tick(); code != http.StatusAccepted {
		t.Errorf("tick with functions that fail: %d", code)
	}
	if got := f.take(); len(slices.Compact(got)) != 3 {
		t.Errorf("rang %v", got)
	}
}

// A tenant of another ring, and one with a namespace of its own, are rung where their functions are; a sandbox has some of its own, and the rest are the pool's.
func TestRingsWhereTheFunctionsAre(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	tick, f := start(t, d, nil)
	place := func(tenant string, p postgres.Placement, changes bool) {
		t.Helper()
		if changed, err := d.Admin(t).Place(t.Context(), tenant, p); err != nil || changed != changes {
			t.Fatalf("place: %t, %v", changed, err)
		}
	}
	place("acme", postgres.Placement{Namespace: "onda-next"}, true)
	place("acme", postgres.Placement{Namespace: "onda-next"}, false)
	place("brava", postgres.Placement{Namespace: "tenant-brava", Own: []string{"track", "send"}}, true)
	for _, tenant := range []string{"acme", "brava"} {
		pgtest.Exec(t, db, tenant, "UPDATE onda.wakeup SET at = '2020-01-01' WHERE function IN ('send', 'send-api', 'campaign')")
	}
	tick()
	want := []string{
		"campaign for brava", "onda-next/campaign for acme", "onda-next/send for acme", "onda-next/send-api-events for acme",
		"tenant-brava/send for brava", "tenant-brava/send-api-events for brava",
	}
	if diff := cmp.Diff(want, f.take()); diff != "" {
		t.Error(diff)
	}
	d.Own(t, "brava", "UPDATE onda.wakeup SET swept = '2020-01-01' WHERE tenant = 'brava'")
	tick()
	if got := f.take(); !slices.Contains(got, "tenant-brava/track-events for brava") || !slices.Contains(got, "segment for brava") {
		t.Errorf("the daily sweep rang %v", got)
	}
	if _, err := d.Admin(t).Place(t.Context(), "nobody", postgres.Placement{Namespace: "x"}); !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("error %v", err)
	}
	place("brava", postgres.Placement{Namespace: "onda"}, true)
}

func TestFollowsTheTenantsClock(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	tick, f := start(t, d, nil)
	pgtest.Exec(t, db, "acme", "UPDATE onda.wakeup SET at = now() + '3 days' WHERE function = 'campaign'")
	pgtest.Exec(t, db, "brava", "UPDATE onda.wakeup SET at = now() + '3 days' WHERE function = 'campaign'")
	tick()
	if got := f.take(); len(got) != 0 {
		t.Errorf("rang %v too early", got)
	}
	if _, err := d.Admin(t).MoveClock(context.Background(), "acme", 73*time.Hour); err != nil {
		t.Fatal(err)
	}
	tick()
	if diff := cmp.Diff([]string{"campaign for acme"}, f.take()); diff != "" {
		t.Error(diff)
	}
}

// Whatever became of the tick at which a sweep was due, and of the sweep: it is made at the next, and once.
func TestSweepsEveryTenantOnceADay(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	tick, f := start(t, d, nil)
	d.Own(t, "acme", "UPDATE onda.wakeup SET swept = now() - interval '25 hours' WHERE tenant = 'acme'",
		"UPDATE onda.wakeup SET swept = now() - interval '20 hours' WHERE tenant = 'brava'")
	all := []string{"campaign for acme", "segment for acme", "send for acme", "send-api-events for acme", "track-events for acme"}
	f.status = http.StatusBadRequest
	tick()
	if diff := cmp.Diff(all, f.take()); diff != "" {
		t.Error(diff)
	}
	f.status = http.StatusAccepted
	tick()
	if diff := cmp.Diff(all, f.take()); diff != "" {
		t.Errorf("after a sweep that failed: %s", diff)
	}
	tick()
	if got := f.take(); len(got) != 0 {
		t.Errorf("swept again: %v", got)
	}
	for _, hours := range []string{"22", "24"} { // the next is 23 to 24 hours later
		d.Own(t, "acme", "UPDATE onda.wakeup SET swept = swept - interval '"+hours+" hours' WHERE tenant = 'acme' AND function = 'send'")
		tick()
		if got := len(f.take()); got != 0 && hours == "22" || got != 1 && hours == "24" {
			t.Errorf("rang %d after %s hours", got, hours)
		}
	}
}

// slow stands for functions of which one does not answer until it is let go.
type slow struct {
	functions
	name    string
	waiting chan struct{} // one for each request that waits
	letGo   chan struct{}
	open    sync.Once
}

func (f *slow) answer() { f.open.Do(func() { close(f.letGo) }) }

func (f *slow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/"+f.name) {
		f.waiting <- struct{}{}
		<-f.letGo
	}
	f.functions.ServeHTTP(w, r)
}

func startSlow(t *testing.T, d *pgtest.Database, name, patience string) (tick func() int, f *slow) {
	t.Helper()
	f = &slow{functions: functions{status: http.StatusAccepted}, name: name, waiting: make(chan struct{}, 1000), letGo: make(chan struct{})}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	t.Cleanup(f.answer)
	tick, _ = start(t, d, map[string]string{"ONDA_FUNCTION_URL": srv.URL + "/functions/{namespace}/{function}", "ONDA_PATIENCE": patience})
	return tick, f
}

// A hundred tenants have work due for a function that hangs, more than are waited for at once, and one has for another.
func TestASlowFunctionHoldsBackNoOther(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	tick, f := startSlow(t, d, "send", "1h")
	d.Own(t, "acme", "INSERT INTO onda.tenant (name) SELECT 'many-' || n FROM generate_series(1, 100) n",
		"INSERT INTO onda.wakeup (tenant, function, at) SELECT name, 'send', '2020-01-01' FROM onda.tenant WHERE name LIKE 'many-%'",
		"UPDATE onda.wakeup SET at = '2021-01-01' WHERE tenant = 'brava' AND function = 'campaign'")
	first := make(chan int, 1)
	go func() { first <- tick() }()
	for range inFlight {
		<-f.waiting
	}
	rung := func() bool { return slices.Contains(f.take(), "campaign for brava") }
	for !rung() {
		runtime.Gosched()
	}
	second := make(chan int, 1) // the next tick rings too, though the first is not over
	go func() { second <- tick() }()
	for !rung() {
		runtime.Gosched()
	}
	select {
	case <-first:
		t.Error("the tick did not wait for the function")
	case <-second:
		t.Error("the next tick rang more than may be waited for at once")
	default:
	}
	f.answer()
	if a, b := <-first, <-second; a != http.StatusAccepted || b != http.StatusAccepted {
		t.Errorf("ticks: %d, %d", a, b)
	}
}

func TestAFunctionThatNeverAnswersIsLeft(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	tick, f := startSlow(t, d, "send", "50ms")
	d.Own(t, "acme", "UPDATE onda.wakeup SET at = '2020-01-01' WHERE tenant = 'acme' AND function IN ('send', 'segment')")
	if code := tick(); code != http.StatusAccepted {
		t.Errorf("tick: %d", code)
	}
	if diff := cmp.Diff([]string{"segment for acme"}, f.take()); diff != "" {
		t.Error(diff)
	}
	if len(f.waiting) != 1 {
		t.Errorf("it was tried %d times", len(f.waiting))
	}
}

func TestPostgresAwayIsTriedAgain(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	tick, _ := start(t, d, map[string]string{"ONDA_DATABASE_URL": "postgres://onda_schedule@127.0.0.1:1/onda"})
	if code := tick(); code != http.StatusServiceUnavailable {
		t.Errorf("tick: %d, want 503", code)
	}
}

func TestScheduleSeesNothingOfTenants(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	err := d.Open(t, postgres.Config{URL: d.ScheduleURL}).InTenant(context.Background(), "acme", func(context.Context, *postgres.Tx) error { return nil })
	if !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("schedule's login enters a tenant: %v", err)
	}
}

func TestConfigNamesWhatIsMalformed(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"ONDA_FUNCTION_URL": {FunctionURL: "http://send.onda"},
		"ONDA_SPREAD":       {FunctionURL: "http://{function}.onda", Spread: -time.Second},
		"ONDA_PATIENCE":     {FunctionURL: "http://{function}.onda"},
	} {
		if err := cfg.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v, want an error that begins with %s", cfg, err, want)
		}
	}
}
