package system

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
)

// A click that was answered is in the report, its points are in the score, and its contact is in the segment of those who clicked. By when they are is recorded, with the hold of hits in
// it, and decides nothing: go test ./test/system -run TestClickArrives -v
func TestClickArrives(t *testing.T) {
	t.Parallel()
	const clicks = 5
	f := newFleet(t, pgtest.New(t), localbroker.Chaos{})
	tenants := map[string]int{pgtest.Acme: clicks}
	f.audiences(tenants)
	wait(t, "the broadcast to be over", func() bool { return f.over(tenants) })
	if _, err := f.admin.MoveClock(t.Context(), pgtest.Acme, time.Hour); err != nil { // a click in the seconds after the mail is no person's
		t.Fatal(err)
	}
	places := []struct {
		name  string
		count func() int
	}{
		{"report", func() (n int) {
			pgtest.In(t, f.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
				r, err := report.Load(ctx, tx, "spring-news")
				if err == nil {
					n = int(r.ClicksHuman.Mails)
				}
				return err
			})
			return n
		}},
		{"score", func() int {
			return f.count(pgtest.Acme, "SELECT count(*) FROM contact, jsonb_each_text(scores) s WHERE s.value = '5'")
		}},
		{"segment", func() int {
			return f.count(pgtest.Acme, "SELECT count(*) FROM member m JOIN entity e ON e.id = m.segment WHERE e.name = 'engaged'")
		}},
	}
	for i, l := range f.letters() {
		f.must(http.MethodGet, f.dev.URL()+strings.TrimPrefix(l.links[0], linkURL), http.Header{"User-Agent": {browser}}, "", 302, 303, 307)
		answered := time.Now()
		for _, p := range places {
			n := 0
			wait(t, "a click to be in the "+p.name, func() bool { n = p.count(); return n > i })
			if n != i+1 {
				t.Errorf("%d of %d clicks are in the %s", n, i+1, p.name)
			}
			t.Logf("click %d is in the %s by %s", i+1, p.name, time.Since(answered).Round(time.Millisecond))
		}
	}
}
