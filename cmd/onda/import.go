package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"

	"github.com/onda-run/onda/internal/csvimport"
)

type importCmd struct {
	File string `arg:"" help:"CSV file with a header; - for standard input."`

	DryRun  bool     `help:"Store nothing: tell what would become of the rows, with samples."`
	Policy  string   `help:"Of contacts that are there and of those that are not: upsert changes the ones and makes the others; create makes, and rejects rows of those that are there; update changes, and rejects rows of nobody; skip makes, and passes over those that are there." enum:"upsert,create,update,skip" default:"upsert" placeholder:"upsert"`
	Consent []string `help:"A topic, or tracking.email, that all of them agreed to. May be repeated." placeholder:"PURPOSE"`
	Basis   string   `help:"On which ground their consent is held: kept in the consent ledger beside the proof." placeholder:"TEXT"`
	Proof   string   `help:"How they agreed: kept in the consent ledger. Needed with --consent; with it, what is granted in columns such as consent.newsletter is imported too." placeholder:"TEXT"`
	Tag     []string `help:"A tag for all of them. May be repeated."`

	Map           []string `help:"Which field a column is, or email, external_id or tags; COLUMN= leaves it out. May be repeated." sep:"none" placeholder:"COLUMN=FIELD"`
	IgnoreUnknown bool     `help:"Leave out columns that are no fields."`
	Encoding      string   `help:"utf-8, utf-16, utf-16le, utf-16be, windows-1252, latin-1 or another code page; found out where it is not given, as the others here are." placeholder:"NAME"`
	Separator     string   `help:"The character between cells, or tab." placeholder:"CHAR"`
	Quote         string   `help:"The character around cells that have a separator in them." placeholder:"CHAR"`
	Decimal       string   `help:"The character before decimals: . or ," placeholder:"CHAR"`
	Dates         string   `help:"The last day of 2026 as dates are written: 2026-12-31, 31.12.2026, 31/12/2026 or 12/31/2026." placeholder:"DATE"`

	Rejects string `help:"Where rows that cannot be imported go, to be corrected and imported again. FILE.rejects.csv by default, and never over a file that is there." type:"path" placeholder:"FILE"`
	Restart bool   `help:"Begin anew where the same import was interrupted; else it goes on where it was."`
}

// Help is shown by --help.
func (importCmd) Help() string {
	return "Columns are the names of fields, and email, external_id and tags. What onda export contacts wrote can be imported as it is: of it score, stage and created are left out, and what is granted " +
		"where no --proof is given; who has withdrawn has so here, too, unless they said something else here. Which addresses are suppressed is not in an export. How the file is written (encoding, separator, dates, decimals) is found out and shown; what can be read in two ways is " +
		"refused. To import a file again changes nothing; an import that was interrupted goes on where it was. " +
		"Rows that cannot be imported are written, with the reason, to a file that can be corrected and imported again. Of two rows of one contact the second is rejected; " +
		"more than some 500,000 rows apart, it changes the contact.\n\nExample:\n  onda --tenant acme import people.csv --dry-run\n  onda --tenant acme import people.csv --map E-Mail=email --ignore-unknown\n" +
		"  onda --tenant acme import a.csv --consent newsletter --proof 'fair, 12 May'"
}

// options are those of the command.
func (c importCmd) options() (opts csvimport.Options, err error) {
	opts = csvimport.Options{
		Dialect: csvimport.Dialect{Encoding: c.Encoding, Separator: c.Separator, Quote: c.Quote, Decimal: c.Decimal, Dates: c.Dates},
		Mapping: map[string]string{}, IgnoreUnknown: c.IgnoreUnknown, Policy: csvimport.Policy(c.Policy), Consent: c.Consent, Basis: c.Basis, Proof: c.Proof, Tags: c.Tag, DryRun: c.DryRun, Restart: c.Restart,
	}
	if len(c.Consent) > 0 && strings.TrimSpace(c.Proof) == "" {
		return opts, usageError{"--consent needs --proof: say how they agreed"}
	}
	if c.Proof == "" && c.Basis != "" {
		return opts, usageError{"--proof and --basis are of --consent: say what they agreed to"}
	}
	for _, m := range c.Map {
		i := strings.LastIndexByte(m, '=')
		if i < 1 {
			return opts, usageError{fmt.Sprintf("--map %s: say it as COLUMN=FIELD", m)}
		}
		column := strings.TrimSpace(m[:i])
		if _, twice := opts.Mapping[column]; twice {
			return opts, usageError{fmt.Sprintf("--map %s: it is there twice", column)}
		}
		opts.Mapping[column] = strings.TrimSpace(m[i+1:])
	}
	return opts, nil
}

// Run imports a file.
func (c importCmd) Run(ctx context.Context, s *session) error {
	opts, err := c.options()
	if err != nil {
		return err
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(csvimport.MemoryLimit)
	}
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	in, size := s.stdin, int64(-1)
	opts.Name = "standard input"
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if info.IsDir() {
			return fmt.Errorf("%s is a directory: name a file", c.File)
		}
		in, size, opts.Name = f, info.Size(), filepath.Base(c.File)
		if opts.Resume, err = resumable(f, info, c.Rejects); err != nil {
			return err
		}
	}
	rejects := csvimport.RejectsOf(c.File)
	if c.Rejects != "" {
		rejects = csvimport.NewRejects(c.Rejects)
	}
	opts.Rejects = rejects
	opts.OnDialect = func(d csvimport.Dialect) {
		if !s.json {
			s.print("%s: read as %s; override with --encoding --separator --decimal --dates", opts.Name, d)
		}
	}
	bar := s.importBar(size, opts.Name)
	opts.OnProgress = bar.rows
	res, err := csvimport.Import(ctx, db, tenant, in, opts)
	bar.end()
	if cerr := rejects.Close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	if err != nil {
		if rejects.Path() != "" {
			s.print("rows rejected so far are in %s", rejects.Path())
		}
		return err
	}
	return errors.Join(c.tell(s, opts.Name, res, rejects), s.ring(ctx))
}

// tell says what became of the rows.
func (c importCmd) tell(s *session, name string, res csvimport.Result, rejects *csvimport.Rejects) error {
	out := struct {
		csvimport.Result
		DryRun  bool   `json:"dry_run,omitempty"`
		Rejects string `json:"rejects,omitempty"` // the file of rejected rows
	}{Result: res, DryRun: c.DryRun, Rejects: rejects.Path()}
	if ok, err := s.data(out); ok {
		return err
	}
	if res.Resumed > 0 {
		s.print("an import that was interrupted went on behind %s", count(res.Resumed, "row"))
	}
	if res.RejectsLost {
		s.print("the file of rows that were rejected before is gone, or was changed: it was left as it is, and has none of those that were rejected since")
	}
	would, skipped := "", ""
	if c.DryRun {
		would = "nothing is stored; it would be "
	}
	if res.Skipped > 0 {
		skipped = fmt.Sprintf("%d skipped, ", res.Skipped)
	}
	s.print("%s: %s%d new, %d updated, %d unchanged, %s%d rejected (%.1f s)", count(res.Rows, "row"), would, res.Made, res.Updated, res.Unchanged, skipped, res.Rejected, res.Took.Seconds())
	for _, l := range res.LeftOut {
		s.print("column %s is left out: %s", l.Column, l.Why)
	}
	for _, r := range res.Samples {
		s.print("  row %d would be %s: %s %s", r.Row, r.Becomes, r.Contact, r.Fields)
	}
	if res.Granted > 0 {
		s.print("%s new", count(res.Granted, "consent"))
	}
	if n := res.Withdrawn + res.Complained; n > 0 {
		s.print("%s not granted anew: they had withdrawn (%d) or complained (%d)", count(n, "consent"), res.Withdrawn, res.Complained)
	}
	if res.OptedOut > 0 {
		s.print("%s new: they get no such mail here either", count(res.OptedOut, "withdrawal"))
	}
	if res.KeptIn > 0 {
		s.print("%s not taken: they agreed, or were asked, here, which counts as newer", count(res.KeptIn, "withdrawal"))
	}
	if res.Exported {
		s.print("which addresses are suppressed (they bounced, complained, or were stopped by hand) is not in an export, and so not known here: export a segment of those who are reachable, or take the others out")
	}
	for _, p := range res.Problems {
		_, _ = fmt.Fprintf(s.stderr, "%s: row %d: %s\n", name, p.Row, p.Error)
	}
	if more := res.Rejected - len(res.Problems); more > 0 {
		_, _ = fmt.Fprintf(s.stderr, "%s: and %s more\n", name, count(more, "rejected row"))
	}
	if rejects.Path() != "" {
		s.print("the rejected rows are in %s, each with its reason; correct them there and import that file", rejects.Path())
	}
	return nil
}

// resumable is what tells the import of a file from others, beside what is in it: where it is and when it was changed. It is empty where another import of the file runs on this
// machine: this one is then on its own.
func resumable(f *os.File, info os.FileInfo, rejects string) (string, error) {
	if !info.Mode().IsRegular() || syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil { // until the file is closed
		return "", nil
	}
	path, err := filepath.Abs(f.Name())
	if err != nil {
		return "", err
	}
	return fmt.Sprint(path, info.ModTime().UnixNano(), rejects), nil
}

// importBar shows how far an import is, on a terminal.
type importBar struct {
	bar   *progressbar.ProgressBar
	name  string
	since time.Time // when the rate was counted anew, and how many rows there were
	from  int
	rate  int
}

// rateFor is for how long rows are counted for the rate: what an import that goes on passes over counts for no longer.
const rateFor = 5 * time.Second

func (s *session) importBar(size int64, name string) *importBar {
	f, ok := s.stderr.(*os.File)
	visible := ok && isatty.IsTerminal(f.Fd())
	return &importBar{name: name, since: time.Now(), bar: progressbar.NewOptions64(size, progressbar.OptionSetWriter(s.stderr), progressbar.OptionSetDescription("reading "+name),
		progressbar.OptionSetVisibility(visible), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))}
}

// rows shows how many rows are done, and that they were so many bytes of the file.
func (b *importBar) rows(rows int, bytes int64) {
	took := time.Since(b.since)
	if took > time.Second {
		b.rate = int(float64(rows-b.from) / took.Seconds())
	}
	if took > rateFor {
		b.since, b.from = time.Now(), rows
	}
	b.bar.Describe(fmt.Sprintf("%s: %s rows, %s a second", b.name, thousands(rows), thousands(b.rate)))
	_ = b.bar.Set64(bytes) // it is for show
}

func (b *importBar) end() { _ = b.bar.Finish() }

// thousands writes a number with its thousands apart.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
