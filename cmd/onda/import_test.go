package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/csvimport"
)

// What became of withdrawals is told, and that suppressed addresses are in no export.
func TestAnImportTellsOfWithdrawals(t *testing.T) {
	t.Parallel()
	res := csvimport.Result{Rows: 9, Made: 9, OptedOut: 3, KeptIn: 1, Exported: true}
	var text, data strings.Builder
	for _, s := range []*session{{stdout: &text, stderr: &text}, {stdout: &data, stderr: &data, json: true}} {
		if err := (importCmd{}).tell(s, "people.csv", res, csvimport.NewRejects("")); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"3 withdrawals new", "1 withdrawal not taken", "which addresses are suppressed"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("nothing of %q in:\n%s", want, text.String())
		}
	}
	var got csvimport.Result
	if err := json.Unmarshal([]byte(data.String()), &got); err != nil || got.OptedOut != 3 || got.KeptIn != 1 || !got.Exported {
		t.Errorf("%v of %s", err, data.String())
	}
}
