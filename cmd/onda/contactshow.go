package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/term"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

type contactShowCmd struct {
	Who   string `arg:"" help:"The person: its address, its external id, or its contact's number."`
	Since string `help:"Only what happened since then: a day (2026-10-01), a time (2026-10-01T09:00:00Z), or so long ago (30d)." placeholder:"WHEN"`
	Limit int    `default:"50" help:"How much of what happened to show, from the newest on." placeholder:"50"`
}

// showMost is the most that --limit may be: it is held in memory.
const showMost = 10_000

// Help is shown by --help.
func (contactShowCmd) Help() string {
	return "Who it is, and below all that happened, newest first: mails and what came of them, opens, clicks, pages, events, forms, consents, campaigns, segments, scores, tags, fields. Times are UTC. " +
		"What is written of many contacts at once (fields, tags, scores, stages, segments) is looked for in the last 90 days, or since --since; where it is not all, the last line says so.\n\n" +
		"Example:\n  onda --tenant acme contact show ada@example.com\n  onda --tenant acme contact show nl-1001 --since 7d --limit 200 -o json"
}

// Validate refuses what cannot be meant.
func (c contactShowCmd) Validate() error {
	if c.Limit < 1 || c.Limit > showMost {
		return fmt.Errorf("--limit is a number from 1 to %d", showMost)
	}
	_, err := c.since(time.Time{})
	return err
}

// since is the time of --since; zero without.
func (c contactShowCmd) since(now time.Time) (time.Time, error) {
	if c.Since == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, c.Since); err == nil {
			return at, nil
		}
	}
	d, err := spec.ParseDuration(c.Since)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since %s: write it as 2026-10-01, 2026-10-01T09:00:00Z or 30d", c.Since)
	}
	return d.Neg().AddTo(now, time.UTC), nil
}

// Run shows a contact.
func (c contactShowCmd) Run(ctx context.Context, s *session) error {
	var t *contact.Timeline
	var r contact.Receipt
	var id, row int64
	erased := false
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		since, err := c.since(tx.Now())
		if err != nil {
			return err
		}
		row, err = contact.FindRow(ctx, tx, c.Who)
		if err == nil {
			id, err = contact.Find(ctx, tx, c.Who)
		}
		if errors.Is(err, contact.ErrUnknown) {
			if gone, none := contact.FindErased(ctx, tx, c.Who); none == nil {
				id, row, err = gone, gone, nil
			}
		}
		if err != nil {
			return noContact(err, c.Who)
		}
		t, err = contact.GetTimeline(ctx, tx, id, since, c.Limit)
		if errors.Is(err, contact.ErrGone) {
			erased = true
			r, err = contact.ToErase(ctx, tx, id)
		}
		return err
	})
	if err != nil {
		return err
	}
	if erased {
		if ok, err := s.data(map[string]any{"contact": id, "erased": true, "receipt": r}); ok {
			return err
		}
		if r.Before {
			s.print("contact %d is erased: nothing of the person is stored", id)
		} else {
			s.print("contact %d is nobody, and its erasure is not over: onda contact erase %[1]d --confirm goes on with it", id)
		}
		return s.receipt(r, true)
	}
	if ok, err := s.data(t); ok {
		return err
	}
	p := &sheet{s: s, width: s.columns()}
	if row != id {
		s.print("%s (contact %d) was merged, and is part of:\n", c.Who, row)
	}
	p.person(t)
	p.happened(t, c.Limit)
	return nil
}

// columns is how many a line of the terminal has, and 0 where the output is no terminal.
func (s *session) columns() int {
	f, ok := s.stdout.(*os.File)
	if !ok {
		return 0
	}
	n, _, err := term.GetSize(int(f.Fd())) //nolint:gosec // a descriptor
	if err != nil {
		return 0
	}
	return n
}

// sheet prints a contact. On a terminal lines are cut at its width; elsewhere they are whole.
type sheet struct {
	s     *session
	width int
}

// line prints a line. What others wrote may be in it, so nothing in it moves the cursor.
func (p *sheet) line(text string) {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimRight(text, " "))
	if r := []rune(text); p.width > 1 && len(r) > p.width {
		text = string(r[:p.width-1]) + "…"
	}
	p.s.print("%s", text)
}

// rows prints lines with a label before the first.
func (p *sheet) rows(label string, lines []string) {
	for _, l := range lines {
		p.line(fmt.Sprintf("  %-11s %s", label, l))
		label = ""
	}
}

// list is rows of words, as many a line as go on 80 columns.
func (p *sheet) list(label string, words []string) {
	var lines []string
	for _, w := range words {
		if n := len(lines) - 1; n >= 0 && len([]rune(lines[n]))+2+len([]rune(w)) <= width-14 {
			lines[n] += ", " + w
			continue
		}
		lines = append(lines, w)
	}
	for i := range len(lines) - 1 {
		lines[i] += ","
	}
	p.rows(label, lines)
}

// person prints who it is.
func (p *sheet) person(t *contact.Timeline) {
	name := t.Typed
	if name == "" {
		name = t.Email
	}
	if name == "" {
		name = "no address"
	}
	p.line(fmt.Sprintf("%s, contact %d since %s", name, t.ID, t.CreatedAt.Format(time.DateOnly)))
	if t.ExternalID != "" {
		p.rows("external id", []string{t.ExternalID})
	}
	if t.Typed != "" && t.Email != "" {
		p.rows("mailed at", []string{t.Email})
	}
	if len(t.Merged) > 0 {
		words := make([]string, len(t.Merged))
		for i, id := range t.Merged {
			words[i] = fmt.Sprint(id)
		}
		p.list("merged", words)
	}
	if t.ExpiresAt != nil {
		p.rows("unconfirmed", []string{"deleted at " + moment(t.ExpiresAt) + " unless it confirms"})
	}
	columns := 0
	for name := range t.Fields {
		columns = max(columns, len([]rune(name)))
	}
	var fields []string
	for _, name := range slices.Sorted(maps.Keys(t.Fields)) {
		fields = append(fields, fmt.Sprintf("%-*s  %s", columns, name, plain(t.Fields[name])))
	}
	p.rows("fields", fields)
	p.list("tags", t.Tags)
	var scores []string
	for _, group := range slices.Sorted(maps.Keys(t.Scores)) {
		scores = append(scores, fmt.Sprintf("%s %d", group, t.Scores[group]))
	}
	p.list("scores", scores)
	if t.Stage != "" {
		p.rows("stage", []string{t.Stage})
	}
	columns = 0
	for _, c := range t.Subscriptions {
		columns = max(columns, len([]rune(c.Purpose)))
	}
	var consents []string
	for _, c := range t.Subscriptions {
		consents = append(consents, fmt.Sprintf("%-*s  %-9s  since %s", columns, c.Purpose, c.State, moment(&c.Since)))
	}
	if len(consents) == 0 {
		consents = []string{"agreed to nothing, and withdrew nothing"}
	}
	p.rows("consent", consents)
	for _, stop := range t.Suppressions {
		until := ""
		if stop.Until != nil {
			until = ", until " + moment(stop.Until)
		}
		p.rows("suppressed", []string{stop.Reason + " since " + moment(&stop.Since) + until})
	}
	if t.PausedUntil != nil {
		p.rows("paused", []string{"until " + moment(t.PausedUntil)})
	}
	if t.Frequency != "" {
		p.rows("frequency", []string{"at most " + t.Frequency})
	}
	columns = 0
	for _, m := range t.Segments {
		columns = max(columns, len([]rune(m.Segment)))
	}
	var segments []string
	for _, m := range t.Segments {
		line := fmt.Sprintf("%-*s  since %s", columns, m.Segment, moment(&m.Since))
		switch m.Kept {
		case "in":
			line += ", kept in by hand"
		case "out":
			line = fmt.Sprintf("%-*s  kept out by hand", columns, m.Segment)
		}
		segments = append(segments, line)
	}
	p.rows("segments", segments)
}

// plain is a value of JSON as people write it.
func plain(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) == nil {
		return text
	}
	return string(value)
}

// happened prints what happened, by day.
func (p *sheet) happened(t *contact.Timeline, limit int) {
	day := ""
	for i := range t.Happened {
		h := &t.Happened[i]
		if d := h.At.Format("Monday, 2 January 2006"); d != day {
			p.line("")
			p.line(d)
			day = d
		}
		what, about := told(h)
		p.line(fmt.Sprintf("  %s  %-10s  %s", h.At.Format(time.TimeOnly), what, about))
	}
	p.line("")
	switch n := len(t.Happened); {
	case n == 0:
		p.line("nothing happened in that time")
	case t.More:
		p.line(fmt.Sprintf("the newest %d; --limit %d shows more", n, min(2*limit, showMost)))
	}
	if t.ChangesSince != nil {
		p.line("fields, tags, scores, stages and segments: looked for since " + moment(t.ChangesSince))
	}
}

// told is what happened in a word, and what it is about.
func told(h *contact.Happening) (what, about string) {
	group, what, _ := strings.Cut(h.Kind, ".")
	about = h.Name
	more := func(text string) {
		if text != "" {
			about = strings.TrimSpace(about + "  " + text)
		}
	}
	switch h.Kind {
	case "contact.created":
		return "made", "became a contact"
	case "contact.merged", "contact.unmerged":
		var of struct{ Contact, Into int64 }
		_ = json.Unmarshal(h.Data, &of) // of another version: no numbers
		return what, fmt.Sprintf("contact %d, part of contact %d", of.Contact, of.Into)
	case "contact.changed":
		var of struct{ Fields []string }
		_ = json.Unmarshal(h.Data, &of)
		if len(of.Fields) == 0 {
			return "fields", "by an import"
		}
		return "fields", strings.Join(of.Fields, ", ")
	case "contact.identified":
		return "identified", "by a program"
	case "tag.changed":
		var of struct{ Added bool }
		_ = json.Unmarshal(h.Data, &of)
		if of.Added {
			return "tag", "+" + h.Name
		}
		return "tag", "-" + h.Name
	case "score.changed", "stage.changed":
		return group, h.Name
	case "suppression.added":
		return "suppressed", h.Name
	case "suppression.removed":
		return "released", "no longer suppressed: " + h.Name
	case "email.clicked":
		about = h.Link
		if h.Name != "" {
			more("in " + h.Name)
		}
	case "email.sent": // what the relay said to that is of no interest here
		return what, fmt.Sprintf("%s  (delivery %d)", h.Name, h.Delivery)
	case "email.suppressed":
		what = "not sent"
	case "event.tracked":
		what = "event"
	case "page.viewed":
		what = "page"
	case "segment.joined", "segment.left":
		about = "segment " + h.Name
	case "journey.entered":
		return what, "campaign " + h.Name
	case "journey.ended":
		about = "campaign " + h.Name
	case "journey.step":
		return "step", h.Name + ": " + h.Detail
	case "form.submitted", "form.confirmed", "form.rejected", "form.expired":
		about = "form " + h.Name
	}
	reason := strings.ReplaceAll(h.Detail, "_", " ")
	switch {
	case h.Counted != nil && !*h.Counted && reason != "":
		more("(not counted: a machine, " + reason + ")")
	case h.Counted != nil && !*h.Counted:
		more("(not counted: a machine)")
	default:
		more(reason)
	}
	if h.Counted == nil && (h.Kind == "email.opened" || h.Kind == "email.clicked") {
		more("(not judged yet)")
	}
	if h.Delivery != 0 && group == "email" {
		more(fmt.Sprintf("(delivery %d)", h.Delivery))
	}
	more(properties(h.Data))
	return what, about
}

// properties is an object of JSON in a line, in the order of its names.
func properties(data json.RawMessage) string {
	var of map[string]json.RawMessage
	if json.Unmarshal(data, &of) != nil {
		return ""
	}
	var words []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		var value bytes.Buffer
		if json.Compact(&value, of[name]) == nil {
			words = append(words, name+"="+value.String())
		}
	}
	return strings.Join(words, " ")
}
