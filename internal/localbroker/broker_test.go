package localbroker

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"
)

const toCampaign = "deadLetterSink: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: campaign}, uri: /dead-letters}"

func publish(t *testing.T, b *Broker, events ...cloudevents.Event) {
	t.Helper()
	for _, e := range events {
		if err := b.Publish("", e); err != nil {
			t.Fatal(err)
		}
	}
}

func wait(t *testing.T, b *Broker) {
	t.Helper()
	if err := b.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRetries has the back-off formulas and the set of answers that are tried again, on a clock that does not wait.
func TestRetries(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, delivery string
		answers        []int
		want           []time.Duration // when each attempt was made
		dead           bool
	}{
		{"taken at once", `{retry: 3, backoffPolicy: exponential, backoffDelay: PT1S}`, []int{202}, []time.Duration{0}, false},
		{"exponential", `{retry: 4, backoffPolicy: exponential, backoffDelay: PT1S}`, []int{500, 503, 502, 504, 200}, seconds(0, 1, 3, 7, 15), false},
		{"linear starts with none", `{retry: 3, backoffPolicy: linear, backoffDelay: PT1S}`, []int{500}, seconds(0, 0, 1, 3), true},
		{"retry without a back-off", `{retry: 2}`, []int{500}, seconds(0, 0, 0), true},
		{"a policy without a delay", `{retry: 2, backoffPolicy: exponential}`, []int{500}, seconds(0, 0, 0), true},
		{"a delay without a policy", `{retry: 2, backoffDelay: PT9S}`, []int{500}, seconds(0, 0, 0), true},
		{"no retry", `{backoffPolicy: exponential, backoffDelay: PT1S}`, []int{500}, seconds(0), true},
		{"404", `{retry: 1}`, []int{404, 200}, seconds(0, 0), false},
		{"408", `{retry: 1}`, []int{408, 200}, seconds(0, 0), false},
		{"409", `{retry: 1}`, []int{409, 200}, seconds(0, 0), false},
		{"429 without its Retry-After", `{retry: 1}`, []int{429, 200}, seconds(0, 0), false},
		{"400 is final", `{retry: 5}`, []int{400}, seconds(0), true},
		{"401 is final", `{retry: 5}`, []int{401}, seconds(0), true},
		{"413 is final", `{retry: 5}`, []int{413}, seconds(0), true},
		{"425 is final", `{retry: 5}`, []int{425}, seconds(0), true},
		{"a redirect is final", `{retry: 5}`, []int{302}, seconds(0), true},
		{"a release's own broker default", ``, []int{500, 500, 500, 200}, []time.Duration{0, 200 * time.Millisecond, 600 * time.Millisecond, 1400 * time.Millisecond}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start0 := time.Now()
				var in inbox
				spec := ""
				if test.delivery != "" {
					spec = "delivery: " + test.delivery
				}
				b := start(t, services{"send": in.answer(test.answers...)}, brokerYAML, trigger("send", spec))
				publish(t, b, sample("1"))
				wait(t, b)
				var got []time.Duration
				for _, at := range in.times {
					got = append(got, at.Sub(start0))
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("attempts at (-want +got):\n%s", diff)
				}
				counts := b.Counts().Triggers["send"]
				want := TriggerCounts{Accepted: 1, Retried: int64(len(test.want) - 1), Delivered: 1}
				if test.dead {
					want.Delivered, want.Lost = 0, 1
				}
				if diff := cmp.Diff(want, counts); diff != "" {
					t.Errorf("counts (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func seconds(at ...int) []time.Duration {
	var out []time.Duration
	for _, s := range at {
		out = append(out, time.Duration(s)*time.Second)
	}
	return out
}

func TestTimeoutIsOfOneAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		b := start(t, services{"send": func(w http.ResponseWriter, r *http.Request) {
			if n++; n == 1 {
				<-r.Context().Done()
			}
		}}, brokerYAML, trigger("send", "delivery: {retry: 1, timeout: PT2S}"))
		begin := time.Now()
		publish(t, b, sample("1"))
		wait(t, b)
		if took := time.Since(begin); n != 2 || took != 2*time.Second {
			t.Errorf("%d attempts in %s, want 2 in 2s", n, took)
		}
	})
}

func TestAnswersThatAreNoEventAreFailures(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		want   TriggerCounts
	}{
		{"200 with an empty body", func(http.ResponseWriter, *http.Request) {}, TriggerCounts{Accepted: 1, Delivered: 1}},
		{"200 with text", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "ok") }, TriggerCounts{Accepted: 1, Retried: 1, DeadLettered: 1}},
		{"202 with JSON", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusAccepted)
			_, _ = fmt.Fprint(w, `{"ok":true}`)
		}, TriggerCounts{Accepted: 1, Retried: 1, DeadLettered: 1}},
		{"200 with a broken event", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/cloudevents+json")
			_, _ = fmt.Fprint(w, `{`)
		}, TriggerCounts{Accepted: 1, Retried: 1, DeadLettered: 1}},
		{"a connection that breaks", func(http.ResponseWriter, *http.Request) { panic("kill -9") }, TriggerCounts{Accepted: 1, Retried: 1, DeadLettered: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var dead inbox
				b := start(t, services{"send": test.answer, "campaign": dead.ok}, brokerYAML, trigger("send", "delivery: {retry: 1, "+toCampaign+"}"))
				publish(t, b, sample("1"))
				wait(t, b)
				if diff := cmp.Diff(test.want, b.Counts().Triggers["send"]); diff != "" {
					t.Errorf("counts (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 2000)
	for _, test := range []struct {
		name   string
		answer http.HandlerFunc
		code   string
		data   string // decoded; of what is longer, what is left of it
	}{
		{"400 with a reason", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprint(w, "unknown tenant")
		}, "400", "unknown tenant"},
		{"500 without a body", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "500", ""},
		{"a long body is cut after encoding", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprint(w, long)
		}, "400", long[:768]},
		{"a body that is no event", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "ok") }, "502", ""},
		{"nobody answers", func(http.ResponseWriter, *http.Request) { panic("gone") }, "500", `dispatch error: Post "http://send/": unexpected EOF`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var dead inbox
				// the sink is away at first: it is tried with the same patience
				b := start(t, services{"send": test.answer, "campaign": dead.answer(503, 202)}, brokerYAML,
					trigger("send", "delivery: {retry: 1, "+toCampaign+"}"))
				publish(t, b, sample("1"))
				wait(t, b)
				if got := len(dead.events); got != 2 {
					t.Fatalf("the sink got %d requests, want 2", got)
				}
				e := dead.events[1]
				data, err := base64.StdEncoding.DecodeString(text(e, "knativeerrordata"))
				if err != nil {
					t.Fatal(err)
				}
				got := []string{dead.paths[1], e.ID(), e.Type(), text(e, "tenant"), text(e, "knativeerrordest"), text(e, "knativeerrorcode"), string(data), string(e.Data())}
				want := []string{"/dead-letters", "1", "onda.email.send.requested.v1", "acme", "http://send/", test.code, test.data, `{"run":1}`}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("dead letter (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestDeadLetterSinkOfTheBroker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dead inbox
		b := start(t, services{"a": (&inbox{}).answer(400), "b": (&inbox{}).answer(400), "campaign": dead.ok},
			brokerYAML+"spec: {delivery: {retry: 1, "+toCampaign+"}}",
			trigger("a", ""),
			trigger("b", "delivery: {retry: 0}")) // replaces the broker's as a whole
		publish(t, b, sample("1"))
		wait(t, b)
		counts := b.Counts().Triggers
		if len(dead.events) != 1 || counts["a"].DeadLettered != 1 || counts["b"].Lost != 1 {
			t.Errorf("%d dead letters, counts %+v", len(dead.events), counts)
		}
	})
}

// TestSubscriberSees has what reaches a subscriber beside the event itself.
func TestSubscriberSees(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var header http.Header
		var in inbox
		b := start(t, services{"send": func(w http.ResponseWriter, r *http.Request) {
			header = r.Header.Clone()
			in.ok(w, r)
		}}, brokerYAML, trigger("send", ""))
		req := request(binding.WithForceStructured(t.Context()), t, sample("1", "attempt", 3))
		req.Header.Set("X-Request-Id", "r1")
		req.Header.Set("Authorization", "secret")
		rec := httptest.NewRecorder()
		b.ServeHTTP(rec, req)
		wait(t, b)
		if rec.Code != http.StatusAccepted || rec.Body.Len() > 0 {
			t.Fatalf("ingress answered %d %q", rec.Code, rec.Body)
		}
		e := in.events[0]
		if e.Extensions()["attempt"] != "3" {
			t.Errorf("attempt is %#v, want the text 3", e.Extensions()["attempt"])
		}
		if e.Extensions()["knativebrokerttl"] != nil || text(e, "knativearrivaltime") != "2000-01-01T00:00:00Z" {
			t.Errorf("extensions: %v", e.Extensions())
		}
		got := []string{header.Get("Prefer"), header.Get("X-Request-Id"), header.Get("Authorization"), header.Get("Ce-Id"), header.Get("Content-Type")}
		if diff := cmp.Diff([]string{"reply", "r1", "", "1", "application/json"}, got); diff != "" {
			t.Errorf("headers (-want +got):\n%s", diff)
		}
	})
}

func TestFormat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var kind string
		b := start(t, services{"send": func(_ http.ResponseWriter, r *http.Request) { kind = r.Header.Get("Content-Type") }},
			brokerYAML, trigger("send", "delivery: {format: json}"))
		publish(t, b, sample("1"))
		wait(t, b)
		if kind != "application/cloudevents+json" {
			t.Errorf("content type %q", kind)
		}
	})
}

func TestReply(t *testing.T) {
	t.Parallel()
	reply := sample("2")
	reply.SetType("onda.reply.v1")
	for _, test := range []struct {
		name   string
		status int
		want   []string
	}{
		{"200 with an event", 200, []string{"2"}},
		{"a 202 has no reply", 202, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var in inbox
				b := start(t, services{"call": func(w http.ResponseWriter, r *http.Request) {
					if err := cehttp.WriteResponseWriter(r.Context(), binding.ToMessage(&reply), test.status, w); err != nil {
						t.Error(err)
					}
				}, "taker": in.ok}, brokerYAML,
					trigger("call", "filters: [{exact: {type: onda.email.send.requested.v1}}]"), trigger("taker", "filters: [{exact: {type: onda.reply.v1}}]"))
				publish(t, b, sample("1"))
				wait(t, b)
				if diff := cmp.Diff(test.want, in.ids()); diff != "" {
					t.Errorf("replies (-want +got):\n%s", diff)
				}
				if c := b.Counts(); c.Triggers["call"].Delivered != 1 || c.Triggers["call"].Replied != int64(len(test.want)) {
					t.Errorf("counts: %+v", c)
				}
			})
		})
	}
}

// TestRepliesInACircleEnd has a function that answers each of its own answers: after 255 events the next is refused, and what it answered dead-lettered.
func TestRepliesInACircleEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var in, dead inbox
		b := start(t, services{"echo": func(w http.ResponseWriter, r *http.Request) {
			e := in.take(r)
			if err := cehttp.WriteResponseWriter(r.Context(), binding.ToMessage(&e), 200, w); err != nil {
				t.Error(err)
			}
		}, "campaign": dead.ok}, brokerYAML, trigger("echo", "delivery: {retry: 3, "+toCampaign+"}"))
		publish(t, b, sample("1"))
		wait(t, b)
		if len(in.events) != 255 || len(dead.events) != 1 {
			t.Errorf("%d went round, %d dead letters; want 255 and 1", len(in.events), len(dead.events))
		}
		if got := text(dead.events[0], "knativeerrorcode"); got != "400" {
			t.Errorf("code %s", got)
		}
	})
}

func TestIngressRefuses(t *testing.T) {
	t.Parallel()
	spent := sample("1", "knativebrokerttl", 1)
	large := sample("1")
	_ = large.SetData("text/plain", []byte(strings.Repeat("x", maxBody+1)))
	plain := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"a":1}`))
	plain.Header.Set("Content-Type", "application/json")
	broken := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`{"specversion":"1.0"`))
	broken.Header.Set("Content-Type", "application/cloudevents+json")
	batch := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`[]`))
	batch.Header.Set("Content-Type", "application/cloudevents-batch+json")
	other := request(t.Context(), t, sample("1"))
	other.URL.Path = "/other"
	for _, test := range []struct {
		name string
		req  *http.Request
		want int
	}{
		{"GET", httptest.NewRequest(http.MethodGet, "/", nil), 405},
		{"no event", plain, 400},
		{"broken JSON", broken, 400},
		{"a batch", batch, 400},
		{"an event without an id", request(t.Context(), t, func() cloudevents.Event { e := sample(""); return e }()), 400},
		{"its hops are spent", request(t.Context(), t, spent), 400},
		{"too large", request(t.Context(), t, large), 413},
		{"another broker", other, 404},
		{"the webhook handshake is welcome", httptest.NewRequest(http.MethodOptions, "/", nil), 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := start(t, services{}, brokerYAML)
			rec := httptest.NewRecorder()
			b.ServeHTTP(rec, test.req)
			if rec.Code != test.want {
				t.Errorf("answered %d %s, want %d", rec.Code, rec.Body, test.want)
			}
			if n := b.Counts().Accepted; n != 0 {
				t.Errorf("accepted %d", n)
			}
		})
	}
}

// TestQueueIsBounded: what does not fit is refused as a whole, and taken once there is room.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		block := func(http.ResponseWriter, *http.Request) { <-free }
		b, err := New(load(t, brokerYAML, trigger("a", ""), trigger("b", "")),
			Config{Resolve: resolve, Client: &http.Client{Transport: services{"a": block, "b": block}}, Queue: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		publish(t, b, sample("1"))
		rec := httptest.NewRecorder()
		b.ServeHTTP(rec, request(t.Context(), t, sample("2")))
		if rec.Code != 503 || rec.Header().Get("Retry-After") != "1" {
			t.Errorf("answered %d, Retry-After %q", rec.Code, rec.Header().Get("Retry-After"))
		}
		if c := b.Counts(); c.Held != 2 || c.Accepted != 1 || c.Refused != 1 {
			t.Errorf("counts: %+v", c)
		}
		close(free)
		wait(t, b)
		publish(t, b, sample("3"))
		wait(t, b)
	})
}

// TestOneTriggerDoesNotWaitForAnother: a subscriber that never answers holds up nobody, and no more than Parallel requests are out at it.
func TestOneTriggerDoesNotWaitForAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		var slow, quick inbox
		b, err := New(load(t, brokerYAML, trigger("slow", ""), trigger("quick", "")), Config{Resolve: resolve, Parallel: 2, Client: &http.Client{Transport: services{
			"slow":  func(_ http.ResponseWriter, r *http.Request) { slow.take(r); <-free },
			"quick": quick.ok,
		}}})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		publish(t, b, sample("1"), sample("2"), sample("3"))
		synctest.Wait()
		if len(quick.ids()) != 3 || len(slow.ids()) != 2 {
			t.Errorf("quick got %d, slow %d; want 3 and 2", len(quick.ids()), len(slow.ids()))
		}
		close(free)
		wait(t, b)
	})
}

func TestWhatIsHeldIsLostAtTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t, services{"send": (&inbox{}).answer(503)}, brokerYAML, trigger("send", "delivery: {retry: 9, backoffPolicy: linear, backoffDelay: PT9S}"))
		publish(t, b, sample("1"))
		synctest.Wait()
		b.Close()
		if c := b.Counts(); c.Held != 0 || c.Triggers["send"].Lost != 1 {
			t.Errorf("counts: %+v", c)
		}
		if err := b.Publish("", sample("2")); err == nil {
			t.Error("a closed broker took an event")
		}
	})
}

func TestReload(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var a, c inbox
		b := start(t, services{"a": a.ok, "c": c.ok}, brokerYAML, trigger("a", ""))
		publish(t, b, sample("1"))
		if err := b.SetRoutes(load(t, brokerYAML, trigger("c", ""))); err != nil {
			t.Fatal(err)
		}
		bad := strings.Replace(trigger("d", ""), "kind: Service", "kind: Deployment", 1)
		if err := b.SetRoutes(load(t, brokerYAML, bad)); err == nil || !strings.Contains(err.Error(), "all.yaml: Trigger d: spec.subscriber: Deployment d: only Services") {
			t.Errorf("error: %v", err)
		}
		publish(t, b, sample("2"))
		wait(t, b)
		if diff := cmp.Diff([][]string{{"1"}, {"2"}}, [][]string{a.ids(), c.ids()}); diff != "" {
			t.Errorf("deliveries (-want +got):\n%s", diff)
		}
	})
}

func TestOnEvent(t *testing.T) {
	t.Parallel()
	var seen []cloudevents.Event
	b, err := New(load(t, brokerYAML), Config{OnEvent: func(e cloudevents.Event) { seen = append(seen, e) }})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	publish(t, b, sample("1"))
	if len(seen) != 1 || seen[0].Extensions()["knativearrivaltime"] != nil {
		t.Errorf("saw %v, want the event as it came", seen)
	}
}

// request posts e in the mode that ctx asks for.
func request(ctx context.Context, t *testing.T, e cloudevents.Event) *http.Request {
	t.Helper()
	req := httptest.NewRequest(http.MethodPost, "/", nil)
	if err := cehttp.WriteRequest(ctx, (*binding.EventMessage)(&e), req); err != nil {
		t.Fatal(err)
	}
	return req
}

func text(e cloudevents.Event, extension string) string {
	s, _ := e.Extensions()[extension].(string)
	return s
}

func TestChaos(t *testing.T) {
	t.Parallel()
	const n = 1000
	run := func(t *testing.T, c Chaos) (ids []string, counts TriggerCounts, took time.Duration) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var in inbox
			b := start(t, services{"send": in.ok}, brokerYAML, trigger("send", ""))
			if err := b.SetChaos(c); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			for i := range n {
				publish(t, b, sample(fmt.Sprint(i)))
				synctest.Wait() // so that without chaos they come in order
			}
			wait(t, b)
			ids, counts, took = in.ids(), b.Counts().Triggers["send"], time.Since(begin)
		})
		return ids, counts, took
	}
	inOrder := func(ids []string) bool {
		return slices.IsSortedFunc(ids, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		ids, counts, _ := run(t, Chaos{})
		if !inOrder(ids) || counts.Delivered != n {
			t.Errorf("in order: %v, counts %+v", inOrder(ids), counts)
		}
	})
	t.Run("all is dropped", func(t *testing.T) {
		t.Parallel()
		ids, counts, _ := run(t, Chaos{Drop: 1})
		if len(ids) != 0 || counts.Dropped != n {
			t.Errorf("%d came, counts %+v", len(ids), counts)
		}
	})
	t.Run("all is repeated", func(t *testing.T) {
		t.Parallel()
		ids, counts, _ := run(t, Chaos{Repeat: 1})
		if len(ids) != 2*n || counts.Repeated != n || counts.Delivered != 2*n {
			t.Errorf("%d came, counts %+v", len(ids), counts)
		}
	})
	t.Run("delayed within the range", func(t *testing.T) {
		t.Parallel()
		_, counts, took := run(t, Chaos{Delay: 1, DelayMin: time.Second, DelayMax: 3 * time.Second})
		if took < time.Second || took > 3*time.Second || counts.Delayed != n {
			t.Errorf("took %s, counts %+v", took, counts)
		}
	})
	t.Run("shares, and the same again by the seed", func(t *testing.T) {
		t.Parallel()
		c := Chaos{Drop: .3, Repeat: .3, Reorder: .3, Seed: 7}
		ids, counts, _ := run(t, c)
		for _, share := range []int64{counts.Dropped, counts.Repeated * 10 / 7, counts.Reordered * 10 / 7} { // what is dropped is counted as nothing else
			if share < n/4 || share > n*35/100 {
				t.Errorf("a share of 0.3 came to %d of %d: %+v", share, n, counts)
			}
		}
		if inOrder(ids) {
			t.Error("nothing was reordered")
		}
		if counts.Accepted+counts.Repeated != counts.Dropped+counts.Delivered {
			t.Errorf("counts do not add up: %+v", counts)
		}
		_, again, _ := run(t, c)
		if diff := cmp.Diff(counts, again); diff != "" {
			t.Errorf("another outcome by the same seed:\n%s", diff)
		}
	})
}

func TestAReorderedEventIsOvertakenOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var in inbox
		b := start(t, services{"send": in.ok}, brokerYAML, trigger("send", ""))
		for _, step := range []struct {
			chaos Chaos
			id    string
		}{{Chaos{Reorder: 1}, "1"}, {Chaos{}, "2"}, {Chaos{}, "3"}} {
			if err := b.SetChaos(step.chaos); err != nil {
				t.Fatal(err)
			}
			publish(t, b, sample(step.id))
			synctest.Wait()
		}
		wait(t, b)
		if diff := cmp.Diff([]string{"2", "1", "3"}, in.ids()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
	})
}

func TestChaosIsChecked(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text, want string
	}{
		{`{"drop":0.3,"repeat":0.1,"reorder":1,"delay":0.5,"delayMin":"10ms","delayMax":"2s","seed":9}`, ""},
		{`{"drop":30}`, "drop: 30 is not a share from 0 to 1"},
		{`{"drop":-0.1}`, "drop: -0.1"},
		{`{"dorp":0.3}`, `unknown field "dorp"`},
		{`{"delay":1,"delayMax":"soon"}`, "delayMax: not a time"},
		{`{"delayMin":"3s","delayMax":"1s"}`, "is not a range"},
	} {
		var c Chaos
		err := c.UnmarshalJSON([]byte(test.text))
		if got := fmt.Sprint(err); (test.want == "") != (err == nil) || !strings.Contains(got, test.want) && test.want != "" {
			t.Errorf("%s: %v, want %q", test.text, err, test.want)
		}
		if err != nil {
			continue
		}
		back, err := c.MarshalJSON()
		if err != nil || string(back) != test.text {
			t.Errorf("written again: %s %v", back, err)
		}
	}
}
