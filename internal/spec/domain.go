package spec

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// Signer is who signs mails with DKIM.
type Signer string

// Who signs.
const (
	SignerOnda  Signer = "onda"
	SignerRelay Signer = "relay"
)

// Domain is a domain that emails are from. Once a tenant has one, its emails must all be from such domains, and onda domain check must have found these right.
type Domain struct {
	Meta
	// Domain, ReturnPath and LinkHost are in their ASCII form, whatever they were written in.
	Domain     string
	Signer     Signer   // relay unless given
	Selectors  []string // of the relay's DKIM keys; Onda's own are rows
	ReturnPath string   // the domain of envelope senders; "" for the platform's
	LinkHost   string   // where links of mails lead; "" for the platform's
	SPF        []string // the mechanisms that let the relay in; empty where the platform knows
	Warmup     *Warmup  // nil: as much as there is
}

// Warmup is how much marketing mail goes out from a domain that receivers do not know yet, day after day; after its last day, as much as there is.
type Warmup struct {
	From *Moment // a day, which is the first; before it as little goes out as on it
	Days []WarmupDays
}

// WarmupDays are days of a warm-up, counted from 1, with as many mails on each.
type WarmupDays struct {
	First, Last int
	Mails       int
}

// Allows gives how many mails may go out on the day of a moment, by the clocks of loc; limited is false after the plan's last day.
func (w *Warmup) Allows(now time.Time, loc *time.Location) (mails int, limited bool) {
	first, today := w.From.Date(now, loc), Moment{instant: true, date: now}.Date(now, loc)
	day := max(1, int(today.Sub(first).Hours()/24)+1)
	for _, d := range w.Days {
		if day <= d.Last {
			return d.Mails, true
		}
	}
	return 0, false
}

// Kind gives KindDomain.
func (*Domain) Kind() string { return KindDomain }

func domainKeys(o *object, v *Domain) {
	get(o, "domain", hostNameRule(), &v.Domain, required)
	v.Signer = SignerRelay
	get(o, "signer", choice(SignerOnda, SignerRelay), &v.Signer, optional)
	selector := scalar("a selector such as s1", `^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`, func(s string) (string, error) {
		return strings.ToLower(s), nil
	})
	type dkim struct{ selectors []string }
	var k dkim
	get(o, "dkim", shape("dkim", func(o *object, k *dkim) {
		get(o, "selectors", list(selector, 1), &k.selectors, required)
	}), &k, optional)
	v.Selectors = k.selectors
	get(o, "returnPath", hostNameRule(), &v.ReturnPath, optional)
	get(o, "linkHost", hostNameRule(), &v.LinkHost, optional)
	get(o, "spf", listOrOne(mechanismRule()), &v.SPF, optional)
	get(o, "warmup", pointer(shape("warmup", func(o *object, w *Warmup) {
		get(o, "from", absoluteRule(), &w.From, required)
		get(o, "days", list(shape("warmupDays", func(o *object, w *WarmupDays) {
			var at days
			get(o, "days", daysRule(), &at, required)
			get(o, "mails", whole(1, 100_000_000), &w.Mails, required)
			w.First, w.Last = at.first, at.last
		}), 1), &w.Days, required)
		o.check(func(d *decoder, n *node) { w.check(d, n) })
	})), &v.Warmup, optional)
	if o.n == nil {
		o.rules = append(o.rules, schema{
			"if":   schema{"properties": schema{"signer": schema{"const": SignerOnda}}, "required": []string{"signer"}},
			"then": schema{"not": schema{"required": []string{"dkim"}}},
			"else": schema{"required": []string{"dkim"}},
		})
	}
	o.check(func(d *decoder, n *node) {
		switch {
		case v.Signer == SignerRelay && n.get("dkim") == nil && (n.get("signer") == nil || n.get("signer").text == string(SignerRelay)):
			d.fail(n.position, `"dkim" is missing: the selectors that the relay signs with; or let Onda sign, with signer: onda`)
		case v.Signer == SignerOnda && n.get("dkim") != nil:
			d.fail(n.at("dkim"), "Onda's own selectors are made by onda domain key: leave dkim out")
		}
		if v.Domain != "" {
			at := n.get("domain").position
			d.later(func(c *checker) { c.oneOfDomain(at, v) })
		}
	})
}

// days are days of a warm-up.
type days struct{ first, last int }

// daysRule is a day such as 4, or several such as 1-3.
func daysRule() rule[days] {
	const pattern = `^[1-9][0-9]{0,2}(-[1-9][0-9]{0,2})?$`
	one := whole(1, 999)
	several := scalar("days such as 1-3", pattern, func(s string) (days, error) {
		from, to, found := strings.Cut(s, "-")
		first, err := strconv.Atoi(from)
		last := first
		if err == nil && found {
			last, err = strconv.Atoi(to)
		}
		if err != nil || last < first {
			return days{}, Problem{Msg: `not days: "` + s + `": write 4, or 1-3`}
		}
		return days{first, last}, nil
	})
	return rule[days]{
		read: func(d *decoder, n *node) (days, bool) {
			if n.kind == numberNode {
				day, ok := one.read(d, n)
				return days{day, day}, ok
			}
			return several.read(d, n)
		},
		schema: func(b *schemaBuilder) schema { return schema{"anyOf": []any{one.schema(b), several.schema(b)}} },
	}
}

// check sees to it that each day from the first to the last has its number of mails.
func (w *Warmup) check(d *decoder, n *node) {
	if w.From != nil && !w.From.day {
		d.fail(n.get("from").position, "a warm-up begins with a day: write it as 2026-06-30")
	}
	next := 1
	for i, some := range w.Days {
		if some.First == 0 {
			return // said already
		}
		at := n.get("days").items[i].position
		switch {
		case some.First > next && some.First == next+1:
			d.fail(at, "day %d is missing before day %d: a warm-up has every day from 1 to its last", next, some.First)
		case some.First > next:
			d.fail(at, "days %d to %d are missing before day %d: a warm-up has every day from 1 to its last", next, some.First-1, some.First)
		case some.First < next:
			d.fail(at, "day %d is there twice: the days before end with day %d", some.First, next-1)
		}
		next = some.Last + 1
	}
}

// oneOfDomain refuses two documents of one domain.
func (c *checker) oneOfDomain(at position, v *Domain) {
	for _, name := range c.names(KindDomain) {
		if other, ok := found[*Domain](c, KindDomain, name); ok && name != v.Name && other.Domain == v.Domain {
			c.fail(at, "the Domain %q is of %s too: one document a domain", name, v.Domain)
		}
	}
}

// hostNameRule is a domain in any alphabet, which is read into its ASCII form.
func hostNameRule() rule[string] {
	return scalar("a domain such as example.com", `^[^\s@/:,.]+(\.[^\s@/:,.]+)+$`, ASCIIDomain)
}

// ASCIIDomain gives a domain as DNS and SMTP have it: in lower case, labels of other alphabets as A-labels (RFC 5890). It is an error where it is none.
func ASCIIDomain(s string) (string, error) {
	a, err := idna.Lookup.ToASCII(strings.ToLower(s))
	labels := strings.Split(a, ".")
	bad := func(l string) bool {
		return l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != ""
	}
	if err != nil || len(a) > 253 || slices.ContainsFunc(labels, bad) {
		return "", Problem{Msg: `not a domain: "` + s + `"`}
	}
	return a, nil
}

// mechanismRule is a mechanism of SPF (RFC 7208 section 5) that names a relay.
func mechanismRule() rule[string] {
	return scalar("a mechanism of SPF such as include:spf.relay.example or ip4:192.0.2.1", `^((include|a|mx):[A-Za-z0-9_.-]+|ip[46]:[0-9A-Fa-f.:/]+)$`, func(s string) (string, error) {
		s = strings.ToLower(s)
		name, value, _ := strings.Cut(s, ":")
		if name != "ip4" && name != "ip6" {
			return s, nil
		}
		network, err := ParseNetwork(value)
		if err != nil {
			return "", Problem{Msg: `not an address or network: "` + value + `"`}
		}
		if network.Addr().Is4() != (name == "ip4") {
			return "", Problem{Msg: "not an address or network of " + name + `: "` + value + `"`}
		}
		return s, nil
	})
}

// ParseNetwork reads an address, or a network such as 192.0.2.0/24.
func ParseNetwork(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		return netip.ParsePrefix(s)
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}
