package renderform

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gabriel-vasile/mimetype"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

const (
	// maxUpload bounds a body with files. It is more than a form takes: a file that is too large is told of beside its input, and is not kept while it comes.
	maxUpload = 40 << 20
	// maxUploads bounds the bodies with files that are in hand. It is not a part of maxBodies: who sends files slowly keeps nobody from sending a form without.
	maxUploads = 24 << 20
	// maxOfTenant is how much of that one tenant may have in hand: who sends slowly to its forms keeps nobody from those of others.
	maxOfTenant = maxUploads / 2
	// uploadTime is how long a body with files may take to come; the service's timeoutSeconds is more.
	uploadTime = 45 * time.Second
	// maxParts is how many parts a body with files may have.
	maxParts = 1_000
	// sniffed is how much of a file is looked at to tell what it is: where documents are archives, what tells it may stand behind a picture.
	sniffed = 1 << 20
	// maxFileName is how many bytes of a file's name are kept: with the number of its submission before it a file system takes it.
	maxFileName = 120
	// storeWait is how long a submission with files waits for those before it, and storeTime how long it may take to be stored.
	storeWait, storeTime = 5 * time.Second, 5 * time.Second
)

// upload is a file as it came. What cannot be taken has no content.
type upload struct {
	file
	content []byte
	large   bool // larger than its input takes
	typed   bool // of a type that its input takes
}

// file is what is kept of a file beside its content.
type file struct {
	N        int    `json:"n"` // its place in the column files, from 1
	Name     string `json:"name"`
	Type     string `json:"type"`               // that the content has
	Declared string `json:"declared,omitempty"` // that the browser said, where it is another
	Size     int    `json:"size"`
	SHA256   string `json:"sha256"`
}

// errValues is of a form whose values alone are too large.
var errValues = errors.New("the values of the form are too large")

// fileInput gives the form's input of files that has a name.
func (f *form) fileInput(name string) (in spec.Input, ok bool) {
	i := slices.IndexFunc(f.Inputs, func(in spec.Input) bool { return in.As == spec.InputFile && in.Name == name })
	if i < 0 {
		return spec.Input{}, false
	}
	return f.Inputs[i], true
}

// readParts reads a form with its files, in memory: of each input no more and no larger ones than it takes. drop is told of bytes that were read and are not kept.
func (f *form) readParts(parts *multipart.Reader, drop func(n int64)) (url.Values, map[string][]upload, error) {
	values, files, size := url.Values{}, map[string][]upload{}, 0
	for n := 0; ; n++ {
		part, err := parts.NextPart()
		switch {
		case err == io.EOF: //nolint:errorlint // one that is wrapped is of a form that ends in the middle
			return values, files, nil
		case err != nil:
			return nil, nil, err
		case n == maxParts || part.FormName() == "":
			return nil, nil, fn.Permanent(errors.New("the form cannot be read: it has a part without a name, or too many"))
		}
		key := part.FormName()
		if part.FileName() == "" {
			value, err := io.ReadAll(io.LimitReader(part, maxBody+1))
			if err != nil {
				return nil, nil, err
			}
			if size += len(key) + len(value); size > maxBody {
				return nil, nil, errValues
			}
			values.Add(key, string(value))
			continue
		}
		in, ok := f.fileInput(key)
		if !ok || len(files[key]) >= in.MaxFiles { // nobody asked for it, or there are too many, of which one says so
			came, err := discard(part, drop)
			if err != nil {
				return nil, nil, err
			}
			if ok && came > 0 && len(files[key]) == in.MaxFiles {
				files[key] = append(files[key], upload{})
			}
			continue
		}
		u, err := readFile(in, part, drop)
		if err != nil {
			return nil, nil, err
		}
		if u.large || u.Size > 0 {
			files[key] = append(files[key], u)
		}
	}
}

// readFile reads a file for an input. One of no bytes is none.
func readFile(in spec.Input, part *multipart.Part, drop func(n int64)) (u upload, err error) {
	u.Name = cleanName(part.FileName())
	if u.content, err = io.ReadAll(io.LimitReader(part, int64(in.MaxSize)+1)); err != nil {
		return u, err
	}
	if u.Size = len(u.content); u.Size > in.MaxSize {
		u.large, u.content = true, nil
		drop(int64(u.Size))
		_, err = discard(part, drop)
		return u, err
	}
	u.Declared, _, _ = mime.ParseMediaType(part.Header.Get("Content-Type"))
	u.Declared = u.Declared[:min(len(u.Declared), 100)]
	if t, ok := typeOf(in, u.Name, u.content); ok {
		u.Type, u.typed = t.MIME, true
		if !slices.Contains(t.Extensions, extension(u.Name)) { // so that nothing takes it for what it is not
			u.Name += "." + t.Extensions[0]
		}
	}
	if u.Declared == u.Type {
		u.Declared = ""
	}
	sum := sha256.Sum256(u.content)
	u.SHA256 = hex.EncodeToString(sum[:])
	return u, nil
}

// discard reads to the end, and keeps nothing.
func discard(r io.Reader, drop func(n int64)) (size int64, err error) {
	for {
		n, err := io.CopyN(io.Discard, r, 64<<10)
		drop(n)
		size += n
		if errors.Is(err, io.EOF) {
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

// typeOf tells which of the types that an input takes a file is of, by what is in it. What one text is that another is not, its name says.
func typeOf(in spec.Input, name string, content []byte) (spec.FileType, bool) {
	found, types := mimetype.Detect(content), in.FileTypes()
	table := found.Is("text/csv") || found.Is("text/tab-separated-values")
	for _, is := range []func(t spec.FileType) bool{
		func(t spec.FileType) bool {
			return t.MIME == "text/csv" && extension(name) == "csv" && (table || found.Is("text/plain"))
		},
		func(t spec.FileType) bool { return found.Is(t.MIME) },
		func(t spec.FileType) bool { return t.MIME == "text/plain" && table },
	} {
		if i := slices.IndexFunc(types, is); i >= 0 {
			return types[i], true
		}
	}
	return spec.FileType{}, false
}

func extension(name string) string { return strings.ToLower(strings.TrimPrefix(path.Ext(name), ".")) }

// cleanName makes of a file's name one that every file system takes, that leads nowhere, and that is read as it is written. It may be empty.
func cleanName(name string) string {
	name = name[strings.LastIndexAny(name, `/\`)+1:]
	name = strings.Map(func(c rune) rune {
		switch {
		case c == unicode.ReplacementChar || !unicode.IsPrint(c) && !unicode.IsSpace(c): // also what turns the direction of text
			return -1
		case unicode.IsSpace(c):
			return ' '
		case strings.ContainsRune(`<>:"|?*`, c):
			return '_'
		}
		return c
	}, name)
	name = strings.Trim(name, " .")
	ext := path.Ext(name)
	if len(ext) > 20 {
		ext = ""
	}
	if most := maxFileName - len(ext); len(name) > maxFileName {
		name = strings.ToValidUTF8(name[:most], "") + ext
	}
	return cmp.Or(name, "file")
}

// checkFiles takes what came for an input into the entry, or gives the key of what is wrong, and the file that it is wrong with.
func checkFiles(in spec.Input, came []upload, e *entry) (text, name string) {
	switch {
	case len(came) == 0 && in.Required:
		return "form.problem.required", ""
	case len(came) > in.MaxFiles && in.MaxFiles == 1:
		return "form.problem.file.one", ""
	case len(came) > in.MaxFiles:
		return "form.problem.file.many", ""
	}
	for _, u := range came {
		switch {
		case u.large:
			return "form.problem.file.large", u.Name
		case !u.typed:
			return "form.problem.file.type", u.Name
		}
	}
	for _, u := range came {
		if e.Files == nil {
			e.Files = map[string][]file{}
		}
		e.contents = append(e.contents, u.content)
		u.N = len(e.contents)
		e.Files[in.Name] = append(e.Files[in.Name], u.file)
	}
	return "", ""
}

// notKept are problems of the files that came with a form which is shown again: a browser does not let a page give them back.
func (f *form) notKept(files map[string][]upload, problems []failed) []failed {
	for _, in := range f.Inputs {
		if len(files[in.Name]) > 0 && !slices.ContainsFunc(problems, func(p failed) bool { return p.Key == in.Name }) {
			problems = append(problems, failed{Key: in.Name, Text: "form.problem.file.again"})
		}
	}
	return problems
}

// uploadsOf bounds the bodies with files for a tenant's forms.
func (fs *Forms) uploadsOf(tenant string) *fn.Bodies {
	part, ok := fs.parts.Load(tenant)
	if !ok {
		part, _ = fs.parts.LoadOrStore(tenant, fs.uploads.Part(maxOfTenant))
	}
	bodies, _ := part.(*fn.Bodies)
	return bodies
}

// takeWithFiles stores a submission that comes with files, without others: it is too much for a commit of many. One does so at a time: what is on the way to Postgres is in memory
// several times.
func (fs *Forms) takeWithFiles(ctx context.Context, s *submission) error {
	wait := time.NewTimer(storeWait)
	defer wait.Stop()
	select {
	case fs.storing <- struct{}{}:
	case <-wait.C:
		return fn.Unavailable(errors.New("too many files wait to be stored"))
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-fs.storing }()
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	return fs.db.Visit(ctx, s.tenant.Name, func(ctx context.Context, tx *postgres.Tx) error { return fs.writeAlone(ctx, tx, []*submission{s}) })
}

// storeFiles stores the files of submissions whose rows are there.
func storeFiles(ctx context.Context, tx *postgres.Tx, list []*submission) error {
	for _, s := range list {
		if len(s.entry.contents) == 0 {
			continue
		}
		if _, err := tx.Exec(ctx, "UPDATE submission SET files = $2 WHERE id = $1", s.id, s.entry.contents); err != nil {
			return fmt.Errorf("store files: %w", err)
		}
	}
	return nil
}
