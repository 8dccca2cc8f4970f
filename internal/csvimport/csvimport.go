// Package csvimport brings contacts in from CSV files, with the consent that they gave.
//
// Invariants: a row is imported as a whole or is rejected with a reason, and rejected rows are written in a form that can be corrected and imported again; what was imported stays, chunk by
// chunk, and to import a file again changes nothing, and writes nothing; memory does not grow with the file; what can be read in two ways is refused with both.
package csvimport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Policy is what becomes of rows whose contacts are there, and of those whose are not.
type Policy string

// The policies. What is passed over is counted, and left as it is in all: fields, tags and consent.
const (
	// Upsert makes contacts that are not there, and changes those that are.
	Upsert Policy = "upsert"
	// Create makes contacts, and rejects rows of those that are there.
	Create Policy = "create"
	// Update changes contacts that are there, and rejects rows of nobody.
	Update Policy = "update"
	// Skip makes contacts that are not there, and passes over those that are.
	Skip Policy = "skip"
)

// Policies gives all of them.
func Policies() []Policy { return []Policy{Upsert, Create, Update, Skip} }

// Options say how a file is read.
type Options struct {
	// Name is the file's, for the proof of consent.
	Name string
	// Dialect is what of it is given; the rest is found out. OnDialect, if not nil, is called with all of it before anything is imported.
	Dialect   Dialect
	OnDialect func(Dialect)
	// Mapping gives the field for a column whose header is another: header → field's name, or email, external_id, tags; an empty name leaves the column out. IgnoreUnknown leaves
	// out all columns that are no fields.
	Mapping       map[string]string
	IgnoreUnknown bool
	// Policy is Upsert where it is empty.
	Policy Policy
	// Consent are the topics, or tracking.email and tracking.web, that all of them agreed to; Proof tells how, and Basis (or nothing) on which ground: both are kept in the ledger. With a
	// proof, those who are granted in a column such as consent.newsletter agreed to that, too. Who is withdrawn in one has withdrawn it, with or without a proof, unless it said something else here.
	Consent []string
	Basis   string
	Proof   string
	// Tags are added to all of them.
	Tags []string
	// DryRun stores nothing, and tells what would become of the rows.
	DryRun bool
	// Rejects gets the rows that were not imported, with the header of the file and a column error; nil: they are only counted. A *Rejects is never written over a file that is there.
	Rejects io.Writer
	// Resume, if not empty, tells this import of this file from others: an import of the same that was interrupted goes on where it was. Rejects is a *Rejects then, and the file
	// that is imported an io.ReadSeeker; no two of the same may run at once. Restart begins anew all the same.
	Resume  string
	Restart bool
	// OnProgress, if not nil, is called after each chunk with the number of rows so far, and how many bytes of the file they are.
	OnProgress func(rows int, bytes int64)
	// Cause names the command, for the facts; "import" when empty.
	Cause string
}

// Result is what became of a file's rows.
type Result struct {
	Rows      int `json:"rows"`
	Made      int `json:"made"`
	Updated   int `json:"updated"`
	Unchanged int `json:"unchanged"`
	// Skipped are those of contacts that are there, by the policy.
	Skipped  int `json:"skipped,omitempty"`
	Rejected int `json:"rejected"`
	// Granted counts consents that were new; Withdrawn and Complained those that were not granted, since the contact has withdrawn, or complained: the contacts themselves were imported.
	Granted    int `json:"granted"`
	Withdrawn  int `json:"withdrawn"`
	Complained int `json:"complained"`
	// OptedOut counts withdrawals in columns such as consent.newsletter that were new, and KeptIn those that were not taken, since the contact agreed, or was asked, here: that counts as newer.
	OptedOut int `json:"opted_out,omitempty"`
	KeptIn   int `json:"kept_in,omitempty"`
	// Exported: the file has columns of consent, as exports have. These do not tell which addresses are suppressed.
	Exported bool          `json:"exported,omitempty"`
	Took     time.Duration `json:"took"`
	// Resumed is how many rows an import that was interrupted had done.
	Resumed int `json:"resumed,omitempty"`
	// RejectsLost: the file with what that one rejected is not there any more, or was changed since; it was left as it is, and has none of those that were rejected from then on.
	RejectsLost bool `json:"rejects_lost,omitempty"`
	// LeftOut are the columns of an export that are not imported.
	LeftOut []LeftOut `json:"left_out,omitempty"`
	// ReadAs is how the file was read.
	ReadAs Dialect `json:"read_as,omitzero"`
	// Problems are of the first rejected rows, at most 20.
	Problems []Problem `json:"problems,omitempty"`
	// Samples are, of a dry run, the first rows of each kind, at most 5.
	Samples []Sample `json:"samples,omitempty"`
}

// LeftOut is a column that is not imported, though it could be known.
type LeftOut struct {
	Column string `json:"column"`
	Why    string `json:"why"`
}

// Problem is why a row was rejected.
type Problem struct {
	Row   int    `json:"row"` // as a spreadsheet counts, the header is row 1
	Error string `json:"error"`
}

// Sample is a row of a dry run.
type Sample struct {
	Row int `json:"row"`
	// Becomes is new, updated, unchanged or skipped.
	Becomes string `json:"becomes"`
	// Contact is the address, or else the external id.
	Contact string `json:"contact"`
	// Fields is what it says.
	Fields string `json:"fields,omitempty"`
}

const (
	chunkRows   = 4_000
	maxProblems = 20
	maxSamples  = 5
	maxTries    = 20
	quickTries  = 2 // by COPY
	errorColumn = "error"
)

// MemoryLimit is what a process that does nothing but import sets for Go, beside which telling repeated rows takes 12 MiB: by itself Go would let as much garbage gather as there is of what
// is in use, and give back late what it had freed.
const MemoryLimit = 23 << 20

// Import reads CSV with a header whose columns are email, external_id, tags and names of fields. Its encoding, its separator and how it writes numbers and dates are found out, or given. A contact is found by its
// address or external id, else made; an empty cell leaves a field as it is. Each chunk of 4,000 rows, fewer with consent, is a transaction.
//
// An error of the header or of the options, or of what can be read in two ways, comes before anything is imported. Of a later error (Postgres away, the file unreadable) the text says how
// far it came: what is in stays in, and the file can be imported again.
func Import(ctx context.Context, db *postgres.DB, tenant string, r io.Reader, opts Options) (Result, error) {
	began := time.Now()
	if opts.Cause == "" {
		opts.Cause = "import"
	}
	if opts.Policy == "" {
		opts.Policy = Upsert
	}
	im := &importer{db: db, tenant: tenant, opts: opts, analyzeAt: chunkRows, counted: make(chan error, 1)}
	err := errors.Join(im.run(ctx, r), im.awaitAnalyze())
	im.res.Took = time.Since(began)
	return im.res, err
}

type importer struct {
	db     *postgres.DB
	tenant string
	opts   Options
	res    Result

	dialect dialect
	columns []column
	mark    *mark
	rejects *Rejects    // opts.Rejects where that is one
	asked   int         // to how much consent one row may be
	headed  bool        // the header of the rejected rows is written
	allNew  atomic.Bool // the chunk before was of new contacts alone
	alone   bool        // rows have one identity: so no two near each other are of one contact

	analyzeAt int // how many made contacts
	counting  bool
	counted   chan error
}

func (im *importer) run(ctx context.Context, r io.Reader) error {
	given, err := im.opts.Dialect.check()
	if err != nil {
		return err
	}
	p, err := im.begin(ctx, r, given)
	if err != nil {
		return err
	}
	defer p.seen.close()
	im.res.ReadAs = im.dialect.Dialect
	if im.opts.OnDialect != nil {
		im.opts.OnDialect(im.dialect.Dialect)
	}
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	chunks := make(chan *chunk)
	var busy sync.WaitGroup
	defer func() { // the file is the caller's again when this returns
		cancel()
		busy.Wait()
	}()
	busy.Go(func() { im.read(reading, p, chunks, &busy) })
	if err := im.storeAll(ctx, chunks); err != nil {
		return im.stopped(err)
	}
	if err := ctx.Err(); err != nil {
		return im.stopped(err)
	}
	return im.forget(ctx)
}

// storeAll stores the chunks. Behind one of new contacts alone two are written at once, since that is work for Postgres above all; they are committed in their order.
func (im *importer) storeAll(ctx context.Context, chunks <-chan *chunk) error {
	g, storing := errgroup.WithContext(ctx)
	g.SetLimit(2)
	before, rows := make(chan struct{}), 0
	close(before)
	for c := range chunks {
		rows += c.records
		if im.mark != nil && rows <= im.mark.rows {
			im.problems(c.rejects) // the rest of it is known
			im.progress(rows, c)
			continue
		}
		// Rows of one identity each are of other contacts than those of the chunk before.
		if !im.alone || !im.allNew.Load() || im.asked > 0 || im.opts.DryRun {
			select {
			case <-before:
			case <-storing.Done():
			}
		}
		if storing.Err() != nil {
			break
		}
		done, upTo := make(chan struct{}), rows
		c.before, before = before, done
		g.Go(func() error {
			if err := im.store(storing, c); err != nil {
				return err
			}
			if !im.opts.DryRun {
				if err := im.analyze(ctx); err != nil {
					return err
				}
			}
			if c.err != nil && !errors.Is(c.err, io.EOF) {
				return c.err
			}
			im.progress(upTo, c)
			close(done) // and not where it failed: then none behind it is committed
			return nil
		})
	}
	return g.Wait()
}

func (im *importer) progress(rows int, c *chunk) {
	if im.opts.OnProgress != nil {
		im.opts.OnProgress(rows, c.read)
	}
}

// read makes the chunks, each while the one before is stored, and compares it meanwhile.
func (im *importer) read(ctx context.Context, p *parser, to chan<- *chunk, busy *sync.WaitGroup) {
	defer close(to)
	size, room, rows := chunkRows/(1+im.asked), 0, 0
	for {
		c := p.next(size, room)
		room = c.text.Len() + c.text.Len()/16
		rows += c.records
		if im.alone && !im.allNew.Load() && (im.mark == nil || rows > im.mark.rows) {
			c.ahead = make(chan compared, 1)
			busy.Go(func() { c.ahead <- im.compare(ctx, c) })
		}
		select {
		case to <- c:
		case <-ctx.Done():
			return
		}
		if c.err != nil {
			return
		}
	}
}

// begin reads the header, and finds out all that is to be known before the first row is imported.
func (im *importer) begin(ctx context.Context, r io.Reader, given dialect) (*parser, error) {
	file, from := seekable(r)
	counted := &countingReader{Reader: r}
	rd, err := open(counted, given)
	if err != nil {
		return nil, err
	}
	header, err := rd.next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the file is empty: its first row must name the columns, such as email,first_name")
	case err != nil:
		return nil, err
	case header.problem != "":
		return nil, fmt.Errorf("row %d, which names the columns: %s", header.row, header.problem)
	}
	var resumes bool
	var left []LeftOut
	err = im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		known, err := read(ctx, tx)
		if err != nil {
			return err
		}
		if err := known.options(im.opts); err != nil {
			return err
		}
		resumes = tx.Tenant.Schema >= ResumeSchema
		im.columns, left, err = known.columns(header.cells, im.opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	again := func() (*reader, error) {
		if file == nil {
			return nil, nil
		}
		if _, err := file.Seek(from, io.SeekStart); err != nil {
			return nil, fmt.Errorf("read the file again: %w", err)
		}
		counted.n = 0
		rd, err := open(counted, given)
		if err == nil {
			_, err = rd.next() // the header
		}
		return rd, err
	}
	if rd, err = im.look(rd, given, again); err != nil {
		return nil, err
	}
	im.rejects, _ = im.opts.Rejects.(*Rejects)
	if im.opts.Resume != "" && resumes && im.rejects != nil && file != nil && !im.opts.DryRun {
		if err := im.resume(ctx, file); err != nil {
			return nil, err
		}
	}
	im.res.LeftOut, im.res.Exported = left, slices.ContainsFunc(im.columns, func(c column) bool { return c.topic != "" })
	if im.rejects != nil {
		if err := im.rejects.begin(im.header()); err != nil {
			return nil, err
		}
	}
	identities, topics := 0, 0
	for i := range im.columns {
		if im.columns[i].topic != "" {
			topics++
		}
		if c := &im.columns[i]; !c.skip && (c.name == "email" || c.name == "external_id") {
			identities++
		}
	}
	im.alone, im.asked = identities == 1, topics+len(im.opts.Consent)
	tags := slices.Clone(im.opts.Tags)
	slices.Sort(tags)
	seen, err := newSeen()
	return &parser{reader: rd, columns: im.columns, tags: slices.Compact(tags), seen: seen, counted: counted, topics: topics > 0, proof: strings.TrimSpace(im.opts.Proof) != "", decoded: rd.dialect.Encoding != "UTF-8", texts: !im.alone || im.opts.Policy == Create || im.opts.Policy == Update || im.unique()}, err
}

// seekable is a reader that can go back to where it is; nil for a pipe.
func seekable(r io.Reader) (file io.ReadSeeker, at int64) {
	file, ok := r.(io.ReadSeeker)
	if !ok {
		return nil, 0
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, 0
	}
	return file, at
}

// look finds out how dates and numbers are written: by the first MiB and, where that has what is not ISO 8601, by all of the file, if it can be read twice.
func (im *importer) look(rd *reader, given dialect, again func() (*reader, error)) (*reader, error) {
	sample, err := rd.in.Peek(maxLine)
	whole := errors.Is(err, io.EOF)
	if !whole {
		sample = sample[:bytes.LastIndexByte(sample, rd.dialect.end)+1]
	}
	part := reader{dialect: rd.dialect, width: rd.width, row: rd.row, line: rd.line}
	part.over(sample)
	f := finder{columns: im.columns}
	if err := f.scan(&part); err != nil {
		return nil, err
	}
	if !whole && f.doubts(given) {
		all, err := again()
		if err != nil {
			return nil, err
		}
		if all != nil {
			f = finder{columns: im.columns}
			if err := f.scan(all); err != nil {
				return nil, err
			}
			if rd, err = again(); err != nil {
				return nil, err
			}
			whole = true
		}
	}
	im.dialect = rd.dialect
	if err := f.settle(&im.dialect, given); err != nil {
		return rd, err
	}
	for i := range im.columns {
		im.columns[i].unsure = !whole && given.Decimal == "" && !f.decimals.comma && !f.decimals.point
	}
	return rd, nil
}

// stopped says how far it came.
func (im *importer) stopped(err error) error {
	done := im.res.Made + im.res.Updated + im.res.Unchanged + im.res.Skipped
	return fmt.Errorf("the import stopped when %d contacts were in: import the file again, what is in is left as it is: %w", done, err)
}

// problems notes the first rows that were rejected.
func (im *importer) problems(list []reject) {
	for _, r := range list {
		if len(im.res.Problems) == maxProblems {
			return
		}
		im.res.Problems = append(im.res.Problems, Problem{r.row, r.problem})
	}
}

// outcome is what became of a chunk.
type outcome struct {
	made, updated, unchanged, skipped []int // numbers of its rows
	rejects                           []reject
	recorded                          []contact.Recorded
	text                              []byte // of the rejected rows, when it was written
}

// errLate: the chunk before takes long, and this one's transaction stays open no longer for it.
var errLate = errors.New("the chunk before is not in yet")

// turn waits until all chunks before this one are in: within a transaction for a second at most, after which it is errLate.
func (c *chunk) turn(ctx context.Context, within bool) error {
	var late <-chan time.Time
	if within {
		t := time.NewTimer(time.Second)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-c.before:
		return nil
	case <-late:
		return errLate
	case <-ctx.Done():
		return ctx.Err()
	}
}

// store writes a chunk in one transaction, which is tried again, behind all that come before it, when it met another that wrote the same contacts.
func (im *importer) store(ctx context.Context, c *chunk) error {
	var o outcome
	for try := 1; ; try++ {
		var err error
		if o, err = im.attempt(ctx, c, try); err == nil {
			break
		}
		var pe *pgconn.PgError
		again := errors.Is(err, contact.ErrThere) || errors.Is(err, errLate) || errors.As(err, &pe) && (pe.Code == "40P01" || pe.Code == "40001" || pe.Code == "23505")
		if try == maxTries || !again {
			return err
		}
		if err := c.turn(ctx, false); err != nil {
			return err
		}
	}
	if err := im.reject(ctx, &o); err != nil {
		return err
	}
	if im.rejects != nil {
		im.rejects.keep(o.text)
	}
	im.allNew.Store(len(o.made) > 0 && len(o.made) == len(c.rows))
	im.res.add(c, o)
	im.problems(o.rejects)
	if im.opts.DryRun {
		im.sample(c, o)
	}
	return nil
}

// add counts what became of a chunk.
func (res *Result) add(c *chunk, o outcome) {
	res.Rows += c.records
	res.Made, res.Updated, res.Unchanged, res.Skipped = res.Made+len(o.made), res.Updated+len(o.updated), res.Unchanged+len(o.unchanged), res.Skipped+len(o.skipped)
	res.Rejected += len(o.rejects)
	for _, r := range o.recorded {
		switch {
		case r.Refused == "complaint":
			res.Complained++
		case r.Refused == "newer":
			res.KeptIn++
		case r.Refused != "":
			res.Withdrawn++
		case r.Changed && r.State == contact.Withdrawn:
			res.OptedOut++
		case r.Changed:
			res.Granted++
		}
	}
}

// plan is what is to be done with a chunk's rows.
type plan struct {
	fresh, change []int
	consents      []contact.Consent // of those who are there and stay as they are
}

// compared is what is known of a chunk when it is compared.
type compared struct {
	plan    plan
	outcome outcome
	err     error
}

// attempt stores a chunk. Behind one of new contacts alone its rows are taken for such, too, at first: one that is not is an error that matches contact.ErrThere.
func (im *importer) attempt(ctx context.Context, c *chunk, try int) (o outcome, err error) {
	var known compared
	switch {
	case try == 1 && c.ahead != nil:
		known = <-c.ahead
	case try == 1 && im.allNew.Load() && im.opts.Policy != Update && !im.opts.DryRun:
		known = compared{plan: plan{fresh: all(len(c.rows))}, outcome: outcome{rejects: slices.Clone(c.rejects)}}
	default:
		known = im.compare(ctx, c)
	}
	if known.err != nil {
		return o, known.err
	}
	p, o := known.plan, known.outcome
	if try > quickTries && !im.opts.DryRun { // others make the same contacts: row by row in one statement, nobody is in the way of anybody
		p.change, p.fresh = slices.Concat(p.fresh, p.change), nil
	}
	if im.opts.DryRun {
		o.made, o.updated = p.fresh, p.change
		return o, nil
	}
	writes := len(p.fresh)+len(p.change)+len(p.consents) > 0
	if im.mark != nil && !im.mark.set && (writes || len(o.rejects) > 0) {
		if err := im.beginMark(ctx); err != nil { // before there is a file of rejected rows, which would be in the way of the next
			return o, err
		}
	}
	if writes {
		planned := o
		err = im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			o = planned
			return im.write(ctx, tx, c, p, &o)
		})
		if err != nil {
			return o, err
		}
	}
	return o, c.turn(ctx, false)
}

func all(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// compare finds out what is to be done, without a lock.
func (im *importer) compare(ctx context.Context, c *chunk) (out compared) {
	out.err = im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		out.outcome = outcome{rejects: slices.Clone(c.rejects)}
		out.plan, err = im.plan(ctx, tx, c, &out.outcome)
		return err
	})
	return out
}

func (im *importer) plan(ctx context.Context, tx *postgres.Tx, c *chunk, o *outcome) (p plan, err error) {
	standing, err := contact.Compare(ctx, tx, c.rows)
	if err != nil {
		return p, err
	}
	var consents []contact.Consent
	for i, s := range standing {
		reject := func(problem string) { o.rejects = append(o.rejects, reject{c.source[i], false, problem}) }
		switch {
		case errors.Is(s.Err, contact.ErrTwoContacts):
			reject(twoContacts)
		case s.Err != nil:
			reject(s.Err.Error())
		case s.Contact == 0 && im.opts.Policy == Update:
			reject("there is no such contact, and --policy update makes none")
		case s.Contact == 0:
			p.fresh = append(p.fresh, i)
		case im.opts.Policy == Create:
			reject(isThere)
		case im.opts.Policy == Skip:
			o.skipped = append(o.skipped, i)
		case s.Same:
			o.unchanged = append(o.unchanged, i)
			consents = im.consents(consents, s.Contact, c, i)
		default:
			p.change = append(p.change, i)
		}
	}
	if im.opts.DryRun {
		return p, nil
	}
	if im.unique() { // each has to be looked up, also by those of this chunk
		p.change = append(p.change, p.fresh...)
		slices.Sort(p.change)
		p.fresh = nil
	}
	recorded, todo, err := contact.Unrecorded(ctx, tx, consents)
	if err != nil {
		return p, err
	}
	for _, r := range recorded {
		o.recorded = append(o.recorded, r)
	}
	for _, i := range todo {
		p.consents = append(p.consents, consents[i])
	}
	return p, nil
}

const isThere = "the contact is there already, and --policy create changes none"

const twoContacts = "email and external_id belong to two different contacts: correct the one that is wrong, or leave one of both empty"

// unique tells whether a column is of a unique field.
func (im *importer) unique() bool {
	return slices.ContainsFunc(im.columns, func(c column) bool { return c.field != nil && c.field.Unique })
}

// write does what is planned.
func (im *importer) write(ctx context.Context, tx *postgres.Tx, c *chunk, p plan, o *outcome) error {
	if im.mark != nil {
		if err := im.mark.share(ctx, tx); err != nil {
			return err
		}
	}
	if err := tx.EnsurePartitionsLately(ctx); err != nil {
		return err
	}
	consents := p.consents
	made, err := contact.Make(ctx, tx, "campaign", c.pick(p.fresh), im.opts.Cause)
	if err != nil {
		return err
	}
	o.made = p.fresh
	for k, i := range p.fresh {
		consents = im.consents(consents, made[k], c, i)
	}
	rows := c.pick(p.change)
	if im.opts.Policy == Create || im.opts.Policy == Skip { // they were nobody's a moment ago
		rows = slices.Clone(rows)
		for i := range rows {
			rows[i].OnlyNew = true
		}
	}
	results, err := contact.Upsert(ctx, tx, "campaign", rows, im.opts.Cause)
	if err != nil {
		return err
	}
	o.unchanged = slices.Clip(o.unchanged)
	for k, i := range p.change {
		switch r := results[k]; {
		case errors.Is(r.Err, contact.ErrTwoContacts):
			o.rejects = append(o.rejects, reject{c.source[i], false, twoContacts})
			continue
		case r.Err != nil:
			o.rejects = append(o.rejects, reject{c.source[i], false, r.Err.Error()})
			continue
		case r.Made:
			o.made = append(slices.Clip(o.made), i)
		case im.opts.Policy == Create:
			o.rejects = append(o.rejects, reject{c.source[i], false, isThere})
			continue
		case im.opts.Policy == Skip:
			o.skipped = append(slices.Clip(o.skipped), i)
			continue
		case r.Changed:
			o.updated = append(o.updated, i)
		default:
			o.unchanged = append(o.unchanged, i)
		}
		consents = im.consents(consents, results[k].Contact, c, i)
	}
	recorded, err := contact.Record(ctx, tx, "campaign", consents...)
	if err != nil {
		return err
	}
	o.recorded = append(slices.Clip(o.recorded), recorded...)
	if err := c.turn(ctx, true); err != nil || im.mark == nil {
		return err
	}
	return im.setMark(ctx, tx, c, o)
}

// pick gives some of the rows.
func (c *chunk) pick(which []int) []contact.Row {
	if len(which) == len(c.rows) {
		return c.rows
	}
	out := make([]contact.Row, len(which))
	for k, i := range which {
		out[k] = c.rows[i]
	}
	return out
}

// consents adds what the contact of a chunk's row agreed to, or withdrew.
func (im *importer) consents(to []contact.Consent, id int64, c *chunk, i int) []contact.Consent {
	add := func(purpose string, state contact.State) {
		proof := map[string]any{"file": im.opts.Name, "row": c.source[i].row}
		if state == contact.Granted {
			proof["text"] = im.opts.Proof
			if im.opts.Basis != "" {
				proof["basis"] = im.opts.Basis
			}
		}
		to = append(to, contact.Consent{Contact: id, Purpose: purpose, State: state, Basis: contact.BasisImport, Proof: proof})
	}
	for _, purpose := range im.opts.Consent {
		add(purpose, contact.Granted)
	}
	if c.said != nil {
		for _, s := range c.said[i] { // of no purpose that all agreed to
			add(s.purpose, s.state)
		}
	}
	return to
}

// sample notes the first rows of each kind.
func (im *importer) sample(c *chunk, o outcome) {
	for _, kind := range []struct {
		becomes string
		rows    []int
	}{{"new", o.made}, {"updated", o.updated}, {"unchanged", o.unchanged}, {"skipped", o.skipped}} {
		n := 0
		for _, s := range im.res.Samples {
			if s.Becomes == kind.becomes {
				n++
			}
		}
		for _, i := range kind.rows[:min(len(kind.rows), maxSamples-n)] {
			who := c.rows[i].Email
			if who == "" {
				who = c.rows[i].ExternalID
			}
			im.res.Samples = append(im.res.Samples, Sample{c.source[i].row, kind.becomes, who, c.rows[i].JSON})
		}
	}
}

// finder finds out how the columns' dates and numbers are written.
type finder struct {
	columns  []column
	dates    []dates
	decimals decimals
}

// scan looks at all rows that are left.
func (f *finder) scan(r *reader) error {
	f.dates = make([]dates, len(f.columns))
	several := false
	for i := range f.columns {
		several = several || f.kind(i) != ""
	}
	for several {
		rec, err := r.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if rec.problem != "" || len(rec.cells) != len(f.columns) {
			continue
		}
		for i := range f.columns {
			switch cell := bytes.TrimSpace(csvexport.Unguard(rec.cells[i])); f.kind(i) {
			case spec.TypeDate, spec.TypeDatetime:
				if !isDay(cell) || f.dates[i].orders != yearFirst {
					f.dates[i].see(rec.row, cell)
				}
			case spec.TypeNumber:
				f.decimals.see(f.columns[i].header, rec.row, cell)
			default: // written in one way
			}
		}
	}
	return nil
}

// kind is the type of a column's values, where they can be written in several ways; else empty.
func (f *finder) kind(i int) spec.FieldType {
	c := &f.columns[i]
	if c.skip || c.field == nil {
		return ""
	}
	switch c.field.Type {
	case spec.TypeDate, spec.TypeDatetime, spec.TypeNumber:
		return c.field.Type
	default:
		return ""
	}
}

// doubts tells whether there is anything of which more rows may tell more.
func (f *finder) doubts(given dialect) bool {
	for i := range f.dates {
		if kind := f.kind(i); given.order == 0 && (kind == spec.TypeDate || kind == spec.TypeDatetime) && (f.dates[i].orders == 0 || !f.dates[i].iso()) {
			return true
		}
	}
	return given.Decimal == "" && f.decimals.comma
}

// settle says how each column is read, or gives all errors.
func (f *finder) settle(d *dialect, given dialect) error {
	var errs []error
	if d.Decimal == "" {
		var err error
		if d.Decimal, err = f.decimals.verdict(); err != nil {
			errs = append(errs, err)
			d.Decimal = "."
		}
	}
	for i := range f.columns {
		c := &f.columns[i]
		c.decimal = d.Decimal[0]
		if kind := f.kind(i); kind != spec.TypeDate && kind != spec.TypeDatetime {
			continue
		}
		c.order, c.given = given.order, given.order != 0
		if !c.given {
			var err error
			if c.order, err = f.dates[i].verdict(c.header); err != nil {
				errs = append(errs, err)
			} else if c.order != 0 && d.Dates == "" {
				d.Dates = c.order.example(f.dates[i].between)
			}
		}
	}
	return errors.Join(errs...)
}
