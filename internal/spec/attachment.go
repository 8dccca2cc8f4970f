package spec

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"mime"
	"path"
	"slices"
)

// maxAttached bounds the attachments of an email, in bytes.
const maxAttached = 5 << 20

// maxAttachments bounds how many there are, as of a request for a transactional mail.
const maxAttachments = 20

const (
	fileNamePattern    = `^[^/\\"\x00-\x1f\x7f]{1,100}$`
	inlineNamePattern  = `^[A-Za-z0-9._-]+$`
	contentTypePattern = `^[a-z]+/[A-Za-z0-9][A-Za-z0-9.+-]{0,99}(; charset=[A-Za-z0-9-]{1,40})?$`
)

// Attachment is a file that goes out with an email. The file itself is not in
// the document, but beside it, under its hash.
type Attachment struct {
	Name string
	Type string // a MIME type
	// Inline says that it is an image within the HTML, which has cid: and its name
	// for an address.
	Inline bool
	SHA256 string // in hex
}

// attachmentsRule reads {file: terms.pdf}. In the tree it then has the file's
// name, type and hash too, so that the stored form changes with the file.
func attachmentsRule() rule[[]Attachment] {
	one := shape("attachment", func(o *object, a *Attachment) {
		var file string
		get(o, "file", fileName(), &file, required)
		get(o, "name", scalar("a file's name of at most 100 characters", fileNamePattern, asText), &a.Name, optional)
		get(o, "contentType", scalar("a MIME type such as application/pdf", contentTypePattern, asText), &a.Type, optional)
		get(o, "inline", boolean(), &a.Inline, optional)
		get(o, "sha256", scalar("the SHA-256 of the file, in hex", `^[0-9a-f]{64}$`, asText), &a.SHA256, optional)
		a.Name = cmp.Or(a.Name, path.Base(file))
	})
	return mapped(list(one, 1), func(d *decoder, n *node, all []Attachment) ([]Attachment, bool) {
		if d.stored {
			return all, true
		}
		before, left := len(d.problems), maxAttached
		for i := range all {
			item := n.items[i]
			switch {
			case i >= maxAttachments:
				d.fail(item.position, "a mail has at most %d attachments", maxAttachments)
				return all, false
			case slices.ContainsFunc(all[:i], func(a Attachment) bool { return a.Name == all[i].Name }):
				d.fail(item.position, "there is an attachment %q already: give one another name", all[i].Name)
			}
			if all[i].Inline && !compiled(inlineNamePattern).MatchString(all[i].Name) {
				d.fail(item.position, "%q cannot stand in an address such as cid:logo.png: give it a name of letters, digits, dots and hyphens", all[i].Name)
			}
			size, ok := d.attach(item, &all[i], left)
			if left -= size; !ok {
				return all, false
			}
		}
		return all, len(d.problems) == before
	})
}

// attach reads an attachment's file of at most so many bytes.
func (d *decoder) attach(n *node, a *Attachment, most int) (size int, ok bool) {
	at := n.get("file")
	if d.files == nil {
		d.fail(at.position, "a file cannot be read here")
		return 0, false
	}
	src, _, err := d.find(at.text, func(name string) ([]byte, error) { return readFile(d.files.fsys, name, most, errTooHeavy) })
	switch {
	case errors.Is(err, errTooHeavy):
		d.fail(at.position, "%v", errTooHeavy)
		return 0, false
	case err != nil:
		d.fail(at.position, "%v", err)
		return 0, false
	case !compiled(fileNamePattern).MatchString(a.Name):
		d.fail(at.position, "the file has a long name: give it another with name")
		return 0, false
	case len(src) == 0:
		d.fail(at.position, "the file %q is empty", at.text)
		return 0, false
	}
	sum := sha256.Sum256(src)
	hash := hex.EncodeToString(sum[:])
	if a.SHA256 != "" && a.SHA256 != hash {
		d.fail(n.get("sha256").position, "the file %q has the SHA-256 %s", at.text, hash)
		return len(src), false
	}
	a.SHA256 = hash
	if a.Type == "" {
		if a.Type = mime.TypeByExtension(path.Ext(a.Name)); !compiled(contentTypePattern).MatchString(a.Type) {
			a.Type = "application/octet-stream"
		}
	}
	for key, value := range map[string]string{"name": a.Name, "contentType": a.Type, "sha256": a.SHA256} {
		n.put(key, &node{position: at.position, kind: textNode, text: value})
	}
	if d.doc.Files == nil {
		d.doc.Files = map[string][]byte{}
	}
	d.doc.Files[hash] = src
	return len(src), true
}
