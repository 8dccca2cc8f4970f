package track

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
)

// script is a script of pages, compressed once.
type script struct {
	text, packed []byte
	tag          string // of what is in it
}

func newScript(text []byte) (*script, error) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(text)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compress a script: %w", err)
	}
	sum := sha256.Sum256(text)
	return &script{text, packed.Bytes(), base64.RawURLEncoding.EncodeToString(sum[:12])}, nil
}

// takesGzip tells whether a client says so (RFC 9110 section 12.5.3).
func takesGzip(accept string) bool {
	for _, coding := range strings.Split(accept, ",") {
		name, quality, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			return strings.Trim(strings.ReplaceAll(quality, " ", ""), "0.") != "q="
		}
	}
	return false
}
