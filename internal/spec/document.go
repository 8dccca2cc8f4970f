// Package spec is the language of language.md: it reads the documents that
// marketers and developers write (YAML) into typed Go structs, finds everything
// that is wrong with them, with its place, and gives each its stored form.
//
// The invariant: what Load and Check let through, Decode reads back from the
// stored JSON as the same struct, with no YAML library and no other document.
package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// APIVersion is what every document's apiVersion must be.
const APIVersion = "onda/v1"

// The kinds of documents that this version has.
const (
	KindField     = "Field"
	KindTopic     = "Topic"
	KindSegment   = "Segment"
	KindLayout    = "Layout"
	KindEmail     = "Email"
	KindBroadcast = "Broadcast"
	KindCampaign  = "Campaign"
	KindForm      = "Form"
	KindSettings  = "Settings"
	KindDomain    = "Domain"
)

// Kinds gives the kinds in an order in which no document needs a later one,
// but for forms and campaigns, which may name each other.
func Kinds() []string {
	return []string{
		KindSettings, KindDomain, KindField, KindTopic, KindSegment, KindLayout, KindEmail,
		KindCampaign, KindForm, KindBroadcast,
	}
}

// Meta is the metadata of every document.
type Meta struct {
	Name        string
	Title       string
	Description string
	Labels      map[string]string
}

// Head gives the metadata.
func (m *Meta) Head() *Meta { return m }

// DisplayTitle gives the title, or the name where there is none.
func (m *Meta) DisplayTitle() string {
	if m.Title != "" {
		return m.Title
	}
	return m.Name
}

// Doc is a typed document: *Field, *Topic, *Segment, *Layout, *Email,
// *Broadcast, *Campaign, *Form, *Settings or *Domain.
type Doc interface {
	Kind() string
	Head() *Meta
}

// Document is a typed document with its stored form and the place it came from.
type Document struct {
	Kind  string
	Name  string
	Title string
	// JSON is the whole document in its one form: keys sorted, files and texts
	// inline. It is what is stored and hashed, and what Decode reads.
	JSON []byte
	// Compiled are an email's templates, which are stored beside it; nil of other
	// kinds, and before Set.Check.
	Compiled *Compiled
	// Files are the files that the document names by their hash, such as an email's
	// attachments. They are stored beside it too.
	Files map[string][]byte
	Doc   Doc
	File  string
	Line  int
	Col   int

	tree   *node // of what it was read from
	checks []func(*checker)
	broken bool // it has problems of its own: others are not told that it is missing
}

// Hash is the SHA-256 of the stored form, in hex: two documents that say the same have the same.
func (d *Document) Hash() string {
	sum := sha256.Sum256(d.JSON)
	return hex.EncodeToString(sum[:])
}

func metadataRule(kind string) rule[Meta] {
	name := nameRule()
	if kind == KindField {
		name = scalar("a name of small letters, digits and _", fieldNamePattern, asText)
	}
	label := func(d *decoder, p position, key string) bool {
		_, ok := scalar("a label", `^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`, asText).read(d, &node{position: p, kind: textNode, text: key})
		return ok
	}
	return shape("metadata"+kind, func(o *object, m *Meta) {
		get(o, "name", name, &m.Name, required)
		get(o, "title", text(), &m.Title, optional)
		get(o, "description", text(), &m.Description, optional)
		get(o, "labels", dictionary(label, `^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`, text()), &m.Labels, optional)
	})
}

// specReader reads one kind's document: the metadata and the spec.
type specReader struct {
	kind   string
	read   func(d *decoder, n *node) Doc
	schema func(b *schemaBuilder) schema
}

func kindOf[T any, P interface {
	*T
	Doc
}](kind string, walk func(o *object, v *T),
) specReader {
	return specReader{
		kind: kind,
		read: func(d *decoder, n *node) Doc {
			v := new(T)
			o := &object{d: d, n: n}
			documentKeys(o, kind, P(v).Head(), func(inner *object) { walk(inner, v) })
			o.done()
			return P(v)
		},
		schema: func(b *schemaBuilder) schema {
			return b.define(kind, func() schema {
				v := new(T)
				return objectSchema(b, func(o *object) {
					documentKeys(o, kind, P(v).Head(), func(inner *object) { walk(inner, v) })
				})
			})
		},
	}
}

// documentKeys goes through a whole document.
func documentKeys(o *object, kind string, head *Meta, walk func(*object)) {
	var version, itself string
	get(o, "apiVersion", choice(APIVersion), &version, required)
	get(o, "kind", choice(kind), &itself, required)
	get(o, "metadata", metadataRule(kind), head, required)
	var body struct{}
	get(o, "spec", rule[struct{}]{
		read: func(d *decoder, n *node) (struct{}, bool) {
			if n.kind != objectNode {
				d.wrong(n, "an object")
				return body, false
			}
			inner := &object{d: d, n: n}
			walk(inner)
			inner.done()
			return body, true
		},
		schema: func(b *schemaBuilder) schema { return objectSchema(b, walk) },
	}, &body, required)
}

func specReaders() []specReader {
	return []specReader{
		kindOf(KindField, fieldKeys),
		kindOf(KindTopic, topicKeys),
		kindOf(KindSegment, segmentKeys),
		kindOf(KindLayout, layoutKeys),
		kindOf(KindEmail, emailKeys),
		kindOf(KindBroadcast, broadcastKeys),
		kindOf(KindCampaign, campaignKeys),
		kindOf(KindForm, formKeys),
		kindOf(KindSettings, settingsKeys),
		kindOf(KindDomain, domainKeys),
	}
}

// readDocument turns a tree into a document. It gives nil when not even the kind is clear.
func readDocument(n *node, files *sources, stored bool) (*Document, Problems) {
	doc := &Document{File: n.file, Line: n.line, Col: n.col}
	d := &decoder{doc: doc, files: files, stored: stored}
	if n.kind != objectNode {
		d.wrong(n, "a document with apiVersion, kind, metadata and spec")
		return nil, d.problems
	}
	kind := n.get("kind")
	if kind == nil || kind.kind != textNode {
		d.fail(n.position, `"kind" is missing: one of %s`, strings.Join(Kinds(), ", "))
		return nil, d.problems
	}
	for _, r := range specReaders() {
		if r.kind != kind.text {
			continue
		}
		doc.Kind = r.kind
		doc.Doc = r.read(d, n)
		head := doc.Doc.Head()
		doc.Name, doc.Title = head.Name, head.Title
		doc.broken = len(d.problems) > 0
		if !stored {
			doc.JSON, doc.tree = n.appendJSON(nil), n
		}
		return doc, d.problems
	}
	d.fail(kind.position, "%s", unknown("kind", kind.text, Kinds()))
	return nil, d.problems
}

// Decode reads a document from its stored form. It is what functions call at
// run time: one pass, no YAML, no other documents.
func Decode(kind string, stored []byte) (Doc, error) {
	n, err := parseJSON(stored)
	if err != nil {
		return nil, fmt.Errorf("reading the stored %s: %w", kind, err)
	}
	doc, problems := readDocument(n, nil, true)
	if err := problems.Err(); err != nil {
		return nil, fmt.Errorf("reading the stored %s: %w", kind, err)
	}
	if doc.Kind != kind {
		return nil, fmt.Errorf("reading the stored %s: it is a %s", kind, doc.Kind)
	}
	return doc.Doc, nil
}

// DecodeAs is Decode for a caller that knows the type: DecodeAs[*Email](KindEmail, b).
func DecodeAs[T Doc](kind string, stored []byte) (T, error) {
	var zero T
	doc, err := Decode(kind, stored)
	if err != nil {
		return zero, err
	}
	t, ok := doc.(T)
	if !ok {
		return zero, fmt.Errorf("reading the stored %s: it is not a %T", kind, zero)
	}
	return t, nil
}
