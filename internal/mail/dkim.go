package mail

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
)

// DKIM's algorithms of keys.
const (
	RSA     = "rsa"     // 2048 bits (RFC 8301); every receiver knows it
	Ed25519 = "ed25519" // RFC 8463; not every one does, so it comes beside an RSA key
)

// rsaBits is the size of new RSA keys, and the least of those that sign.
const rsaBits = 2048

// DKIMKey is a private key with the place where its public one is published.
type DKIMKey struct {
	Domain   string // in ASCII
	Selector string
	private  crypto.Signer
}

// NewDKIMKey makes a key of an algorithm.
func NewDKIMKey(domain, selector, algorithm string) (k DKIMKey, err error) {
	k = DKIMKey{Domain: domain, Selector: selector}
	switch algorithm {
	case RSA:
		k.private, err = rsa.GenerateKey(rand.Reader, rsaBits)
	case Ed25519:
		_, k.private, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("no algorithm %q: want %s or %s", algorithm, RSA, Ed25519)
	}
	if err != nil {
		return DKIMKey{}, fmt.Errorf("make a DKIM key: %w", err)
	}
	return k, nil
}

// ReadDKIMKey reads what DKIMKey.Private gave. The error says what is wrong with the key and never shows it.
func ReadDKIMKey(domain, selector string, private []byte) (DKIMKey, error) {
	k := DKIMKey{Domain: domain, Selector: selector}
	bad := func(why string) (DKIMKey, error) {
		return DKIMKey{}, fmt.Errorf("DKIM key of %s: %s", k.Name(), why)
	}
	if len(private) == 0 {
		return bad("it is empty")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		return bad("it is not readable as PKCS #8")
	}
	switch p := parsed.(type) {
	case *rsa.PrivateKey:
		if p.N.BitLen() < rsaBits {
			return bad(fmt.Sprintf("it has %d bits, and %d are needed", p.N.BitLen(), rsaBits))
		}
		k.private = p
	case ed25519.PrivateKey:
		k.private = p
	default:
		return bad(fmt.Sprintf("it is a %T, and neither RSA nor Ed25519", parsed))
	}
	return k, nil
}

// Private gives the key as PKCS #8.
func (k DKIMKey) Private() ([]byte, error) {
	b, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("write DKIM key of %s: %w", k.Name(), err)
	}
	return b, nil
}

// Algorithm is RSA or Ed25519.
func (k DKIMKey) Algorithm() string {
	if _, ok := k.private.(ed25519.PrivateKey); ok {
		return Ed25519
	}
	return RSA
}

// Name is where the public key is published in DNS (RFC 6376 section 3.6.2.1).
func (k DKIMKey) Name() string { return DKIMName(k.Selector, k.Domain) }

// DKIMName is where the key of a selector is published.
func DKIMName(selector, domain string) string { return selector + "._domainkey." + domain }

// Public is p= of the record: the public key in base64.
func (k DKIMKey) Public() string {
	pub := k.private.Public()
	if p, ok := pub.(ed25519.PublicKey); ok { // bare, RFC 8463 section 4.2
		return base64.StdEncoding.EncodeToString(p)
	}
	b, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil { // of an RSA key it always works
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

// Record is the TXT record to publish.
func (k DKIMKey) Record() string { return "v=DKIM1; k=" + k.Algorithm() + "; p=" + k.Public() }

// Signer signs messages with DKIM (RFC 6376), with each of its keys. Safe for concurrent use.
type Signer struct {
	keys []DKIMKey
}

// NewSigner makes a signer of one key or several, such as an RSA and an Ed25519 one: each makes a signature.
func NewSigner(keys ...DKIMKey) (*Signer, error) {
	if len(keys) == 0 {
		return nil, errors.New("sign with DKIM: there is no key")
	}
	for _, k := range keys {
		if k.private == nil {
			return nil, fmt.Errorf("sign with DKIM: there is no key of %s", k.Name())
		}
	}
	return &Signer{keys: keys}, nil
}

// signedFields are what a signature covers: where a message has them, since a field that is named and absent only makes the signature longer. From is named once more
// than it is there, so that nobody can add another (RFC 6376 section 8.15).
func signedFields() []string {
	return []string{
		"From", "Reply-To", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
		"List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Feedback-ID", "Auto-Submitted",
	}
}

// Sign writes behind dst the header fields that sign content and its tail, which they go before: a whole message whose lines end with CRLF.
func (s *Signer) Sign(dst, content, tail []byte) ([]byte, error) {
	fields, err := present(content)
	if err != nil {
		return dst, fmt.Errorf("sign with DKIM: %w", err)
	}
	for _, k := range s.keys {
		signer, err := dkim.NewSigner(&dkim.SignOptions{
			Domain: k.Domain, Selector: k.Selector, Signer: k.private, Hash: crypto.SHA256, HeaderKeys: fields,
			// Relays fold header fields anew. Bodies stay as they are: ours are quoted-printable.
			HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationSimple,
		})
		if err != nil {
			return dst, fmt.Errorf("sign with DKIM key of %s: %w", k.Name(), err)
		}
		if _, err = signer.Write(content); err == nil && len(tail) > 0 {
			_, err = signer.Write(tail)
		}
		if closed := signer.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return dst, fmt.Errorf("sign with DKIM key of %s: %w", k.Name(), err)
		}
		dst = append(dst, signer.Signature()...)
	}
	return dst, nil
}

// present gives the fields to be signed of those that a message has.
func present(content []byte) ([]string, error) {
	head, _, ok := bytes.Cut(content, []byte("\r\n\r\n"))
	if !ok {
		return nil, errors.New("the message has no end of its header, CRLF twice")
	}
	there := map[string]int{}
	for line := range bytes.SplitSeq(head, []byte("\r\n")) {
		if name, _, ok := bytes.Cut(line, []byte(":")); ok && line[0] != ' ' && line[0] != '\t' {
			there[strings.ToLower(string(bytes.TrimRight(name, " \t")))]++
		}
	}
	if there["from"] == 0 {
		return nil, errors.New("the message has no From")
	}
	there["from"]++
	fields := make([]string, 0, 16)
	for _, f := range signedFields() {
		for range there[strings.ToLower(f)] {
			fields = append(fields, f)
		}
	}
	return fields, nil
}
