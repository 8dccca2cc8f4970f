// Package token signs and proves what Onda puts into public URLs and return paths, and makes the keys of programs.
//
// A token is lower-case base32 of at most [MaxLength] characters. It carries its purpose, the number of the key that
// signed it, the tenant's number and what its purpose needs for ever, followed by the first ten bytes of an HMAC-SHA-256
// over all of it. The invariant: there is exactly one way to write a token. Numbers are stored without leading zeros, no bit
// is left over, and a token that decodes but would not encode to the same text again is refused. Only the case may change on
// the way, since mail servers fold it in return paths.
//
// Nothing in a token is secret, and nothing in it is personal: ids only.
package token

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxLength is the longest a token can be, in characters. With a prefix of two it still fits the 64 octets that RFC 5321
// section 4.5.3.1.1 allows for the local part of a return path.
const MaxLength = 56

// Limits of what a token can carry. Sign answers an error beyond them.
const (
	MaxTenant   = 1<<31 - 1
	MaxContact  = 1<<48 - 1
	MaxDelivery = 1<<56 - 1 // batch id << 9 | number, so batches up to 2^47 - 1
	MaxLink     = 1<<48 - 1
	MaxTopic    = 1<<31 - 1
	MaxForm     = 1<<31 - 1
	maxHours    = 1<<24 - 1 // hours since epoch: until the year 3883
)

// MinSecret is the shortest secret that Sign and Verify accept, in bytes.
const MinSecret = 16

const macSize = 10

// domain separates these MACs from anything else that is ever signed with a tenant's key.
const domain = "onda token 1\x00"

var domainBytes = []byte(domain)

// Purpose is what a token is for: the letter of the public path it belongs to, or ReturnPath.
type Purpose byte

// The purposes of tokens, and the claims each carries besides tenant and key.
const (
	Unsubscribe Purpose = 'u' // contact, topic
	Preferences Purpose = 'p' // contact, topic
	Click       Purpose = 'c' // link, delivery (0 when tracked in aggregate)
	Open        Purpose = 'o' // delivery
	WebView     Purpose = 'w' // delivery
	Confirm     Purpose = 'y' // contact, topic, form version, expiry
	ReturnPath  Purpose = 'r' // delivery
)

// String gives the purpose's letter.
func (p Purpose) String() string { return string(rune(p)) }

// Claims is what a token says. Which fields beyond Purpose, Key and Tenant are carried depends on the purpose; the others must
// be zero when signing, so that nothing is lost unseen.
type Claims struct {
	Purpose  Purpose
	Key      uint8     // number of the tenant's key that signed it
	Tenant   int32     // tenant number, from 1
	Contact  int64     // up to MaxContact
	Delivery int64     // up to MaxDelivery
	Link     int64     // up to MaxLink
	Topic    int32     // topic number; 0 is all topics
	Form     int32     // id of the form's version
	Expires  time.Time // UTC; kept in whole hours, rounded up
}

// Expired tells whether the token had an expiry that lies before now, which callers take from onda.now().
func (c Claims) Expired(now time.Time) bool { return !c.Expires.IsZero() && now.After(c.Expires) }

// All errors of this package about a token that was presented match ErrInvalid: a public page answers 404 to each of them,
// and the log tells them apart.
var (
	ErrInvalid   = errors.New("invalid token")
	ErrMalformed = fmt.Errorf("%w: malformed", ErrInvalid)
	ErrTruncated = fmt.Errorf("%w: truncated", ErrInvalid)
	ErrPurpose   = fmt.Errorf("%w: made for another purpose", ErrInvalid)
	ErrKey       = fmt.Errorf("%w: signed with an unknown or expired key", ErrInvalid)
	ErrForged    = fmt.Errorf("%w: signature does not match", ErrInvalid)
)

// Key is one signing key of a tenant.
type Key struct {
	ID      uint8
	Secret  []byte    // at least MinSecret random bytes
	Retired time.Time // zero while it may sign
}

// Keys are all keys of one tenant, in any order.
type Keys []Key

// RetiredKeysVerify is how long a retired key still proves tokens other than Unsubscribe and Preferences, which it proves
// for ever.
const RetiredKeysVerify = 24 // months

// Current gives the key to sign with: the highest number that is not retired.
func (ks Keys) Current() (Key, bool) {
	var best Key
	found := false
	for _, k := range ks {
		if k.Retired.IsZero() && (!found || k.ID > best.ID) {
			best, found = k, true
		}
	}
	return best, found
}

// proving is the number in ks of the key that must prove claims; -1 when there is none, its secret is too short, or it does not count any more.
func (ks Keys) proving(c Claims, now time.Time) int {
	n := slices.IndexFunc(ks, func(k Key) bool { return k.ID == c.Key && len(k.Secret) >= MinSecret })
	if forever := c.Purpose == Unsubscribe || c.Purpose == Preferences; n >= 0 && !forever && !ks[n].Retired.IsZero() && now.After(ks[n].Retired.AddDate(0, RetiredKeysVerify, 0)) {
		return -1
	}
	return n
}

// Verifier proves many tokens with the keys of a tenant: their part of the MAC is half of what that costs, and is worked out once. Safe for concurrent use.
type Verifier struct {
	keys Keys
	macs []sync.Pool // of each key; of hash.Hash
}

// NewVerifier makes a verifier; a key whose secret has fewer than MinSecret bytes proves nothing.
func NewVerifier(keys Keys) *Verifier {
	v := &Verifier{keys, make([]sync.Pool, len(keys))}
	for n, k := range keys {
		v.macs[n].New = func() any { return hmac.New(sha256.New, k.Secret) }
	}
	return v
}

// Verify proves a token of the wanted purpose with the key that it names. The caller has found the tenant with Peek and loaded
// that tenant's keys; now decides whether a retired key still counts.
func (v *Verifier) Verify(tok string, want Purpose, now time.Time) (Claims, error) {
	c, raw, err := parseFor(tok, want)
	if err != nil {
		return Claims{}, err
	}
	n := v.keys.proving(c, now)
	if n < 0 {
		return Claims{}, ErrKey
	}
	mac, _ := v.macs[n].Get().(hash.Hash)
	defer v.macs[n].Put(mac)
	mac.Reset()
	return prove(c, raw, mac)
}

const alphabet = "abcdefghijklmnopqrstuvwxyz234567" // RFC 4648 section 6, in lower case

var encoding = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

// Sign makes a token. c.Key is set from key; claims that the purpose does not carry, or that exceed the limits above, are errors.
func Sign(key Key, c Claims) (string, error) {
	if len(key.Secret) < MinSecret {
		return "", tooShort(key)
	}
	c.Key = key.ID
	var buf [MaxLength]byte
	body, err := appendBody(buf[:0], &c, new(Claims))
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return encoding.EncodeToString(appendSum(body, hmac.New(sha256.New, key.Secret))), nil
}

// Signer signs many tokens with one key: its part of the MAC is half of what a token costs, and is worked out once. Safe for concurrent use.
type Signer struct {
	key     Key
	benches sync.Pool // of *signing
}

// signing is what making a token takes, kept from one to the next.
type signing struct {
	mac     hash.Hash
	claims  Claims
	carried Claims
	raw     [MaxLength + sha256.Size]byte
}

// NewSigner makes a signer; the key's secret has at least MinSecret bytes.
func NewSigner(key Key) (*Signer, error) {
	if len(key.Secret) < MinSecret {
		return nil, tooShort(key)
	}
	return &Signer{key: key, benches: sync.Pool{New: func() any { return &signing{mac: hmac.New(sha256.New, key.Secret)} }}}, nil
}

// Sign makes the token that the function Sign makes.
func (s *Signer) Sign(c Claims) (string, error) {
	var buf [MaxLength]byte
	b, err := s.Append(buf[:0], c)
	return string(b), err
}

// Append adds the token to b, and makes nothing else.
func (s *Signer) Append(b []byte, c Claims) ([]byte, error) {
	w, _ := s.benches.Get().(*signing)
	defer s.benches.Put(w)
	w.claims = c
	w.claims.Key = s.key.ID
	raw, err := appendBody(w.raw[:0], &w.claims, &w.carried)
	if err != nil {
		return b, fmt.Errorf("sign token: %w", err)
	}
	w.mac.Reset()
	return encoding.AppendEncode(b, appendSum(raw, w.mac)), nil
}

func tooShort(key Key) error {
	return fmt.Errorf("sign token: secret of key %d has %d bytes, needs at least %d", key.ID, len(key.Secret), MinSecret)
}

// Peek reads a token of the wanted purpose without proving it: only to find the tenant and the key that must prove it.
func Peek(tok string, want Purpose) (Claims, error) {
	c, _, err := parseFor(tok, want)
	return c, err
}

// prove compares a token's MAC with the one that it should have, in time that does not depend on where they differ.
func prove(c Claims, raw []byte, mac hash.Hash) (Claims, error) {
	body := raw[:len(raw)-macSize]
	var buf [MaxLength + sha256.Size]byte
	wanted := appendSum(append(buf[:0], body...), mac)
	if !hmac.Equal(wanted[len(body):], raw[len(body):]) {
		return Claims{}, ErrForged
	}
	return c, nil
}

// parseFor reads a token of the wanted purpose.
func parseFor(tok string, want Purpose) (Claims, []byte, error) {
	c, raw, err := parse(tok)
	if err != nil {
		return Claims{}, nil, err
	}
	if c.Purpose != want {
		return Claims{}, nil, ErrPurpose
	}
	return c, raw, nil
}

func appendSum(body []byte, h hash.Hash) []byte {
	h.Write(domainBytes)
	h.Write(body)
	return h.Sum(body)[:len(body)+macSize]
}

// field is a number that a token carries, with the bytes it may take.
type field struct {
	name string
	max  int64
	get  func(*Claims) int64
	set  func(*Claims, int64)
}

var (
	tenantField = field{
		"tenant", MaxTenant,
		func(c *Claims) int64 { return int64(c.Tenant) }, func(c *Claims, v int64) { c.Tenant = int32(v) },
	}
	contactField = field{
		"contact", MaxContact,
		func(c *Claims) int64 { return c.Contact }, func(c *Claims, v int64) { c.Contact = v },
	}
	deliveryField = field{
		"delivery", MaxDelivery,
		func(c *Claims) int64 { return c.Delivery }, func(c *Claims, v int64) { c.Delivery = v },
	}
	linkField = field{
		"link", MaxLink,
		func(c *Claims) int64 { return c.Link }, func(c *Claims, v int64) { c.Link = v },
	}
	topicField = field{
		"topic", MaxTopic,
		func(c *Claims) int64 { return int64(c.Topic) }, func(c *Claims, v int64) { c.Topic = int32(v) },
	}
	formField = field{
		"form", MaxForm,
		func(c *Claims) int64 { return int64(c.Form) }, func(c *Claims, v int64) { c.Form = int32(v) },
	}
	expiresField = field{
		"expires", maxHours,
		func(c *Claims) int64 { return hours(c.Expires) }, func(c *Claims, v int64) { c.Expires = fromHours(v) },
	}
)

func hours(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	if t.Unix() <= 0 {
		return -1 // never valid: reported as out of range
	}
	return t.Add(time.Hour-time.Nanosecond).Unix() / 3600
}

func fromHours(h int64) time.Time {
	if h == 0 {
		return time.Time{}
	}
	return time.Unix(h*3600, 0).UTC()
}

// kind is one purpose as it is written: its number never changes, since tokens live for ever.
type kind struct {
	purpose Purpose
	fields  []field
}

// kinds is indexed by the number that is stored. Numbers 8 to 15 are free for a later form of tokens.
var kinds = [...]kind{
	1: {Unsubscribe, []field{contactField, topicField}},
	2: {Preferences, []field{contactField, topicField}},
	3: {Click, []field{linkField, deliveryField}},
	4: {Open, []field{deliveryField}},
	5: {WebView, []field{deliveryField}},
	6: {Confirm, []field{contactField, topicField, formField, expiresField}},
	7: {ReturnPath, []field{deliveryField}},
}

// appendBody writes what is signed: kind and the tenant's length in one byte, the key, the lengths of the further numbers two
// a byte, then the numbers themselves, big-endian without leading zeros. The worst case, Confirm, is 2+2+4+6+4+4+3 = 25
// bytes; with the MAC 35, which is 56 characters. c's expiry is rounded; carried is scratch.
func appendBody(b []byte, c, carried *Claims) ([]byte, error) {
	n := 0
	for i, k := range kinds {
		if k.purpose == c.Purpose && i > 0 {
			n = i
		}
	}
	if n == 0 {
		return nil, fmt.Errorf("unknown purpose %q", c.Purpose)
	}
	if c.Tenant < 1 {
		return nil, fmt.Errorf("tenant number %d is not positive", c.Tenant)
	}
	fields := kinds[n].fields
	*carried = Claims{Purpose: c.Purpose, Key: c.Key, Tenant: c.Tenant}
	for _, f := range fields {
		v := f.get(c)
		if v < 0 || v > f.max {
			return nil, fmt.Errorf("%s %d is outside 0 to %d", f.name, v, f.max)
		}
		f.set(carried, v)
	}
	c.Expires = fromHours(hours(c.Expires))
	if *carried != *c {
		return nil, fmt.Errorf("a token of purpose %q carries only %s", c.Purpose, names(fields))
	}
	b = append(b, byte(n)<<4|byte(size(int64(c.Tenant))), c.Key)
	for i := 0; i < len(fields); i += 2 {
		lengths := byte(size(fields[i].get(c))) << 4
		if i+1 < len(fields) {
			lengths |= byte(size(fields[i+1].get(c)))
		}
		b = append(b, lengths)
	}
	b = appendNumber(b, int64(c.Tenant))
	for _, f := range fields {
		b = appendNumber(b, f.get(c))
	}
	return b, nil
}

func names(fields []field) string {
	s := make([]string, len(fields))
	for i, f := range fields {
		s[i] = f.name
	}
	return strings.Join(s, ", ")
}

// size is how many bytes a number takes; none for 0.
func size(v int64) int {
	n := 0
	for ; v > 0; v >>= 8 {
		n++
	}
	return n
}

func appendNumber(b []byte, v int64) []byte {
	for i := size(v) - 1; i >= 0; i-- {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}

// parse decodes a token and checks that it is written in the one way there is. It also gives all of its bytes.
func parse(tok string) (Claims, []byte, error) {
	raw, err := decode(tok)
	if err != nil {
		return Claims{}, nil, err
	}
	if len(raw) < 3+macSize {
		return Claims{}, nil, ErrTruncated
	}
	n, tenantSize := int(raw[0]>>4), int(raw[0]&15)
	if n == 0 || n >= len(kinds) {
		return Claims{}, nil, ErrMalformed
	}
	c := Claims{Purpose: kinds[n].purpose, Key: raw[1]}
	fields := kinds[n].fields
	head := 2 + (len(fields)+1)/2
	if len(raw) < head+macSize {
		return Claims{}, nil, ErrTruncated
	}
	lengths := raw[2:head]
	rest := raw[head : len(raw)-macSize]
	if rest, err = take(rest, tenantSize, tenantField, &c); err != nil {
		return Claims{}, nil, err
	}
	if c.Tenant == 0 {
		return Claims{}, nil, ErrMalformed
	}
	for i, f := range fields {
		length := int(lengths[i/2] >> 4)
		if i%2 == 1 {
			length = int(lengths[i/2] & 15)
		}
		if rest, err = take(rest, length, f, &c); err != nil {
			return Claims{}, nil, err
		}
	}
	if len(fields)%2 == 1 && lengths[len(fields)/2]&15 != 0 || len(rest) != 0 {
		return Claims{}, nil, ErrMalformed
	}
	return c, raw, nil
}

// take reads one number of n bytes into its claim.
func take(b []byte, n int, f field, c *Claims) ([]byte, error) {
	if n > size(f.max) {
		return nil, ErrMalformed
	}
	if n > len(b) {
		return nil, ErrTruncated
	}
	var v int64
	for _, x := range b[:n] {
		v = v<<8 | int64(x)
	}
	if size(v) != n || v > f.max {
		return nil, ErrMalformed
	}
	f.set(c, v)
	return b[n:], nil
}

// decode reads base32 as encoding writes it, and in capitals: the library's decoder ignores bits that are left over, so that one value has several texts, and makes two copies.
func decode(tok string) ([]byte, error) {
	if len(tok) > MaxLength {
		return nil, ErrMalformed
	}
	raw := make([]byte, 0, MaxLength*5/8)
	var acc uint32
	bits := 0 // of acc that are not in raw yet
	for i := range len(tok) {
		var v byte
		switch x := tok[i]; {
		case x >= 'a' && x <= 'z':
			v = x - 'a'
		case x >= 'A' && x <= 'Z':
			v = x - 'A'
		case x >= '2' && x <= '7':
			v = x - '2' + 26
		default:
			return nil, ErrMalformed
		}
		acc = acc<<5 | uint32(v)
		if bits += 5; bits >= 8 {
			bits -= 8
			raw = append(raw, byte(acc>>bits))
		}
	}
	switch {
	case bits >= 5:
		return nil, ErrTruncated // no number of whole bytes has this length
	case acc&(1<<bits-1) != 0:
		return nil, ErrMalformed
	}
	return raw, nil
}
