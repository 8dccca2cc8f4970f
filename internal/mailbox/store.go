package mailbox

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Mail is what is known of a mail without reading it.
type Mail struct {
	ID         int64     `json:"id"` // from 1, in order of arrival; never given twice, not even after Clear
	At         time.Time `json:"at"`
	To         string    `json:"to"`         // envelope recipient
	ReturnPath string    `json:"returnPath"` // envelope sender: where its bounces go
	From       string    `json:"from"`       // header field, decoded
	Subject    string    `json:"subject"`    // decoded
	MessageID  string    `json:"messageId"`  // with angle brackets; "" if it has none
	Size       int       `json:"size"`       // bytes
	Copy       int       `json:"copy"`       // 1, and 2 or more when this recipient got this Message-ID before
}

// Counts is how many mails were received. Received = Distinct + Repeated.
type Counts struct {
	Received int `json:"received"`
	Distinct int `json:"distinct"` // pairs of recipient and Message-ID
	Repeated int `json:"repeated"` // mails of which this recipient had one before
}

// A record is a head of recordHead bytes, the envelope and header fields (meta), and the mail as it came. It is written whole in
// one go, before the sender gets its answer.
//
//	magic 4 | meta length 4 | raw length 4 | id 8 | microseconds 8 | CRC of what stands before and of meta 4 | CRC of raw 4
const (
	recordMagic = 0x4f4e4d31 // ONM1
	recordHead  = 36
	segmentSize = 256 << 20 // a segment that has grown beyond it is followed by a new one
	maxMeta     = 16 << 10
	writeAtOnce = 4 << 20
	suffix      = ".mails"
)

// entry is a mail in the index: 80 bytes and its meta.
type entry struct {
	meta    string // five strings, each after its length
	offset  int64  // of the record in its segment
	at      int64  // microseconds
	key     uint64 // of recipient and Message-ID
	segment int32  // index into store.segments
	size    int32
	copy    int32
}

// segment is one file: records from an id on.
type segment struct {
	file  *os.File
	path  string
	bytes int64
}

// pending is a mail that waits to be written.
type pending struct {
	meta string
	raw  []byte
	at   int64
}

// group is the mails that are written together.
type group struct {
	mails []pending
	done  chan struct{}
	err   error
	first int64
}

var errStoreClosed = errors.New("the mailbox is closed")

// store keeps mails in append-only segments, with an index in memory that is built anew at start. One goroutine writes; senders
// that come together share one write.
type store struct {
	dir  string
	lock *os.File
	sync bool
	seed maphash.Seed
	wake chan struct{}
	stop chan struct{}
	end  sync.WaitGroup

	writing  sync.Mutex // held while a group is written; taken before mu
	mu       sync.Mutex
	segments []*segment // the last is written to
	entries  []entry    // of ids first, first+1, ...
	first    int64
	copies   map[uint64]int32
	repeated int
	open     *group        // collects what is written next
	changed  chan struct{} // closed and replaced when mails came
	closed   bool
}

// openStore opens or makes a store in dir and reads its index.
func openStore(dir string, syncWrites bool) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make mail directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open mail directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("mail directory %s is in use by another mailbox: end that one or name another directory", dir)
	}
	s := &store{
		dir: dir, lock: lock, sync: syncWrites, seed: maphash.MakeSeed(), first: 1, copies: map[uint64]int32{},
		wake: make(chan struct{}, 1), stop: make(chan struct{}), open: newGroup(), changed: make(chan struct{}),
	}
	if err := s.load(); err != nil {
		_ = s.closeFiles() // the other error says what is wrong
		return nil, err
	}
	s.end.Go(s.write)
	return s, nil
}

func newGroup() *group { return &group{done: make(chan struct{})} }

func segmentName(first int64) string { return fmt.Sprintf("%016d%s", first, suffix) }

// load reads the index: heads and metas only, not the mails.
func (s *store) load() error {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("read mail directory: %w", err)
	}
	var names []string
	for _, f := range files {
		var id int64
		if n, err := fmt.Sscanf(f.Name(), "%016d"+suffix, &id); n == 1 && err == nil && f.Name() == segmentName(id) {
			names = append(names, f.Name())
		}
	}
	slices.Sort(names)
	for i, name := range names {
		var id int64
		_, _ = fmt.Sscanf(name, "%016d", &id)
		switch {
		case i == 0:
			s.first = id
		case id != s.next():
			return fmt.Errorf("mail directory %s: %s should begin with mail %d: a file before it is missing or damaged", s.dir, name, s.next())
		}
		if err := s.loadSegment(name, i == len(names)-1); err != nil {
			return err
		}
	}
	if len(names) == 0 {
		return s.addSegment(s.first)
	}
	return nil
}

func (s *store) next() int64 { return s.first + int64(len(s.entries)) }

func (s *store) addSegment(first int64) error {
	path := filepath.Join(s.dir, segmentName(first))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make mail file: %w", err)
	}
	s.segments = append(s.segments, &segment{file: file, path: path})
	return nil
}

// loadSegment reads a segment's index. A record that was cut off, by a kill in the middle of writing, was never answered: the last
// segment is cut back to the end of what is whole.
func (s *store) loadSegment(name string, last bool) error {
	path := filepath.Join(s.dir, name)
	file, err := os.OpenFile(path, os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open mail file: %w", err)
	}
	seg := &segment{file: file, path: path}
	s.segments = append(s.segments, seg)
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("open mail file: %w", err)
	}
	size := info.Size()
	in := bufio.NewReaderSize(io.NewSectionReader(file, 0, size), 64<<10)
	head := make([]byte, recordHead)
	meta := make([]byte, 0, 1024)
	for seg.bytes < size {
		if _, err := io.ReadFull(in, head); err != nil {
			break
		}
		metaLen, rawLen, ok := recordLengths(head)
		if !ok || seg.bytes+recordHead+int64(metaLen)+int64(rawLen) > size {
			break
		}
		meta = append(meta[:0], make([]byte, metaLen)...)
		if _, err := io.ReadFull(in, meta); err != nil || recordCRC(head, meta) != binary.BigEndian.Uint32(head[28:]) {
			break
		}
		if int64(binary.BigEndian.Uint64(head[12:])) != s.next() {
			break
		}
		if _, err := in.Discard(rawLen); err != nil {
			break
		}
		s.index(string(meta), seg.bytes, int64(binary.BigEndian.Uint64(head[20:])), rawLen)
		seg.bytes += recordHead + int64(metaLen) + int64(rawLen)
	}
	if seg.bytes == size {
		return nil
	}
	if !last {
		return fmt.Errorf("mail file %s is damaged at byte %d: move it away, or empty the directory, to begin anew", path, seg.bytes)
	}
	if err := file.Truncate(seg.bytes); err != nil {
		return fmt.Errorf("cut off an unfinished mail: %w", err)
	}
	return nil
}

func recordLengths(head []byte) (meta, raw int, ok bool) {
	m, r := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
	return int(m), int(r), binary.BigEndian.Uint32(head) == recordMagic && m <= maxMeta && r <= maxMail
}

func recordCRC(head, meta []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(head[:28], table), table, meta)
}

func rawCRC(raw []byte) uint32 { return crc32.Checksum(raw, crc32.MakeTable(crc32.Castagnoli)) }

// index adds a mail that stands in the last segment. The caller holds mu, or is alone.
func (s *store) index(meta string, offset, at int64, size int) {
	to, _, _, _, id := splitMeta(meta)
	e := entry{meta: meta, offset: offset, at: at, segment: int32(len(s.segments) - 1), size: int32(size), copy: 1}
	var h maphash.Hash
	h.SetSeed(s.seed)
	_, _ = h.WriteString(strings.ToLower(to))
	_ = h.WriteByte(0)
	_, _ = h.WriteString(id)
	if id == "" { // nothing tells two mails without a Message-ID apart, or makes them one
		_, _ = fmt.Fprint(&h, s.next())
	}
	e.key = h.Sum64()
	s.copies[e.key]++
	if e.copy = s.copies[e.key]; e.copy > 1 {
		s.repeated++
	}
	s.entries = append(s.entries, e)
}

// joinMeta and splitMeta keep five strings in one, so that a mail in the index is one allocation.
func joinMeta(to, returnPath, from, subject, id string) string {
	var b []byte
	for _, v := range []string{to, returnPath, from, subject, id} {
		b = binary.AppendUvarint(b, uint64(len(v)))
		b = append(b, v...)
	}
	return string(b)
}

func splitMeta(meta string) (to, returnPath, from, subject, id string) {
	for _, v := range []*string{&to, &returnPath, &from, &subject, &id} {
		n, shift := 0, 0
		for meta != "" {
			c := meta[0]
			meta = meta[1:]
			n |= int(c&0x7f) << shift
			if shift += 7; c < 0x80 {
				break
			}
		}
		if n < 0 || n > len(meta) {
			return to, returnPath, from, subject, id
		}
		*v, meta = meta[:n], meta[n:]
	}
	return to, returnPath, from, subject, id
}

// append stores mails, and returns when they are written. The raw slices are the caller's again then.
func (s *store) append(mails ...pending) (first int64, err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return 0, errStoreClosed
	}
	g := s.open
	at := len(g.mails)
	g.mails = append(g.mails, mails...)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
	<-g.done
	return g.first + int64(at), g.err
}

// write is the one writer: it takes what has gathered, again and again.
func (s *store) write() {
	var buf []byte
	for {
		stopping := false
		select {
		case <-s.wake:
		case <-s.stop:
			stopping = true
		}
		s.mu.Lock()
		g := s.open
		s.open = newGroup()
		s.mu.Unlock()
		if len(g.mails) > 0 {
			buf = s.writeGroup(g, buf)
		}
		close(g.done)
		if stopping {
			return
		}
		if cap(buf) > 2*writeAtOnce { // one huge mail shall not hold its memory for ever
			buf = nil
		}
	}
}

// writeGroup writes a group, all or none of it, then shows it in the index.
func (s *store) writeGroup(g *group, buf []byte) []byte {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	seg := s.segments[len(s.segments)-1]
	if seg.bytes >= segmentSize {
		if g.err = s.addSegment(s.next()); g.err != nil {
			return buf
		}
		seg = s.segments[len(s.segments)-1]
	}
	g.first = s.next()
	at := seg.bytes
	offsets := make([]int64, len(g.mails))
	id := g.first
	// Only this goroutine appends, so the lock may be lifted while the disk works; readers use what is in the index.
	s.mu.Unlock()
	flush := func() {
		if g.err == nil && len(buf) > 0 {
			_, g.err = seg.file.WriteAt(buf, at)
			at += int64(len(buf))
		}
		buf = buf[:0]
	}
	buf = buf[:0]
	for i, m := range g.mails {
		offsets[i] = at + int64(len(buf))
		buf = appendRecord(buf, id+int64(i), m)
		if len(buf) >= writeAtOnce {
			flush()
		}
	}
	flush()
	if g.err == nil && s.sync {
		g.err = seg.file.Sync()
	}
	s.mu.Lock()
	if g.err != nil {
		g.err = fmt.Errorf("write mail: %w", errors.Join(g.err, seg.file.Truncate(seg.bytes)))
		return buf
	}
	for i, m := range g.mails {
		s.index(m.meta, offsets[i], m.at, len(m.raw))
	}
	seg.bytes = at
	close(s.changed)
	s.changed = make(chan struct{})
	return buf
}

func appendRecord(buf []byte, id int64, m pending) []byte {
	start := len(buf)
	buf = binary.BigEndian.AppendUint32(buf, recordMagic)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(m.meta)))
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(m.raw)))
	buf = binary.BigEndian.AppendUint64(buf, uint64(id))
	buf = binary.BigEndian.AppendUint64(buf, uint64(m.at))
	buf = binary.BigEndian.AppendUint32(buf, recordCRC(buf[start:], []byte(m.meta)))
	buf = binary.BigEndian.AppendUint32(buf, rawCRC(m.raw))
	buf = append(buf, m.meta...)
	return append(buf, m.raw...)
}

// errNoMail is what asking for a mail that is not there, or not any more, matches.
var errNoMail = fmt.Errorf("no such mail: %w", fs.ErrNotExist)

func (s *store) mail(id int64) (Mail, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id < s.first || id >= s.next() {
		return Mail{}, errNoMail
	}
	return s.at(int(id - s.first)), nil
}

// at gives the mail at a place in the index. The caller holds mu.
func (s *store) at(i int) Mail {
	e := &s.entries[i]
	m := Mail{ID: s.first + int64(i), At: time.UnixMicro(e.at).UTC(), Size: int(e.size), Copy: int(e.copy)}
	m.To, m.ReturnPath, m.From, m.Subject, m.MessageID = splitMeta(e.meta)
	return m
}

// raw reads a mail as it came.
func (s *store) raw(id int64) ([]byte, error) {
	s.mu.Lock()
	if id < s.first || id >= s.next() {
		s.mu.Unlock()
		return nil, errNoMail
	}
	e := s.entries[id-s.first]
	file := s.segments[e.segment].file
	s.mu.Unlock()
	buf := make([]byte, recordHead+len(e.meta)+int(e.size))
	if _, err := file.ReadAt(buf, e.offset); err != nil {
		if errors.Is(err, fs.ErrClosed) { // cleared meanwhile
			return nil, errNoMail
		}
		return nil, fmt.Errorf("read mail %d: %w", id, err)
	}
	raw := buf[recordHead+len(e.meta):]
	if rawCRC(raw) != binary.BigEndian.Uint32(buf[32:]) {
		return nil, fmt.Errorf("read mail %d: it is damaged on disk", id)
	}
	return raw, nil
}

// filter says which mails are wanted.
type filter struct {
	to       string // this recipient, case ignored
	query    string // in recipient, sender, subject or Message-ID, case ignored
	repeated bool   // only further copies
}

func (f filter) matches(s *store, i int) bool {
	e := &s.entries[i]
	if f.repeated && e.copy < 2 {
		return false
	}
	if f.to != "" {
		if to, _, _, _, _ := splitMeta(e.meta); !strings.EqualFold(to, f.to) {
			return false
		}
	}
	return f.query == "" || strings.Contains(strings.ToLower(e.meta), strings.ToLower(f.query))
}

// before gives the newest mails with an id less than before (0: the newest of all), newest first, and whether there are more.
func (s *store) before(f filter, before int64, limit int) (mails []Mail, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := len(s.entries) - 1
	if before > 0 {
		i = int(min(before-s.first, int64(len(s.entries)))) - 1
	}
	for ; i >= 0; i-- {
		if !f.matches(s, i) {
			continue
		}
		if len(mails) == limit {
			return mails, true
		}
		mails = append(mails, s.at(i))
	}
	return mails, false
}

// after gives the oldest mails with an id greater than after, oldest first, and whether there are more; with none, wait is closed
// when there may be.
func (s *store) after(f filter, after int64, limit int) (mails []Mail, more bool, wait <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := int(max(after+1-s.first, 0)); i < len(s.entries); i++ {
		if !f.matches(s, i) {
			continue
		}
		if len(mails) == limit {
			return mails, true, nil
		}
		mails = append(mails, s.at(i))
	}
	return mails, false, s.changed
}

// counts counts all mails, or those of one recipient.
func (s *store) counts(to string) Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Counts{Received: len(s.entries), Repeated: s.repeated}
	if to != "" {
		c = Counts{}
		for i := range s.entries {
			if (filter{to: to}).matches(s, i) {
				c.Received++
				if s.entries[i].copy > 1 {
					c.Repeated++
				}
			}
		}
	}
	c.Distinct = c.Received - c.Repeated
	return c
}

// clear forgets all mails. Ids go on from where they were.
func (s *store) clear() error {
	s.writing.Lock() // no group may be half written into a file that goes
	defer s.writing.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errStoreClosed
	}
	if len(s.entries) == 0 {
		return nil
	}
	old := s.segments
	s.segments = nil
	if last := len(old) - 1; old[last].bytes == 0 { // its name is the one a new one would get
		s.segments, old = old[last:], old[:last]
	} else if err := s.addSegment(s.next()); err != nil {
		s.segments = old
		return err
	}
	s.first, s.entries, s.repeated = s.next(), nil, 0
	clear(s.copies)
	var errs []error
	for _, seg := range old { // oldest first: what a kill leaves still begins where its name says
		errs = append(errs, seg.file.Close(), os.Remove(seg.path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove mails: %w", err)
	}
	return nil
}

func (s *store) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	s.end.Wait()
	return s.closeFiles()
}

func (s *store) closeFiles() error {
	var errs []error
	for _, seg := range s.segments {
		errs = append(errs, seg.file.Close())
	}
	errs = append(errs, s.lock.Close())
	return errors.Join(errs...)
}
