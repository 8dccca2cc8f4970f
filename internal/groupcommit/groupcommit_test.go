package groupcommit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// Many items at once are few commits, and each is answered by its own.
func TestCommitsTogether(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, "acme", "CREATE TABLE thing (n integer CHECK (n <> 13))")
	db := d.DB(t)
	var commits atomic.Int32
	writing, gate := make(chan struct{}, 1_000), make(chan struct{})
	c := New(NewRoom(1), 500, func(int32) int { return 4 }, In(db, func(ctx context.Context, tx *postgres.Tx, items []int32) error {
		commits.Add(1)
		writing <- struct{}{}
		<-gate
		_, err := tx.Exec(ctx, "INSERT INTO thing SELECT unnest($1::integer[])", items)
		return err
	}))
	var wg sync.WaitGroup
	add := func(n int32, bad bool) {
		wg.Go(func() {
			if err := c.Add(context.Background(), "acme", n); (err != nil) != bad {
				t.Errorf("%d: %v", n, err)
			}
		})
	}
	add(0, false)
	<-writing
	for n := range int32(99) {
		add(n+100, false)
	}
	until(t, func() bool { return waiting(c, "acme") == 99 })
	close(gate)
	wg.Wait()
	if n := commits.Load(); n != 2 {
		t.Errorf("%d commits, want 2", n)
	}
	for n := range int32(20) { // one that cannot be stored fails alone
		add(n+1, n+1 == 13)
	}
	wg.Wait()
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM thing"); n != 119 {
		t.Errorf("%d are stored, want 119", n)
	}
	if err := c.Add(context.Background(), "nobody", 1); !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("unknown tenant: %v", err)
	}
	until(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.tenants) == 0
	})
}

// waiting is how many items wait for a tenant.
func waiting[T any](c *Committer[T], tenant string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if q := c.tenants[tenant]; q != nil {
		return len(q.waiting)
	}
	return 0
}

func unavailable(err error) bool {
	status, _ := fn.Status(err)
	return status == 503
}

func TestTooMuchIsRefusedAndNotKept(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for name, size := range map[string]int{"items": 1, "bytes": roomBytes/100 + 1} {
		c := New(NewRoom(1), 500, func(int) int { return size }, In(db, func(context.Context, *postgres.Tx, []int) error { return nil }))
		n := 100
		if size == 1 {
			n = mostPending + 1
		}
		if err := c.Add(context.Background(), "acme", make([]int, n)...); !unavailable(err) {
			t.Errorf("too many %s: %v, want 503", name, err)
		}
		if len(c.tenants) > 0 || c.room.items > 0 || c.room.bytes > 0 {
			t.Errorf("too many %s: %d items, %d bytes are kept of %d tenants", name, c.room.items, c.room.bytes, len(c.tenants))
		}
	}
}

// More requests than a connection's memory is worth wait for nobody: the next is refused at once, those of other tenants have some room left, and all of it is given back.
func TestTooManyRequestsAreRefused(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	r := NewRoom(1)
	r.slots <- struct{}{} // nothing is stored for now
	c := New(r, 500, func(int) int { return 1 }, In(db, func(context.Context, *postgres.Tx, []int) error { return nil }))
	c.wait = time.Hour
	var all sync.WaitGroup
	wait := func(tenant string, n int) {
		for range n {
			all.Go(func() {
				if err := c.Add(context.Background(), tenant, 1); err != nil {
					t.Errorf("%s: %v", tenant, err)
				}
			})
		}
		until(t, func() bool { return waiting(c, tenant) == n })
	}
	wait("acme", mostRequests)
	if err := c.Add(context.Background(), "acme", 1); !errors.Is(err, errBusy) || !unavailable(err) {
		t.Errorf("one more of acme: %v", err)
	}
	wait("brava", roomRequests-mostRequests)
	if err := c.Add(context.Background(), "brava", 1); !errors.Is(err, errFull) || !unavailable(err) {
		t.Errorf("one more of all: %v", err)
	}
	<-r.slots
	all.Wait()
	if r.requests != 0 {
		t.Errorf("%d requests still take room", r.requests)
	}
	if err := c.Add(context.Background(), "acme", 1); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// An item that write chokes on, whatever way, fails alone.
func TestOneItemFailsAlone(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, "acme", "CREATE TABLE thing (n integer)")
	db := d.DB(t)
	broken := errors.New("broken")
	for name, choke := range map[string]func() error{"an error that is marked": func() error { return OfItem(broken) }, "a panic": func() error { panic("broken") }} {
		r := NewRoom(1)
		r.slots <- struct{}{} // until all wait
		c := New(r, 500, func(int32) int { return 4 }, In(db, func(ctx context.Context, tx *postgres.Tx, items []int32) error {
			if slices.Contains(items, 3) {
				return choke()
			}
			_, err := tx.Exec(ctx, "INSERT INTO thing SELECT unnest($1::integer[])", items)
			return err
		}))
		var failed atomic.Int32
		var all sync.WaitGroup
		for n := range int32(7) {
			all.Go(func() {
				if err := c.Add(context.Background(), "acme", n); err != nil {
					failed.Add(1)
					if n != 3 || !strings.Contains(err.Error(), "broken") {
						t.Errorf("%s, item %d: %v", name, n, err)
					}
				}
			})
		}
		until(t, func() bool { return waiting(c, "acme") == 7 })
		<-r.slots
		all.Wait()
		if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM thing"); n != 6 || failed.Load() != 1 {
			t.Errorf("%s: %d are stored, want the six others", name, n)
		}
		pgtest.Exec(t, db, "acme", "DELETE FROM thing")
	}
}

// What waits in the process is bounded, however many tenants it is of: the rest is refused at once, and all room is given back.
func TestAThousandTenantsAtOnceTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	const tenants, each = 1_000, 100
	db := pgtest.New(t).DB(t)
	r := NewRoom(1)
	r.slots <- struct{}{} // nothing is stored for now
	c := New(r, 500, func(int) int { return 1_000 }, In(db, func(context.Context, *postgres.Tx, []int) error { return nil }))
	c.wait = time.Hour
	const fit = roomBytes / 1_000 / each // of tenants
	var refused atomic.Int32
	var all sync.WaitGroup
	for n := range tenants {
		all.Go(func() {
			err := c.Add(context.Background(), fmt.Sprintf("t%d", n), make([]int, each)...)
			if !errors.Is(err, errFull) {
				return
			}
			if !unavailable(err) {
				t.Errorf("refused with %v", err)
			}
			refused.Add(1)
		})
	}
	until(t, func() bool { return refused.Load() == tenants-fit })
	r.mu.Lock()
	if r.bytes > roomBytes || r.items > roomItems || r.items != fit*each {
		t.Errorf("%d items of %d bytes wait", r.items, r.bytes)
	}
	r.mu.Unlock()
	<-r.slots
	all.Wait()
	until(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.tenants) == 0
	})
	if r.items != 0 || r.bytes != 0 {
		t.Errorf("%d items of %d bytes are left", r.items, r.bytes)
	}
}

// Nothing waits for long behind a database that does not keep up: it is sent away, and is not stored later.
func TestWhatWaitsTooLongIsSentAway(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	r := NewRoom(1)
	r.slots <- struct{}{} // as if another tenant's commit did not end
	var stored atomic.Int32
	c := New(r, 500, func(int) int { return 1 }, In(db, func(_ context.Context, _ *postgres.Tx, items []int) error {
		stored.Add(int32(len(items)))
		return nil
	}))
	began := time.Now()
	err := c.Add(context.Background(), "acme", 1, 2, 3)
	if took := time.Since(began); !unavailable(err) || !errors.Is(err, errLate) || took < mostWait {
		t.Errorf("after %s: %v", took, err)
	}
	<-r.slots
	if err := c.Add(context.Background(), "acme", 4); err != nil {
		t.Error(err)
	}
	if n := stored.Load(); n != 1 {
		t.Errorf("%d are stored, want the last alone", n)
	}
}

// A locked tenant is refused at once while others go on, holds the one slot there is for its first lock alone, and is served again when it is free.
func TestALockedTenantHoldsNoSlot(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	for _, tenant := range []string{"acme", "brava"} {
		d.Own(t, tenant, "CREATE TABLE thing (n integer)")
	}
	db := d.DB(t)
	c := New(NewRoom(1), 500, func(int32) int { return 4 }, In(db, func(ctx context.Context, tx *postgres.Tx, items []int32) error {
		_, err := tx.Exec(ctx, "INSERT INTO thing SELECT unnest($1::integer[])", items)
		return err
	}))
	locked, free := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "LOCK TABLE thing IN ACCESS EXCLUSIVE MODE")
			close(locked)
			<-free
			return err
		})
	})
	<-locked
	if err := c.Add(context.Background(), "acme", 1); !postgres.IsLocked(err) || !unavailable(err) {
		t.Errorf("acme, locked: %v", err)
	}
	c.room.slots <- struct{}{} // whatever would be tried now would wait
	if err := c.Add(context.Background(), "acme", 2); !errors.Is(err, postgres.ErrLocked) || !unavailable(err) {
		t.Errorf("acme, just found locked: %v", err)
	}
	<-c.room.slots
	c.mu.Lock()
	q := c.tenants["acme"]
	c.mu.Unlock()
	until(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !q.writing
	})
	c.mu.Lock()
	q.shut = time.Time{} // as if its second were over
	c.mu.Unlock()
	if _, wait := c.next("acme", q); wait != postgres.ProbeWait {
		t.Errorf("it is tried for %s", wait)
	}
	if err := c.Add(context.Background(), "acme", 3); !postgres.IsLocked(err) {
		t.Errorf("acme, still locked: %v", err)
	}
	if err := c.Add(context.Background(), "brava", 1); err != nil {
		t.Errorf("brava: %v", err)
	}
	close(free)
	holder.Wait()
	until(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !q.writing
	})
	c.mu.Lock()
	q.shut = time.Time{}
	c.mu.Unlock()
	if err := c.Add(context.Background(), "acme", 4); err != nil {
		t.Errorf("acme, free again: %v", err)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT sum(n)::integer FROM thing"); n != 4 {
		t.Errorf("%d is stored, want the last alone", n)
	}
}

// A second commit of a tenant begins while one is in flight, when three quarters of a commit's items wait and a slot is free. What it could not store, because of a lock or of one item, waits for the
// first to end, and then each has its own answer.
func TestASecondCommitBesideTheFirst(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, "acme", "CREATE TABLE thing (n integer PRIMARY KEY CHECK (n <> 13))")
	db := d.DB(t)
	for _, tc := range []struct {
		name   string
		second []int32
		bad    int32 // which cannot be stored, so that the others wait; 0: none
	}{
		{"both are stored", []int32{2, 3, 4, 5, 6, 7}, 0},
		{"one is in the hands of the first", []int32{2, 1, 3, 4, 5, 6}, 1},
		{"one cannot be stored at all", []int32{2, 3, 13, 4, 5, 6}, 13},
	} {
		pgtest.Exec(t, db, "acme", "DELETE FROM thing")
		var commits atomic.Int32
		written, gate := make(chan struct{}), make(chan struct{})
		c := New(NewRoom(2), 8, func(int32) int { return 4 }, In(db, func(ctx context.Context, tx *postgres.Tx, items []int32) error {
			first := commits.Add(1) == 1
			_, err := tx.Exec(ctx, "INSERT INTO thing SELECT unnest($1::integer[])", items)
			if first {
				close(written)
				<-gate
			}
			return err
		})).Twice()
		var first, second sync.WaitGroup
		first.Go(func() {
			if err := c.Add(context.Background(), "acme", 1); err != nil {
				t.Errorf("%s: the first: %v", tc.name, err)
			}
		})
		<-written
		for k, n := range tc.second {
			second.Go(func() {
				if err := c.Add(context.Background(), "acme", n); (err != nil) != (n == tc.bad) {
					t.Errorf("%s: %d: %v", tc.name, n, err)
				}
			})
			if k < len(tc.second)-1 {
				until(t, func() bool { return waiting(c, "acme") == k+1 })
			}
		}
		if tc.bad == 0 {
			second.Wait() // while the first is in flight
		} else {
			until(t, func() bool { return commits.Load() == 2 && waiting(c, "acme") == len(tc.second) })
		}
		close(gate)
		first.Wait()
		second.Wait()
		if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM thing"); n != 1+len(tc.second)-min(int(tc.bad), 1) {
			t.Errorf("%s: %d are stored", tc.name, n)
		}
		until(t, func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return len(c.tenants) == 0 && len(c.room.slots) == 0
		})
		if c.room.items != 0 || c.room.bytes != 0 {
			t.Errorf("%s: %d items of %d bytes are left", tc.name, c.room.items, c.room.bytes)
		}
	}
}

// A second commit takes no slot that others wait for, and none where a lock stood in the way.
func TestNoSecondCommitAtTheCostOfOthers(t *testing.T) {
	t.Parallel()
	const enough = "six of eight wait"
	for name, with := range map[string]func(c *Committer[int], q *queue[int]){
		enough:                 func(*Committer[int], *queue[int]) {},
		"fewer wait":           func(_ *Committer[int], q *queue[int]) { q.waiting = q.waiting[1:] },
		"no slot is free":      func(c *Committer[int], _ *queue[int]) { c.room.slots <- struct{}{} },
		"a lock is in the way": func(_ *Committer[int], q *queue[int]) { q.locked = true },
		"the last was in vain": func(_ *Committer[int], q *queue[int]) { q.alone = true },
		"there is one":         func(_ *Committer[int], q *queue[int]) { q.second = true },
		"two are not asked":    func(c *Committer[int], _ *queue[int]) { c.twice = false },
	} {
		stored := make(chan int, 1)
		c := New(NewRoom(1), 8, func(int) int { return 4 }, func(_ context.Context, _ string, _ time.Duration, items []int) error {
			stored <- len(items)
			return nil
		}).Twice()
		q := &queue[int]{writing: true, timer: time.NewTimer(time.Hour)}
		for n := range 6 {
			q.waiting = append(q.waiting, pending[int]{n, 4, time.Now(), make(chan error, 1)})
		}
		c.tenants["acme"] = q
		with(c, q)
		c.mu.Lock()
		c.beside("acme", q)
		began := len(q.waiting) == 0
		c.mu.Unlock()
		if began != (name == enough) {
			t.Errorf("%s: a second commit began: %v", name, began)
		} else if began && <-stored != 6 {
			t.Errorf("%s: not all of it is stored", name)
		}
	}
}

// until waits for a condition.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not come about in 30 s")
		case <-tick.C:
		}
	}
}

// A timer that went off as its queue ended leaves the tenant's next one alone: else a second commit would be in flight beside it.
func TestALateTimer(t *testing.T) {
	t.Parallel()
	writing, gate := make(chan struct{}), make(chan struct{})
	c := New(NewRoom(2), 500, func(int) int { return 8 }, In(pgtest.New(t).DB(t), func(context.Context, *postgres.Tx, []int) error {
		writing <- struct{}{}
		<-gate
		return nil
	}))
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Add(context.Background(), "acme", 1); err != nil {
			t.Error(err)
		}
	})
	<-writing
	c.wake("acme", &queue[int]{})
	c.mu.Lock()
	if c.tenants["acme"] == nil {
		t.Error("the queue that is written was forgotten")
	}
	c.mu.Unlock()
	close(gate)
	wg.Wait()
}
