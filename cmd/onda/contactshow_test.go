package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
)

// What is shown of a contact reads well in 80 columns, whatever somebody wrote; no line is longer.
func TestContactOnATerminal(t *testing.T) {
	t.Parallel()
	at := func(day, hour int) time.Time { return time.Date(2026, 10, day, hour, 5, 9, 0, time.UTC) }
	later := at(30, 12)
	no, yes := false, true
	tl := &contact.Timeline{
		Person: contact.Person{
			ID: 17, Email: "ada@example.com", Typed: "Ada@Example.com", ExternalID: "nl-1001", Fields: map[string]json.RawMessage{"plan": json.RawMessage(`"pro"`), "newsletter_count": json.RawMessage("12")},
			Tags:   []string{"vip", "fair-of-the-year-2026-in-oslo", "webinar", "from-a-form-on-the-front-page", "reads-on-a-phone"},
			Scores: map[string]int64{"main": 40, "fit": -2}, Stage: "hot", PausedUntil: &later, Frequency: "1/week", CreatedAt: at(1, 8), Merged: []int64{3, 5},
			Subscriptions: []contact.Subscription{{Purpose: "newsletter", State: contact.Granted, Since: at(1, 8)}, {Purpose: "tracking.email", State: contact.Withdrawn, Since: at(2, 8)}},
			Suppressions:  []contact.Stop{{Reason: "bounce", Since: at(2, 8), Until: &later}},
			Segments:      []contact.Membership{{Segment: "nordic", Since: at(1, 8)}, {Segment: "staff", Since: at(1, 8), Kept: "out"}},
		},
		Happened: []contact.Happening{
			{At: at(3, 20), Kind: "email.clicked", Name: "welcome", Link: "https://shop.example/autumn/", Delivery: 513, Counted: &yes},
			{At: at(3, 19), Kind: "email.opened", Name: "welcome", Detail: "scanner", Delivery: 513, Counted: &no},
			{At: at(3, 18), Kind: "email.opened", Name: "welcome", Delivery: 513},
			{At: at(3, 17), Kind: "email.sent", Name: "welcome", Detail: "250, 2.0.0, OK", Delivery: 513},
			{At: at(2, 9), Kind: "email.suppressed", Name: "news", Detail: "no_consent", Delivery: 400},
			{At: at(2, 9), Kind: "event.tracked", Name: "order.placed\x1b[2J", Data: json.RawMessage(`{"total": 12.5, "items": ["a", "b"], "note": "` + strings.Repeat("long ", 20) + `"}`)},
			{At: at(2, 8), Kind: "tag.changed", Name: "vip", Data: json.RawMessage(`{"added": true}`)},
			{At: at(2, 8), Kind: "contact.merged", Data: json.RawMessage(`{"contact": 5, "into": 17}`)},
			{At: at(2, 8), Kind: "journey.ended", Name: "onboarding", Detail: "done, finished", Journey: 4},
			{At: at(2, 8), Kind: "journey.step", Name: "onboarding", Detail: "first-click -> then", Journey: 4},
			{At: at(1, 8), Kind: "contact.created"},
		},
		More: true, ChangesSince: &later,
	}
	for _, columns := range []int{80, 120, 0} {
		var out bytes.Buffer
		p := &sheet{s: &session{stdout: &out}, width: columns}
		p.person(tl)
		p.happened(tl, 11)
		t.Logf("%d columns:\n%s", columns, &out)
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); columns > 0 && n > columns {
				t.Errorf("%d columns of %d: %s", n, columns, line)
			}
		}
		if strings.ContainsRune(out.String(), 0x1b) {
			t.Error("what somebody wrote moves the cursor")
		}
		if whole := strings.Contains(out.String(), "total=12.5"); whole != (columns == 0) {
			t.Errorf("%d columns: the line of an event is whole: %v", columns, whole)
		}
		if columns != 80 {
			continue
		}
		want := `Ada@Example.com, contact 17 since 2026-10-01
  external id nl-1001
  mailed at   ada@example.com
  merged      3, 5
  fields      newsletter_count  12
              plan              pro
  tags        vip, fair-of-the-year-2026-in-oslo, webinar,
              from-a-form-on-the-front-page, reads-on-a-phone
  scores      fit -2, main 40
  stage       hot
  consent     newsletter      granted    since 2026-10-01 08:05
              tracking.email  withdrawn  since 2026-10-02 08:05
  suppressed  bounce since 2026-10-02 08:05, until 2026-10-30 12:05
  paused      until 2026-10-30 12:05
  frequency   at most 1/week
  segments    nordic  since 2026-10-01 08:05
              staff   kept out by hand

Saturday, 3 October 2026
  20:05:09  clicked     https://shop.example/autumn/  in welcome  (delivery 513)
  19:05:09  opened      welcome  (not counted: a machine, scanner)  (delivery 5…
  18:05:09  opened      welcome  (not judged yet)  (delivery 513)
  17:05:09  sent        welcome  (delivery 513)

Friday, 2 October 2026
  09:05:09  not sent    news  no consent  (delivery 400)
  09:05:09  event       order.placed [2J  items=["a","b"] note="long long long …
  08:05:09  tag         +vip
  08:05:09  merged      contact 5, part of contact 17
  08:05:09  ended       campaign onboarding  done, finished
  08:05:09  step        onboarding: first-click -> then

Thursday, 1 October 2026
  08:05:09  made        became a contact

the newest 11; --limit 22 shows more
fields, tags, scores, stages and segments: looked for since 2026-10-30 12:05
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}
