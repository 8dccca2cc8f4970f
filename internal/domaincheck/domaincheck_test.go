package domaincheck

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/dnstest"
	"github.com/onda-run/onda/internal/mail"
)

// found writes findings as a table has them: check, status, needed or not, detail, and records.
func found(r Report) (out []string) {
	for _, f := range r.Findings {
		line := fmt.Sprintf("%s %s: %s", f.Check, f.Status, f.Detail)
		if !f.Needed {
			line = "later " + line
		}
		for _, p := range f.Publish {
			line += " | " + p.String()
		}
		out = append(out, line)
	}
	return out
}

// good is a zone in which acme.example is right.
func good(t *testing.T) string {
	t.Helper()
	k, err := mail.NewDKIMKey("relay.example", "s1", mail.RSA)
	if err != nil {
		t.Fatal(err)
	}
	return zone + Record{"s1.relay.example", "TXT", k.Record()}.String() + "\n" // in pieces: it is longer than 255 bytes
}

const zone = `
acme.example. IN MX 10 mx.acme.example.
mx.acme.example. IN A 192.0.2.1
bounce.acme.example. IN CNAME bounce.onda.example.
bounce.onda.example. IN MX 10 in.onda.example.
bounce.onda.example. IN TXT "v=spf1 ip4:198.51.100.0/24 -all"
in.onda.example. IN A 198.51.100.9
_dmarc.acme.example. IN TXT "v=DMARC1; p=quarantine; adkim=s"
s1._domainkey.acme.example. IN CNAME s1.relay.example.
links.acme.example. IN CNAME track.onda.example.
track.onda.example. IN A 198.51.100.20
`

func wanted() Wanted {
	return Wanted{
		Domain: "acme.example", ReturnPath: "bounce.acme.example", Selectors: []string{"s1"}, LinkHost: "links.acme.example",
		Platform: "bounce.onda.example", LinkTo: "track.onda.example",
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	weak := "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDSdUOOGMmb9KZh02ootbqz+VJDsGTybUfnzwdd9aLLbaZpMIJmPcB4KIUkK+zhuQSUMsLefZWDRvclEcOyjWeRdmQPIbnZ8iSl8aqNXFKtb66x6aDjFoyue1WRJM38JyZmGwUVwEff8+hRXNDd7a0UXfm03jug/4tuEHkpWEEf6QIDAQAB"
	const publishSPF = ` | bounce.acme.example. TXT "v=spf1 include:bounce.onda.example ~all"`
	own := func(w *Wanted) { w.ReturnPath = "acme.example" }
	for name, c := range map[string]struct {
		without string // lines of the good zone that begin with it, separated by commas, are left out
		with    string
		want    func(w *Wanted)
		found   map[string]string // by check; the others are ok
	}{
		"right": {},
		"nothing is published": {without: "acme,bounce.acme,_dmarc,s1._,links", found: map[string]string{
			"spf":         "missing: there is no such record" + publishSPF,
			"dkim":        "missing: there is no such record: publish the one that the relay's operator gives for this selector",
			"dmarc":       `missing: there is no such record | _dmarc.acme.example. TXT "v=DMARC1; p=none"`,
			"return-path": "missing: there is no such record | bounce.acme.example. CNAME bounce.onda.example.",
			"mx":          "missing: there is no such record | acme.example. MX 10 the host that takes answers.",
			"link":        "missing: there is no such record | links.acme.example. CNAME track.onda.example.",
		}},
		"the return path is the domain itself": {want: own, with: `acme.example. IN TXT "v=spf1 mx -all"
acme.example. IN TXT "something else"
bounce.onda.example. IN MX 20 in2.onda.example.`, found: map[string]string{
			"spf":         `wrong: the record does not let the relay in: include:bounce.onda.example | acme.example. TXT "v=spf1 mx include:bounce.onda.example -all"`,
			"return-path": "wrong: bounces go to mx.acme.example, and not to where those of bounce.onda.example do | acme.example. MX 10 in.onda.example. | acme.example. MX 20 in2.onda.example.",
		}},
		"the return path's exchange is the platform's": {without: "bounce.acme", with: `bounce.acme.example. IN MX 5 in.onda.example.
bounce.acme.example. IN TXT "v=spf1 include:bounce.onda.example ~all"`},
		"the platform is not known": {want: func(w *Wanted) { w.Platform, w.LinkTo = "", "" }},
		"bounces go to no address":  {want: func(w *Wanted) { w.Platform = "" }, without: "in.onda", found: map[string]string{"return-path": "wrong: bounces go to in.onda.example, which has no address | bounce.acme.example. MX 10 the host that hands bounces to Onda."}},
		"null MX":                   {without: "acme.example", with: "acme.example. IN MX 0 .", found: map[string]string{"mx": "wrong: the domain says that it takes no mail (null MX, RFC 7505): many receivers refuse what is from it | acme.example. MX 10 the host that takes answers."}},
		"no MX, an address":         {without: "acme.example", with: "acme.example. IN A 192.0.2.7"},
		"links lead elsewhere":      {without: "links", with: "links.acme.example. IN A 192.0.2.7", found: map[string]string{"link": "wrong: it does not lead to track.onda.example | links.acme.example. CNAME track.onda.example."}},
		"no link host":              {without: "links", want: func(w *Wanted) { w.LinkHost = "" }},

		// SPF.
		"two records":                {with: `bounce.onda.example. IN TXT "v=spf1 a -all"`, found: map[string]string{"spf": "wrong: bounce.acme.example has 2 records, which is as good as none: make one of them" + publishSPF}},
		"the relay by its address":   {want: func(w *Wanted) { w.SPF = []string{"ip4:198.51.100.7", "ip4:198.51.100.128/25"} }},
		"an address outside":         {want: func(w *Wanted) { w.SPF = []string{"ip4:198.51.100.0/23"} }, found: map[string]string{"spf": `wrong: the record does not let the relay in: ip4:198.51.100.0/23 | bounce.acme.example. TXT "v=spf1 ip4:198.51.100.0/24 ip4:198.51.100.0/23 -all"`}},
		"the relay by its name":      {want: func(w *Wanted) { w.SPF = []string{"a:in.onda.example", "mx:bounce.onda.example"} }},
		"a relay that is elsewhere":  {want: func(w *Wanted) { w.Platform, w.LinkTo, w.Relay = "", "", "mx.acme.example" }, found: map[string]string{"spf": `wrong: the record does not let the relay in: a:mx.acme.example | bounce.acme.example. TXT "v=spf1 ip4:198.51.100.0/24 a:mx.acme.example -all"`}},
		"a relay of an IPv6 address": {want: func(w *Wanted) { w.Platform, w.LinkTo, w.Relay = "", "", "2001:db8::1" }, found: map[string]string{"spf": `wrong: the record does not let the relay in: ip6:2001:db8::1 | bounce.acme.example. TXT "v=spf1 ip4:198.51.100.0/24 ip6:2001:db8::1 -all"`}},
		"ten lookups":                spf("v=spf1 a:in.onda.example include:i1.example -all", 9, ""),
		"eleven lookups":             spf("v=spf1 a:in.onda.example include:i1.example -all", 10, "wrong: the record takes 11 lookups, and receivers stop after 10 (RFC 7208): include less"),
		"a circle":                   spf("v=spf1 include:i1.example include:acme.example -all", 1, "wrong: the record takes 22 lookups, and receivers stop after 10 (RFC 7208): include less"),
		"an include of nothing":      spf("v=spf1 include:no.example -all", 0, `wrong: it includes no.example, which has no record | acme.example. TXT "v=spf1 include:no.example ip4:203.0.113.1 -all"`),
		"too many voids":             spf("v=spf1 a:no1.example a:no2.example mx:no3.example ip4:203.0.113.1 -all", 0, "wrong: 3 names that the record asks for are not there, and receivers stop after 2: take them out"),
		"anybody":                    spf("v=spf1 ip4:203.0.113.1 all", 0, "wrong: +all lets anybody send as this domain: end it with ~all or -all"),
		"anybody by redirect":        spf("v=spf1 redirect=open.example", 0, "wrong: +all lets anybody send as this domain: end it with ~all or -all"),
		"nobody after all":           spf("v=spf1 -all ip4:203.0.113.1", 0, `wrong: the record does not let the relay in: ip4:203.0.113.1 | acme.example. TXT "v=spf1 -all ip4:203.0.113.1"`),
		"refused by name":            spf("v=spf1 -ip4:203.0.113.1 -include:net.example ~all", 0, `wrong: the record does not let the relay in: ip4:203.0.113.1 | acme.example. TXT "v=spf1 -ip4:203.0.113.1 -include:net.example ip4:203.0.113.1 ~all"`),
		"by an include":              spf("v=spf1 ?include:acme2.example include:net.example", 0, ""),
		"by a redirect":              spf("v=spf1 redirect=net.example", 0, ""),
		"by a network around a name": spf("v=spf1 a:near.example/24//64 -all", 0, ""),
		"by macros":                  spf("v=spf1 exists:%{i}._spf.example -all", 0, "ok: 1 of 10 lookups; whether it lets ip4:203.0.113.1 in depends on the mail (macros)"),
		"not a mechanism":            spf("v=spf1 ipv4:203.0.113.1 -all", 0, `wrong: acme.example has "ipv4", which is no mechanism of SPF | acme.example. TXT "v=spf1 ipv4:203.0.113.1 ip4:203.0.113.1 -all"`),
		"not a network":              spf("v=spf1 ip4:203.0.113.256 -all", 0, `wrong: acme.example has ip4:203.0.113.256, which is no network | acme.example. TXT "v=spf1 ip4:203.0.113.256 ip4:203.0.113.1 -all"`),

		// DKIM.
		"revoked":            dkim(`v=DKIM1; p=`, "wrong: the key is revoked (p= is empty)"),
		"another version":    dkim(`v=DKIM2; p=`+weak, "wrong: v=DKIM2: it must be DKIM1"),
		"no key in it":       dkim(`hello`, "wrong: there is a record, and no key in it (p=)"),
		"not base64":         dkim(`v=DKIM1; p=abc%`, "wrong: the key is not base64"),
		"not a key":          dkim(`v=DKIM1; p=aGVsbG8=`, "wrong: the key is not readable as one of k=rsa"),
		"half a key":         dkim(`v=DKIM1; k=ed25519; p=aGVsbG8=`, "wrong: the key has 5 bytes, and one of Ed25519 has 32"),
		"sha1 alone":         dkim(`v=DKIM1; h=sha1; p=`+weak, "wrong: h=sha1 does not let sha256 be used"),
		"being tried":        dkim(`t=y:s; p=`+weak, "ok: an RSA key of 1024 bits is published; t=y says that it is only being tried: take it away"),
		"pieces with blanks": dkim(`v=DKIM1; p=`+weak[:40]+" "+weak[40:], "ok: an RSA key of 1024 bits is published"),
		"Ed25519":            dkim("v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "ok: an Ed25519 key is published"),
		"two keys":           {with: `s1.relay.example. IN TXT "p=x"`, found: map[string]string{"dkim": "wrong: there are 2 keys of this selector, of which receivers may try any: keep one"}},

		// DMARC.
		"the organization's policy": {without: "_dmarc", want: func(w *Wanted) { w.Domain = "news.acme.example" }, with: `_dmarc.acme.example. IN TXT "v=DMARC1; p=reject; sp=quarantine; aspf=s"
news.acme.example. IN MX 10 mx.acme.example.
s1._domainkey.news.acme.example. IN CNAME s1.relay.example.`, found: map[string]string{
			"dmarc": "ok: p=quarantine; DKIM alone meets it, since the return path bounce.acme.example is not of the same domain",
		}},
		"a return path of another domain": {want: func(w *Wanted) { w.ReturnPath = w.Platform }, found: map[string]string{
			"dmarc": "ok: p=quarantine; DKIM alone meets it, since the return path bounce.onda.example is not of the same domain",
		}},
		"no policy in it":    dmarc("v=DMARC1; rua=mailto:x@acme.example", "p= is no policy: none, quarantine or reject"),
		"a policy of no use": dmarc("v=DMARC1; p=maybe", "p=maybe is no policy: none, quarantine or reject"),
		"not readable":       dmarc("v=DMARC1; p", "the record is not readable: v=DMARC1; p"),
		"two policies":       {with: `_dmarc.acme.example. IN TXT "v=DMARC1; p=none"`, found: map[string]string{"dmarc": `wrong: there are 2 policies, which is as good as none: keep one | _dmarc.acme.example. TXT "v=DMARC1; p=none"`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lines []string
			for line := range strings.Lines(good(t)) {
				out := false
				for _, name := range strings.Split(c.without, ",") {
					out = out || name != "" && strings.HasPrefix(line, name)
				}
				if !out {
					lines = append(lines, line)
				}
			}
			w := wanted()
			if c.want != nil {
				c.want(&w)
			}
			r := Check(t.Context(), NewResolver(dnstest.Serve(t, strings.Join(lines, "")+c.with+"\n")), w)
			right := true
			seen := map[string]bool{}
			for i, line := range found(r) {
				f := r.Findings[i]
				seen[f.Check] = true
				want, ok := c.found[f.Check]
				if got := strings.TrimPrefix(line, f.Check+" "); ok && got != want || !ok && f.Status != OK {
					t.Errorf("%s\n got %s\nwant %s", f.Check, got, want)
				}
				right = right && f.Status == OK
			}
			if r.OK() != right || r.Right() != right {
				t.Errorf("OK %v, Right %v, want %v", r.OK(), r.Right(), right)
			}
			for _, check := range []string{"spf", "dkim", "dmarc", "return-path", "mx"} {
				if !seen[check] {
					t.Errorf("%s was not checked", check)
				}
			}
		})
	}
}

type spfCase = struct {
	without string
	with    string
	want    func(w *Wanted)
	found   map[string]string
}

// spf is a case of a record of acme.example, which should let 203.0.113.1 in, with so many records that include each other: i1.example and so on.
func spf(record string, chain int, found string) (c spfCase) {
	c.with = "acme.example. IN TXT \"" + record + `"
acme2.example. IN TXT "v=spf1 -all"
net.example. IN TXT "v=spf1 ip4:203.0.113.0/24 -all"
open.example. IN TXT "v=spf1 +all"
near.example. IN A 203.0.113.200
near.example. IN AAAA 2001:db8::1
`
	for i := 1; i <= chain; i++ {
		next := fmt.Sprintf("include:i%d.example", i+1)
		if i == chain {
			next = "ip4:203.0.113.1"
		}
		c.with += fmt.Sprintf("i%d.example. IN TXT \"v=spf1 %s -all\"\n", i, next)
	}
	c.want = func(w *Wanted) { w.ReturnPath, w.Platform, w.SPF = "acme.example", "", []string{"ip4:203.0.113.1"} }
	if found != "" {
		c.found = map[string]string{"spf": found}
	}
	return c
}

func dkim(record, found string) spfCase {
	return spfCase{without: "s1._", with: Record{"s1._domainkey.acme.example", "TXT", record}.String(), found: map[string]string{"dkim": found}}
}

func dmarc(record, found string) spfCase {
	return spfCase{without: "_dmarc", with: Record{"_dmarc.acme.example", "TXT", record}.String(), found: map[string]string{"dmarc": "wrong: " + found + ` | _dmarc.acme.example. TXT "v=DMARC1; p=none"`}}
}

func TestOndasKeys(t *testing.T) {
	t.Parallel()
	var keys []mail.DKIMKey
	for selector, algorithm := range map[string]string{"r1": mail.RSA, "e1": mail.Ed25519, "r2": mail.RSA} {
		k, err := mail.NewDKIMKey("acme.example", selector, algorithm)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	publish := map[string]string{}
	for _, k := range keys {
		publish[k.Selector] = Record{k.Name(), "TXT", k.Record()}.String()
	}
	cut := Record{"r1._domainkey.acme.example", "TXT", strings.SplitAfterN(publish["r1"], "\"", 3)[1]}
	cut.Value = strings.TrimSuffix(cut.Value, "\"")
	for name, c := range map[string]struct {
		zone  string
		right bool
		found map[string]string
	}{
		"none":        {"", false, map[string]string{"r1": "missing", "e1": "missing", "r2": "missing"}},
		"the old one": {publish["r1"], true, map[string]string{"r1": "ok", "e1": "later missing", "r2": "later missing"}},
		"all":         {publish["r1"] + "\n" + publish["e1"] + "\n" + publish["r2"], true, map[string]string{"r1": "ok", "e1": "ok", "r2": "ok"}},
		"not RSA":     {publish["e1"], false, map[string]string{"r1": "missing", "e1": "ok", "r2": "missing"}},
		"another's":   {strings.Replace(publish["r2"], "r2.", "r1.", 1), false, map[string]string{"r1": "wrong: another key is published than the one that signs", "e1": "missing", "r2": "missing"}},
		"cut off":     {cut.String(), false, map[string]string{"r1": "wrong: only the beginning of the key is published: texts of more than 255 bytes are written in pieces", "e1": "missing", "r2": "missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := wanted()
			w.Selectors, w.Keys = nil, keys
			r := Check(t.Context(), NewResolver(dnstest.Serve(t, zone+c.zone+"\n")), w)
			got := map[string]string{}
			var published []string
			for i, line := range found(r) {
				f := r.Findings[i]
				if f.Check != "dkim" {
					continue
				}
				selector, _, _ := strings.Cut(f.Name, ".")
				line, records, _ := strings.Cut(line, " | ")
				if (f.Status == OK) != (records == "") || records != "" && records != publish[selector] {
					t.Errorf("%s: to be published is %q, want %q", selector, records, publish[selector])
				}
				if f.Status == OK {
					published = append(published, f.Name)
				}
				status, detail, _ := strings.Cut(strings.Replace(line, "dkim ", "", 1), ": ")
				if got[selector] = status; f.Status == Wrong {
					got[selector] += ": " + detail
				}
				got[selector] = strings.Replace(got[selector], "later ok", "ok", 1)
			}
			if diff := cmp.Diff(c.found, got); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(published, r.Published); diff != "" {
				t.Errorf("published (-want +got):\n%s", diff)
			}
			if r.Right() != c.right {
				t.Errorf("Right is %v, want %v", r.Right(), c.right)
			}
		})
	}
	w := wanted()
	w.Selectors = nil
	if r := Check(t.Context(), NewResolver(dnstest.Serve(t, zone)), w); r.Right() {
		t.Error("a domain without any key is right")
	}
}

// What DNS does not answer is not said to be missing.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	server := dnstest.Serve(t, zone)
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // nobody takes UDP there
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ server, domain, detail string }{
		"mute":    {server, "acme.mute.example", "DNS did not answer in time for "},
		"failing": {server, "acme.dead.example", "DNS does not answer for "},
		"away":    {closed.Addr().String(), "acme.example", "DNS does not answer for "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second) // of what answers at once
			defer cancel()
			w := Wanted{Domain: c.domain, ReturnPath: "bounce." + c.domain, LinkHost: "links." + c.domain, Platform: "bounce." + c.domain, Selectors: []string{"s1"}}
			r := Check(ctx, NewResolver(c.server), w)
			if len(r.Findings) != 6 || r.Right() {
				t.Errorf("%d findings, right: %v", len(r.Findings), r.Right())
			}
			for _, f := range r.Findings {
				if f.Status != Unanswered || !strings.HasPrefix(f.Detail, c.detail) {
					t.Errorf("%s is %s: %s", f.Check, f.Status, f.Detail)
				}
			}
		})
	}
}
