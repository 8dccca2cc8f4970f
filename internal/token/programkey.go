package token

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
)

// KeyKind tells what a program's key may do.
type KeyKind string

// A public key is for browsers and only adds a visitor's events; a secret key may identify contacts and send mails.
const (
	PublicKey KeyKind = "pk"
	SecretKey KeyKind = "sk"
)

// ProgramKey is the key of a program: onda_{pk,sk}_<tenant number>_<32 base32>.
type ProgramKey struct {
	Kind   KeyKind
	Tenant int32
	text   string
}

// ErrProgramKey is what ParseProgramKey answers to anything that is not a key; it never quotes what it was given.
var ErrProgramKey = fmt.Errorf("not a program key: want onda_pk_<tenant>_<32 characters> or onda_sk_<tenant>_<32 characters>")

const programKeySecret = 32 // characters: 20 random bytes

// NewProgramKey makes a random key for a tenant. Its Reveal is shown once; only its Hash is stored.
func NewProgramKey(kind KeyKind, tenant int32) (ProgramKey, error) {
	if kind != PublicKey && kind != SecretKey {
		return ProgramKey{}, fmt.Errorf("make program key: unknown kind %q", kind)
	}
	if tenant < 1 {
		return ProgramKey{}, fmt.Errorf("make program key: tenant number %d is not positive", tenant)
	}
	var secret [programKeySecret * 5 / 8]byte
	_, _ = rand.Read(secret[:]) // never fails: the program ends if the system has no randomness
	text := "onda_" + string(kind) + "_" + strconv.Itoa(int(tenant)) + "_" + encoding.EncodeToString(secret[:])
	return ProgramKey{Kind: kind, Tenant: tenant, text: text}, nil
}

// ParseProgramKey reads a key that was presented; it proves nothing, the stored Hash does.
func ParseProgramKey(s string) (ProgramKey, error) {
	parts := strings.Split(s, "_")
	if len(parts) != 4 || parts[0] != "onda" {
		return ProgramKey{}, ErrProgramKey
	}
	kind := KeyKind(parts[1])
	if kind != PublicKey && kind != SecretKey {
		return ProgramKey{}, ErrProgramKey
	}
	tenant, err := strconv.ParseInt(parts[2], 10, 32)
	if err != nil || tenant < 1 || strconv.FormatInt(tenant, 10) != parts[2] {
		return ProgramKey{}, ErrProgramKey
	}
	if len(parts[3]) != programKeySecret || strings.Trim(parts[3], alphabet) != "" {
		return ProgramKey{}, ErrProgramKey
	}
	return ProgramKey{Kind: kind, Tenant: int32(tenant), text: s}, nil
}

// Reveal gives the key's text. String does not, so that a key printed by mistake stays secret.
func (k ProgramKey) Reveal() string { return k.text }

// String gives the key without its secret part, for logs and lists.
func (k ProgramKey) String() string {
	return "onda_" + string(k.Kind) + "_" + strconv.Itoa(int(k.Tenant)) + "_…"
}

// Hash gives the SHA-256 of the key's text: what is stored and looked up. The key is random, so it needs no salt, and looking a
// hash up leaks nothing by its timing.
func (k ProgramKey) Hash() [sha256.Size]byte { return sha256.Sum256([]byte(k.text)) }
