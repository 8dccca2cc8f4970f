package main

import (
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
)

func TestEveryReasonIsSaidInWords(t *testing.T) {
	t.Parallel()
	reasons := pgtest.All[string](t, pgtest.New(t).DB(t), "acme", `SELECT r[1] FROM pg_constraint, regexp_matches(pg_get_constraintdef(oid), '''(\w+)''', 'g') r
		WHERE conrelid = 'delivery'::regclass AND conname = 'delivery_reason_check'`)
	if len(reasons) < 13 {
		t.Errorf("the reasons of a delivery are %v", reasons)
	}
	for _, r := range reasons {
		if reasonText(r) == r {
			t.Errorf("%s is not said in words", r)
		}
	}
}
