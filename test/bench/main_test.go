package main

import (
	"strings"
	"testing"
)

// A mail of the reference reaches the sink as the size says, and a path's verdict follows from the medians.
func TestSinkCountsMails(t *testing.T) {
	t.Parallel()
	s, err := startSink(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := bareLoop(t.Context(), s.addr().Port, 40, 3); err != nil {
		t.Fatal(err)
	}
	n, size := s.take()
	if n != 40 {
		t.Errorf("%d mails of 40 came", n)
	}
	if size < 8_000 || size > 12_000 {
		t.Errorf("a mail has %d bytes, want some 10,000", size)
	}
	if n, _ := s.take(); n != 0 {
		t.Errorf("%d mails are counted twice", n)
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	p := path{name: "send", unit: "mails/s", goal: 0.5}
	for _, c := range []struct {
		ours, reference []float64
		want            string
	}{
		{[]float64{10, 500, 400}, []float64{1000, 800, 10}, "0.50 x  0.50 x"}, // the median, not the mean
		{[]float64{300}, []float64{1000}, "short"},
		{[]float64{400, 600}, []float64{1000}, "ok"},
	} {
		if got := (measured{ours: c.ours, reference: c.reference}).line(p); !strings.Contains(got, c.want) {
			t.Errorf("%v against %v: %q has no %q", c.ours, c.reference, got, c.want)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for only, want := range map[string]string{"": "send send-postfix track segment campaign", "track": "track", "campaign, send": "campaign send"} {
		got, err := choose(paths(), only)
		var names []string
		for _, p := range got {
			names = append(names, p.name)
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%q chooses %v, %v; want %s", only, names, err, want)
		}
	}
	if _, err := choose(paths(), "sned"); err == nil || !strings.Contains(err.Error(), "sned") {
		t.Errorf("an unknown path: %v", err)
	}
}
