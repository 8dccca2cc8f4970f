package delivery

import (
	"testing"
	"time"
)

func TestRetryAt(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		attempt int
		class   string
		want    time.Duration
	}{
		{0, "soft", time.Minute},
		{1, "soft", time.Minute},
		{2, "", 5 * time.Minute},
		{3, "soft", 30 * time.Minute},
		{9, "hard", 4 * time.Hour},
		{1, "block", 15 * time.Minute},
		{2, "block", time.Hour},
		{1, "policy", 5 * time.Minute},
		{4, "policy", 4 * time.Hour},
	} {
		at, ok := RetryAt(now, c.attempt, c.class, now.Add(24*time.Hour))
		if !ok || at != now.Add(c.want) {
			t.Errorf("attempt %d, class %q: after %v, %v; want %v", c.attempt, c.class, at.Sub(now), ok, c.want)
		}
	}
	if _, ok := RetryAt(now, 1, "block", now.Add(15*time.Minute)); ok {
		t.Error("a mail that expires before its next attempt is tried again")
	}
}
