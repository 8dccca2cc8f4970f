package main

import (
	"bytes"
	"strings"
	"sync"
	"time"
)

// fault is what a mail meets at a sink with a book.
type fault int

const (
	none      fault = iota
	putOff          // 451 to RCPT, once
	refuse          // 550 to RCPT
	cutBefore       // the connection ends instead of an answer to DATA, once
	cutIn           // the connection ends within the content
	cutAfter        // the mail is taken, and the connection ends instead of the answer
	cutLost         // the same, and the mail is not taken
	late            // the mail is taken, and the answer comes after lateAnswer
)

// lateAnswer is longer than the limit of a message.
const lateAnswer = 40 * time.Second

func (f fault) toRecipient() string {
	switch f {
	case putOff:
		return "451 4.3.0 busy\r\n"
	case refuse:
		return "550 5.1.1 no such user\r\n"
	default:
		return "250 ok\r\n"
	}
}

// visit is a mail at the sink.
type visit struct {
	to, id string
	fault  fault
}

// book is what came to a sink, mail by mail.
type book struct {
	plain bool                       // the sink offers no PIPELINING
	fates func(to string) fault      // what a recipient's mail meets; nil: none
	doors func(conn int) (shut bool) // which connections, from 1, are accepted and closed; nil: none
	ended chan struct{}              // closed when nobody waits for late answers any more

	mu    sync.Mutex
	conns int
	met   map[string]bool     // who met a fault that is met once
	mails map[string][]string // Message-IDs by recipient
	taken int
}

func newBook() *book {
	return &book{ended: make(chan struct{}), met: map[string]bool{}, mails: map[string][]string{}}
}

// shut counts a connection and tells whether it is closed at once.
func (b *book) shut() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conns++
	return b.doors != nil && b.doors(b.conns)
}

// meet reads RCPT and decides what the mail meets.
func (b *book) meet(line []byte) visit {
	_, rest, _ := bytes.Cut(line, []byte("<"))
	to, _, _ := bytes.Cut(rest, []byte(">"))
	v := visit{to: strings.ToLower(string(to))}
	if b.fates == nil {
		return v
	}
	v.fault = b.fates(v.to)
	if v.fault != putOff && v.fault != cutBefore {
		return v
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.met[v.to] {
		v.fault = none
	}
	b.met[v.to] = true
	return v
}

// took writes a mail down whose content has come; false when there is to be no answer.
func (b *book) took(v *visit) bool {
	if v.fault != cutLost {
		b.mu.Lock()
		b.mails[v.to] = append(b.mails[v.to], v.id)
		b.taken++
		b.mu.Unlock()
	}
	if v.fault == late {
		select {
		case <-time.After(lateAnswer):
		case <-b.ended:
		}
	}
	return v.fault != cutAfter && v.fault != cutLost
}

func (b *book) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.taken
}
