package spec

import (
	"slices"
	"strconv"
	"strings"
)

// MaxFileBytes bounds the files of one submission.
const MaxFileBytes = 10 << 20

// defaultFileBytes is how large a file may be where its input does not say.
const defaultFileBytes = 5 << 20

// FileType is a type of files whose content shows that they are of it.
type FileType struct {
	MIME       string
	Extensions []string // that names of such files have, the usual one first
}

// Title is what people call it.
func (t FileType) Title() string { return strings.ToUpper(t.Extensions[0]) }

// FileTypes are those that a form may take. What a browser or a system runs, such as HTML, SVG and programs, is not among them.
func FileTypes() []FileType {
	const office, open = "application/vnd.openxmlformats-officedocument.", "application/vnd.oasis.opendocument."
	return []FileType{
		{"application/pdf", []string{"pdf"}},
		{"image/jpeg", []string{"jpg", "jpeg"}},
		{"image/png", []string{"png"}},
		{"image/gif", []string{"gif"}},
		{"image/webp", []string{"webp"}},
		{"image/heic", []string{"heic"}},
		{"image/tiff", []string{"tif", "tiff"}},
		{"text/plain", []string{"txt", "md", "log"}},
		{"text/csv", []string{"csv"}},
		{"text/rtf", []string{"rtf"}},
		{"application/msword", []string{"doc"}},
		{office + "wordprocessingml.document", []string{"docx"}},
		{open + "text", []string{"odt"}},
		{"application/vnd.ms-excel", []string{"xls"}},
		{office + "spreadsheetml.sheet", []string{"xlsx"}},
		{open + "spreadsheet", []string{"ods"}},
		{"application/vnd.ms-powerpoint", []string{"ppt"}},
		{office + "presentationml.presentation", []string{"pptx"}},
		{open + "presentation", []string{"odp"}},
		{"application/zip", []string{"zip"}},
		{"audio/mpeg", []string{"mp3"}},
		{"audio/wav", []string{"wav"}},
		{"video/mp4", []string{"mp4"}},
		{"video/quicktime", []string{"mov"}},
	}
}

// FileTypes gives what a file input takes, in the order of FileTypes.
func (i Input) FileTypes() []FileType {
	return slices.DeleteFunc(FileTypes(), func(t FileType) bool {
		group, _, _ := strings.Cut(t.MIME, "/")
		return !slices.Contains(i.Accept, t.MIME) && !slices.Contains(i.Accept, group+"/*")
	})
}

// FileBytes is how many bytes the files of one submission of the form may have together; 0 for a form without files.
func (f *Form) FileBytes() int {
	sum := 0
	for _, in := range f.Inputs {
		sum += in.MaxFiles * in.MaxSize
	}
	return sum
}

// fileTypeRule is a MIME type, or image/* for all of a group.
func fileTypeRule() rule[string] {
	var words []string
	for _, t := range FileTypes() {
		words = append(words, t.MIME)
	}
	return choice(append(words, "image/*", "audio/*", "video/*")...)
}

// sizeRule is a size of a file in bytes, written as 500KB or 5MB.
func sizeRule() rule[int] {
	return scalar("a size such as 500KB or 5MB, of at most 10MB", `^([1-9]|10)MB$|^[1-9][0-9]{0,3}KB$`, func(text string) (int, error) {
		n, err := strconv.Atoi(text[:len(text)-2])
		if strings.HasSuffix(text, "KB") {
			return n << 10, err
		}
		return n << 20, err
	})
}

// fileInput checks what belongs to inputs of files, and sets what they leave out.
func (d *decoder) fileInput(n *node, in *Input) {
	if in.As != InputFile {
		for _, key := range []string{"accept", "maxFiles", "maxSize"} {
			if n.get(key) != nil {
				d.fail(n.at(key), "%s is for type file", key)
			}
		}
		return
	}
	if n.get("maxLength") != nil {
		d.fail(n.at("maxLength"), "a file has no maxLength: say how large it may be with maxSize")
	}
	if n.get("accept") == nil {
		d.fail(n.position, `"accept" is missing: say which types of files are taken, such as [application/pdf, "image/*"]`)
	}
	if in.MaxFiles == 0 {
		in.MaxFiles = 1
	}
	if in.MaxSize == 0 {
		in.MaxSize = defaultFileBytes
	}
}
