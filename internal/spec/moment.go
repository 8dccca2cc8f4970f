package spec

import (
	"fmt"
	"time"
)

// Moment is a point in time as documents write it: a date (the whole day, in
// the zone in force), a date and time (in the zone in force, or with an offset
// of its own), now, today, or an offset from now such as -30d.
type Moment struct {
	date     time.Time // wall clock as UTC; zero for relative ones
	instant  bool      // date is exact, with a zone of its own
	day      bool      // the whole day is meant
	relative bool
	offset   Duration
}

// ParseMoment reads 2026-06-30, 2026-06-30T09:00, 2026-06-30T09:00:00+02:00,
// now, today, -30d or +2h.
func ParseMoment(s string) (Moment, error) {
	switch s {
	case "now":
		return Moment{relative: true}, nil
	case "today":
		return Moment{relative: true, day: true}, nil
	}
	if t, err := time.Parse("2006-01-02", s); err == nil {
		return Moment{date: t, day: true}, nil
	}
	for _, form := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02 15:04"} {
		if t, err := time.Parse(form, s); err == nil {
			return Moment{date: t}, nil
		}
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return Moment{date: t, instant: true}, nil
	}
	if s != "" && (s[0] == '-' || s[0] == '+') {
		if d, err := ParseOffset(s); err == nil {
			return Moment{relative: true, offset: d}, nil
		}
	}
	return Moment{}, Problem{Msg: fmt.Sprintf("not a date: %q: write it as 2026-06-30, 2026-06-30T09:00, today, now or -30d", s)}
}

// Relative says whether the moment moves with the time at which it is asked for.
func (m Moment) Relative() bool { return m.relative }

// WholeDay says whether the moment is a day rather than an instant.
func (m Moment) WholeDay() bool { return m.day }

// In gives the instant: of a day its start, by the clocks of loc.
func (m Moment) In(now time.Time, loc *time.Location) time.Time {
	switch {
	case m.relative && m.day:
		return Clock(0).On(now, loc)
	case m.relative:
		return m.offset.AddTo(now, loc)
	case m.instant:
		return m.date
	}
	y, mo, d := m.date.Date()
	h, mi, s := m.date.Clock()
	return wallTime(y, mo, d, h, mi, s, 0, loc)
}

// End gives the instant just after the moment: the start of the next day for a
// whole day, the instant itself for all others. A date is between two others
// when it is from In of the first until before End of the second.
func (m Moment) End(now time.Time, loc *time.Location) time.Time {
	t := m.In(now, loc)
	if !m.day {
		return t
	}
	y, mo, d := t.In(loc).Date()
	return wallTime(y, mo, d+1, 0, 0, 0, 0, loc)
}

// Date gives the day of the moment in loc, at midnight UTC: for comparing with dates, which have no zone.
func (m Moment) Date(now time.Time, loc *time.Location) time.Time {
	if !m.relative && !m.instant {
		y, mo, d := m.date.Date()
		return time.Date(y, mo, d, 0, 0, 0, 0, time.UTC)
	}
	y, mo, d := m.In(now, loc).In(loc).Date()
	return time.Date(y, mo, d, 0, 0, 0, 0, time.UTC)
}
