package localbroker

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func pingYAML(schedule string) string {
	return `
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: tick, namespace: onda-system}
spec:
  schedule: "` + schedule + `"
  contentType: application/json
  data: '{"a":1}'
  ceOverrides: {extensions: {tick: sweep}}
  sink: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: schedule}}
`
}

func pinger(t *testing.T, s services, schedule string, every time.Duration) *Pinger {
	t.Helper()
	routes := load(t, pingYAML(schedule))
	p, err := NewPinger(routes.Sources, PingConfig{Resolve: resolve, Client: &http.Client{Transport: s}, Every: every})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPingSource runs on synctest's clock, which begins at midnight UTC.
func TestPingSource(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, schedule string
		every          time.Duration
		run            time.Duration
		want           []string
	}{
		{"each minute", "* * * * *", 0, 3*time.Minute + time.Second, []string{"00:01:00", "00:02:00", "00:03:00"}},
		{"by the second for a tour", "* * * * *", time.Second, 3500 * time.Millisecond, []string{"00:00:01", "00:00:02", "00:00:03"}},
		{"a rarer schedule is left alone", "CRON_TZ=UTC 30 1 * * *", time.Second, 26 * time.Hour, []string{"01:30:00", "01:30:00"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var in inbox
				p := pinger(t, services{"schedule": in.ok}, test.schedule, test.every)
				ctx, cancel := context.WithTimeout(t.Context(), test.run)
				defer cancel()
				p.Run(ctx)
				var got []string
				for _, at := range in.times {
					got = append(got, at.UTC().Format(time.TimeOnly))
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Fatalf("ticks (-want +got):\n%s", diff)
				}
				e := in.events[0]
				about := []string{e.Type(), e.Source(), text(e, "tick"), string(e.Data())}
				if diff := cmp.Diff([]string{"dev.knative.sources.ping", "/apis/v1/namespaces/onda-system/pingsources/tick", "sweep", `{"a":1}`}, about); diff != "" {
					t.Errorf("event (-want +got):\n%s", diff)
				}
				if in.events[0].ID() == in.events[1].ID() {
					t.Error("two ticks have one id")
				}
			})
		})
	}
}

func TestTickIsTriedSixTimesAndThenLost(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		answer, attempts int
		took             time.Duration
	}{
		{503, 6, 1550 * time.Millisecond}, // 50 + 100 + 200 + 400 + 800
		{404, 6, 1550 * time.Millisecond},
		{500, 1, 0}, // not in the SDK's set
		{400, 1, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			var in inbox
			p := pinger(t, services{"schedule": in.answer(test.answer)}, "* * * * *", 0)
			begin := time.Now()
			if err := p.Tick(t.Context()); err == nil {
				t.Error("no error")
			}
			if took := time.Since(begin); len(in.events) != test.attempts || took != test.took {
				t.Errorf("%d: %d attempts in %s, want %d in %s", test.answer, len(in.events), took, test.attempts, test.took)
			}
		})
	}
}
