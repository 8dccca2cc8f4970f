package spec

import (
	"cmp"
	"io/fs"
	"slices"
)

// Ref names a document.
type Ref struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// References gives the documents that a stored one refers to by name, sorted:
// those that must be there for it to be applied.
func References(stored []byte) ([]Ref, error) {
	n, err := parseJSON(stored)
	if err != nil {
		return nil, err
	}
	// Read as if it came from a directory, for its checks; that the files which it was made of are away here says nothing about what it refers to.
	doc, problems := readDocument(n, &sources{noFiles{}}, false)
	if doc == nil {
		return nil, problems.Err()
	}
	c := &checker{set: &Set{}, known: NewStored(), doc: doc, refers: map[Ref]bool{}}
	for _, check := range doc.checks {
		check(c)
	}
	refs := make([]Ref, 0, len(c.refers))
	for r := range c.refers {
		refs = append(refs, r)
	}
	slices.SortFunc(refs, CompareRefs)
	return refs, nil
}

// CompareRefs orders by kind, in the order of Kinds, and name.
func CompareRefs(a, b Ref) int {
	order := Kinds()
	return cmp.Or(slices.Index(order, a.Kind)-slices.Index(order, b.Kind), cmp.Compare(a.Name, b.Name))
}

// noFiles is a directory of nothing.
type noFiles struct{}

// Open finds nothing.
func (noFiles) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}
