package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

type segmentCmd struct {
	Count   segmentCountCmd   `cmd:"" default:"withargs" help:"Count a segment's members, from a number that is kept."`
	List    segmentListCmd    `cmd:"" help:"List the segments: how many are in each, whether it is current, and what uses it."`
	Preview segmentPreviewCmd `cmd:"" help:"Count who a document would put in, before it is applied."`
	Explain segmentExplainCmd `cmd:"" help:"Say why a contact is in a segment, or is not: which part of the predicate holds, because of what, until when."`
	Rebuild segmentRebuildCmd `cmd:"" help:"Have a segment computed in full."`
}

func segments() sort { return sort{"segment", []string{spec.KindSegment}} }

type segmentCountCmd struct {
	Name string `arg:"" help:"The segment's name."`
}

// Help is shown by --help.
func (segmentCountCmd) Help() string {
	return "The word count may be left out.\n\nExample:\n  onda --tenant acme segment count nordic-readers\n  onda --tenant acme segment nordic-readers"
}

// Run counts a segment.
func (c segmentCountCmd) Run(ctx context.Context, s *session) error {
	var n segment.Size
	var took time.Duration
	err := s.named(ctx, c.Name, segments(), "", func(ctx context.Context, tx *postgres.Tx) (err error) {
		began := time.Now()
		n, err = segment.Count(ctx, tx, c.Name)
		took = time.Since(began)
		return err
	})
	if err != nil {
		return err
	}
	data := map[string]any{"segment": c.Name, "members": n.Members, "current": n.Current, "ms": took.Milliseconds()}
	note := ""
	switch {
	case n.Failed != "":
		data["failed"] = n.Failed
		note = "; it is set aside, onda segment list says why"
	case !n.Current:
		note = "; it is being rebuilt"
	}
	if ok, err := s.data(data); ok {
		return err
	}
	s.print("%d members (counted in %d ms%s)", n.Members, took.Milliseconds(), note)
	return nil
}

type segmentRebuildCmd struct {
	Name string `arg:"" help:"The segment's name."`
}

// Help is shown by --help.
func (segmentRebuildCmd) Help() string {
	return "Segments are kept current without this. It changes nothing where all is well, and nobody waits for it.\n\nExample:\n  onda --tenant acme segment rebuild nordic-readers"
}

// Run asks for a rebuild.
func (c segmentRebuildCmd) Run(ctx context.Context, s *session) error {
	err := s.named(ctx, c.Name, segments(), "", func(ctx context.Context, tx *postgres.Tx) error { return segment.Request(ctx, tx, c.Name) })
	if err != nil {
		return err
	}
	if ok, err := s.data(map[string]any{"segment": c.Name, "requested": true}); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("%s will be computed in full; onda segment list tells how far it is", c.Name)
	return s.ring(ctx)
}

type segmentListCmd struct{}

// Help is shown by --help.
func (segmentListCmd) Help() string {
	return "REBUILT is when a segment was last computed in full, NEXT when time alone may next change who is in it, both in UTC. One that is set aside cannot be computed: " +
		"its members stay as they are until its document is mended.\n\nExample:\n  onda --tenant acme segment list"
}

// segmentStatus is a segment with what uses it.
type segmentStatus struct {
	segment.Status
	UsedBy []apply.Use `json:"usedBy"`
}

// Run lists the segments.
func (c segmentListCmd) Run(ctx context.Context, s *session) error {
	list := []segmentStatus{}
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		all, err := segment.List(ctx, tx)
		if err != nil {
			return err
		}
		used, err := apply.UsedBy(ctx, tx)
		if err != nil {
			return err
		}
		for _, st := range all {
			by := used[spec.Ref{Kind: spec.KindSegment, Name: st.Name}]
			if by == nil {
				by = []apply.Use{}
			}
			list = append(list, segmentStatus{st, by})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(list); ok {
		return err
	}
	if len(list) == 0 {
		s.print("there is no segment: apply its document first (onda apply)")
		return nil
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "SEGMENT\t%10s\tREBUILT\tNEXT\tSTATE\n", "MEMBERS")
	for _, st := range list {
		state := string(st.State)
		if st.State == segment.Rebuilding {
			state = fmt.Sprintf("rebuilding, %.0f%%", 100*st.Done)
		}
		_, _ = fmt.Fprintf(w, "%s\t%10s\t%s\t%s\t%s\n", st.Name, comma(st.Members), moment(st.RebuiltAt), moment(st.NextAt), state)
	}
	_ = w.Flush()
	lines := strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n")
	s.print("%s", lines[0])
	for i, st := range list {
		s.print("%s", lines[i+1])
		if st.Why != "" {
			again := ""
			if st.RetryAt != nil {
				again = "; tried again " + moment(st.RetryAt) + ", at once by onda segment rebuild " + st.Name
			}
			s.print("%s", wrap("  "+st.Why+again, "    "))
		}
		if len(st.UsedBy) > 0 {
			s.print("%s", wrap("  used by "+uses(st.UsedBy), "    "))
		}
	}
	return nil
}

// moment is a time of a table: to the minute, in UTC.
func moment(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

// uses names documents.
func uses(all []apply.Use) string {
	words := make([]string, len(all))
	for i, u := range all {
		words[i] = u.String()
	}
	return strings.Join(words, ", ")
}

// width is how many columns lines have that are put together of words.
const width = 80

// wrap breaks a line between words; those behind the first begin with an indent.
func wrap(line, indent string) string {
	var out strings.Builder
	column := 0
	lead := line[:len(line)-len(strings.TrimLeft(line, " "))]
	for i, word := range strings.Fields(line) {
		n := len([]rune(word))
		switch {
		case i == 0:
			out.WriteString(lead)
			column = len(lead)
		case column+1+n > width:
			out.WriteString("\n" + indent)
			column = len(indent)
		default:
			out.WriteByte(' ')
			column++
		}
		out.WriteString(word)
		column += n
	}
	return out.String()
}

// comma writes a number with commas between thousands.
func comma(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

type segmentPreviewCmd struct {
	What   string        `arg:"" name:"file|name" help:"A file of documents, whose segments are meant, or a segment's name."`
	File   string        `short:"f" type:"existingdir" help:"Directory of documents that the segment is of, or asks about; what is not in it is as it was applied." placeholder:"DIR"`
	Sample int           `default:"10" help:"How many contacts to show, chosen at random, and the same each time." placeholder:"10"`
	Show   bool          `help:"Show addresses and personal fields of the sample in full, and addresses in a plan."`
	Plan   bool          `help:"Show how Postgres finds them: EXPLAIN (ANALYZE, BUFFERS)."`
	Limit  time.Duration `default:"30s" help:"How long counting may take." placeholder:"30s"`
}

// Help is shown by --help.
func (segmentPreviewCmd) Help() string {
	return "Stores nothing, and keeps nobody waiting. Segments that it asks about and that are changed too, or being rebuilt, are counted as they will be.\n\n" +
		"Example:\n  onda --tenant acme segment preview nordic\n  onda --tenant acme segment preview nordic -f examples/company --plan\n  onda --tenant acme segment preview drafts/lapsed.yaml --sample 3 --show"
}

// Validate refuses what cannot be meant.
func (c segmentPreviewCmd) Validate() error {
	if c.Sample < 0 || c.Sample > 1000 {
		return errors.New("--sample is a number from 0 to 1000")
	}
	if c.Limit <= 0 {
		return errors.New("--limit is a time above 0, such as 30s")
	}
	return nil
}

// Run previews segments.
func (c segmentPreviewCmd) Run(ctx context.Context, s *session) error {
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	type shown struct {
		*apply.Preview
		Ms int64 `json:"ms"`
	}
	all := []shown{}
	err = db.InTenantSnapshot(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		known, err := apply.Known(ctx, tx)
		if err != nil {
			return err
		}
		set, names, err := c.documents(known)
		if err != nil {
			return err
		}
		personal := func(field string) bool {
			for _, k := range []spec.Known{set, known} {
				if f, ok := spec.Find[*spec.Field](k, spec.KindField, field); ok {
					return f.Personal
				}
			}
			return false
		}
		for _, name := range names {
			p, err := apply.PreviewOf(ctx, tx, set, name, apply.PreviewOptions{Sample: c.Sample, Plan: c.Plan, Limit: c.Limit})
			switch {
			case errors.Is(err, segment.ErrUnknown):
				if other := unknown(ctx, tx, name, segments()); other != nil {
					return other
				}
				return err
			case errors.Is(err, apply.ErrTooSlow):
				return fmt.Errorf("%s: counting takes longer than %v, and was ended; --limit allows more, and --plan, with more, shows what takes long", name, c.Limit)
			case err != nil:
				return err
			}
			if !c.Show {
				masked(p, personal)
			}
			all = append(all, shown{p, p.Took.Milliseconds()})
		}
		return nil
	})
	if err = s.problems(err, orElse(c.File, c.What), "counted"); err != nil {
		return err
	}
	if ok, err := s.data(all); ok {
		return err
	}
	for i, p := range all {
		if i > 0 {
			s.print("")
		}
		s.preview(p.Preview)
	}
	return nil
}

// documents reads those that the preview is of, and gives the names of the segments.
func (c segmentPreviewCmd) documents(known spec.Known) (set *spec.Set, names []string, err error) {
	isFile := strings.ContainsRune(c.What, filepath.Separator) || strings.HasSuffix(c.What, ".yaml") || strings.HasSuffix(c.What, ".yml")
	in := ""
	switch {
	case c.File != "":
		set, err = spec.LoadChecked(os.DirFS(c.File), known, nil)
		if err == nil && isFile {
			in, err = within(c.File, c.What)
		}
	case isFile:
		in = filepath.Base(c.What)
		set, err = spec.LoadFileChecked(os.DirFS(filepath.Dir(c.What)), in, known, nil)
	default:
		set = &spec.Set{}
	}
	if err != nil {
		return nil, nil, err
	}
	if !isFile {
		if _, there := known.Document(spec.KindSegment, c.What); c.File != "" && !there && !slices.Contains(set.Names(spec.KindSegment), c.What) {
			if near := spec.Nearest(c.What, set.Names(spec.KindSegment)); near != "" {
				return nil, nil, fmt.Errorf("there is no segment %q in %s, did you mean %q?", c.What, c.File, near)
			}
		}
		return set, []string{c.What}, nil
	}
	for _, d := range set.Documents {
		if d.Kind == spec.KindSegment && d.File == in {
			names = append(names, d.Name)
		}
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("there is no segment in %s", c.What)
	}
	return set, names, nil
}

// within gives the path of a file from a directory that it is in.
func within(dir, file string) (string, error) {
	from, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	to, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	rel, err := filepath.Rel(from, to)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%s is not in %s", file, dir)
	}
	return filepath.ToSlash(rel), nil
}

// masked leaves of a preview what says nothing of a person. In a plan are the values of the document, addresses that are kept in or out among them.
func masked(p *apply.Preview, personal func(field string) bool) {
	for i := range p.Sample {
		c := &p.Sample[i]
		if c.Email != "" {
			c.Email = page.Mask(c.Email)
		}
		for j, f := range p.Fields {
			if c.Values[j] != nil && (personal(f) || f == "email" || f == "external_id") {
				hidden := "…"
				c.Values[j] = &hidden
			}
		}
	}
	address := regexp.MustCompile(`[\pL\pN][^\s'"{},@]*@[^\s'"{},@]+`)
	for i, l := range p.Plan {
		p.Plan[i] = address.ReplaceAllStringFunc(l, page.Mask)
	}
}

// clip shows a text in at most n characters.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// preview prints who would be in a segment.
func (s *session) preview(p *apply.Preview) {
	noun := "contacts"
	if p.Then == 1 {
		noun = "contact"
	}
	s.print("%s: %s %s (counted in %d ms)", p.Segment, comma(p.Then), noun, p.Took.Milliseconds())
	switch {
	case !p.Stored:
		s.print("  there is no segment of this name yet, and nothing was stored")
	case p.Joins == 0 && p.Leaves == 0:
		s.print("  these are its members now")
	default:
		s.print("  %s are its members now: %s would join, %s would leave", comma(p.Now), comma(p.Joins), comma(p.Leaves))
	}
	if len(p.Sample) > 0 {
		s.print("")
		w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', 0)
		_, _ = fmt.Fprintf(w, "%10s\tADDRESS", "CONTACT")
		for _, f := range p.Fields {
			_, _ = fmt.Fprintf(w, "\t%s", strings.ToUpper(f))
		}
		_, _ = fmt.Fprintln(w)
		for _, c := range p.Sample {
			_, _ = fmt.Fprintf(w, "%10d\t%s", c.Contact, clip(c.Email, 34))
			for _, v := range c.Values {
				text := "-"
				if v != nil {
					text = clip(*v, 24)
				}
				_, _ = fmt.Fprintf(w, "\t%s", text)
			}
			_, _ = fmt.Fprintln(w)
		}
		_ = w.Flush()
	}
	if len(p.Plan) > 0 {
		s.print("")
		for _, l := range p.Plan {
			s.print("%s", l)
		}
	}
}

type segmentExplainCmd struct {
	Name    string `arg:"" help:"The segment's name."`
	Contact string `arg:"" help:"The contact: its address, its external id, or its number."`
}

// Help is shown by --help.
func (segmentExplainCmd) Help() string {
	return "Each part of the predicate is marked by whether it holds now. What is known of the contact is shown, personal fields too. A time is when time alone may change " +
		"a part, in UTC.\n\nExample:\n  onda --tenant acme segment explain nordic-readers ada@example.com"
}

// segmentExplanation is an explanation with what uses the segment.
type segmentExplanation struct {
	segment.Explanation
	UsedBy []apply.Use `json:"usedBy"`
}

// Run explains a membership.
func (c segmentExplainCmd) Run(ctx context.Context, s *session) error {
	e := segmentExplanation{UsedBy: []apply.Use{}}
	err := s.named(ctx, c.Name, segments(), "", func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := segment.Count(ctx, tx, c.Name); err != nil {
			return err
		}
		id, err := findContact(ctx, tx, c.Contact)
		if err != nil {
			return err
		}
		if e.Explanation, err = segment.Explain(ctx, tx, c.Name, id); err != nil {
			return err
		}
		used, err := apply.UsedBy(ctx, tx)
		e.UsedBy = append(e.UsedBy, used[spec.Ref{Kind: spec.KindSegment, Name: c.Name}]...)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(e); ok {
		return err
	}
	s.print("%s", wrap(standing(c.Contact, e.Explanation), "  "))
	for _, note := range notes(e.Explanation) {
		s.print("%s", wrap("  "+note, "  "))
	}
	if e.Why != nil {
		s.part(*e.Why, "  ")
	}
	if len(e.UsedBy) > 0 {
		s.print("%s", wrap("used by "+uses(e.UsedBy), "  "))
	}
	return nil
}

// standing says in a line how a contact stands to a segment.
func standing(who string, e segment.Explanation) string {
	on := "with the next work"
	if !e.Current {
		on = "with the rebuild that is on its way"
	}
	who = fmt.Sprintf("%s (contact %d)", who, e.Contact)
	switch {
	case e.Member && e.Belongs:
		return fmt.Sprintf("%s is in %s, since %s", who, e.Segment, moment(e.Since))
	case e.Member:
		return fmt.Sprintf("%s is in %s, since %s, and leaves it %s", who, e.Segment, moment(e.Since), on)
	case e.Belongs:
		return fmt.Sprintf("%s is not in %s yet, and joins it %s", who, e.Segment, on)
	default:
		return fmt.Sprintf("%s is not in %s", who, e.Segment)
	}
}

// notes are what decides beside the predicate.
func notes(e segment.Explanation) []string {
	var out []string
	if e.Gone {
		out = append(out, "it was erased, or merged into another contact: it is in no segment")
	}
	if e.Kept != "" {
		out = append(out, "kept "+e.Kept+" by hand, whatever the document says")
	}
	if e.Listed != "" {
		out = append(out, "kept "+e.Listed+" by the document (keep), whatever holds below")
	}
	return out
}

// part prints a part of a predicate, and its parts.
func (s *session) part(p predicate.Part, indent string) {
	mark := "✗"
	if p.Holds {
		mark = "✓"
	}
	text := p.Text
	if len(p.Parts) > 1 {
		text += " of"
	}
	s.print("%s", wrap(indent+mark+" "+text, indent+"    "))
	because := strings.Join(p.Because, "; ")
	if len(p.Parts) == 0 && p.Until.Before(postgres.Never) {
		because = strings.TrimPrefix(because+", until "+moment(&p.Until), ", ")
	}
	if because != "" {
		s.print("%s", wrap(indent+"    "+because, indent+"      "))
	}
	for _, child := range p.Parts {
		s.part(child, indent+"  ")
	}
}
