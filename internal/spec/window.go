package spec

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Clock is a time of day in minutes since midnight, 0 to 1440 (24:00).
type Clock int

const clockPattern = `^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$`

// ParseClock reads a time of day such as 08:30.
func ParseClock(s string) (Clock, error) {
	var h, m int
	if n, err := fmt.Sscanf(s, "%d:%d", &h, &m); err != nil || n != 2 || len(s) != 5 || h < 0 || m < 0 || m > 59 || h*60+m > 1440 {
		return 0, Problem{Msg: fmt.Sprintf("not a time of day: %q: write it as \"08:30\"", s)}
	}
	return Clock(h*60 + m), nil
}

// String gives the form that ParseClock reads.
func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// On gives the instant when clocks in loc show this time on t's day there.
func (c Clock) On(t time.Time, loc *time.Location) time.Time {
	y, m, d := t.In(loc).Date()
	return wallTime(y, m, d, int(c)/60, int(c)%60, 0, 0, loc)
}

func clockRule() rule[Clock] {
	return scalar(`a time of day in quotes, such as "08:30"`, clockPattern, ParseClock)
}

// Weekday is a day of the week by the first three letters of its English name.
type Weekday string

func weekdays() []Weekday { return []Weekday{"sun", "mon", "tue", "wed", "thu", "fri", "sat"} }

// Window is a part of the week that comes again: from From until just before
// To, on each of Days. To at or before From crosses midnight, and the day is
// the one on which it opens.
type Window struct {
	Days []Weekday // empty: every day
	From Clock
	To   Clock
}

func windowKeys(o *object, w *Window) {
	get(o, "days", list(choice(weekdays()...), 1), &w.Days, optional)
	hasFrom := get(o, "from", clockRule(), &w.From, optional)
	w.To = 1440
	hasTo := get(o, "to", clockRule(), &w.To, optional)
	o.atLeastOne("days", "from", "to")
	o.check(func(d *decoder, n *node) {
		if (hasFrom || hasTo) && w.From%1440 == w.To%1440 && n.get("to") != nil && n.get("from") != nil {
			d.fail(n.at("to"), "from and to are the same: leave both out for the whole day")
		}
		if w.From == 1440 {
			d.fail(n.at("from"), "from must be before 24:00")
		}
		seen := map[Weekday]bool{}
		for i, day := range w.Days {
			if seen[day] {
				d.fail(n.get("days").items[i].position, "%q is here twice", string(day))
			}
			seen[day] = true
		}
	})
}

func windowRule() rule[Window] { return shape("window", windowKeys) }

// Contains says whether the window is open at t, by the clocks of loc.
func (w Window) Contains(t time.Time, loc *time.Location) bool { return w.Next(t, loc).Equal(t) }

// Next gives the first instant at or after t when the window is open, by the
// clocks of loc: t itself when it is open then.
func (w Window) Next(t time.Time, loc *time.Location) time.Time {
	y, m, d := t.In(loc).Date()
	// yesterday's window may still be open; a window that clocks skip altogether
	// (from and to in the same gap) is tried again a week later
	for day := -1; day <= 15; day++ {
		opens, closes, ok := w.on(y, m, d+day, loc)
		if !ok || !closes.After(t) {
			continue
		}
		if opens.After(t) {
			return opens
		}
		return t
	}
	return t
}

// on gives when the window that opens on this day opens and closes.
func (w Window) on(y int, m time.Month, d int, loc *time.Location) (opens, closes time.Time, ok bool) {
	date := time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	if len(w.Days) > 0 && !slices.Contains(w.Days, weekdays()[date.Weekday()]) {
		return opens, closes, false
	}
	at := func(day int, c Clock) time.Time {
		return wallTime(date.Year(), date.Month(), date.Day()+day, int(c)/60, int(c)%60, 0, 0, loc)
	}
	opens = at(0, w.From)
	if w.To <= w.From {
		closes = at(1, w.To)
	} else {
		closes = at(0, w.To)
	}
	return opens, closes, closes.After(opens)
}

// String gives the window for people.
func (w Window) String() string {
	days := make([]string, len(w.Days))
	for i, d := range w.Days {
		days[i] = string(d)
	}
	if len(days) == 0 {
		days = []string{"every day"}
	}
	return fmt.Sprintf("%s %s-%s", strings.Join(days, " "), w.From, w.To)
}
