package spec

import (
	"net/netip"
	"slices"
	"strings"

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
