package domaincheck

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/onda-run/onda/internal/spec"
)

// The limits of RFC 7208 section 4.6.4.
const (
	maxLookups = 10 // further questions of DNS
	maxVoid    = 2  // those of them that may find nothing
)

// errSPF matches errors of the records, not of DNS.
var errSPF = errors.New("SPF")

func spfError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errSPF}, args...)...)
}

// policy is what an SPF record and all that it includes say.
type policy struct {
	c        *check
	lookups  int
	void     int
	names    []string       // whose records let senders in
	networks []netip.Prefix // that are let in
	opaque   bool           // macros, ptr or exists: who is let in depends on the mail
	anybody  bool           // +all
}

// spf asks whether the record of the return path's domain lets the relay in, and whether receivers can follow it.
func (c *check) spf(ctx context.Context) []Finding {
	wanted := c.SPF
	switch address, err := netip.ParseAddr(c.Relay); {
	case len(wanted) > 0:
	case c.Platform != "" && c.ReturnPath != c.Platform:
		wanted = []string{"include:" + c.Platform}
	case c.Platform != "" || c.Relay == "":
	case err != nil:
		wanted = []string{"a:" + c.Relay}
	case address.Is4():
		wanted = []string{"ip4:" + c.Relay}
	default:
		wanted = []string{"ip6:" + c.Relay}
	}
	f := Finding{Check: "spf", Name: c.ReturnPath, Needed: true, Status: Wrong}
	publish := func(record string) {
		if len(wanted) > 0 {
			f.Publish = []Record{{c.ReturnPath, "TXT", with(record, wanted)}}
		}
	}
	p := &policy{c: c}
	record, err := p.record(ctx, c.ReturnPath)
	publish(record)
	switch {
	case errors.Is(err, errAbsent):
		return []Finding{finding("spf", c.ReturnPath, err, f.Publish...)}
	case err == nil:
		err = p.follow(ctx, c.ReturnPath, record, 0)
	}
	switch {
	case errors.Is(err, errSPF):
		f.Detail = strings.TrimPrefix(err.Error(), errSPF.Error()+": ")
		return []Finding{f}
	case err != nil:
		return []Finding{finding("spf", c.ReturnPath, err)}
	}
	switch {
	case p.lookups > maxLookups:
		f.Publish, f.Detail = nil, fmt.Sprintf("the record takes %d lookups, and receivers stop after %d (RFC 7208): include less", p.lookups, maxLookups)
	case p.void > maxVoid:
		f.Publish, f.Detail = nil, fmt.Sprintf("%d names that the record asks for are not there, and receivers stop after %d: take them out", p.void, maxVoid)
	case p.anybody:
		f.Publish, f.Detail = nil, "+all lets anybody send as this domain: end it with ~all or -all"
	default:
		var shutOut []string
		for _, mechanism := range wanted {
			in, err := p.allows(ctx, mechanism)
			if err != nil {
				return []Finding{finding("spf", c.ReturnPath, err)}
			}
			if !in {
				shutOut = append(shutOut, mechanism)
			}
		}
		uses := fmt.Sprintf("%d of %d lookups", p.lookups, maxLookups)
		switch {
		case len(shutOut) > 0 && !p.opaque:
			f.Detail = "the record does not let the relay in: " + strings.Join(shutOut, " ")
		case len(shutOut) > 0:
			f.Status, f.Publish, f.Detail = OK, nil, uses+"; whether it lets "+strings.Join(shutOut, " ")+" in depends on the mail (macros)"
		case len(wanted) == 0 && len(p.networks) == 0 && !p.opaque:
			f.Detail = "the record lets nobody in"
		default:
			f.Status, f.Publish, f.Detail = OK, nil, uses
		}
	}
	return []Finding{f}
}

// with is a record that has mechanisms, before its all.
func with(record string, mechanisms []string) string {
	terms := strings.Fields(record)
	if len(terms) == 0 {
		terms = []string{"v=spf1", "~all"}
	}
	at := slices.IndexFunc(terms, func(t string) bool {
		return strings.ToLower(strings.TrimLeft(t, "+-~?")) == "all" || strings.HasPrefix(strings.ToLower(t), "redirect=")
	})
	if at < 0 {
		at = len(terms)
	}
	for _, m := range mechanisms {
		if !slices.Contains(terms, m) {
			terms, at = slices.Insert(terms, at, m), at+1
		}
	}
	return strings.Join(terms, " ")
}

// record gives the one record of a name.
func (p *policy) record(ctx context.Context, name string) (string, error) {
	all, err := p.c.txt(ctx, name)
	if err != nil {
		return "", err
	}
	all = slices.DeleteFunc(slices.Clone(all), func(s string) bool {
		version, _, _ := strings.Cut(s, " ")
		return !strings.EqualFold(version, "v=spf1")
	})
	switch len(all) {
	case 0:
		return "", errAbsent
	case 1:
		return all[0], nil
	}
	return "", spfError("%s has %d records, which is as good as none: make one of them", name, len(all))
}

// follow reads a record and all that it includes. The names that it asks for are counted, and the questions end soon after too many.
func (p *policy) follow(ctx context.Context, name, record string, depth int) error {
	p.names = append(p.names, name)
	if depth > maxLookups || p.lookups > 2*maxLookups {
		return nil // more than enough to be refused
	}
	if depth == 0 { // the record may be that of the name which it is an alias of
		alias, err := p.c.canonical(ctx, name)
		if err != nil {
			return err
		}
		p.names = append(p.names, alias)
	}
	redirect := ""
	for _, term := range strings.Fields(record)[1:] {
		if modifier, value, ok := strings.Cut(term, "="); ok && !strings.ContainsAny(modifier, ":/") {
			if strings.EqualFold(modifier, "redirect") {
				redirect = bare(value)
			}
			continue
		}
		lets := !strings.ContainsAny(term[:1], "-~?")
		mechanism, value, _ := strings.Cut(strings.TrimLeft(term, "+-~?"), ":")
		mechanism, bits, _ := strings.Cut(strings.ToLower(mechanism), "/")
		if mechanism == "all" { // what follows it is not looked at
			p.anybody = p.anybody || lets
			return nil
		}
		if err := p.mechanism(ctx, name, mechanism, bare(value), bits, lets, depth); err != nil {
			return err
		}
	}
	if redirect == "" {
		return nil
	}
	return p.include(ctx, redirect, depth)
}

// mechanism follows one.
func (p *policy) mechanism(ctx context.Context, name, mechanism, value, bits string, lets bool, depth int) error {
	switch mechanism {
	case "include":
		if value == "" {
			return spfError("%s has an include of nothing", name)
		}
		before := *p
		err := p.include(ctx, value, depth)
		if !lets {
			p.names, p.networks, p.anybody = before.names, before.networks, before.anybody
		}
		return err
	case "ip4", "ip6":
		network, err := spec.ParseNetwork(value)
		if err != nil || network.Addr().Is4() != (mechanism == "ip4") {
			return spfError("%s has %s:%s, which is no network", name, mechanism, value)
		}
		if lets {
			p.networks = append(p.networks, network.Masked())
		}
		return nil
	case "a", "mx":
		p.lookups++
		of := name
		if value != "" {
			of, bits, _ = strings.Cut(value, "/")
		}
		if strings.Contains(of, "%") {
			p.opaque = true
			return nil
		}
		addresses, err := p.c.hosts(ctx, mechanism, of)
		if errors.Is(err, errAbsent) {
			p.void++
			return nil
		}
		if err != nil {
			return err
		}
		if lets {
			p.networks = append(p.networks, around(addresses, bits)...)
		}
		return nil
	case "exists", "ptr":
		p.lookups++
		p.opaque = true
		return nil
	}
	return spfError("%s has %q, which is no mechanism of SPF", name, mechanism)
}

// include follows another name's record.
func (p *policy) include(ctx context.Context, name string, depth int) error {
	p.lookups++
	if strings.Contains(name, "%") {
		p.opaque = true
		return nil
	}
	record, err := p.record(ctx, name)
	if errors.Is(err, errAbsent) {
		return spfError("it includes %s, which has no record", name)
	}
	if err != nil {
		return err
	}
	return p.follow(ctx, name, record, depth+1)
}

// hosts gives the addresses of a name, or of its exchanges.
func (c *check) hosts(ctx context.Context, mechanism, of string) ([]netip.Addr, error) {
	if mechanism == "a" {
		return c.addresses(ctx, of)
	}
	hosts, err := c.exchanges(ctx, of)
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, host := range hosts {
		if host == "" {
			continue
		}
		some, err := c.addresses(ctx, host)
		if err != nil && !errors.Is(err, errAbsent) {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, errAbsent
	}
	return all, nil
}

// around are the networks of addresses: bits is as in a/24//64.
func around(addresses []netip.Addr, bits string) (out []netip.Prefix) {
	four, six, _ := strings.Cut(bits, "//")
	if only, ok := strings.CutPrefix(four, "/"); ok { // a//64
		four, six = "", only
	}
	for _, a := range addresses {
		n, text := a.BitLen(), four
		if a.Is6() {
			text = six
		}
		if b, err := strconv.Atoi(text); err == nil && b >= 0 && b < n {
			n = b
		}
		out = append(out, netip.PrefixFrom(a, n).Masked())
	}
	return out
}

// allows tells whether those that a mechanism names are let in.
func (p *policy) allows(ctx context.Context, mechanism string) (bool, error) {
	name, value, _ := strings.Cut(mechanism, ":")
	var wanted []netip.Prefix
	switch name {
	case "include":
		return slices.Contains(p.names, value), nil
	case "ip4", "ip6":
		network, err := spec.ParseNetwork(value)
		if err != nil {
			return false, nil
		}
		wanted = []netip.Prefix{network}
	default:
		addresses, err := p.c.hosts(ctx, name, value)
		if errors.Is(err, errAbsent) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		wanted = around(addresses, "")
	}
	for _, w := range wanted {
		if !slices.ContainsFunc(p.networks, func(n netip.Prefix) bool { return n.Bits() <= w.Bits() && n.Contains(w.Addr()) }) {
			return false, nil
		}
	}
	return true, nil
}
