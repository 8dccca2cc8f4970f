package delivery

import (
	"testing"
	"time"
)

func TestRetryAt(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		ago   time.Duration // the refusal before
		class string
		want  time.Duration
	}{
		{0, "soft", time.Minute},
		{50 * time.Second, "", 5 * time.Minute},
		{90 * time.Second, "", 5 * time.Minute},
		{5 * time.Minute, "soft", 30 * time.Minute},
		{35 * time.Minute, "soft", time.Hour},
		{time.Hour, "soft", 4 * time.Hour},
		{5 * time.Hour, "hard", 4 * time.Hour},
		{0, "block", 15 * time.Minute},
		{15 * time.Minute, "block", time.Hour},
		{75 * time.Minute, "block", 2 * time.Hour},
		{0, "policy", 5 * time.Minute},
		{time.Hour, "policy", 4 * time.Hour},
	} {
		r := Recipient{Attempt: 9, Expires: now.Add(24 * time.Hour)} // attempts may have been waits
		if c.ago > 0 {
			r.Refused = now.Add(-c.ago)
		}
		at, ok := RetryAt(now, c.class, r)
		if !ok || at != now.Add(c.want) {
			t.Errorf("%v after a refusal, class %q: after %v, %v; want %v", c.ago, c.class, at.Sub(now), ok, c.want)
		}
	}
	if _, ok := RetryAt(now, "block", Recipient{Expires: now.Add(15 * time.Minute)}); ok {
		t.Error("a mail that expires before its next attempt is tried again")
	}
}
