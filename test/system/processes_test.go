package system

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/dev"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// binaries builds what scripts/build.sh builds, as it does, once a run of the tests. They stay where they are: what has not changed is not linked again.
var binaries = sync.OnceValues(func() (string, error) {
	dir, err := filepath.Abs(filepath.Join(root, ".onda", "test-bin"))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/", "./cmd/onda", "./functions/...", "./examples/tour")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return dir, nil
})

// Terms that let a test see takeovers in seconds.
const (
	lease        = 600 * time.Millisecond
	messageLimit = 300 * time.Millisecond
	tick         = 200 * time.Millisecond
	batches      = 2 // that a process holds at once
	window       = 64
)

// fleet is the product as processes, with a mailbox that may be away.
type fleet struct {
	t    testing.TB
	data *pgtest.Database
	*world
	dev *dev.Handle
	dir string // of the mailbox
	at  string // its address

	mu     sync.Mutex // guards box, which another takes the place of
	looked time.Time  // for over
}

// newFleet starts dev on binaries, over a database.
func newFleet(tb testing.TB, data *pgtest.Database, chaos localbroker.Chaos) *fleet {
	tb.Helper()
	bin, err := binaries()
	if err != nil {
		tb.Fatal(err)
	}
	f := &fleet{t: tb, data: data, dir: tb.TempDir(), at: "127.0.0.1:0"}
	f.world = &world{t: tb, data: data, db: data.Open(tb, postgres.Config{MaxConns: 8, Tick: tick}), admin: data.Admin(tb), client: newClient()}
	f.openBox()
	f.at = f.box.SMTPAddr()
	env := map[string]string{
		"ONDA_DATABASE_URL": data.URL, "ONDA_SMTP_URL": f.box.SMTPURL(), "ONDA_LINK_URL": linkURL, "ONDA_FORM_URL": formURL,
		"ONDA_LEASE": lease.String(), "ONDA_MESSAGE_LIMIT": messageLimit.String(), "ONDA_TICK": tick.String(), "ONDA_BATCHES": fmt.Sprint(batches),
		"ONDA_SMTP_CONNECTIONS": "3", "ONDA_HIT_HOLD": "500ms",
	}
	f.dev, err = dev.Start(tb.Context(), dev.Config{
		Addr: "127.0.0.1:0", Root: root, Binaries: bin, Env: env, Tick: tick, Chaos: chaos, Logs: tb.TempDir(),
		ServiceEnv: map[string]map[string]string{
			"schedule": {"ONDA_DATABASE_URL": data.ScheduleURL, "ONDA_SPREAD": "0s"},
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := f.dev.Stop(context.Background()); err != nil {
			tb.Errorf("stop: %v", err)
		}
	})
	return f
}

// openBox starts the mailbox server, with the mails that it has had before.
func (f *fleet) openBox() {
	f.t.Helper()
	box := startMailbox(f.t, f.dir, f.at)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.box = box
}

// closeBox lets the mailbox server go away.
func (f *fleet) closeBox() {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.box.Close(); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) received() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.box.Counts().Received
}

// killAll kills every process of every service, and tells how many there were.
func (f *fleet) killAll() (n int) {
	f.t.Helper()
	for _, s := range dev.Services() {
		k, err := f.dev.Kill(s.Name, syscall.SIGKILL)
		if err != nil {
			f.t.Fatal(err)
		}
		n += k
	}
	return n
}

// wait asks again and again until it is so.
func wait(tb testing.TB, what string, so func() bool) {
	tb.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for !so() {
		select {
		case <-again.C:
		case <-deadline.C:
			tb.Fatalf("waited %s for %s", patience, what)
		}
	}
}

// audiences makes contacts who want the newsletter, so many in each tenant, and then launches the broadcasts to them.
func (f *fleet) audiences(tenants map[string]int) {
	f.t.Helper()
	for tenant, n := range tenants {
		f.apply(tenant, company()...)
		var b strings.Builder
		b.WriteString("external_id,email,first_name,country\n")
		for i := range n {
			fmt.Fprintf(&b, "c-%05d,c%05d@%s.example,Ada,NO\n", i, i, tenant)
		}
		f.load(tenant, b.String(), "newsletter", "tracking.email")
	}
	for tenant, n := range tenants {
		wait(f.t, "the segment", func() bool {
			return f.count(tenant, `SELECT coalesce(sum(s.members), 0)::bigint FROM segment s JOIN entity e ON e.id = s.entity AND s.document = e.current AND s.building IS NULL WHERE e.name = 'nordic'`) == n
		})
	}
	for tenant := range tenants {
		f.launch(tenant, "spring-news")
	}
}

// over tells whether the broadcasts are; Postgres may be away. It looks no more often than a few times a second.
func (f *fleet) over(tenants map[string]int) bool {
	if time.Since(f.looked) < tick {
		return false
	}
	defer func() { f.looked = time.Now() }()
	conn, err := pgx.Connect(f.t.Context(), f.data.AdminURL)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close(context.WithoutCancel(f.t.Context())) }()
	for tenant := range tenants {
		var open int
		if err := conn.QueryRow(f.t.Context(), "SELECT count(*) FROM "+tenant+".run WHERE state <> 'completed'").Scan(&open); err != nil || open > 0 {
			return false
		}
	}
	return true
}

// audit holds what the database knows of the broadcasts against what came to the mailbox: nothing is lost, nothing is repeated, and unknown are at most so many.
func (f *fleet) audit(tenants map[string]int, maxUnknown int) {
	f.t.Helper()
	t := f.t
	numbers := f.numbers()
	box := f.mailsByDelivery(numbers)
	unknown := 0
	for _, tenant := range slices.Sorted(maps.Keys(tenants)) {
		states := map[string]string{}
		for _, line := range f.all(tenant, "SELECT d.id || ' ' || d.state FROM delivery d") {
			id, state, _ := strings.Cut(line, " ")
			states[tenant+" "+id] = state
		}
		if planned := f.count(tenant, "SELECT sum(cardinality(contacts)) FROM batch WHERE attempt = 1"); planned != tenants[tenant] || len(states) != planned {
			t.Errorf("%s: %d contacts, %d planned, %d outcomes", tenant, tenants[tenant], planned, len(states))
		}
		for id, state := range states {
			n := box[id]
			delete(box, id)
			switch {
			case n > 1:
				t.Errorf("repeated: delivery %s came %d times", id, n)
			case state == "sent" && n == 0:
				t.Errorf("lost: delivery %s is said to be sent and never came", id)
			case state == "unknown":
				unknown++
			case state != "sent":
				t.Errorf("delivery %s is %s", id, state)
			}
		}
		for what, sql := range map[string]string{
			"contacts with more than one delivery": "SELECT count(*) FROM (SELECT FROM delivery GROUP BY contact HAVING count(*) > 1) x",
			"batches whose counts are wrong": `SELECT count(*) FROM (SELECT FROM batch b LEFT JOIN delivery d ON d.id >> 9 = b.id WHERE b.attempt = 1 GROUP BY b.id
				HAVING b.state <> 'closed' OR b.sent <> count(*) FILTER (WHERE d.state = 'sent') OR b.unknown <> count(*) FILTER (WHERE d.state = 'unknown')) x`,
			"mails told to be sent twice": "SELECT count(*) - count(DISTINCT d) FROM fact, unnest(deliveries) d WHERE kind = 'email.sent'",
		} {
			if n := f.count(tenant, sql); n != 0 {
				t.Errorf("%s: %s: %d", tenant, what, n)
			}
		}
	}
	for id, n := range box {
		t.Errorf("%d mails came for delivery %q, which does not exist", n, id)
	}
	if unknown > maxUnknown {
		t.Errorf("%d are unknown, more than the windows that were in flight, %d", unknown, maxUnknown)
	}
	t.Logf("unknown %d, bound %d", unknown, maxUnknown)
}

// mailsByDelivery counts the mails that came, by tenant and delivery.
func (f *fleet) mailsByDelivery(numbers map[int32]string) map[string]int {
	f.t.Helper()
	n := f.received()
	out := map[string]int{}
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	read := 0
	for m := range f.box.Watch(ctx, 1) {
		number, id, ok := mail.ParseMessageID(m.MessageID)
		if !ok {
			f.t.Errorf("mail %d: Message-ID %q is none of ours", m.ID, m.MessageID)
		}
		out[fmt.Sprint(numbers[number], " ", id)]++
		if read++; read == n {
			break
		}
	}
	return out
}

// visitor loads pixels of mails that have come, again and again, until the test stops it. What was answered must have been stored.
type visitor struct {
	stop              context.CancelFunc
	done              chan struct{}
	answered, refused atomic.Int64
}

func (f *fleet) visit(pixels []string) *visitor {
	ctx, cancel := context.WithCancel(f.t.Context())
	v := &visitor{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		for i := 0; ctx.Err() == nil; i++ {
			status, err := get(ctx, f.world, f.dev.URL()+strings.TrimPrefix(pixels[i%len(pixels)], linkURL))
			switch {
			case errors.Is(err, context.Canceled):
			case err != nil || status != 200:
				v.refused.Add(1)
			default:
				v.answered.Add(1)
			}
		}
	}()
	return v
}
