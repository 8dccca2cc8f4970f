package track

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"sync"
)

// script is a script of pages.
type script struct {
	text   []byte
	packed func() []byte // compressed once, for the first who asks: that takes a tenth of what a start does, and most are for somebody else
	tag    string        // of what is in it
}

func newScript(text []byte) *script {
	sum := sha256.Sum256(text)
	return &script{text, sync.OnceValue(func() []byte { return pack(text) }), base64.RawURLEncoding.EncodeToString(sum[:12])}
}

func pack(text []byte) []byte {
	var packed bytes.Buffer // which takes all that is written to it
	z, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	_, _ = z.Write(text)
	_ = z.Close()
	return packed.Bytes()
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
