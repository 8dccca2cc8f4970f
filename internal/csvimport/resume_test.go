package csvimport_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/csvimport"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// childEnv makes this program the process of an import: of a file, into a database.
const childEnv = "ONDA_TEST_IMPORT"

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		res, err := importFile(strings.Split(args, "\n"))
		if err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = json.NewEncoder(os.Stdout).Encode(res)
		return
	}
	pgtest.Main(m)
}

// importFile imports a file as the command does: database, file, file of rejected rows.
func importFile(args []string) (res csvimport.Result, err error) {
	db, err := postgres.Open(postgres.Config{URL: args[0], MaxConns: 4})
	if err != nil {
		return res, err
	}
	defer db.Close()
	f, err := os.Open(args[1])
	if err != nil {
		return res, err
	}
	defer func() { _ = f.Close() }()
	rejects := csvimport.NewRejects(args[2])
	defer func() { _ = rejects.Close() }()
	return csvimport.Import(context.Background(), db, "acme", f, csvimport.Options{
		Name: "people.csv", Consent: []string{"newsletter", "tracking.email", "tracking.web"}, Proof: "fair", Tags: []string{"fair"}, Rejects: rejects, Resume: args[1],
	})
}

// world is what an import leaves, in words that do not depend on the numbers that contacts got.
func world(t *testing.T, db *postgres.DB, rejects string) map[string][]string {
	t.Helper()
	file, err := os.ReadFile(rejects)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{"rejects": strings.Split(string(file), "\n")}
	for name, sql := range map[string]string{
		"contacts":   "SELECT concat_ws(' ', email, external_id, fields, tags) FROM contact ORDER BY email",
		"consent":    "SELECT concat_ws(' ', c.email, k.purpose, k.state, k.proof) FROM consent k JOIN contact c ON c.id = k.contact ORDER BY 1",
		"subscribed": "SELECT concat_ws(' ', c.email, s.purpose, s.state) FROM subscription s JOIN contact c ON c.id = s.contact ORDER BY 1",
		"facts": `SELECT concat_ws(' ', c.email, f.kind, f.name, count(*)) FROM fact f, LATERAL (SELECT unnest(coalesce(f.contacts, ARRAY[f.contact])) AS id) u JOIN contact c USING (id)
			GROUP BY c.email, f.kind, f.name ORDER BY 1`,
		"marks": "SELECT name FROM cursor WHERE name LIKE 'import:%'",
	} {
		out[name] = pgtest.All[string](t, db, "acme", sql)
	}
	return out
}

var mostKills = flag.Int("kills", 6, "how often TestKilledAtAnyMoment kills an import at `most`")

// An import that is killed at any moments, and started again, ends as one that was left alone: nothing is there twice, and nothing is missing.
func TestKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	var file strings.Builder
	file.WriteString("email,first_name,level,birthday\n")
	for i := range 9_000 {
		switch {
		case i%97 == 0:
			fmt.Fprintf(&file, "wrong%d,A,1,\n", i)
		case i%101 == 0: // those further up, in another chunk, too
			fmt.Fprintf(&file, "p%d@example.com,Twice,1,\n", i/2+1)
		default:
			fmt.Fprintf(&file, "p%d@example.com,A%d,%d,31.12.%d\n", i, i, i%9, 1900+i%100)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "people.csv")
	if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	prepare := func(name string) (*postgres.DB, []string) {
		d := pgtest.New(t)
		db := fill(t, d.DB(t))
		pgtest.Exec(t, db, "acme", "INSERT INTO contact (email, fields) SELECT 'p' || n * 5 || '@example.com', '{\"level\": 7}' FROM generate_series(1, 500) n")
		return db, []string{d.URL, path, filepath.Join(dir, name)}
	}
	alone, args := prepare("alone.csv")
	began := time.Now()
	want, err := importFile(args)
	if err != nil {
		t.Fatal(err)
	}
	lasts := time.Since(began)
	people := pgtest.One[int](t, alone, "acme", "SELECT count(*) FROM contact")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	db, killed := prepare("killed.csv")
	kills, ended := 0, false
	var got csvimport.Result
	for {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(killed, "\n"))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var timer *time.Timer
		if kills < *mostKills {
			timer = time.AfterFunc(rand.N(lasts/4), func() { _ = cmd.Process.Kill() })
		}
		said, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		err = cmd.Wait()
		if timer != nil && !timer.Stop() && err != nil {
			kills++
			// One that was killed behind its last transaction had ended, and told nobody.
			ended = pgtest.One[bool](t, db, "acme", "SELECT NOT EXISTS (SELECT FROM cursor WHERE name LIKE 'import:%') AND (SELECT count(*) FROM contact) = $1", people)
			if ended {
				break
			}
			continue
		}
		if err != nil {
			t.Fatalf("after %d kills: %v", kills, err)
		}
		if err := json.Unmarshal(said, &got); err != nil {
			t.Fatal(err)
		}
		break
	}
	t.Logf("killed %d times, the last one went on behind %d of %d rows", kills, got.Resumed, want.Rows)
	got.Took, want.Took, got.Resumed = 0, 0, 0
	got.Problems, want.Problems = nil, nil // of the rows that one process saw
	if d := cmp.Diff(want, got); d != "" && !ended {
		t.Error(d)
	}
	if d := cmp.Diff(world(t, alone, args[2]), world(t, db, killed[2])); d != "" {
		t.Error(d)
	}
}

// What is to be resumed is this file with these options, and nothing else; and --restart begins anew.
func TestResumes(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "people.csv")
	var file strings.Builder
	file.WriteString("email,level\n")
	for i := range 12_000 {
		fmt.Fprintf(&file, "p%d@example.com,%d\n", i, i)
	}
	file.WriteString("p1@example.com,5\n")
	imported := func(stopAt int, opts csvimport.Options) (csvimport.Result, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(file.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rejects := csvimport.NewRejects(filepath.Join(dir, "rejects.csv"))
		defer func() { _ = rejects.Close() }()
		opts.Rejects, opts.Resume = rejects, path
		opts.OnProgress = func(rows int, _ int64) {
			if rows == stopAt {
				cancel()
			}
		}
		return csvimport.Import(ctx, db, "acme", f, opts)
	}
	if res, err := imported(4_000, csvimport.Options{}); err == nil || res.Made != 4_000 {
		t.Fatalf("%+v, %v", res, err)
	}
	if res, err := imported(0, csvimport.Options{Tags: []string{"another"}, DryRun: true}); err != nil || res.Resumed != 0 || res.Made != 8_000 || res.Updated != 4_000 {
		t.Errorf("another import: %+v, %v", res, err)
	}
	if res, err := imported(8_000, csvimport.Options{}); err == nil || res.Resumed != 4_000 || res.Made != 8_000 {
		t.Errorf("resumed: %+v, %v", res, err)
	}
	if res, err := imported(0, csvimport.Options{}); err != nil || res.Resumed != 8_000 || res.Made != 12_000 || res.Rejected != 1 || len(res.Problems) != 1 || !strings.Contains(res.Problems[0].Error, "on row 3 already") {
		t.Errorf("resumed again: %+v, %v", res, err)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM cursor WHERE name LIKE 'import:%'"); n != 0 {
		t.Errorf("%d marks are left", n)
	}
	if _, err := imported(0, csvimport.Options{}); err == nil || !strings.Contains(err.Error(), "not written over") {
		t.Errorf("over the rejected rows of before: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "rejects.csv")); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, db, "acme", "DELETE FROM contact WHERE email < 'p5'")
	if res, err := imported(4_000, csvimport.Options{}); err == nil || res.Made == 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	if res, err := imported(0, csvimport.Options{Restart: true}); err != nil || res.Resumed != 0 || res.Rows != 12_001 || res.Unchanged < 4_000 {
		t.Errorf("anew: %+v, %v", res, err)
	}
}

// An import that goes on takes a file for its own only where that is as it left it: else the file is somebody's, who saved it there or corrected rows in it.
//
//nolint:tparallel // its cases have one database
func TestAFileOfRejectsThatIsNotItsOwn(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	const theirs = "email,level,error\ncorrected@example.com,1,\n"
	for name, c := range map[string]struct {
		early bool // rows are rejected before the interruption, too
		given bool // by --rejects
		harm  func(db *postgres.DB, rejects string)
		kept  string // what is then in the file
		last  string // name of the file with what was rejected since
		lost  bool
		err   string
	}{
		"nobody touched it": {early: true, harm: func(*postgres.DB, string) {}, kept: "email,level,error\nearly,1,", last: "people.rejects.csv"},
		"saved there meanwhile": {
			harm: func(_ *postgres.DB, rejects string) { save(t, rejects, theirs) },
			kept: theirs, last: "people.rejects-2.csv",
		},
		"saved where --rejects says": {
			given: true,
			harm:  func(_ *postgres.DB, rejects string) { save(t, rejects, theirs) },
			kept:  theirs, err: "not written over",
		},
		"corrected meanwhile": {
			early: true,
			harm: func(_ *postgres.DB, rejects string) {
				save(t, rejects, theirs+strings.Repeat("more@example.com,2,\n", 100))
			},
			kept: theirs + strings.Repeat("more@example.com,2,\n", 100), last: "people.rejects-2.csv", lost: true,
		},
		"moved away": {
			early: true,
			harm: func(_ *postgres.DB, rejects string) {
				if err := os.Rename(rejects, rejects+".mine"); err != nil {
					t.Fatal(err)
				}
			},
			kept: "email,level,error\nlate,1,", last: "people.rejects.csv", lost: true,
		},
		"named by whoever writes to the database": {
			harm: func(db *postgres.DB, rejects string) {
				save(t, filepath.Join(filepath.Dir(rejects), "precious.csv"), theirs)
				pgtest.Exec(t, db, "acme", `UPDATE cursor SET data = data || jsonb_build_object('rejects', $1::text, 'size', 0, 'sum', encode(sha256(''), 'hex')) WHERE name LIKE 'import:%'`,
					filepath.Join(filepath.Dir(rejects), "precious.csv"))
			},
			kept: "email,level,error\nlate,1,", last: "people.rejects.csv",
		},
		"begun, and the import killed before it noted that": {
			given: true,
			harm:  func(_ *postgres.DB, rejects string) { save(t, rejects, "email,level,er") },
			kept:  "email,level,error\nlate,1,", last: "people.rejects.csv",
		},
	} {
		t.Run(name, func(t *testing.T) { // they have one database, which is emptied for each
			pgtest.Exec(t, db, "acme", "DELETE FROM contact")
			dir := t.TempDir()
			var file strings.Builder
			file.WriteString("email,level\n")
			for i := range 8_500 {
				fmt.Fprintf(&file, "p%d@example.com,%d\n", i, i)
				if i == 10 && c.early {
					file.WriteString("early,1\n")
				}
			}
			file.WriteString("late,1\n")
			path := filepath.Join(dir, "people.csv")
			save(t, path, file.String())
			imported := func(stopAt int) (csvimport.Result, string, error) {
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = f.Close() }()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				rejects := csvimport.RejectsOf(path)
				if c.given {
					rejects = csvimport.NewRejects(filepath.Join(dir, "people.rejects.csv"))
				}
				res, err := csvimport.Import(ctx, db, "acme", f, csvimport.Options{Rejects: rejects, Resume: path, OnProgress: func(rows int, _ int64) {
					if rows == stopAt {
						cancel()
					}
				}})
				if cerr := rejects.Close(); cerr != nil {
					t.Error(cerr)
				}
				return res, rejects.Path(), err
			}
			if _, _, err := imported(4_000); err == nil {
				t.Fatal("it was not interrupted")
			}
			rejects := filepath.Join(dir, "people.rejects.csv")
			c.harm(db, rejects)
			res, last, err := imported(0)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%v, want %q", err, c.err)
			}
			if c.err == "" && (res.Resumed != 4_000 || res.Made != 8_500 || res.RejectsLost != c.lost || filepath.Base(last) != c.last) {
				t.Errorf("%+v, the rejected rows are in %s", res, last)
			}
			if got := load(t, rejects); !strings.HasPrefix(got, c.kept) || c.kept == "" || c.last != "people.rejects.csv" && got != c.kept {
				t.Errorf("the file has:\n%s", got)
			}
			if c.err == "" && strings.Count(load(t, last), "late,1,") != 1 {
				t.Errorf("what was rejected since: %s", load(t, last))
			}
			if strings.HasPrefix(name, "named") && load(t, filepath.Join(dir, "precious.csv")) != theirs {
				t.Error("another file was written over")
			}
		})
	}
}

func save(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
