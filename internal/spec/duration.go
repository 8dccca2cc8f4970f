package spec

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time as people mean it: minutes and hours are exact,
// days, weeks, months and years go by the calendar of a zone. So a day that has
// 23 or 25 hours is still one day.
type Duration struct {
	Months  int // of mo and y
	Days    int // of d and w
	Minutes int // of m and h
}

const (
	durationPattern       = `^([0-9]{1,5}(m|h|d|w|mo|y))+$`
	signedDurationPattern = `^[+-]?([0-9]{1,5}(m|h|d|w|mo|y))+$`
	maxYears              = 100
)

// durationParts are split by a number and its unit; mo comes before m.
const durationPart = `([0-9]{1,5})(mo|m|h|d|w|y)`

// ParseDuration reads a duration such as 3d, 1h30m, 2w, 6mo or 1y. It is never negative.
func ParseDuration(s string) (Duration, error) {
	if s != "" && !strings.ContainsAny(s[:1], "+-") {
		if d, err := ParseOffset(s); err == nil {
			return d, nil
		} else if strings.Contains(err.Error(), "years") {
			return Duration{}, err
		}
	}
	return Duration{}, Problem{Msg: fmt.Sprintf("not a duration: %q: write it as 30m, 12h, 3d, 2w, 6mo or 1y", s)}
}

// ParseOffset reads a duration that may be negative, such as -3d.
func ParseOffset(s string) (Duration, error) {
	bad := Problem{Msg: fmt.Sprintf("not an offset: %q: write it as -3d, 12h or 1mo", s)}
	if !compiled(signedDurationPattern).MatchString(s) {
		return Duration{}, bad
	}
	sign := 1
	if s[0] == '-' {
		sign = -1
	}
	var d Duration
	for _, part := range compiled(durationPart).FindAllStringSubmatch(s, -1) {
		n, err := strconv.Atoi(part[1])
		if err != nil {
			return Duration{}, bad
		}
		n *= sign
		switch part[2] {
		case "m":
			d.Minutes += n
		case "h":
			d.Minutes += 60 * n
		case "d":
			d.Days += n
		case "w":
			d.Days += 7 * n
		case "mo":
			d.Months += n
		case "y":
			d.Months += 12 * n
		}
	}
	if abs(d.Months) > maxYears*12 || abs(d.Days) > maxYears*366 || abs(d.Minutes) > maxYears*366*1440 {
		return Duration{}, Problem{Msg: fmt.Sprintf("%q is longer than %d years: write %[2]dy at most", s, maxYears)}
	}
	return d, nil
}

func abs(n int) int { return max(n, -n) }

// String gives the shortest form that ParseOffset reads back as the same.
func (d Duration) String() string {
	if d == (Duration{}) {
		return "0m"
	}
	// parts of both signs cannot be written; they are never parsed either
	var b strings.Builder
	if d.Months < 0 || d.Days < 0 || d.Minutes < 0 {
		b.WriteByte('-')
		d = d.Neg()
	}
	put := func(n int, unit string) {
		if n != 0 {
			fmt.Fprintf(&b, "%d%s", n, unit)
		}
	}
	put(d.Months/12, "y")
	put(d.Months%12, "mo")
	put(d.Days/7, "w")
	put(d.Days%7, "d")
	// an hour count of six digits would not be read again
	for hours := d.Minutes / 60; hours > 0; hours -= 99999 {
		put(min(hours, 99999), "h")
	}
	put(d.Minutes%60, "m")
	return b.String()
}

// MarshalText gives String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseOffset reads.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseOffset(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// IsZero says whether it is no time at all.
func (d Duration) IsZero() bool { return d == Duration{} }

// Neg gives the same length in the other direction.
func (d Duration) Neg() Duration { return Duration{-d.Months, -d.Days, -d.Minutes} }

// AddTo gives the time that is d after t by the calendar of loc: months and
// days move the date and keep the time of day, then hours and minutes are added
// exactly. The 31st becomes the last day of a shorter month. A time of day that
// a change of clocks skips becomes as much later as was skipped; of one that
// comes twice, the first is meant.
func (d Duration) AddTo(t time.Time, loc *time.Location) time.Time {
	if d.Months != 0 || d.Days != 0 {
		l := t.In(loc)
		y, m, day := l.Date()
		first := time.Date(y, m+time.Month(d.Months), 1, 0, 0, 0, 0, time.UTC)
		day = min(day, daysIn(first))
		date := time.Date(first.Year(), first.Month(), day+d.Days, 0, 0, 0, 0, time.UTC)
		if !sameDate(date, l) {
			h, mi, s := l.Clock()
			t = wallTime(date.Year(), date.Month(), date.Day(), h, mi, s, l.Nanosecond(), loc)
		}
	}
	return t.Add(time.Duration(d.Minutes) * time.Minute)
}

func sameDate(a, b time.Time) bool {
	return a.Year() == b.Year() && a.Month() == b.Month() && a.Day() == b.Day()
}

func daysIn(first time.Time) int { return first.AddDate(0, 1, -1).Day() }

// Approx is the length in hours when days have 24 hours and months 30 days: to
// compare and to bound, never to compute a date.
func (d Duration) Approx() time.Duration {
	return time.Duration(d.Months)*30*24*time.Hour + time.Duration(d.Days)*24*time.Hour + time.Duration(d.Minutes)*time.Minute
}

// wallTime is the instant when clocks in loc show this time. Go leaves open
// which of the two it gives at a change of clocks; here a time that is skipped
// is moved on by the gap, and of a time that comes twice the first is given.
func wallTime(y int, m time.Month, d, h, mi, s, ns int, loc *time.Location) time.Time {
	utc := time.Date(y, m, d, h, mi, s, ns, time.UTC)
	_, before := utc.Add(-26 * time.Hour).In(loc).Zone()
	_, after := utc.Add(26 * time.Hour).In(loc).Zone()
	early := utc.Add(-time.Duration(max(before, after)) * time.Second)
	late := utc.Add(-time.Duration(min(before, after)) * time.Second)
	shows := func(t time.Time) bool {
		_, offset := t.In(loc).Zone()
		return t.Add(time.Duration(offset) * time.Second).Equal(utc)
	}
	switch {
	case shows(early):
		return early.In(loc)
	case shows(late):
		return late.In(loc)
	case before < after:
		// skipped: the offset before the change gives the time moved on by the gap
		return late.In(loc)
	}
	// two changes within two days, as zones have had in odd years
	return time.Date(y, m, d, h, mi, s, ns, loc)
}

func durationRule() rule[Duration] {
	return scalar("a duration such as 30m, 12h, 3d, 2w, 6mo or 1y", durationPattern, func(s string) (Duration, error) {
		d, err := ParseDuration(s)
		if err == nil && d.IsZero() {
			return d, Problem{Msg: "the duration must be longer than " + s + ", such as 1h or 1d"}
		}
		return d, err
	})
}

func offsetRule() rule[Duration] {
	return scalar("an offset such as -3d or 12h", signedDurationPattern, ParseOffset)
}
