package spec

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func attaching(list string) string {
	return head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: h\n  attachments:\n"+list)
}

// The document names its files by their hash, and so is another when one of them is.
func TestAttachments(t *testing.T) {
	t.Parallel()
	validator := compileSchema(t)
	src := attaching("    - {file: files/terms.pdf}\n    - {file: logo.bin, name: logo.png, contentType: image/png, inline: true}\n")
	hashes := map[string]string{}
	for _, terms := range []string{"one", "two"} {
		set, err := LoadChecked(fstest.MapFS{"mails/e.yaml": {Data: []byte(src)}, "mails/files/terms.pdf": {Data: []byte(terms)}, "logo.bin": {Data: []byte{0, 255}}}, nil, plainly)
		if err != nil {
			t.Fatal(err)
		}
		doc := set.Documents[0]
		e, err := DecodeAs[*Email](KindEmail, doc.JSON)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(doc.Doc, Doc(e), compare()...); diff != "" {
			t.Errorf("Decode gives another document (-loaded +decoded):\n%s", diff)
		}
		a := e.Attachments
		if len(a) != 2 || a[0].Name != "terms.pdf" || a[0].Type != "application/pdf" || a[0].Inline || a[1].Name != "logo.png" || a[1].Type != "image/png" || !a[1].Inline {
			t.Fatalf("attachments %+v", a)
		}
		if string(doc.Files[a[0].SHA256]) != terms || !bytes.Equal(doc.Files[a[1].SHA256], []byte{0, 255}) || len(doc.Files) != 2 {
			t.Errorf("files %v", doc.Files)
		}
		hashes[doc.Hash()] = terms
		// what is stored can be applied again, and says the same
		var stored any
		if err := json.Unmarshal(doc.JSON, &stored); err != nil {
			t.Fatal(err)
		}
		if err := validator.Validate(stored); err != nil {
			t.Errorf("the JSON Schema refuses the stored form: %v", err)
		}
		again, err := Load(fstest.MapFS{"mails/e.yaml": {Data: doc.JSON}, "mails/files/terms.pdf": {Data: []byte(terms)}, "logo.bin": {Data: []byte{0, 255}}})
		if err != nil || again.Documents[0].Hash() != doc.Hash() {
			t.Errorf("the stored form as a document: %v", err)
		}
	}
	if len(hashes) != 2 {
		t.Error("another file, and the same document")
	}
}

func TestAttachmentsAreRefused(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{
		"half": {Data: make([]byte, maxAttached/2)}, "more": {Data: make([]byte, maxAttached/2+1)}, "empty": {}, "dir/x": {Data: []byte("x")}, "a": {Data: []byte("x")},
		strings.Repeat("x", 101): {Data: []byte("x")},
	}
	for list, want := range map[string]string{
		"    - {file: half}\n    - {file: more}\n":                                       "x.yaml:11:14: the attachments have more than 5 MiB in all, and many servers refuse such mails: put the files on the web, and links to them into the mail",
		"    - {file: empty}\n":                                                          `x.yaml:10:14: the file "empty" is empty`,
		"    - {file: dir}\n":                                                            `x.yaml:10:14: the file "dir" cannot be read: this is no regular file, but a directory, a pipe or a device: put a file here, or give it another name`,
		"    - {file: a}\n    - {file: dir/x, name: a}\n":                                `x.yaml:11:7: there is an attachment "a" already: give one another name`,
		"    - {file: a, name: a b, inline: true}\n":                                     `x.yaml:10:7: "a b" cannot stand in an address such as cid:logo.png: give it a name of letters, digits, dots and hyphens`,
		"    - {file: a, sha256: \"" + strings.Repeat("0", 64) + "\"}\n":                 `x.yaml:10:25: the file "a" has the SHA-256 2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881`,
		"    - {file: " + strings.Repeat("x", 101) + "}\n":                               "x.yaml:10:14: the file has a long name: give it another with name",
		strings.Repeat("    - {file: a}\n", 1) + strings.Repeat("    - {file: a}\n", 20): "x.yaml:30:7: a mail has at most 20 attachments",
	} {
		fsys["x.yaml"] = &fstest.MapFile{Data: []byte(attaching(list))}
		_, err := LoadChecked(fsys, nil, plainly)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", list[:min(len(list), 60)], err, want)
		}
	}
}
