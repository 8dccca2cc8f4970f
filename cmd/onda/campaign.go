package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

type campaignCmd struct {
	Start   campaignStartCmd   `cmd:"" help:"Say who will get it and why the others will not, and start it."`
	Pause   campaignPauseCmd   `cmd:"" help:"Hold a run: what is queued stays queued."`
	Resume  campaignResumeCmd  `cmd:"" help:"Let a paused run go on."`
	Cancel  campaignCancelCmd  `cmd:"" help:"End a run: what is queued is not sent."`
	Status  campaignStatusCmd  `cmd:"" help:"Tell how the newest run is getting on."`
	Explain campaignExplainCmd `cmd:"" help:"Tell the journeys of one contact, step by step."`
}

type campaignStartCmd struct {
	Name    string    `arg:"" help:"The campaign's or broadcast's name."`
	At      time.Time `help:"When, instead of now or the document's own time, such as 2026-12-01T09:00:00+01:00."`
	Again   bool      `help:"Send a broadcast that was sent before."`
	Confirm int64     `default:"-1" placeholder:"N" help:"The number that will get it, as this command prints it. Needed outside of development."`
	DryRun  bool      `help:"Only say who would get it."`
}

// Help is shown by --help.
func (campaignStartCmd) Help() string {
	return "Outside of development the number of recipients must be given back, so that nobody mails a list by mistake. " +
		"A broadcast that nobody would get is not started; one whose time is to come may be, for who gets it is decided then. If that is nobody, it is completed at once.\n\n" +
		"Example:\n  onda --tenant acme campaign start spring-news --dry-run\n  onda --tenant acme campaign start spring-news --confirm 49310"
}

// Run starts a run.
func (c campaignStartCmd) Run(ctx context.Context, s *session) error {
	var p campaign.Preflight
	var r campaign.Run
	var took time.Duration
	var nobody string
	err := s.named(ctx, c.Name, runnable(), "", func(ctx context.Context, tx *postgres.Tx) (err error) {
		if !c.At.IsZero() && c.At.Before(tx.Now().Add(-time.Minute)) {
			return usageError{fmt.Sprintf("--at %s is over: it is %s for %s", c.At.Format(time.RFC3339), tx.Now().Format(time.RFC3339), tx.Tenant.Name)}
		}
		began := time.Now()
		if p, err = campaign.GetPreflight(ctx, tx, c.Name); err != nil {
			return err
		}
		took = time.Since(began)
		if p.Kind == "broadcast" && p.Recipients == 0 {
			if nobody, err = whyNobody(ctx, tx, p); err != nil {
				return err
			}
		}
		if c.DryRun {
			return nil
		}
		development, err := inDevelopment(ctx, tx)
		if err != nil {
			return err
		}
		if !development && len(p.Unverified) > 0 {
			return errUnverified
		}
		r, err = campaign.Start(ctx, tx, c.Name, campaign.Options{At: c.At, Again: c.Again, Preflight: &p, Cause: "onda campaign start"})
		if err == nil && !confirmed(development, c.Confirm, p.Recipients) {
			return errUnconfirmed // which undoes it
		}
		return err
	})
	refused := errors.Is(err, campaign.ErrNobody) || errors.Is(err, errUnconfirmed) || errors.Is(err, errUnverified)
	switch {
	case errors.Is(err, campaign.ErrRan):
		return fmt.Errorf("%w (--again)", err)
	case err != nil && !refused:
		return err
	case refused:
		r = campaign.Run{}
	}
	asJSON, printed := s.data(map[string]any{"preflight": p, "run": r, "started": r.ID != 0, "preproduction": s.db.Preproduction(ctx)})
	if printed != nil {
		return printed
	}
	if !asJSON {
		s.trial(ctx)
		s.preflight(p, took)
	}
	switch {
	case errors.Is(err, errUnverified):
		return fmt.Errorf("nothing was started: %s", strings.Join(p.Unverified, "\n  "))
	case errors.Is(err, campaign.ErrNobody):
		return fmt.Errorf("nothing was started: %s", nobody)
	case refused && c.Confirm >= 0:
		return fmt.Errorf("nothing was started: %s would get it, not the %d of --confirm; if that is right, say --confirm %d", count(int(p.Recipients), "recipient"), c.Confirm, p.Recipients)
	case refused:
		return fmt.Errorf("nothing was started: to send to these %s, say --confirm %d", count(int(p.Recipients), "recipient"), p.Recipients)
	case asJSON:
	case c.DryRun && nobody != "":
		s.print("%s", nobody)
	case c.DryRun:
	case r.State == "scheduled":
		s.print("run %d of %s is scheduled for %s", r.ID, r.Name, r.StartsAt.Format(time.RFC3339))
		if nobody != "" {
			s.print("as things stand now, %s", nobody)
		}
	default:
		s.print("run %d of %s has started", r.ID, r.Name)
	}
	s.warn(p.Unverified)
	return s.ring(ctx)
}

// trial says that this is a pre-production, where it is one.
func (s *session) trial(ctx context.Context) {
	if s.db.Preproduction(ctx) {
		s.print("%s", report.Trial)
	}
}

// errUnverified: an email is from a domain that is not verified.
var errUnverified = errors.New("an email is from a domain that is not verified")

// errUnconfirmed: the number that a command printed was not given back.
var errUnconfirmed = errors.New("the number is not confirmed")

// inDevelopment tells whether the database is for development, where nothing has to be confirmed.
func inDevelopment(ctx context.Context, tx *postgres.Tx) (development bool, err error) {
	err = tx.QueryRow(ctx, "SELECT development FROM onda.database").Scan(&development)
	return development, err
}

// confirmed tells whether --confirm (negative: it is not there) gives a number back, where it has to.
func confirmed[N int | int64](development bool, confirm, n N) bool {
	return development && confirm < 0 || confirm == n
}

// whyNobody says why a broadcast would reach nobody, and what to do about it.
func whyNobody(ctx context.Context, tx *postgres.Tx, p campaign.Preflight) (string, error) {
	const nobody = "nobody would get it: "
	switch {
	case p.Audience > 0:
	case p.Segment == "":
		return nobody + "no contact is as its to says; import contacts, or change its document", nil
	default:
		size, err := segment.Count(ctx, tx, p.Segment)
		if err != nil {
			return "", err
		}
		if !size.Current {
			return fmt.Sprintf("%sthe members of %s are being computed; try again when onda segment %[2]s says no more that it is being rebuilt", nobody, p.Segment), nil
		}
		return fmt.Sprintf("%snobody is in the segment %s; import contacts, or change its document", nobody, p.Segment), nil
	}
	var why []string
	if p.Excluded > 0 {
		why = append(why, fmt.Sprintf("%d excluded", p.Excluded))
	}
	reasons := slices.SortedFunc(maps.Keys(p.Refused), func(a, b string) int { return cmp.Or(cmp.Compare(p.Refused[b], p.Refused[a]), cmp.Compare(a, b)) })
	for _, reason := range reasons {
		why = append(why, fmt.Sprintf("%d %s", p.Refused[reason], reasonText(reason)))
	}
	remedy := "change its exclude, or whom it goes to"
	if len(reasons) > 0 && p.Refused[reasons[0]] >= p.Excluded {
		remedy = map[string]string{
			"no_consent": fmt.Sprintf("let them subscribe by a form, or import them with the consent that they gave: --consent %s", p.Topic),
			"pending":    "wait until they have confirmed it",
		}[reasons[0]]
	}
	return fmt.Sprintf("%sof %s: %s; %s", nobody, count(int(p.Audience), "contact"), strings.Join(why, ", "), orElse(remedy, "send it to others")), nil
}

func (s *session) preflight(p campaign.Preflight, took time.Duration) {
	if p.Kind == "campaign" && p.Email == "" && p.Audience == 0 {
		s.print("  contacts enter it by events; nobody is in it at its start")
		return
	}
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	row := func(n int64, what string) { _, _ = fmt.Fprintf(w, "  %d\t  %s\n", n, what) }
	row(p.Audience, "in the segment")
	if p.Excluded > 0 {
		row(-p.Excluded, "excluded")
	}
	for _, reason := range slices.Sorted(maps.Keys(p.Refused)) {
		row(-p.Refused[reason], "will not get it: "+reasonText(reason))
	}
	row(p.Recipients, fmt.Sprintf("will get %s (counted in %d ms)", orElse(p.Email, p.Name), took.Milliseconds()))
	_ = w.Flush()
}

// reasonText says a reason in words.
func reasonText(reason string) string {
	texts := map[string]string{
		"no_consent": "no consent to the topic", "pending": "have not confirmed their consent", "suppressed": "suppressed (bounced, complained or by hand)",
		"bad_address": "no valid address", "erased": "erased meanwhile", "domain_unverified": "from a domain that is not verified", "duplicate": "merged into another contact", "capped": "have had as many as the cap allows", "quota": "over the quota",
		"expired": "refused for now until it was too old to be sent", "late": "too late to be sent", "cancelled": "left over when it was cancelled",
		"preproduction": "in a pre-production without ONDA_PREPRODUCTION_TO",
	}
	return orElse(texts[reason], reason)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

type campaignPauseCmd struct {
	Name string `arg:"" help:"The campaign's or broadcast's name."`
}

// Help is shown by --help.
func (campaignPauseCmd) Help() string {
	return "Says how many mails were in flight at that moment; they may still go out.\n\nExample:\n  onda --tenant acme campaign pause spring-news"
}

// Run pauses the open run.
func (c campaignPauseCmd) Run(ctx context.Context, s *session) error {
	var r campaign.Run
	err := s.named(ctx, c.Name, runnable(), noOpenRun(c.Name), func(ctx context.Context, tx *postgres.Tx) (err error) {
		r, err = campaign.Pause(ctx, tx, c.Name)
		return err
	})
	if err != nil {
		return err
	}
	var inFlight int64
	err = s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) { // after the commit, so that marks on their way are counted
		inFlight, err = campaign.InFlight(ctx, tx, r.ID)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(map[string]any{"run": r, "inFlight": inFlight}); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("run %d of %s is paused, with %s in flight", r.ID, r.Name, count(int(inFlight), "mail"))
	return s.ring(ctx)
}

type campaignResumeCmd struct {
	Name string `arg:"" help:"The campaign's or broadcast's name."`
}

// Help is shown by --help.
func (campaignResumeCmd) Help() string {
	return "What is queued expires later by as long as it was paused.\n\nExample:\n  onda --tenant acme campaign resume spring-news"
}

// Run resumes the paused run.
func (c campaignResumeCmd) Run(ctx context.Context, s *session) error {
	return s.change(ctx, c.Name, campaign.Resume)
}

type campaignCancelCmd struct {
	Name string `arg:"" help:"The campaign's or broadcast's name."`
}

// Help is shown by --help.
func (campaignCancelCmd) Help() string {
	return "Each mail that is not sent for it gets the reason cancelled.\n\nExample:\n  onda --tenant acme campaign cancel spring-news"
}

// Run cancels the open run.
func (c campaignCancelCmd) Run(ctx context.Context, s *session) error {
	return s.change(ctx, c.Name, campaign.Cancel)
}

func noOpenRun(name string) string {
	return fmt.Sprintf("no run of %s is open: onda campaign start %[1]s starts one, onda campaign status %[1]s tells of the last", name)
}

// change does one thing to the open run of a campaign.
func (s *session) change(ctx context.Context, name string, do func(context.Context, *postgres.Tx, string) (campaign.Run, error)) error {
	var r campaign.Run
	err := s.named(ctx, name, runnable(), noOpenRun(name), func(ctx context.Context, tx *postgres.Tx) (err error) {
		r, err = do(ctx, tx, name)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(r); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("run %d of %s is %s", r.ID, r.Name, r.State)
	return s.ring(ctx)
}

type campaignStatusCmd struct {
	Name string `arg:"" help:"The campaign's or broadcast's name."`
}

// Help is shown by --help.
func (campaignStatusCmd) Help() string {
	return "Example:\n  onda --tenant acme campaign status spring-news"
}

// Run prints the status.
func (c campaignStatusCmd) Run(ctx context.Context, s *session) error {
	var st campaign.Status
	none := fmt.Sprintf("%s has not been started: onda campaign start %[1]s --dry-run tells who would get it", c.Name)
	err := s.named(ctx, c.Name, runnable(), none, func(ctx context.Context, tx *postgres.Tx) (err error) {
		st, err = campaign.GetStatus(ctx, tx, c.Name)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(struct {
		campaign.Status
		Preproduction bool `json:"preproduction,omitempty"`
	}{st, s.db.Preproduction(ctx)}); ok {
		return err
	}
	s.trial(ctx)
	s.print("%s %s, run %d: %s", st.Kind, st.Name, st.ID, st.State)
	if st.Kind == "broadcast" && st.Complete && st.Planned == 0 {
		s.print("nobody was in its audience: there was nothing to send")
	}
	if st.State == "paused" && st.Queued > 0 {
		s.print("held: %s stay queued until it is resumed", count(int(st.Queued), "recipient"))
	}
	s.print("planned %d, sent %d, suppressed %d, failed %d, deferred %d, unknown %d, queued %d", st.Planned, st.Counts.Sent, st.Counts.Suppressed, st.Counts.Failed,
		st.Counts.Deferred, st.Counts.Unknown, st.Queued)
	for _, reason := range slices.Sorted(maps.Keys(st.Reasons)) {
		s.print("  not sent: %d, %s", st.Reasons[reason], reasonText(reason))
	}
	for _, b := range st.Held {
		s.print("held: %s; onda domain resume %s ends that", b, b.Domain)
	}
	if st.Rate > 0 {
		s.print("%.0f mails a second", st.Rate)
	}
	for _, l := range st.Lag.Lines() {
		s.print("%s", l)
	}
	for _, j := range st.Journeys {
		s.print("  %s %s %s", count(int(j.N), "contact"), j.State, strings.TrimSpace(j.Step+" "+j.Outcome))
	}
	return nil
}

type campaignExplainCmd struct {
	Name    string `arg:"" help:"The campaign's name."`
	Contact string `arg:"" help:"The contact: its address, its external id, or its number."`
}

// Help is shown by --help.
func (campaignExplainCmd) Help() string {
	return "Example:\n  onda --tenant acme campaign explain onboarding ada@example.com"
}

// Run prints the journeys of a contact.
func (c campaignExplainCmd) Run(ctx context.Context, s *session) error {
	var journeys []campaign.Journey
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		if err := unknown(ctx, tx, c.Name, sort{"campaign", []string{spec.KindCampaign}}); err != nil {
			return err
		}
		id, err := findContact(ctx, tx, c.Contact)
		if err != nil {
			return err
		}
		journeys, err = campaign.Explain(ctx, tx, c.Name, id)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(journeys); ok {
		return err
	}
	if len(journeys) == 0 {
		s.print("%s has never entered %s", c.Contact, c.Name)
		return nil
	}
	for _, j := range journeys {
		s.print("journey %d, version %d: %s %s (entered %s by %s)", j.ID, j.Version, j.State, j.Outcome, j.EnteredAt.UTC().Format(time.DateTime), j.Cause)
		for _, t := range j.Steps {
			line := fmt.Sprintf("  %s  %s", t.At.UTC().Format(time.DateTime), t.Label)
			if t.Branch != "" {
				line += " -> " + t.Branch
			}
			if t.Delivery != 0 {
				line += fmt.Sprintf(" (delivery %d: %s)", t.Delivery, strings.TrimSpace(t.Mail+" "+t.Reason))
			}
			s.print("%s", line)
		}
		if j.Waits != "" {
			until := ""
			if !j.Until.IsZero() {
				until = ", until " + j.Until.UTC().Format(time.DateTime) + " at most"
			}
			s.print("  now: %s%s", j.Waits, until)
		}
	}
	return nil
}

// findContact finds a contact by address, external id or number, and follows merges.
func findContact(ctx context.Context, tx *postgres.Tx, who string) (int64, error) {
	id, err := contact.Find(ctx, tx, who)
	return id, noContact(err, who)
}

// noContact says who it is that there is not.
func noContact(err error, who string) error {
	switch {
	case errors.Is(err, contact.ErrUnknown):
		return fmt.Errorf("there is no contact %s: name it by address, external id or number", who)
	case errors.Is(err, contact.ErrAmbiguous):
		return fmt.Errorf("%s: %w", who, err)
	}
	return err
}
