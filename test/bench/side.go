package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/renderform"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/send"
	"github.com/onda-run/onda/internal/track"
)

// The environment by which this program becomes the process of a function.
const (
	sideEnv    = "ONDA_BENCH_SIDE"
	profileEnv = "ONDA_BENCH_PROFILE"
)

// task is one round, as the function's process is asked for it.
type task struct {
	// Until is SQL that tells, of the tenant, whether the function has done everything; it is called by schedule.due until then.
	Until string
	// Between is SQL that is run between two calls, and not measured.
	Between string
	// Posts, when not 0, asks send for as many transactional mails instead, one each Every, with a program's Key.
	Posts int
	Every time.Duration
	Key   string
	// Listen asks the function to listen on a port instead.
	Listen bool
	// Import asks the process of onda import for a file.
	Import string
}

// report is its answer.
type report struct {
	Seconds float64
	Address string           // where it listens
	Wrote   int64            // bytes of an export
	Posted  map[string]int64 // when mails were asked for, by recipient, in nanoseconds since 1970
	// Imported is how many rows of a file were new, and how many unchanged.
	Imported [2]int
	Err      string
}

// side is a function in a process of its own.
type side struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *json.Decoder
	ended   bool
	peak    int64
}

// start starts the process of the function that is measured; settings are its environment beside what all have.
func (l *lab) start(ctx context.Context, name string, settings ...string) (err error) {
	l.side, err = l.startSide(ctx, name, settings...)
	return err
}

// startSide starts the process of a function.
func (l *lab) startSide(ctx context.Context, name string, settings ...string) (*side, error) {
	env := append([]string{sideEnv + "=" + name, "ONDA_DATABASE_URL=" + l.poolURL, "K_SINK=" + l.sink, "ONDA_LINK_URL=http://localhost:8080"}, settings...)
	if l.profiles != "" {
		env = append(env, profileEnv+"="+filepath.Join(l.profiles, name+".pprof"))
	}
	s := &side{}
	var err error
	if s.cmd, s.in, s.answers, err = startSelf(ctx, env...); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return s, nil
}

// startSelf starts this program as another process, with nothing but this environment. It is asked on its input, and answers in JSON.
func startSelf(ctx context.Context, env ...string) (*exec.Cmd, io.WriteCloser, *json.Decoder, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env, cmd.Stderr = env, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, nil, err
	}
	return cmd, in, json.NewDecoder(out), cmd.Start()
}

// do has the process do a task and gives how long it took.
func (s *side) do(t task) (time.Duration, error) {
	r, err := s.ask(t)
	return time.Duration(r.Seconds * float64(time.Second)), err
}

// ask has the process do a task.
func (s *side) ask(t task) (r report, err error) {
	if err := json.NewEncoder(s.in).Encode(t); err != nil {
		return r, fmt.Errorf("ask the function's process: %w", err)
	}
	if err := s.answers.Decode(&r); err != nil {
		return r, fmt.Errorf("the function's process did not answer: %w", err)
	}
	if r.Err != "" {
		return r, errors.New(r.Err)
	}
	return r, nil
}

// end ends the process and gives the most memory that it had resident, in bytes.
func (s *side) end() (int64, error) {
	if s.ended {
		return s.peak, nil
	}
	s.ended = true
	// Asked while it is there: what the system tells of a process that has ended counts what this program had resident when it started it, too.
	peak, err := peakOf(s.cmd.Process.Pid)
	s.peak = peak
	return s.peak, errors.Join(err, s.in.Close(), s.cmd.Wait())
}

// peakOf is the most memory that a process has had resident, in bytes. What dev has for it would bring along more than what is measured here.
func peakOf(pid int) (int64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, fmt.Errorf("look how much memory was used: %w", err)
	}
	_, rest, ok := strings.Cut(string(text), "VmHWM:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); !ok || err != nil {
		return 0, errors.New("look how much memory was used: the system does not tell")
	}
	return kib << 10, nil
}

// function is what runs in the process.
type function struct {
	name   string
	in     *fn.Instance
	db     *postgres.DB
	events int
}

// serveSide is the process of a function: it does task after task until its input ends.
func serveSide(name string, in io.Reader, out io.Writer) (err error) {
	build, ok := map[string]fn.Build{"send": send.Build, "track": track.Build, "segment": segment.Build, "campaign": campaign.Build, "render-form": renderform.Build, "reference": buildReference}[name]
	if !ok {
		return errors.New("there is no such function")
	}
	stop, err := profiled()
	if err != nil {
		return err
	}
	defer stop()
	ctx := context.Background()
	f := &function{name: name}
	cfg := zap.NewProductionConfig() // to standard error
	cfg.Level = zap.NewAtomicLevelAt(zap.WarnLevel)
	log, err := cfg.Build()
	if err != nil {
		return err
	}
	if f.in, err = fn.Start(ctx, name, build, envconfig.OsLookuper(), log); err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		err = errors.Join(err, f.in.Stop(stop))
	}()
	if f.db, err = postgres.Open(postgres.Config{URL: os.Getenv("ONDA_DATABASE_URL"), MaxConns: 1}); err != nil {
		return err
	}
	defer f.db.Close()
	return serveTasks(in, out, func(t task) (r report, err error) {
		switch {
		case t.Posts > 0:
			r.Posted, err = f.posts(ctx, t)
		case t.Listen:
			r.Address, err = f.listen(ctx)
		default:
			var took time.Duration
			took, err = f.do(ctx, t)
			r.Seconds = took.Seconds()
		}
		return r, err
	})
}

// serveTasks does task after task until the input ends.
func serveTasks(in io.Reader, out io.Writer, do func(t task) (report, error)) error {
	tasks, answers := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var t task
		if err := tasks.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := do(t)
		if err != nil {
			r.Err = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

// profiled writes the process's CPU profile, where one is asked for, until it is stopped.
func profiled() (stop func(), err error) {
	to := os.Getenv(profileEnv)
	if to == "" {
		return func() {}, nil
	}
	f, err := os.Create(to)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}

func (f *function) do(ctx context.Context, t task) (time.Duration, error) {
	const most = 200 // calls
	var took time.Duration
	for range most {
		began := time.Now()
		err := f.call(ctx)
		took += time.Since(began)
		if err != nil {
			return took, err
		}
		var done bool
		err = f.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			if err := tx.QueryRow(ctx, t.Until).Scan(&done); err != nil || done || t.Between == "" {
				return err
			}
			_, err := tx.Exec(ctx, t.Between)
			return err
		})
		if err != nil || done {
			return took, err
		}
	}
	return took, fmt.Errorf("%s has not done everything after %d calls", f.name, most)
}

// call is schedule's post to the function.
func (f *function) call(ctx context.Context) error {
	f.events++
	e, err := event.New(tenant, "schedule", "", event.DeriveID("bench", f.name, strconv.Itoa(f.events)), event.ScheduleDue{Function: f.name})
	if err != nil {
		return err
	}
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode an event: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/", bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", cloudevents.ApplicationCloudEventsJSON)
	w := newAnswer()
	f.in.ServeHTTP(w, r)
	if w.status/100 != 2 {
		return fmt.Errorf("%s answered %d to schedule.due: %s", f.name, w.status, w.body.String())
	}
	return nil
}

// answer is what a handler answered.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newAnswer() *answer { return &answer{header: http.Header{}, status: http.StatusOK} }

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }
