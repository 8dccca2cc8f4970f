package segment

import (
	"context"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
)

// BenchmarkRebuild1000000 makes a segment of a million contacts in full.
func BenchmarkRebuild1000000(b *testing.B) {
	const contacts = 1_000_000
	w := newWorld(b)
	const insert = `INSERT INTO contact (email, fields) SELECT 'p' || n || '@example.com', jsonb_build_object('plan', CASE WHEN n % 3 = 0 THEN 'paid' ELSE 'free' END, 'level', n % 100,
		'first_name', 'Ada', 'last_name', 'Lovelace', 'city', 'London') FROM generate_series($1::int, $2::int) n`
	for from := 1; from < contacts; from += 50_000 {
		pgtest.Exec(b, w.db, "acme", insert, from, from+49_999)
	}
	w.segment("paying", `{"all": [{"field": "plan", "is": "paid"}, {"field": "level", "gte": 10}, {"not": {"event": "email.clicked", "within": "30d"}}]}`)
	b.ResetTimer()
	for b.Loop() {
		if err := w.request("paying"); err != nil {
			b.Fatal(err)
		}
		for all := false; !all; {
			var err error
			if all, err = w.keeper.work(context.Background(), "acme"); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(contacts*float64(b.N)/b.Elapsed().Seconds(), "contacts/s")
	if n := w.count("paying").Members; n < contacts/4 {
		b.Errorf("%d members", n)
	}
}
