package csvimport

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
)

func TestPostgresKnowsHowLargeTablesBecame(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var file strings.Builder
	file.WriteString("email\n")
	for i := range chunkRows {
		fmt.Fprintf(&file, "p%d@example.com\n", i)
	}
	if _, err := Import(context.Background(), db, "acme", strings.NewReader(file.String()), Options{}); err != nil {
		t.Fatal(err)
	}
	if n := pgtest.One[float32](t, db, "acme", "SELECT reltuples FROM pg_class WHERE oid = 'contact'::regclass"); n != chunkRows {
		t.Errorf("Postgres plans for %v contacts, want %d", n, chunkRows)
	}
}
