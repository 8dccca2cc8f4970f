package fn

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"
)

// bodyTime is how long a body may take to come unless its Bodies say otherwise; the server's own limit is for those that nobody bounds.
const bodyTime = 10 * time.Second

// ErrBody is of a body that was not read since too many are in hand, or since it came too slowly. It is Unavailable.
var ErrBody = Unavailable(errors.New("too many bodies are being read, or this one comes too slowly"))

// Bodies bounds how much of the bodies of requests a process has in hand: anybody may begin as many as there are connections, and send them slowly.
type Bodies struct {
	// Time is how long one may take to come; ten seconds where it is zero.
	Time  time.Duration
	whole *Bodies // that this is a part of; nil for none
	left  atomic.Int64
}

// NewBodies is room for so many bytes, of all requests together.
func NewBodies(most int64) *Bodies {
	b := &Bodies{}
	b.left.Store(most)
	return b
}

// Part is room for so many of b's bytes, for one of those who share it: what is in hand there is in hand in b too.
func (b *Bodies) Part(most int64) *Bodies {
	p := NewBodies(most)
	p.Time, p.whole = b.Time, b
	return p
}

// take tells whether there was room for so many bytes more.
func (b *Bodies) take(n int64) bool {
	ok := b.left.Add(-n) >= 0
	if b.whole != nil && !b.whole.take(n) {
		ok = false
	}
	return ok
}

// Left is how many bytes there still is room for.
func (b *Bodies) Left() int64 { return b.left.Load() }

// Body is a request's body, whose bytes count as in hand from when they are read until it is closed.
type Body struct {
	io.Reader
	bodies *Bodies
	taken  int64
}

// Open begins to read a body of at most so many bytes, which has the time from now to come. To read gives ErrBody where that was not enough, and at once where the process has
// too much in hand; and a *http.MaxBytesError where the body is too large.
func (b *Bodies) Open(w http.ResponseWriter, r *http.Request, most int64) *Body {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(cmp.Or(b.Time, bodyTime))) // else the server's own ends it
	return &Body{Reader: http.MaxBytesReader(w, r.Body, most), bodies: b}
}

// Read reads of the body.
func (b *Body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if !b.take(n) || errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, ErrBody // nobody is to make do with what came
	}
	return n, err
}

// take tells whether there was room for so many bytes more.
func (b *Body) take(n int) bool {
	b.taken += int64(n)
	return b.bodies.take(int64(n))
}

// Unpacked reads what r makes of the body, which may be a thousand times as much, and counts that as in hand too.
func (b *Body) Unpacked(r io.Reader) io.Reader { return &unpacked{r, b} }

type unpacked struct {
	io.Reader
	body *Body
}

func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if !u.body.take(n) {
		return 0, ErrBody
	}
	return n, err
}

// Drop gives back the room of bytes that were read and are not kept.
func (b *Body) Drop(n int64) {
	b.bodies.take(-n)
	b.taken -= n
}

// Close gives the room back, when what was read is not needed any more. It gives no error.
func (b *Body) Close() error {
	b.bodies.take(-b.taken)
	b.taken = 0
	return nil
}

// ReadForm reads a form in either encoding, of at most so many bytes, and nothing of other bodies. Errors are *http.MaxBytesError, ErrBody, or Permanent.
func ReadForm(w http.ResponseWriter, r *http.Request, most int64) (url.Values, error) {
	r.Body = http.MaxBytesReader(w, r.Body, most)
	err := r.ParseForm()
	if err == nil {
		if err = r.ParseMultipartForm(most); errors.Is(err, http.ErrNotMultipart) {
			err = nil
		}
	}
	var large *http.MaxBytesError
	switch {
	case err == nil:
		return r.PostForm, nil
	case errors.As(err, &large), errors.Is(err, ErrBody):
		return nil, err
	}
	return nil, Permanent(errors.New("the form cannot be read"))
}
