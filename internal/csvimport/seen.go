package csvimport

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"syscall"
)

const (
	seenSlots = 3 << 18
	// seenMost is how many identities one table takes, so that a look-up stays short.
	seenMost = seenSlots * 3 / 4
	rowBits  = 24
)

// seen tells which addresses and external ids a file had already, and in which row, in memory that does not grow: of the last 589,824 of them, and of up to as many before those. One of
// a row further up is not told: its contact is then changed by the later row. It takes two for one by a chance of about one in 100,000 files.
type seen struct {
	seed   maphash.Seed
	tables [2][]byte // the present one, and the one before: each slot 40 bits of a hash, and 24 of the row (0 for beyond)
	used   int       // of the present one
}

// newSeen takes memory that the collector knows nothing of: it would let as much garbage gather.
func newSeen() (*seen, error) {
	s := &seen{seed: maphash.MakeSeed()}
	for i := range s.tables {
		t, err := syscall.Mmap(-1, 0, 8*seenSlots, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("get memory for telling repeated rows: %w", err)
		}
		s.tables[i] = t
	}
	return s, nil
}

func (s *seen) close() {
	for _, t := range s.tables {
		if t != nil {
			_ = syscall.Munmap(t) // it was mapped
		}
	}
}

func at(table []byte, slot uint64) uint64 { return binary.NativeEndian.Uint64(table[8*slot:]) }

func (s *seen) hash(kind byte, id string) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	_ = h.WriteByte(kind) // never fails
	_, _ = h.WriteString(id)
	return h.Sum64()
}

// find gives the row that had an identity; 0 where it is not known any more.
func (s *seen) find(hash uint64) (row int, ok bool) {
	for _, t := range s.tables {
		for i := hash % seenSlots; ; i = (i + 1) % seenSlots {
			v := at(t, i)
			if v == 0 {
				break
			}
			if v>>rowBits == hash>>rowBits {
				return int(v % (1 << rowBits)), true
			}
		}
	}
	return 0, false
}

// add notes an identity that was not found.
func (s *seen) add(hash uint64, row int) {
	if s.used == seenMost {
		s.tables[0], s.tables[1], s.used = s.tables[1], s.tables[0], 0
		clear(s.tables[0])
	}
	t := s.tables[0]
	i := hash % seenSlots
	for at(t, i) != 0 {
		i = (i + 1) % seenSlots
	}
	if row >= 1<<rowBits {
		row = 0
	}
	binary.NativeEndian.PutUint64(t[8*i:], hash>>rowBits<<rowBits|uint64(row))
	s.used++
}
