package token_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/token"
)

func TestProgramKeyRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom([]token.KeyKind{token.PublicKey, token.SecretKey}).Draw(t, "kind")
		tenant := rapid.Int32Range(1, token.MaxTenant).Draw(t, "tenant")
		k, err := token.NewProgramKey(kind, tenant)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("onda_%s_%d_", kind, tenant); !strings.HasPrefix(k.Reveal(), want) || len(k.Reveal()) != len(want)+32 {
			t.Fatalf("key %s does not have the form %s<32>", k.Reveal(), want)
		}
		again, err := token.ParseProgramKey(k.Reveal())
		if err != nil || again != k || again.Hash() != sha256.Sum256([]byte(k.Reveal())) {
			t.Fatalf("parsed %+v, %v", again, err)
		}
		if strings.Contains(fmt.Sprint(k), k.Reveal()[len(k.Reveal())-32:]) {
			t.Fatal("printing a key shows its secret")
		}
	})
}

func TestProgramKeyRefuses(t *testing.T) {
	t.Parallel()
	secret := strings.Repeat("a", 32)
	for _, s := range []string{
		"", "onda", "onda_pk_1", "onda_xk_1_" + secret, "onda_pk_0_" + secret, "onda_pk_-1_" + secret, "onda_pk_+1_" + secret,
		"onda_pk_01_" + secret, "onda_pk_2147483648_" + secret, "onda_pk_1_" + secret[1:], "onda_pk_1_" + secret + "a",
		"onda_pk_1_" + strings.ToUpper(secret), "ONDA_pk_1_" + secret, "onda_pk_1_" + secret[1:] + "1", "onda_pk_1_" + secret + "\n",
	} {
		if k, err := token.ParseProgramKey(s); !errors.Is(err, token.ErrProgramKey) {
			t.Errorf("%q was read as %v, %v", s, k, err)
		}
	}
	if _, err := token.NewProgramKey("xk", 1); err == nil {
		t.Error("an unknown kind was accepted")
	}
	if _, err := token.NewProgramKey(token.PublicKey, 0); err == nil {
		t.Error("tenant 0 was accepted")
	}
}
