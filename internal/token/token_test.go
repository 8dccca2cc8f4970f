package token_test

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/token"
)

const alphabet = "abcdefghijklmnopqrstuvwxyz234567"

func key(id uint8) token.Key {
	return token.Key{ID: id, Secret: bytes.Repeat([]byte{id + 1}, 32)}
}

// largest holds, for each purpose, the claims that take most room.
func largest() []token.Claims {
	at := time.Date(3880, 1, 1, 0, 0, 0, 0, time.UTC)
	return []token.Claims{
		{Purpose: token.Unsubscribe, Tenant: token.MaxTenant, Contact: token.MaxContact, Topic: token.MaxTopic},
		{Purpose: token.Preferences, Tenant: token.MaxTenant, Contact: token.MaxContact, Topic: token.MaxTopic},
		{Purpose: token.Click, Tenant: token.MaxTenant, Link: token.MaxLink, Delivery: token.MaxDelivery},
		{Purpose: token.Open, Tenant: token.MaxTenant, Delivery: token.MaxDelivery},
		{Purpose: token.WebView, Tenant: token.MaxTenant, Delivery: token.MaxDelivery},
		{Purpose: token.Confirm, Tenant: token.MaxTenant, Contact: token.MaxContact, Topic: token.MaxTopic, Form: token.MaxForm, Expires: at},
		{Purpose: token.ReturnPath, Tenant: token.MaxTenant, Delivery: token.MaxDelivery},
	}
}

// verify proves a token with a secret, whichever key the token names.
func verify(secret []byte, tok string, want token.Purpose) (token.Claims, error) {
	c, err := token.Peek(tok, want)
	if err != nil {
		return c, err
	}
	return token.NewVerifier(token.Keys{{ID: c.Key, Secret: secret}}).Verify(tok, want, time.Now())
}

func TestLargestClaimsFit(t *testing.T) {
	t.Parallel()
	longest := 0
	for _, c := range largest() {
		tok, err := token.Sign(key(255), c)
		if err != nil {
			t.Fatalf("%s: %v", c.Purpose, err)
		}
		longest = max(longest, len(tok))
		c.Key = 255
		got, err := verify(key(255).Secret, tok, c.Purpose)
		if err != nil {
			t.Fatalf("%s: %v", c.Purpose, err)
		}
		if diff := cmp.Diff(c, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.Purpose, diff)
		}
	}
	if longest != token.MaxLength {
		t.Errorf("the longest token has %d characters, MaxLength is %d", longest, token.MaxLength)
	}
}

// TestFormIsFrozen pins the written form: tokens in mails that were sent must be read for ever.
func TestFormIsFrozen(t *testing.T) {
	t.Parallel()
	tests := []struct {
		claims token.Claims
		want   string
	}{
		{token.Claims{Purpose: token.Unsubscribe, Tenant: 7, Contact: 123456, Topic: 3}, "ceatcbyb4jaagc6st6zusoqhodvag"},
		{token.Claims{Purpose: token.Click, Tenant: 7, Link: 12, Delivery: 99<<9 | 500}, "gearebymy72n7phamhke25c6z57a"},
		{token.Claims{Purpose: token.ReturnPath, Tenant: 7, Delivery: 99<<9 | 500}, "oeasab6h6qkdausligosynbrr4"},
		{token.Claims{Purpose: token.Confirm, Tenant: 7, Contact: 5, Topic: 3, Form: 2, Expires: time.Date(2027, 1, 2, 3, 0, 0, 0, time.UTC)}, "mearceyhaubqeb474nbb7476pozkl4feuu"},
	}
	for _, tt := range tests {
		got, err := token.Sign(key(1), tt.claims)
		if err != nil {
			t.Fatal(err)
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.claims.Purpose, got, tt.want)
		}
	}
}

func claims() *rapid.Generator[token.Claims] {
	return rapid.Custom(func(t *rapid.T) token.Claims {
		c := token.Claims{
			Purpose: rapid.SampledFrom([]token.Purpose{'u', 'p', 'c', 'o', 'w', 'y', 'r'}).Draw(t, "purpose"),
			Key:     rapid.Uint8().Draw(t, "key"),
			Tenant:  rapid.Int32Range(1, token.MaxTenant).Draw(t, "tenant"),
		}
		switch c.Purpose {
		case token.Unsubscribe, token.Preferences:
			c.Contact = rapid.Int64Range(0, token.MaxContact).Draw(t, "contact")
			c.Topic = rapid.Int32Range(0, token.MaxTopic).Draw(t, "topic")
		case token.Click:
			c.Link = rapid.Int64Range(0, token.MaxLink).Draw(t, "link")
			c.Delivery = rapid.Int64Range(0, token.MaxDelivery).Draw(t, "delivery")
		case token.Confirm:
			c.Contact = rapid.Int64Range(0, token.MaxContact).Draw(t, "contact")
			c.Topic = rapid.Int32Range(0, token.MaxTopic).Draw(t, "topic")
			c.Form = rapid.Int32Range(0, token.MaxForm).Draw(t, "form")
			c.Expires = time.Unix(3600*rapid.Int64Range(1, 1<<24-1).Draw(t, "hours"), 0).UTC()
		case token.Open, token.WebView, token.ReturnPath:
			c.Delivery = rapid.Int64Range(0, token.MaxDelivery).Draw(t, "delivery")
		}
		return c
	})
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := claims().Draw(t, "claims")
		tok, err := token.Sign(key(c.Key), c)
		if err != nil {
			t.Fatal(err)
		}
		if len(tok) > token.MaxLength || strings.Trim(tok, alphabet) != "" {
			t.Fatalf("not a token: %q", tok)
		}
		for _, in := range []string{tok, strings.ToUpper(tok)} {
			got, err := verify(key(c.Key).Secret, in, c.Purpose)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c, got); diff != "" {
				t.Fatalf("(-want +got):\n%s", diff)
			}
			if peeked, err := token.Peek(in, c.Purpose); err != nil || peeked != c {
				t.Fatalf("Peek: %+v, %v", peeked, err)
			}
		}
	})
}

// TestAnyChangeIsRefused changes, in every position, the character to every other one, cuts and lengthens.
func TestAnyChangeIsRefused(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := claims().Draw(t, "claims")
		k := key(c.Key)
		tok, err := token.Sign(k, c)
		if err != nil {
			t.Fatal(err)
		}
		refuse := func(forged string) {
			if forged == tok {
				return
			}
			for _, p := range []token.Purpose{'u', 'p', 'c', 'o', 'w', 'y', 'r'} {
				if got, err := verify(k.Secret, forged, p); !errors.Is(err, token.ErrInvalid) {
					t.Fatalf("%q was read as %+v, %v", forged, got, err)
				}
			}
		}
		i := rapid.IntRange(0, len(tok)-1).Draw(t, "position")
		for _, r := range alphabet + "0189-_=.\n\r\x00" {
			refuse(tok[:i] + string(r) + tok[i+1:])
			refuse(tok[:i] + string(r) + tok[i:])
			refuse(tok + string(r))
		}
		refuse(tok[:i])
		refuse(tok[i+1:])
		refuse(tok[:i] + tok[i+1:])
	})
}

func TestErrorsAreTold(t *testing.T) {
	t.Parallel()
	k := key(3)
	tok, err := token.Sign(k, token.Claims{Purpose: token.Unsubscribe, Tenant: 7, Contact: 1, Topic: 2})
	if err != nil {
		t.Fatal(err)
	}
	last := "a"
	if strings.HasSuffix(tok, "a") {
		last = "e"
	}
	tests := []struct {
		name   string
		secret []byte
		tok    string
		want   token.Purpose
		err    error
	}{
		{"empty", k.Secret, "", 'u', token.ErrTruncated},
		{"not base32", k.Secret, "hello, world", 'u', token.ErrMalformed},
		{"too long", k.Secret, strings.Repeat("a", 57), 'u', token.ErrMalformed},
		{"very long", k.Secret, strings.Repeat("a", 1<<20), 'u', token.ErrMalformed},
		{"truncated", k.Secret, tok[:16], 'u', token.ErrTruncated},
		{"truncated to no whole byte", k.Secret, tok[:17], 'u', token.ErrTruncated},
		{"other purpose", k.Secret, tok, 'p', token.ErrPurpose},
		{"other tenant's key", bytes.Repeat([]byte{9}, 32), tok, 'u', token.ErrForged},
		{"no secret", nil, tok, 'u', token.ErrKey},
		{"changed signature", k.Secret, tok[:len(tok)-2] + last + tok[len(tok)-1:], 'u', token.ErrForged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := verify(tt.secret, tt.tok, tt.want)
			if !errors.Is(err, tt.err) || !errors.Is(err, token.ErrInvalid) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		claims token.Claims
		want   string
	}{
		{"no purpose", token.Claims{Tenant: 1}, "unknown purpose"},
		{"no tenant", token.Claims{Purpose: token.Open, Delivery: 1}, "tenant number 0"},
		{"negative", token.Claims{Purpose: token.Open, Tenant: 1, Delivery: -1}, "delivery -1 is outside"},
		{"contact too large", token.Claims{Purpose: token.Unsubscribe, Tenant: 1, Contact: token.MaxContact + 1}, "contact 281474976710656 is outside"},
		{"not carried", token.Claims{Purpose: token.Open, Tenant: 1, Delivery: 1, Contact: 2}, "carries only delivery"},
		{"expiry not carried", token.Claims{Purpose: token.Open, Tenant: 1, Expires: time.Unix(7200, 0)}, "carries only delivery"},
		{"expiry before 1970", token.Claims{Purpose: token.Confirm, Tenant: 1, Expires: time.Unix(-1, 0)}, "expires -1 is outside"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := token.Sign(key(1), tt.claims)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := token.Sign(token.Key{Secret: []byte("short")}, token.Claims{Purpose: token.Open, Tenant: 1}); err == nil {
		t.Error("a short secret was accepted")
	}
}

func TestExpiryIsRoundedUp(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 24, 15, 0, 1, 0, time.FixedZone("", 3600))
	tok, err := token.Sign(key(1), token.Claims{Purpose: token.Confirm, Tenant: 1, Contact: 1, Topic: 1, Form: 1, Expires: at})
	if err != nil {
		t.Fatal(err)
	}
	c, err := verify(key(1).Secret, tok, token.Confirm)
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2026, 11, 24, 15, 0, 0, 0, time.UTC); !c.Expires.Equal(want) {
		t.Errorf("expires %v, want %v", c.Expires, want)
	}
	if c.Expired(at) || !c.Expired(at.Add(time.Hour)) {
		t.Error("expiry is judged wrongly")
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	retired := time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
	old, current, next := key(1), key(2), key(3)
	old.Retired, next.Retired = retired, retired
	keys := token.Keys{old, next, current}
	if k, ok := keys.Current(); !ok || k.ID != 2 {
		t.Errorf("current key is %d, %v", k.ID, ok)
	}
	if _, ok := (token.Keys{old}).Current(); ok {
		t.Error("a retired key would sign")
	}
	unsub, err := token.Sign(old, token.Claims{Purpose: token.Unsubscribe, Tenant: 1, Contact: 1, Topic: 1})
	if err != nil {
		t.Fatal(err)
	}
	click, err := token.Sign(old, token.Claims{Purpose: token.Click, Tenant: 1, Link: 1, Delivery: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		keys    token.Keys
		tok     string
		purpose token.Purpose
		now     time.Time
		err     error
	}{
		{"unsubscribe after a century", keys, unsub, 'u', retired.AddDate(100, 0, 0), nil},
		{"click within 24 months", keys, click, 'c', retired.AddDate(0, 24, 0), nil},
		{"click after 24 months", keys, click, 'c', retired.AddDate(0, 24, 1), token.ErrKey},
		{"unknown key", token.Keys{current}, click, 'c', retired, token.ErrKey},
		{"other purpose", keys, click, 'o', retired, token.ErrPurpose},
		{"forged", token.Keys{{ID: 1, Secret: bytes.Repeat([]byte("x"), 32)}}, click, 'c', retired, token.ErrForged},
	} {
		if _, err := token.NewVerifier(tt.keys).Verify(tt.tok, tt.purpose, tt.now); !errors.Is(err, tt.err) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	for _, c := range largest() {
		tok, err := token.Sign(key(1), c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(tok)
		f.Add(strings.ToUpper(tok))
		f.Add(tok[:len(tok)/2])
	}
	f.Add("")
	f.Add("\u212a")
	f.Fuzz(func(t *testing.T, tok string) {
		for _, p := range []token.Purpose{'u', 'p', 'c', 'o', 'w', 'y', 'r'} {
			c, err := verify(key(1).Secret, tok, p)
			if err != nil {
				if !errors.Is(err, token.ErrInvalid) {
					t.Fatalf("untyped error %v", err)
				}
				continue
			}
			again, err := token.Sign(key(c.Key), c)
			if c.Key == 1 && (err != nil || again != strings.ToLower(tok)) {
				t.Fatalf("%q proves, but its claims sign as %q, %v", tok, again, err)
			}
		}
	})
}

// A signer gives the tokens that Sign gives, whoever else it signs for at the same time.
func TestSignerSignsTheSame(t *testing.T) {
	t.Parallel()
	key := token.Key{ID: 3, Secret: []byte("0123456789abcdef0123456789abcdef")}
	s, err := token.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for n := int64(1); n < 500; n++ {
				c := token.Claims{Purpose: token.Click, Tenant: 7, Link: n, Delivery: n << g}
				got, err := s.Sign(c)
				want, wantErr := token.Sign(key, c)
				if got != want || err != nil || wantErr != nil {
					t.Errorf("%+v: %q, %v; want %q, %v", c, got, err, want, wantErr)
					return
				}
			}
		})
	}
	all.Wait()
	if _, err := s.Sign(token.Claims{Purpose: token.Click}); err == nil {
		t.Error("claims of no tenant are signed")
	}
	if _, err := token.NewSigner(token.Key{Secret: []byte("short")}); err == nil {
		t.Error("a short secret is taken")
	}
}
