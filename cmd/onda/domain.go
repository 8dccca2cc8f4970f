package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/domaincheck"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

type domainCmd struct {
	List   domainListCmd   `cmd:"" help:"List the domains, since when they are verified, and what is wrong with them."`
	Check  domainCheckCmd  `cmd:"" help:"Ask DNS whether mails from a domain will be believed, and say what to publish."`
	Key    domainKeyCmd    `cmd:"" help:"Make the keys that Onda signs mails from a domain with."`
	Resume domainResumeCmd `cmd:"" help:"Let marketing mail from a domain go on that waits because too much of it bounced, was blocked or complained about."`
}

func domains() sort { return sort{"domain", []string{spec.KindDomain}} }

type domainCheckCmd struct {
	Name     string        `arg:"" optional:"" help:"The Domain document's name, or the domain."`
	All      bool          `help:"All domains, of all tenants that the login enters where no tenant is named: for every day."`
	Resolver string        `help:"The DNS server to ask, instead of this machine's." placeholder:"HOST:PORT"`
	Timeout  time.Duration `default:"20s" help:"How long DNS may take for a domain."`
}

// Help is shown by --help.
func (domainCheckCmd) Help() string {
	return "A domain of which all that mails need is right is verified: mails from it are sent. Once a tenant has a Domain, mails from other domains are not. " +
		"Each check renews it for " + days(senderdomain.Fresh) + ", within which campaigns may be started; one that finds something wrong takes nothing away. " +
		"The exit status is 1 when something is missing, wrong, or not answered. ONDA_RETURN_PATH_DOMAIN, ONDA_LINK_URL and ONDA_SMTP_URL say what records must lead to.\n\n" +
		"Example:\n  onda --tenant acme domain check news --resolver 9.9.9.9:53\n  onda domain check --all"
}

func days(d time.Duration) string { return count(int(d/(24*time.Hour)), "day") }

// Validate finds what is wrong with the options.
func (c domainCheckCmd) Validate() error {
	if (c.Name == "") != c.All {
		return errors.New("name a domain, or say --all")
	}
	if host, port, err := net.SplitHostPort(c.Resolver); c.Resolver != "" && (err != nil || host == "" || port == "") {
		return fmt.Errorf("--resolver %q is not HOST:PORT, such as 9.9.9.9:53", c.Resolver)
	}
	if c.Timeout <= 0 {
		return errors.New("--timeout must be longer than 0s")
	}
	return nil
}

// domainChecked is what onda domain check prints as JSON.
type domainChecked struct {
	Tenant string `json:"tenant,omitempty"` // with --all
	Name   string `json:"name"`
	domaincheck.Report
	// Verified tells whether mails from it are sent, VerifiedAt since which check.
	Verified   bool       `json:"verified"`
	VerifiedAt *time.Time `json:"verifiedAt,omitempty"`
	// Retired are keys that no longer sign.
	Retired []string `json:"retired,omitempty"`
}

// wrong says what is not as it should be, a finding each.
func (c domainChecked) wrong() (all []string) {
	for _, f := range c.Findings {
		if f.Status != domaincheck.OK {
			all = append(all, fmt.Sprintf("%s of %s is %s", f.Check, f.Name, f.Status))
		}
	}
	return all
}

// Run checks the domain, or all.
func (c domainCheckCmd) Run(ctx context.Context, s *session) error {
	if c.All {
		return c.all(ctx, s)
	}
	out, err := c.check(ctx, s, c.Name)
	if err != nil {
		return err
	}
	asJSON, err := s.data(out)
	if err != nil {
		return err
	}
	if !asJSON {
		s.domainReport(out)
	}
	if wrong := out.wrong(); len(wrong) > 0 {
		return fmt.Errorf("%s: %s", out.Domain, strings.Join(wrong, ", "))
	}
	return nil
}

// checksAtOnce is how many domains are checked at once with --all: DNS that does not answer holds no others up.
const checksAtOnce = 8

// all checks all domains of the tenant, or of all tenants. One that cannot be checked keeps no other from it.
func (c domainCheckCmd) all(ctx context.Context, s *session) error {
	db, err := s.pool() // one for all
	tenants := []string{s.tenant}
	if err == nil && s.tenant == "" {
		tenants, err = db.Entered(ctx)
	}
	if err != nil {
		return err
	}
	domains, failed := s.domainsToCheck(ctx, tenants)
	var lock sync.Mutex
	var group errgroup.Group
	group.SetLimit(checksAtOnce)
	checked, bad := []domainChecked{}, 0
	for _, d := range domains {
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			in := *s
			in.tenant = d.tenant
			out, err := c.check(ctx, &in, d.Name)
			lock.Lock()
			defer lock.Unlock()
			if err != nil {
				failed = append(failed, fmt.Errorf("tenant %s: %s: %w", d.tenant, d.Name, err))
				return nil
			}
			out.Tenant = d.tenant
			checked = append(checked, out)
			what := "right"
			if wrong := out.wrong(); len(wrong) > 0 {
				bad++
				what = strings.Join(wrong, ", ")
			}
			if !s.json {
				s.print("%s  %s: %s", out.Tenant, out.Domain, what)
			}
			return nil
		})
	}
	_ = group.Wait() // each keeps its own error
	if ctx.Err() != nil {
		return ctx.Err()
	}
	slices.SortFunc(checked, func(a, b domainChecked) int {
		return cmp.Or(strings.Compare(a.Tenant, b.Tenant), strings.Compare(a.Name, b.Name))
	})
	if _, err := s.data(checked); err != nil {
		return err
	}
	if bad > 0 {
		failed = append(failed, fmt.Errorf("of %s %d not as they should be: onda domain check NAME says what to publish", count(len(checked), "domain"), bad))
	}
	return errors.Join(failed...)
}

// domainOf is a domain of a tenant's.
type domainOf struct {
	tenant string
	senderdomain.Listed
}

// domainsToCheck are the domains of these tenants, the one first that was checked longest ago: should the time not suffice for all, it is the turn of the others on another day.
func (s *session) domainsToCheck(ctx context.Context, tenants []string) (all []domainOf, failed []error) {
	for _, tenant := range tenants {
		var domains []senderdomain.Listed
		in := *s
		in.tenant = tenant
		err := in.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
			domains, err = senderdomain.List(ctx, tx)
			return err
		})
		if err != nil {
			failed = append(failed, fmt.Errorf("tenant %s: %w", tenant, err))
		}
		for _, d := range domains {
			all = append(all, domainOf{tenant, d})
		}
	}
	at := func(d domainOf) (t time.Time) {
		if d.CheckedAt != nil {
			t = *d.CheckedAt
		}
		return t
	}
	slices.SortStableFunc(all, func(a, b domainOf) int { return at(a).Compare(at(b)) })
	return all, failed
}

// check checks a domain of the tenant. DNS is asked outside of any transaction.
func (c domainCheckCmd) check(ctx context.Context, s *session, name string) (out domainChecked, err error) {
	var d senderdomain.Domain
	var w domaincheck.Wanted
	var claimed bool
	err = s.inDomain(ctx, name, func(ctx context.Context, tx *postgres.Tx, found senderdomain.Domain) (err error) {
		d = found
		claimed = d.LinkHost == "" || slices.Contains(tx.Tenant.LinkHosts, d.LinkHost)
		if w, err = s.wanted(d.Domain); err != nil || d.Signer != spec.SignerOnda {
			return err
		}
		keys, err := senderdomain.Keys(ctx, tx, d.Domain.Domain)
		for _, k := range keys {
			w.Keys = append(w.Keys, k.DKIMKey)
		}
		return err
	})
	if err != nil {
		return out, err
	}
	within, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	out = domainChecked{Name: d.Name, Report: domaincheck.Check(within, domaincheck.NewResolver(c.Resolver), w)}
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if !claimed {
		out.Findings = append(out.Findings, domaincheck.Finding{
			Check: "link", Name: d.LinkHost, Status: domaincheck.Wrong, Detail: "the tenant's file does not have it among its hosts: no link is made with it",
		})
	}
	err = s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
		out.Retired, err = d.Checked(ctx, tx, out.Right(), out.Published)
		if out.VerifiedAt = &d.VerifiedAt; out.Right() {
			*out.VerifiedAt = tx.Now()
		}
		if err == nil {
			err = d.Looked(ctx, tx, out.wrong())
		}
		return err
	})
	if err != nil {
		return out, err
	}
	if out.Verified = !out.VerifiedAt.IsZero(); !out.Verified {
		out.VerifiedAt = nil
	}
	return out, nil
}

type domainListCmd struct{}

// Help is shown by --help.
func (domainListCmd) Help() string {
	return "What is wrong is what the last check found; onda domain check looks again.\n\nExample:\n  onda --tenant acme domain list"
}

// Run lists the domains.
func (domainListCmd) Run(ctx context.Context, s *session) error {
	var all []senderdomain.Listed
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
		all, err = senderdomain.List(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(all); ok {
		return err
	}
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tDOMAIN\tSIGNER\tVERIFIED\tLAST CHECK\tWRONG")
	at := func(t *time.Time) string {
		if t == nil {
			return "never"
		}
		return t.UTC().Format(time.DateTime)
	}
	for _, d := range all {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Name, d.Domain, d.Signer, at(d.VerifiedAt), at(d.CheckedAt), strings.Join(d.Wrong, "; "))
	}
	return w.Flush()
}

func (s *session) domainReport(out domainChecked) {
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', 0)
	for _, f := range out.Findings {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Status, f.Check, f.Name, f.Detail)
	}
	_ = w.Flush()
	var publish []string
	for _, f := range out.Findings {
		for _, r := range f.Publish {
			publish = append(publish, r.String())
		}
	}
	if len(publish) > 0 {
		s.print("\nTo be published:\n%s", strings.Join(publish, "\n"))
	}
	for _, name := range out.Retired {
		s.print("%s no longer signs: leave its record for a week, for mails that are on their way", name)
	}
	switch {
	case out.Right():
		s.print("%s is verified", out.Domain)
	case out.Verified:
		s.print("%s stays verified, since %s", out.Domain, out.VerifiedAt.Format(time.RFC3339))
	default:
		s.print("%s is not verified: mails from it are refused", out.Domain)
	}
}

// wanted is what a domain is held to, as its document and the environment have it.
func (s *session) wanted(d *spec.Domain) (w domaincheck.Wanted, err error) {
	w = domaincheck.Wanted{Domain: d.Domain, ReturnPath: d.ReturnPath, SPF: d.SPF, Selectors: d.Selectors, LinkHost: d.LinkHost}
	if platform := s.env("ONDA_RETURN_PATH_DOMAIN"); platform != "" {
		if w.Platform, err = spec.ASCIIDomain(platform); err != nil {
			return w, fmt.Errorf("ONDA_RETURN_PATH_DOMAIN: %w", err)
		}
	}
	if w.ReturnPath == "" { // as mails have it
		if w.ReturnPath = w.Platform; w.ReturnPath == "" {
			w.ReturnPath = d.Domain
		}
	}
	cfg := compose.Config{LinkURL: s.env("ONDA_LINK_URL")}
	if cfg.LinkURL != "" {
		if err := cfg.Check(); err != nil {
			return w, err
		}
		u, err := url.Parse(cfg.LinkURL)
		if err == nil && u.Scheme == "https" { // else it is this machine
			w.LinkTo = u.Hostname()
		}
	}
	if smtp := s.env("ONDA_SMTP_URL"); smtp != "" {
		relays, err := mail.ParseURLs(smtp)
		if err != nil {
			return w, fmt.Errorf("ONDA_SMTP_URL: %w", err)
		}
		if ip := net.ParseIP(relays[0].Host); relays[0].Host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			w.Relay = relays[0].Host
		}
	}
	return w, nil
}

// inDomain runs f, in the tenant, with the Domain of a name.
func (s *session) inDomain(ctx context.Context, name string, f func(ctx context.Context, tx *postgres.Tx, d senderdomain.Domain) error) error {
	return s.named(ctx, name, domains(), "", func(ctx context.Context, tx *postgres.Tx) error {
		d, err := senderdomain.Find(ctx, tx, name)
		if err != nil {
			return err
		}
		return f(ctx, tx, d)
	})
}

type domainKeyCmd struct {
	Name     string `arg:"" help:"The Domain document's name, or the domain."`
	Selector string `help:"What the selectors begin with; the date unless given." placeholder:"NAME"`
}

// Help is shown by --help.
func (domainKeyCmd) Help() string {
	return "Makes an RSA and an Ed25519 key, keeps the private ones with the tenant's other keys, and prints the records to publish. They sign once onda domain check has seen " +
		"them in DNS; the keys before them sign until then, and no longer. To rotate, make new ones, publish them, check.\n\n" +
		"Example:\n  onda --tenant acme domain key news"
}

// Validate finds what is wrong with the selector.
func (c domainKeyCmd) Validate() error {
	if c.Selector != "" && !regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$`).MatchString(c.Selector) {
		return fmt.Errorf("--selector %q: want small letters, digits and hyphens", c.Selector)
	}
	return nil
}

// Run makes the keys.
func (c domainKeyCmd) Run(ctx context.Context, s *session) error {
	var keys []mail.DKIMKey
	err := s.inDomain(ctx, c.Name, func(ctx context.Context, tx *postgres.Tx, d senderdomain.Domain) (err error) {
		if d.Signer != spec.SignerOnda {
			return fmt.Errorf("the document %s has the relay sign mails from %s: a key of Onda's is of use with signer: onda", d.Name, d.Domain.Domain)
		}
		keys, err = senderdomain.AddKeys(ctx, tx, d.Domain.Domain, orElse(c.Selector, "onda"+tx.Now().UTC().Format("20060102")))
		return err
	})
	if errors.Is(err, senderdomain.ErrSelectorTaken) {
		return fmt.Errorf("%w: name another with --selector", err)
	}
	if err != nil {
		return err
	}
	records := make([]domaincheck.Record, len(keys))
	for i, k := range keys {
		records[i] = domaincheck.Record{Name: k.Name(), Type: "TXT", Value: k.Record()}
	}
	if ok, err := s.data(records); ok {
		return err
	}
	s.print("To be published; then onda domain check %s:", c.Name)
	for _, r := range records {
		s.print("%s", r)
	}
	return nil
}

type domainResumeCmd struct {
	Domain string `arg:"" help:"The domain that the mails are from, such as acme.example."`
	To     string `help:"A mailbox provider such as google, or others; everybody unless given." placeholder:"PROVIDER"`
}

// Help is shown by --help.
func (domainResumeCmd) Help() string {
	return "When more than 0.3 % of mails to a mailbox provider are complained about, 10 % bounce or 25 % are blocked, further marketing mail to it waits: an hour at first, each further time " +
		"twice as long. onda campaign status tells which waits, and why. Mend that first: this lets it go on at once.\n\n" +
		"Example:\n  onda --tenant acme domain resume acme.example --to google"
}

// Run closes breakers.
func (c domainResumeCmd) Run(ctx context.Context, s *session) error {
	domain, err := spec.ASCIIDomain(c.Domain)
	if err != nil {
		return err
	}
	var to *string
	if c.To != "" {
		to = &c.To
	}
	var n int64
	err = s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
		n, err = delivery.CloseBreakers(ctx, tx, domain, to)
		return err
	})
	if err != nil {
		return err
	}
	if n == 0 {
		s.print("no mail from %s waits", domain)
		return nil
	}
	for more := true; more; {
		err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
			more, err = delivery.Release(ctx, tx)
			return err
		})
		if err != nil {
			return err
		}
	}
	s.print("mail from %s goes on; all that was put off follows within five minutes", domain)
	return nil
}
