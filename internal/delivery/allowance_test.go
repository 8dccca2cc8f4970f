package delivery

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestACapThatRefusesLeavesTheOthersWhole(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	day, week := time.Unix(86400, 0), time.Unix(0, 0)
	reserve := func(limits []Limit, contacts ...int64) (granted []int64) {
		f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
			granted, err = Reserve(ctx, tx, limits, contacts)
			return err
		})
		return granted
	}
	a, b, c := Limit{"a", day, 5}, Limit{"b", week, 1}, Limit{"c", day, 2}
	if got := reserve([]Limit{b}, 1); !slices.Equal(got, []int64{1}) {
		t.Fatalf("granted: %v", got)
	}
	if got := reserve([]Limit{a, b, c}, 3, 1, 2, 3); !slices.Equal(got, []int64{2, 3}) {
		t.Errorf("granted: %v, want 2 and 3: 1 had its one of b", got)
	}
	got := pgtest.All[string](t, f.db, f.tenant, "SELECT kind || contact || ':' || n FROM allowance WHERE n > 0 ORDER BY 1")
	if d := cmp.Diff([]string{"a2:1", "a3:1", "b1:1", "b2:1", "b3:1", "c2:1", "c3:1"}, got); d != "" {
		t.Errorf("used (-want +got):\n%s", d)
	}
	if got := reserve([]Limit{{"none", day, 0}}, 1); len(got) != 0 {
		t.Errorf("granted of nothing: %v", got)
	}
}

// TestReservationsAreNotPassedByManyAtOnce has workers reserve for the same contacts in different orders.
func TestReservationsAreNotPassedByManyAtOnce(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	contacts := make([]int64, 40)
	for i := range contacts {
		contacts[i] = int64(i + 1)
	}
	limits := []Limit{{"day", time.Unix(0, 0), 3}, {"week", time.Unix(0, 0), 2}}
	budgets := []Budget{{Kind: "quota", Count: 57, Name: "the quota"}, {Kind: "warmup", Count: 31, Name: "the warm-up"}}
	var mu sync.Mutex
	times, once, got := map[int64]int{}, map[int64]int{}, 0
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			mine := slices.Clone(contacts)
			if n%2 == 1 {
				slices.Reverse(mine)
			}
			f.in(func(ctx context.Context, tx *postgres.Tx) error {
				granted, err := Reserve(ctx, tx, limits, mine)
				if err != nil {
					return err
				}
				first, err := Once(ctx, tx, "once", time.Hour, mine)
				if err != nil {
					return err
				}
				n, _, err := Grant(ctx, tx, budgets, 10)
				mu.Lock()
				defer mu.Unlock()
				got += n
				for _, c := range granted {
					times[c]++
				}
				for _, c := range first {
					once[c]++
				}
				return err
			})
		})
	}
	all.Wait()
	for _, c := range contacts {
		if times[c] != 2 || once[c] != 1 {
			t.Errorf("contact %d: granted %d times, once %d times", c, times[c], once[c])
		}
	}
	if got != 31 {
		t.Errorf("%d were granted of 31", got)
	}
	if d := cmp.Diff([]int64{31, 31}, pgtest.All[int64](t, f.db, f.tenant, "SELECT n::bigint FROM allowance WHERE contact = 0")); d != "" {
		t.Errorf("used of the budgets (-want +got):\n%s", d)
	}
}

func TestBreakersOpenByTheRules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		c    counted
		want string
	}{
		"well":                         {counted{Traffic{Sent: 1000, Bounced: 50, Blocked: 100, Complained: 3}, 1000}, ""},
		"few":                          {counted{Traffic{Sent: 10, Bounced: 15, Blocked: 15, Complained: 4}, 10}, ""},
		"bounces":                      {counted{Traffic{Sent: 850, Bounced: 150}, 850}, "150 of 1000 bounced (15.0 %, at most 10.0 %)"},
		"at the bounces that may be":   {counted{Traffic{Sent: 900, Bounced: 100}, 900}, ""},
		"what came back":               {counted{Traffic{Returned: 150}, 1000}, "150 of 1000 came back (15.0 %, at most 10.0 %)"},
		"blocks":                       {counted{Traffic{Sent: 60, Blocked: 60}, 60}, "60 of 120 were blocked (50.0 %, at most 25.0 %)"},
		"complaints":                   {counted{Traffic{Complained: 5}, 1000}, "5 of 1000 complained (0.5 %, at most 0.3 %)"},
		"complaints, too few of any":   {counted{Traffic{Complained: 5}, 400}, ""},
		"complaints, few of very many": {counted{Traffic{Complained: 200}, 100000}, ""},
	} {
		if got := c.c.tripped(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestLateComplaintsAreOfWhatWasSent has a healthy blast's few complaints come over hours.
func TestLateComplaintsAreOfWhatWasSent(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	count := func(one Traffic) (opened []Breaker) {
		f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
			opened, err = CountTraffic(ctx, tx, "acme.example", map[string]Traffic{"google": one})
			return err
		})
		return opened
	}
	count(Traffic{Sent: 100_000})
	for hour := range 20 {
		pgtest.Exec(t, f.db, f.tenant, "UPDATE throttle SET since = since - interval '1 hour', since_day = since_day - interval '1 hour'")
		if opened := count(Traffic{Complained: 10}); opened != nil {
			t.Fatalf("after %d hours and %d complaints about 100,000 mails: %v", hour+1, 10*(hour+1), opened)
		}
	}
	if opened := count(Traffic{Complained: 150}); len(opened) != 2 {
		t.Errorf("350 complaints open %v", opened)
	}
}

func TestWhatWasCountedFades(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	count := func(by map[string]Traffic) (opened []Breaker) {
		f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
			opened, err = CountTraffic(ctx, tx, "acme.example", by)
			return err
		})
		return opened
	}
	count(map[string]Traffic{"google": {Sent: 400, Bounced: 30}})
	pgtest.Exec(t, f.db, f.tenant, "UPDATE throttle SET since = since - interval '3 hours'")
	count(map[string]Traffic{"google": {Sent: 1}})
	if got := pgtest.One[string](t, f.db, f.tenant, "SELECT sent || ' ' || bounced FROM throttle WHERE provider = 'google'"); got != "51 3" {
		t.Errorf("three hours later: %s", got)
	}
	// Each time that it opens again, it stays open for twice as long.
	for n, want := range []time.Duration{time.Hour, 2 * time.Hour, 4 * time.Hour} {
		opened := count(map[string]Traffic{"google": {Sent: 500, Bounced: 500}})
		if len(opened) != 2 || opened[1].Receiver != "google" {
			t.Fatalf("opened: %v", opened)
		}
		if count(map[string]Traffic{"google": {Sent: 500, Bounced: 500}}) != nil {
			t.Error("it opened while it was open")
		}
		if got := pgtest.One[time.Duration](t, f.db, f.tenant, "SELECT open_until - onda.now() FROM throttle WHERE provider = 'google'"); got > want || got < want-time.Minute {
			t.Errorf("time %d: open for %s, want %s", n+1, got, want)
		}
		pgtest.Exec(t, f.db, f.tenant, "UPDATE throttle SET open_until = onda.now(), sent = 0, bounced = 0")
	}
}
