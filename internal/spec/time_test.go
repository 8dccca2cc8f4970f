package spec

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func zone(tb testing.TB, name string) *time.Location {
	tb.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		tb.Fatal(err)
	}
	return loc
}

func TestDurationAddTo(t *testing.T) {
	t.Parallel()
	tests := []struct{ zone, from, add, want string }{
		{"UTC", "2026-01-31T10:00:00Z", "1mo", "2026-02-28T10:00:00Z"},
		{"UTC", "2024-02-29T10:00:00Z", "1y", "2025-02-28T10:00:00Z"},
		{"UTC", "2026-12-31T23:30:00Z", "2mo", "2027-02-28T23:30:00Z"},
		{"UTC", "2026-03-01T00:00:00Z", "2w3d4h5m", "2026-03-18T04:05:00Z"},
		{"UTC", "2026-03-31T12:00:00Z", "-1mo", "2026-02-28T12:00:00Z"},
		// clocks go forward on 29 March: the day has 23 hours, and is a day
		{"Europe/Paris", "2026-03-28T12:00:00+01:00", "1d", "2026-03-29T12:00:00+02:00"},
		{"Europe/Paris", "2026-03-28T12:00:00+01:00", "24h", "2026-03-29T13:00:00+02:00"},
		// 02:30 is skipped: it becomes as much later
		{"Europe/Paris", "2026-03-28T02:30:00+01:00", "1d", "2026-03-29T03:30:00+02:00"},
		// 02:30 comes twice on 25 October: the first is meant
		{"Europe/Paris", "2026-10-24T02:30:00+02:00", "1d", "2026-10-25T02:30:00+02:00"},
		{"Europe/Paris", "2026-10-25T12:00:00+01:00", "-1d", "2026-10-24T12:00:00+02:00"},
		// minutes alone are exact, even from the second 02:30
		{"Europe/Paris", "2026-10-25T02:30:00+01:00", "30m", "2026-10-25T03:00:00+01:00"},
		// Samoa had no 30 December 2011
		{"Pacific/Apia", "2011-12-29T12:00:00-10:00", "1d", "2011-12-31T12:00:00+14:00"},
		{"Australia/Lord_Howe", "2026-10-03T02:15:00+10:30", "1d", "2026-10-04T02:45:00+11:00"},
	}
	for _, tt := range tests {
		t.Run(tt.from+" "+tt.add, func(t *testing.T) {
			t.Parallel()
			d, err := ParseOffset(tt.add)
			if err != nil {
				t.Fatal(err)
			}
			from, _ := time.Parse(time.RFC3339, tt.from)
			want, _ := time.Parse(time.RFC3339, tt.want)
			loc := zone(t, tt.zone)
			if got := d.AddTo(from, loc); !got.Equal(want) {
				t.Errorf("%s + %s = %s, want %s", tt.from, tt.add, got.In(loc).Format(time.RFC3339), tt.want)
			}
		})
	}
}

func TestParseDurationRefuses(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "3", "d", "3D", "-3d", "+3d", "3 d", "1.5h", "3d ", "101y", "3s", "999999d"} {
		if d, err := ParseDuration(s); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", s, d)
		}
	}
}

func drawZone(t *rapid.T) *time.Location {
	name := rapid.SampledFrom([]string{
		"UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Sao_Paulo", "Pacific/Apia", "Africa/Casablanca",
	}).Draw(t, "zone")
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func drawTime(t *rapid.T) time.Time {
	return time.Unix(rapid.Int64Range(1_300_000_000, 1_900_000_000).Draw(t, "unix"), 0)
}

func drawDuration(t *rapid.T) Duration {
	return Duration{
		Months:  rapid.IntRange(0, 60).Draw(t, "months"),
		Days:    rapid.IntRange(0, 800).Draw(t, "days"),
		Minutes: rapid.IntRange(0, 100_000).Draw(t, "minutes"),
	}
}

func TestDurationRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := drawDuration(t)
		if rapid.Bool().Draw(t, "negative") {
			d = d.Neg()
		}
		got, err := ParseOffset(d.String())
		if err != nil || got != d {
			t.Fatalf("ParseOffset(%q) = %v, %v, want %v", d, got, err, d)
		}
	})
}

func TestDurationNeverGoesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		loc, at, d := drawZone(t), drawTime(t), drawDuration(t)
		got := d.AddTo(at, loc)
		// the second of two equal hours is taken back to the first
		if got.Before(at.Add(-2 * time.Hour)) {
			t.Fatalf("%v + %v = %v", at, d, got)
		}
		// by the calendar, the time of day stays, but for hours that are skipped
		if d.Minutes == 0 && d.Days > 0 {
			h, m, _ := at.In(loc).Clock()
			gh, gm, _ := got.In(loc).Clock()
			if moved := (gh*60 + gm) - (h*60 + m); moved < 0 || moved > 60 {
				t.Fatalf("%v + %v = %v: another time of day", at.In(loc), d, got.In(loc))
			}
		}
	})
}

func drawWindow(t *rapid.T) Window {
	w := Window{
		From: Clock(rapid.IntRange(0, 1439).Draw(t, "from")),
		To:   Clock(rapid.IntRange(0, 1440).Draw(t, "to")),
		Days: rapid.SliceOfNDistinct(rapid.SampledFrom(weekdays()), 0, 7, rapid.ID).Draw(t, "days"),
	}
	if w.From%1440 == w.To%1440 {
		w.From, w.To = 0, 1440
	}
	return w
}

// Next is the first minute, at or after t, in which the window is open: it is
// compared with looking at every minute.
func TestWindowNext(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		loc, at, w := drawZone(t), drawTime(t).Truncate(time.Minute), drawWindow(t)
		got := w.Next(at, loc)
		if got.Before(at) || !w.Contains(got, loc) {
			t.Fatalf("%v.Next(%v) = %v, which is not in it", w, at.In(loc), got.In(loc))
		}
		if !w.Next(got, loc).Equal(got) {
			t.Fatalf("%v.Next is not the same again", w)
		}
		for u := at; u.Before(got); u = u.Add(17 * time.Minute) {
			if openByClock(w, u, loc) {
				t.Fatalf("%v.Next(%v) = %v, but it is open at %v", w, at.In(loc), got.In(loc), u.In(loc))
			}
		}
	})
}

// openByClock reads the clock on the wall, and leaves days on which clocks change alone.
func openByClock(w Window, t time.Time, loc *time.Location) bool {
	_, before := t.Add(-36 * time.Hour).In(loc).Zone()
	_, after := t.Add(36 * time.Hour).In(loc).Zone()
	if before != after {
		return false
	}
	l := t.In(loc)
	minute := Clock(l.Hour()*60 + l.Minute())
	on := func(day time.Time) bool {
		if len(w.Days) == 0 {
			return true
		}
		for _, d := range w.Days {
			if weekdays()[day.Weekday()] == d {
				return true
			}
		}
		return false
	}
	if w.To > w.From {
		return on(l) && minute >= w.From && minute < w.To
	}
	return on(l) && minute >= w.From || on(l.AddDate(0, 0, -1)) && minute < w.To
}

func TestUntil(t *testing.T) {
	t.Parallel()
	paris := zone(t, "Europe/Paris")
	at := func(s string) time.Time {
		v, err := time.ParseInLocation("2006-01-02 15:04", s, paris)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	window := Until{Window: &Window{Days: []Weekday{"fri"}, From: 22 * 60, To: 2 * 60}}
	date, err := ParseMoment("2026-03-29T02:30")
	if err != nil {
		t.Fatal(err)
	}
	nine := Clock(9 * 60)
	tests := []struct {
		name      string
		got, want time.Time
	}{
		{"before the window", window.Next(at("2026-05-01 12:00"), paris), at("2026-05-01 22:00")},
		{"in it, after midnight", window.Next(at("2026-05-02 01:59"), paris), at("2026-05-02 01:59")},
		{"just after it", window.Next(at("2026-05-02 02:00"), paris), at("2026-05-08 22:00")},
		{"a date that clocks skip", Until{Date: &date}.Next(at("2026-03-01 00:00"), paris), at("2026-03-29 03:30")},
		{"a date that is over", Until{Date: &date}.Next(at("2026-04-01 00:00"), paris), at("2026-04-01 00:00")},
		{"three days before a field, at nine", Until{Field: "ends", Offset: Duration{Days: -3}, At: &nine}.OfField(at("2026-04-01 00:00"), paris), at("2026-03-29 09:00")},
	}
	for _, tt := range tests {
		if !tt.got.Equal(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, tt.got.In(paris), tt.want)
		}
	}
}

func TestMoment(t *testing.T) {
	t.Parallel()
	oslo := zone(t, "Europe/Oslo")
	now := time.Date(2026, 11, 24, 15, 30, 0, 0, time.UTC)
	tests := []struct{ in, want, end string }{
		{"2026-06-30", "2026-06-30T00:00:00+02:00", "2026-07-01T00:00:00+02:00"},
		{"2026-06-30T09:15", "2026-06-30T09:15:00+02:00", "2026-06-30T09:15:00+02:00"},
		{"2026-06-30T09:15:00-05:00", "2026-06-30T16:15:00+02:00", "2026-06-30T16:15:00+02:00"},
		{"now", "2026-11-24T16:30:00+01:00", "2026-11-24T16:30:00+01:00"},
		{"today", "2026-11-24T00:00:00+01:00", "2026-11-25T00:00:00+01:00"},
		{"-30d", "2026-10-25T16:30:00+01:00", "2026-10-25T16:30:00+01:00"},
		{"+2h", "2026-11-24T18:30:00+01:00", "2026-11-24T18:30:00+01:00"},
	}
	for _, tt := range tests {
		m, err := ParseMoment(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if got := m.In(now, oslo).In(oslo).Format(time.RFC3339); got != tt.want {
			t.Errorf("%s is %s, want %s", tt.in, got, tt.want)
		}
		if got := m.End(now, oslo).In(oslo).Format(time.RFC3339); got != tt.end {
			t.Errorf("%s ends %s, want %s", tt.in, got, tt.end)
		}
	}
}

func TestZoneLocation(t *testing.T) {
	t.Parallel()
	tenant := zone(t, "Europe/Oslo")
	tests := []struct {
		zone          Zone
		contact, want string
	}{
		{ZoneContact, "America/New_York", "America/New_York"},
		{ZoneContact, "", "Europe/Oslo"},
		{ZoneContact, "No/Where", "Europe/Oslo"},
		{ZoneContact, "Local", "Europe/Oslo"},
		{"", "America/New_York", "Europe/Oslo"},
		{"Europe/Paris", "America/New_York", "Europe/Paris"},
	}
	for _, tt := range tests {
		if got := tt.zone.Location(tt.contact, tenant).String(); got != tt.want {
			t.Errorf("%q for a contact in %q: %s, want %s", tt.zone, tt.contact, got, tt.want)
		}
	}
}
