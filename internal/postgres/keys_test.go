package postgres

import (
	"errors"
	"testing"
	"time"
)

// Whoever makes numbers up costs no query a number, and no memory: those above all there are known by the highest.
func TestNumbersThatAreNone(t *testing.T) {
	t.Parallel()
	db, err := Open(Config{URL: "postgres://nobody@127.0.0.1:1/none"}) // any query fails
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	db.numbers[7] = "acme"
	db.unknown = unknownNumbers{until: time.Now().Add(time.Hour), highest: 9, below: map[int32]struct{}{8: {}}}
	for number, want := range map[int32]error{7: nil, 8: ErrUnknownTenant, 10: ErrUnknownTenant, 1 << 30: ErrUnknownTenant} {
		if _, err := db.TenantByNumber(t.Context(), number); !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", number, err, want)
		}
	}
	if _, err := db.TenantByNumber(t.Context(), 9); err == nil || errors.Is(err, ErrUnknownTenant) {
		t.Errorf("9 was not looked for: %v", err)
	}
	db.unknown.until = time.Now().Add(-time.Second)
	if _, err := db.TenantByNumber(t.Context(), 10); err == nil || errors.Is(err, ErrUnknownTenant) {
		t.Errorf("10 was not looked for again: %v", err)
	}
}
