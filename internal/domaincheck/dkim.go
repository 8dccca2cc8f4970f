package domaincheck

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/mail"
)

// dkim asks for the keys: of Onda's, that what is published is ours; of the relay's, that it is a key.
func (c *check) dkim(ctx context.Context) []Finding {
	var out []Finding
	for _, selector := range c.Selectors {
		name := mail.DKIMName(selector, c.Domain)
		f := c.key(ctx, name, "")
		if f.Status == Missing {
			f.Detail += ": publish the one that the relay's operator gives for this selector"
		}
		out = append(out, f)
	}
	signs := false // with RSA, which every receiver knows
	for _, k := range c.Keys {
		f := c.key(ctx, k.Name(), k.Public())
		f.Needed = false
		if f.Status == OK {
			signs = signs || k.Algorithm() == mail.RSA
			c.published = append(c.published, k.Name())
		} else {
			f.Publish = []Record{{k.Name(), "TXT", k.Record()}}
		}
		out = append(out, f)
	}
	for i := range out {
		out[i].Needed = out[i].Needed || !signs && len(c.Keys) > 0
	}
	if len(out) == 0 {
		out = append(out, Finding{Check: "dkim", Name: c.Domain, Status: Missing, Needed: true, Detail: "there is no key: onda domain key makes one"})
	}
	return out
}

// key looks at the key of a name. public is what it must be; empty where that is not known.
func (c *check) key(ctx context.Context, name, public string) Finding {
	f := Finding{Check: "dkim", Name: name, Needed: true, Status: Wrong}
	records, err := c.txt(ctx, name)
	if err != nil {
		return finding("dkim", name, err)
	}
	records = slices.DeleteFunc(slices.Clone(records), func(s string) bool {
		_, ok := tags(s)["p"]
		return !ok
	})
	if len(records) == 0 {
		f.Detail = "there is a record, and no key in it (p=)"
		return f
	}
	if len(records) > 1 {
		f.Detail = fmt.Sprintf("there are %d keys of this selector, of which receivers may try any: keep one", len(records))
		return f
	}
	t := tags(records[0])
	hashes := strings.Split(t["h"], ":")
	switch {
	case t["v"] != "" && t["v"] != "DKIM1":
		f.Detail = fmt.Sprintf("v=%s: it must be DKIM1", t["v"])
	case t["p"] == "":
		f.Detail = "the key is revoked (p= is empty)"
	case t["h"] != "" && !slices.Contains(hashes, "sha256"):
		f.Detail = fmt.Sprintf("h=%s does not let sha256 be used", t["h"])
	case public != "" && t["p"] != public:
		f.Detail = "another key is published than the one that signs"
		if strings.HasPrefix(public, t["p"]) {
			f.Detail = "only the beginning of the key is published: texts of more than 255 bytes are written in pieces"
		}
	default:
		kind, err := keyOf(t["k"], t["p"])
		if err != nil {
			f.Detail = err.Error()
			return f
		}
		f.Status, f.Detail = OK, kind+" is published"
		if slices.Contains(strings.Split(t["t"], ":"), "y") {
			f.Detail += "; t=y says that it is only being tried: take it away"
		}
	}
	return f
}

// keyOf tells what key it is.
func keyOf(kind, public string) (string, error) {
	raw, err := base64.StdEncoding.DecodeString(public)
	if err != nil {
		return "", errors.New("the key is not base64")
	}
	if kind == mail.Ed25519 {
		if len(raw) != 32 {
			return "", fmt.Errorf("the key has %d bytes, and one of Ed25519 has 32", len(raw))
		}
		return "an Ed25519 key", nil
	}
	parsed, err := x509.ParsePKIXPublicKey(raw)
	if err != nil {
		parsed, err = x509.ParsePKCS1PublicKey(raw)
	}
	k, ok := parsed.(*rsa.PublicKey)
	switch {
	case err != nil || !ok || kind != "" && kind != mail.RSA:
		return "", fmt.Errorf("the key is not readable as one of k=%s", orRSA(kind))
	case k.N.BitLen() < 1024:
		return "", fmt.Errorf("the key has %d bits: receivers ignore less than 1024 (RFC 8301)", k.N.BitLen())
	}
	return fmt.Sprintf("an RSA key of %d bits", k.N.BitLen()), nil
}

func orRSA(kind string) string {
	if kind == "" {
		return mail.RSA
	}
	return kind
}
