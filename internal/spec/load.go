package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxDocuments bounds a directory: more is a mistake, such as the root of a disk.
const maxDocuments = 20_000

// Set is the documents of a directory.
type Set struct {
	// Documents are sorted by kind, in the order of Kinds, and name.
	Documents []*Document
	// Remade are emails that are known, and not of the set, put together anew by
	// Check with a layout of the set: Compiled is theirs, JSON stays as it is stored.
	Remade []*Document
	// Warnings are what Check found that somebody should look at, and that nothing is
	// refused for.
	Warnings Problems

	broken []ref // documents that are there and could not be read
}

type ref struct{ kind, name string }

// Load reads all documents of a directory and those below it: every .yaml and
// .yml file, several documents a file, and the files that they name. The Set
// holds all that could be read, even when the error, Problems, says what is
// wrong with others; other errors are of the file system.
func Load(fsys fs.FS) (*Set, error) {
	var files []string
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := strings.HasPrefix(path.Base(name), ".") && name != "."
		switch {
		case hidden && entry.IsDir():
			return fs.SkipDir
		case hidden || entry.IsDir():
		case path.Ext(name) == ".yaml" || path.Ext(name) == ".yml":
			files = append(files, name)
		}
		if len(files) > maxDocuments {
			return fmt.Errorf("more than %d files of documents: is this the directory you mean?", maxDocuments)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("looking for documents: %w", err)
	}
	return loadFiles(fsys, files)
}

func loadFiles(fsys fs.FS, files []string) (*Set, error) {
	type parsed struct {
		file string
		docs []*node
		bad  Problems
	}
	var all []parsed
	texts := map[string]bool{} // directories of forms' texts
	for _, file := range files {
		src, err := readFile(fsys, file, maxFile, errTooLarge)
		if errors.Is(err, errTooLarge) || errors.Is(err, errNotRegular) {
			all = append(all, parsed{file: file, bad: Problems{{File: file, Line: 1, Col: 1, Msg: err.Error()}}})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading documents: %w", err)
		}
		docs, bad := parseYAML(file, src)
		all = append(all, parsed{file, docs, bad})
		for _, n := range docs {
			if dir := textsDir(fsys, n); dir != "" {
				texts[dir] = true
			}
		}
	}
	set := &Set{}
	var problems Problems
	for _, p := range all {
		if texts[path.Dir(p.file)] {
			continue // read, with its problems, by the form
		}
		problems = append(problems, p.bad...)
		for _, n := range p.docs {
			doc, bad := readDocument(n, &sources{fsys}, false)
			problems = append(problems, bad...)
			if doc == nil {
				if r, ok := nameOf(n); ok {
					set.broken = append(set.broken, r)
				}
				continue
			}
			set.Documents = append(set.Documents, doc)
		}
	}
	order := Kinds()
	slices.SortStableFunc(set.Documents, func(a, b *Document) int {
		if a.Kind != b.Kind {
			return slices.Index(order, a.Kind) - slices.Index(order, b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	problems = append(problems, set.duplicates()...)
	return set, problems.Err()
}

var (
	errTooLarge   = fmt.Errorf("the file is larger than %d KiB: divide it into several", maxFile>>10)
	errTooHeavy   = fmt.Errorf("the attachments have more than %d MiB in all, and many servers refuse such mails: put the files on the web, and links to them into the mail", maxAttached>>20)
	errNotRegular = errors.New("this is no regular file, but a directory, a pipe or a device: put a file here, or give it another name")
)

// readFile reads a file of at most so many bytes; more is tooLarge. What is no regular file is not opened: a pipe would wait for ever for its writer.
func readFile(fsys fs.FS, name string, most int, tooLarge error) ([]byte, error) {
	info, err := fs.Stat(fsys, name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	src, err := io.ReadAll(io.LimitReader(f, int64(most)+1))
	if err == nil && len(src) > most {
		err = tooLarge
	}
	return src, err
}

func nameOf(n *node) (ref, bool) {
	kind, meta := n.get("kind"), n.get("metadata")
	if kind == nil || meta == nil || meta.get("name") == nil {
		return ref{}, false
	}
	return ref{kind.text, meta.get("name").text}, true
}

// textsDir gives the directory of a form's texts, as a path from the root; "" where there is none.
func textsDir(fsys fs.FS, n *node) string {
	kind, body := n.get("kind"), n.get("spec")
	if kind == nil || kind.text != KindForm || body == nil || body.get("locales") == nil {
		return ""
	}
	dir := body.get("locales").get("dir")
	if dir == nil || dir.kind != textNode {
		return ""
	}
	for _, name := range []string{path.Join(path.Dir(n.file), dir.text), path.Clean(dir.text)} {
		if info, err := fs.Stat(fsys, name); err == nil && info.IsDir() {
			return name
		}
	}
	return ""
}

func (s *Set) duplicates() Problems {
	var problems Problems
	first := map[ref]*Document{}
	var settings *Document
	for _, doc := range s.Documents {
		if doc.Name == "" {
			continue
		}
		r := ref{doc.Kind, doc.Name}
		if have := first[r]; have != nil {
			problems = append(problems, Problem{File: doc.File, Line: doc.Line, Col: doc.Col, Msg: fmt.Sprintf("there is a %s %q already, in %s:%d", doc.Kind, doc.Name, have.File, have.Line)})
			continue
		}
		first[r] = doc
		if doc.Kind != KindSettings {
			continue
		}
		if settings != nil {
			problems = append(problems, Problem{File: doc.File, Line: doc.Line, Col: doc.Col, Msg: fmt.Sprintf("there are Settings already, in %s:%d: a tenant has one", settings.File, settings.Line)})
		}
		settings = doc
	}
	return problems
}

// Document gives a document of the set; with Names, this makes a Set a Known.
func (s *Set) Document(kind, name string) (Doc, bool) {
	for _, d := range s.Documents {
		if d.Kind == kind && d.Name == name {
			return d.Doc, true
		}
	}
	return nil, false
}

// Names gives the names of the documents of a kind, sorted.
func (s *Set) Names(kind string) []string {
	var names []string
	for _, d := range s.Documents {
		if d.Kind == kind {
			names = append(names, d.Name)
		}
	}
	return names
}

// Find gives a document of a set, typed: Find[*Email](set, KindEmail, "welcome").
func Find[T Doc](k Known, kind, name string) (T, bool) {
	var zero T
	doc, ok := k.Document(kind, name)
	if !ok {
		return zero, false
	}
	t, ok := doc.(T)
	return t, ok
}

// LoadChecked is Load and Check in one, with the problems of both at once.
// known and compile may be nil, as for Check.
func LoadChecked(fsys fs.FS, known Known, compile Compile) (*Set, error) {
	set, err := Load(fsys)
	return checked(set, err, known, compile)
}

// LoadFileChecked is LoadChecked for the documents of one file.
func LoadFileChecked(fsys fs.FS, name string, known Known, compile Compile) (*Set, error) {
	set, err := loadFiles(fsys, []string{name})
	return checked(set, err, known, compile)
}

func checked(set *Set, err error, known Known, compile Compile) (*Set, error) {
	var problems Problems
	if err != nil && !errors.As(err, &problems) {
		return nil, err
	}
	problems = append(problems, set.Check(known, compile)...)
	return set, problems.Err()
}

// sources are the files that documents may name.
type sources struct{ fsys fs.FS }

func (s *sources) open(name string) ([]byte, error) {
	return readFile(s.fsys, name, maxFile, errTooLarge)
}

// list gives the names of the YAML files in a directory.
func (s *sources) list(dir string) []string {
	if !fs.ValidPath(dir) {
		return nil
	}
	entries, err := fs.ReadDir(s.fsys, dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if ext := path.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			names = append(names, e.Name())
		}
	}
	return names
}

// read gives the text of a file that a document names.
func (d *decoder) read(name string) (text, file string, err error) {
	src, file, err := d.find(name, d.files.open)
	switch {
	case err != nil:
		return "", "", err
	case !utf8.Valid(src):
		return "", "", fmt.Errorf("the file %q is not UTF-8", name)
	case len(bytes.TrimSpace(src)) == 0:
		return "", "", fmt.Errorf("the file %q is empty", name)
	}
	return strings.ReplaceAll(string(src), "\r\n", "\n"), file, nil
}

// find opens a file that a document names: beside the document, or from the root of the directory.
func (d *decoder) find(name string, open func(name string) ([]byte, error)) (src []byte, file string, err error) {
	for _, file := range []string{path.Join(path.Dir(d.doc.File), name), path.Clean(name)} {
		if !fs.ValidPath(file) {
			continue
		}
		src, err := open(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", fmt.Errorf("the file %q cannot be read: %w", name, err)
		}
		return src, file, nil
	}
	return nil, "", fmt.Errorf("there is no file %q beside the document", name)
}

// textFiles reads the files en.yaml, fr.yaml and so on of a directory into one
// tree {en: {...}, fr: {...}}; nil when there are none.
func (d *decoder) textFiles(dir *node) *node {
	out := &node{position: dir.position, kind: objectNode}
	for _, base := range []string{path.Join(path.Dir(d.doc.File), dir.text), path.Clean(dir.text)} {
		for _, name := range d.files.list(base) {
			locale := strings.TrimSuffix(name, path.Ext(name))
			file := path.Join(base, name)
			if !isLocale(d, position{file: file, line: 1, col: 1}, locale) {
				continue
			}
			src, err := d.files.open(file)
			if err != nil {
				d.fail(dir.position, "the file %q cannot be read: %v", file, err)
				continue
			}
			docs, bad := parseYAML(file, src)
			d.problems = append(d.problems, bad...)
			if len(bad) > 0 {
				continue
			}
			if len(docs) != 1 || docs[0].kind != objectNode {
				d.fail(position{file: file, line: 1, col: 1}, "must be one list of keys and texts")
				continue
			}
			if _, ok := dictionary(isTextKey, textKeyPattern, text()).read(d, docs[0]); ok {
				out.put(locale, docs[0])
			}
		}
		if len(out.entries) > 0 {
			return out
		}
	}
	d.fail(dir.position, "there are no texts in %q: it must be a directory with a file for each language, such as en.yaml", dir.text)
	return nil
}
