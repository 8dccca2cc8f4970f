package dev

import (
	"sync"
	"time"
)

// Span is when one process, or one instance in this process, was up.
type Span struct {
	Service string `json:"service"`
	// PID is 0 for an instance in this process.
	PID     int       `json:"pid,omitempty"`
	Started time.Time `json:"started"`
	// Ready is when it took its first request; Ended when it was gone. Nil when it has not come to that.
	Ready *time.Time `json:"ready,omitempty"`
	Ended *time.Time `json:"ended,omitempty"`
	// Why tells how it ended: idle, edit, stop (the end of everything), died, or the signal that somebody sent.
	Why string `json:"why,omitempty"`
}

// timeline keeps the last spans.
type timeline struct {
	mu    sync.Mutex
	spans []*Span
}

const keptSpans = 10_000

func (t *timeline) start(service string, pid int) *Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &Span{Service: service, PID: pid, Started: time.Now()}
	t.spans = append(t.spans, s)
	if len(t.spans) > keptSpans {
		t.spans = append([]*Span(nil), t.spans[keptSpans/10:]...)
	}
	return s
}

func (t *timeline) ready(s *Span) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	s.Ready = &now
}

func (t *timeline) end(s *Span, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	s.Ended, s.Why = &now, why
}

// all are copies of the spans, in order of start.
func (t *timeline) all() []Span {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]Span, 0, len(t.spans))
	for _, s := range t.spans {
		out = append(out, *s)
	}
	return out
}
