// Package domaincheck asks DNS whether receivers will believe mails from a domain: SPF (RFC 7208), DKIM (RFC 6376), DMARC (RFC 7489), and whether what comes back arrives. It
// says what is wrong and the records to publish. It knows no tenant and no database.
//
// Invariant: a record is said to be missing only when DNS said so. Where it gave no answer, that is the finding.
package domaincheck

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/publicsuffix"

	"github.com/onda-run/onda/internal/mail"
)

// Resolver asks DNS. A *net.Resolver is one.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupCNAME(ctx context.Context, name string) (string, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// NewResolver makes a resolver that asks one server, host:port, or those of this machine where server is empty.
func NewResolver(server string) *net.Resolver {
	r := &net.Resolver{PreferGo: true}
	if server != "" {
		r.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server)
		}
	}
	return r
}

// Wanted is what a domain is held to. All names are in ASCII.
type Wanted struct {
	Domain     string
	ReturnPath string   // the domain of envelope senders
	SPF        []string // mechanisms that must let the relay in; empty: by Platform, else Relay
	Selectors  []string // of the relay's DKIM keys
	Keys       []mail.DKIMKey
	LinkHost   string // where the links of mails lead, where the domain has its own

	Platform string // the domain that bounces come back to, whatever tenant's they are; may be empty
	Relay    string // the host that mails are handed to; may be empty
	LinkTo   string // the host that LinkHost must lead to; may be empty
}

// Status is what a check came to.
type Status string

// OK is as it should be. Missing: DNS has no such record. Wrong: it has one, and not the right one. Unanswered: it did not say.
const (
	OK         Status = "ok"
	Missing    Status = "missing"
	Wrong      Status = "wrong"
	Unanswered Status = "unanswered"
)

// Record is a record to publish.
type Record struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Value string `json:"value"`
}

// String gives the record as a zone file has it; texts of more than 255 bytes in pieces.
func (r Record) String() string {
	value := r.Value
	if r.Type == "TXT" {
		var pieces []string
		for len(value) > 255 {
			pieces, value = append(pieces, `"`+value[:255]+`"`), value[255:]
		}
		value = strings.Join(append(pieces, `"`+value+`"`), " ")
	}
	return r.Name + ". " + r.Type + " " + value
}

// Finding is the outcome of one check.
type Finding struct {
	Check  string `json:"check"` // spf, dkim, dmarc, return-path, mx or link
	Name   string `json:"name"`  // that DNS was asked for
	Status Status `json:"status"`
	// Needed tells whether mails need it: a key that is to follow another is not needed yet.
	Needed bool `json:"needed"`
	// Detail says what was found, or what is wrong.
	Detail  string   `json:"detail"`
	Publish []Record `json:"publish,omitempty"`
}

// Report is what was found of a domain.
type Report struct {
	Domain   string    `json:"domain"`
	Findings []Finding `json:"findings"`
	// Published are the names of the keys of Wanted.Keys that are in DNS as they should be.
	Published []string `json:"published"`
}

// OK tells whether all is as it should be.
func (r Report) OK() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Status != OK })
}

// Right tells whether all that mails need is.
func (r Report) Right() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Needed && f.Status != OK })
}

// Check asks DNS all questions at once.
func Check(ctx context.Context, dns Resolver, w Wanted) Report {
	c := &check{dns: dns, Wanted: w}
	questions := []func(context.Context) []Finding{c.spf, c.dkim, c.dmarc, c.returnPath, c.mx, c.link}
	groups := make([][]Finding, len(questions))
	var all sync.WaitGroup
	for i, ask := range questions {
		all.Go(func() { groups[i] = ask(ctx) })
	}
	all.Wait()
	return Report{Domain: w.Domain, Findings: slices.Concat(groups...), Published: c.published}
}

type check struct {
	Wanted
	dns       Resolver
	published []string // dkim's
}

// errAbsent says that DNS has no such record.
var errAbsent = errors.New("there is no such record")

// asked tells apart that there is nothing from that there was no answer, of which the error says what became of it.
func asked(name, kind string, err error) error {
	var d *net.DNSError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &d) && d.IsNotFound:
		return errAbsent
	case errors.As(err, &d) && d.IsTimeout, errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("DNS did not answer in time for %s of %s: ask again, or another server with --resolver", kind, name)
	case errors.As(err, &d):
		return fmt.Errorf("DNS does not answer for %s of %s: %s", kind, name, d.Err)
	}
	return fmt.Errorf("DNS does not answer for %s of %s: %w", kind, name, err)
}

// The questions are for whole names: the search domains of this machine have nothing to do with them.

func (c *check) txt(ctx context.Context, name string) ([]string, error) {
	all, err := c.dns.LookupTXT(ctx, name+".")
	return all, asked(name, "TXT", err)
}

// exchanges gives the hosts of a domain's MX records, the best first. A domain that takes no mail (RFC 7505) has one of an empty name.
func (c *check) exchanges(ctx context.Context, name string) ([]string, error) {
	all, err := c.dns.LookupMX(ctx, name+".")
	hosts := make([]string, len(all))
	for i, mx := range all {
		hosts[i] = bare(mx.Host)
	}
	if len(hosts) > 0 {
		err = nil // others of the answer were malformed
	}
	return hosts, asked(name, "MX", err)
}

func (c *check) addresses(ctx context.Context, name string) ([]netip.Addr, error) {
	all, err := c.dns.LookupNetIP(ctx, "ip", name+".")
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return all, asked(name, "A and AAAA", err)
}

// canonical gives the name that a name is an alias of, itself where it is none.
func (c *check) canonical(ctx context.Context, name string) (string, error) {
	to, err := c.dns.LookupCNAME(ctx, name+".")
	if err = asked(name, "CNAME", err); errors.Is(err, errAbsent) {
		return name, nil
	}
	return bare(to), err
}

// bare is a name as people write it.
func bare(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// finding makes one of an error of a question.
func finding(what, name string, err error, publish ...Record) Finding {
	f := Finding{Check: what, Name: name, Needed: true, Status: Unanswered, Publish: publish}
	if errors.Is(err, errAbsent) {
		f.Status = Missing
	}
	f.Detail = err.Error()
	return f
}

// tags reads a list such as v=DKIM1; p=... of DKIM and DMARC. It is nil where it is none.
func tags(record string) map[string]string {
	out := map[string]string{}
	for part := range strings.SplitSeq(record, ";") {
		name, value, ok := strings.Cut(part, "=")
		if name = strings.TrimSpace(name); !ok && name == "" {
			continue
		}
		if _, twice := out[name]; !ok || twice {
			return nil
		}
		out[name] = strings.Join(strings.Fields(value), "")
	}
	return out
}

// organization is the domain that somebody registered (RFC 7489 section 3.2).
func organization(domain string) string {
	org, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		return domain
	}
	return org
}

// aligned tells whether DMARC takes a domain for the one that a mail is from.
func aligned(domain, from string, strict bool) bool {
	return domain == from || !strict && organization(domain) == organization(from)
}

// dmarc asks for the policy, and whether it can be met: DKIM's domain is the one that mails are from, so the return path need not be.
func (c *check) dmarc(ctx context.Context) []Finding {
	name := "_dmarc." + c.Domain
	publish := Record{name, "TXT", "v=DMARC1; p=none"}
	at := name
	records, err := c.policies(ctx, name)
	if org := organization(c.Domain); errors.Is(err, errAbsent) && org != c.Domain {
		at = "_dmarc." + org
		records, err = c.policies(ctx, at)
	}
	if err != nil {
		return []Finding{finding("dmarc", name, err, publish)}
	}
	f := Finding{Check: "dmarc", Name: at, Needed: true, Status: Wrong, Publish: []Record{publish}}
	if len(records) > 1 {
		f.Detail = fmt.Sprintf("there are %d policies, which is as good as none: keep one", len(records))
		return []Finding{f}
	}
	t := tags(records[0])
	policy := strings.ToLower(t["p"])
	switch {
	case t == nil:
		f.Detail = "the record is not readable: " + records[0]
		return []Finding{f}
	case policy != "none" && policy != "quarantine" && policy != "reject":
		f.Detail = fmt.Sprintf("p=%s is no policy: none, quarantine or reject", t["p"])
		return []Finding{f}
	}
	if sub := strings.ToLower(t["sp"]); sub != "" && at != name {
		policy = sub
	}
	f.Status, f.Publish, f.Detail = OK, nil, "p="+policy
	if strict := strings.EqualFold(t["aspf"], "s"); !aligned(c.ReturnPath, c.Domain, strict) {
		f.Detail += fmt.Sprintf("; DKIM alone meets it, since the return path %s is not of the same domain", c.ReturnPath)
	} else {
		f.Detail += "; DKIM and the return path meet it"
	}
	return []Finding{f}
}

func (c *check) policies(ctx context.Context, name string) ([]string, error) {
	all, err := c.txt(ctx, name)
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		version, _, _ := strings.Cut(s, ";")
		name, value, _ := strings.Cut(version, "=")
		return strings.TrimSpace(name) != "v" || strings.TrimSpace(value) != "DMARC1"
	})
	if len(all) == 0 {
		return nil, errAbsent
	}
	return all, nil
}

// returnPath asks whether bounces come back.
func (c *check) returnPath(ctx context.Context) []Finding {
	f := Finding{Check: "return-path", Name: c.ReturnPath, Needed: true, Status: OK}
	own := c.Platform != "" && c.ReturnPath != c.Platform
	publish := Record{c.ReturnPath, "MX", "10 the host that hands bounces to Onda."}
	if own {
		publish = Record{c.ReturnPath, "CNAME", c.Platform + "."}
		from, err := c.canonical(ctx, c.ReturnPath)
		if err != nil {
			return []Finding{finding("return-path", c.ReturnPath, err)}
		}
		to, err := c.canonical(ctx, c.Platform)
		if err != nil {
			return []Finding{finding("return-path", c.ReturnPath, err)}
		}
		if from == to {
			f.Detail = "an alias of " + c.Platform
			return []Finding{f}
		}
	}
	hosts, err := c.exchanges(ctx, c.ReturnPath)
	var back []string
	if own && (err == nil || errors.Is(err, errAbsent)) {
		var other error
		if back, other = c.exchanges(ctx, c.Platform); other != nil && !errors.Is(other, errAbsent) {
			err = other
		}
	}
	f.Publish = []Record{publish}
	if own && c.ReturnPath == c.Domain { // which has other records, and so cannot be an alias
		f.Publish = nil
		for i, host := range back {
			f.Publish = append(f.Publish, Record{c.ReturnPath, "MX", fmt.Sprintf("%d %s.", 10*(i+1), host)})
		}
	}
	if err != nil {
		return []Finding{finding("return-path", c.ReturnPath, err, f.Publish...)}
	}
	if own && !slices.ContainsFunc(hosts, func(h string) bool { return slices.Contains(back, h) }) {
		f.Status, f.Detail = Wrong, fmt.Sprintf("bounces go to %s, and not to where those of %s do", list(hosts), c.Platform)
		return []Finding{f}
	}
	for _, host := range hosts {
		if err = errAbsent; host != "" {
			_, err = c.addresses(ctx, host)
		}
		if err == nil {
			f.Publish, f.Detail = nil, "bounces go to "+list(hosts)
			return []Finding{f}
		}
	}
	if !errors.Is(err, errAbsent) {
		return []Finding{finding("return-path", c.ReturnPath, err)}
	}
	f.Status, f.Detail = Wrong, fmt.Sprintf("bounces go to %s, which has no address", list(hosts))
	return []Finding{f}
}

func list(hosts []string) string {
	if slices.Equal(hosts, []string{""}) {
		return "nowhere (null MX)"
	}
	return strings.Join(hosts, ", ")
}

// mx asks whether the domain takes mail: receivers refuse mails from one that could not be answered.
func (c *check) mx(ctx context.Context) []Finding {
	f := Finding{Check: "mx", Name: c.Domain, Needed: true, Status: OK}
	publish := Record{c.Domain, "MX", "10 the host that takes answers."}
	hosts, err := c.exchanges(ctx, c.Domain)
	switch {
	case err == nil && slices.Contains(hosts, ""):
		f.Status, f.Detail, f.Publish = Wrong, "the domain says that it takes no mail (null MX, RFC 7505): many receivers refuse what is from it", []Record{publish}
	case err == nil:
		f.Detail = "answers go to " + list(hosts)
	case errors.Is(err, errAbsent):
		if _, err := c.addresses(ctx, c.Domain); err != nil {
			return []Finding{finding("mx", c.Domain, err, publish)}
		}
		f.Detail = "no MX: answers go to its address"
	default:
		return []Finding{finding("mx", c.Domain, err)}
	}
	return []Finding{f}
}

// link asks whether links lead to the platform.
func (c *check) link(ctx context.Context) []Finding {
	if c.LinkHost == "" {
		return nil
	}
	var publish []Record
	if c.LinkTo != "" {
		publish = []Record{{c.LinkHost, "CNAME", c.LinkTo + "."}}
	}
	at, err := c.addresses(ctx, c.LinkHost)
	if err != nil {
		return []Finding{finding("link", c.LinkHost, err, publish...)}
	}
	f := Finding{Check: "link", Name: c.LinkHost, Needed: true, Status: OK, Detail: "it has an address"}
	if c.LinkTo == "" {
		return []Finding{f}
	}
	to, err := c.addresses(ctx, c.LinkTo)
	switch {
	case errors.Is(err, errAbsent): // nothing to compare with from here
	case err != nil:
		return []Finding{finding("link", c.LinkHost, err)}
	case !slices.ContainsFunc(at, func(a netip.Addr) bool { return slices.Contains(to, a) }):
		f.Status, f.Detail, f.Publish = Wrong, "it does not lead to "+c.LinkTo, publish
	default:
		f.Detail = "it leads to " + c.LinkTo
	}
	return []Finding{f}
}
