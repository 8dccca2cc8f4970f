package track

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mileusna/useragent"
	"go.uber.org/zap"
)

//go:embed scanners
var embedded embed.FS

// What is read of a directory of lists, and how often it is looked whether they have changed.
const (
	agentsFile    = "agents.txt"
	networksFile  = "networks.txt"
	maxListFile   = 1 << 20 // bytes
	lookAtScanner = 10 * time.Second
)

// scanners are the lists of known machines: the embedded ones, or those of a directory, which are read again when they change. A file that is missing there is the embedded one; with
// one that cannot be read, the lists stay as they were.
type scanners struct {
	dir   string // empty: the embedded ones
	every time.Duration
	log   *zap.Logger

	mu    sync.Mutex
	lists *lists
	texts [2][]byte // that were read last, good or bad
	next  time.Time
}

func newScanners(dir string, log *zap.Logger) *scanners {
	return &scanners{dir: dir, every: lookAtScanner, log: log}
}

// now gives the lists in force. They are read when they are first needed, since a start must not wait for them.
func (s *scanners) now() *lists {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lists != nil && (s.dir == "" || time.Now().Before(s.next)) {
		return s.lists
	}
	s.next = time.Now().Add(s.every)
	if s.lists == nil {
		texts, err := readLists("")
		if err == nil {
			s.lists, err = parseLists(texts)
		}
		if err != nil {
			panic(fmt.Sprintf("embedded lists of scanners: %v", err)) // a test reads them
		}
	}
	if s.dir == "" {
		return s.lists
	}
	texts, err := readLists(s.dir)
	if err != nil {
		texts = [2][]byte{[]byte(err.Error())} // said once
	}
	if bytes.Equal(texts[0], s.texts[0]) && bytes.Equal(texts[1], s.texts[1]) {
		return s.lists
	}
	s.texts = texts
	if err == nil {
		var l *lists
		if l, err = parseLists(texts); err == nil {
			s.lists = l
			return l
		}
	}
	s.log.Error("the lists of scanners stay as they were: mend the files that ONDA_SCANNERS names", zap.String("directory", s.dir), zap.Error(err))
	return s.lists
}

// readLists reads the agents and the networks of a directory; what is not there, and all of "", are the embedded ones.
func readLists(dir string) (texts [2][]byte, err error) {
	if dir != "" {
		if _, err := os.Stat(dir); err != nil {
			return texts, fmt.Errorf("read lists of scanners: %w", err)
		}
	}
	for i, name := range []string{agentsFile, networksFile} {
		if dir != "" {
			texts[i], err = fs.ReadFile(os.DirFS(dir), name)
			if err == nil {
				continue
			}
			if !os.IsNotExist(err) {
				return texts, fmt.Errorf("read lists of scanners: %w", err)
			}
		}
		if texts[i], err = embedded.ReadFile("scanners/" + name); err != nil {
			return texts, fmt.Errorf("read lists of scanners: %w", err)
		}
	}
	return texts, nil
}

// lists tell machines by what a single request shows.
type lists struct {
	hash     string // of agents
	agents   []agentSign
	networks map[netip.Prefix][]networkSign
	bits     []int                     // lengths of the networks' prefixes
	known    *cache[[2]string, string] // reason of a kind and an agent
}

type agentSign struct {
	reason string
	kinds  string // open or all
	text   string // to be found in ^agent$
}

type networkSign struct{ reason, kinds string }

func fits(kinds, kind string) bool { return kinds == "all" || kinds == kind }

// parseLists reads the texts of the two files. Its errors name the file and the line.
func parseLists(texts [2][]byte) (*lists, error) {
	l := &lists{networks: map[netip.Prefix][]networkSign{}, known: newCache[[2]string, string](2_000, 0)}
	err := eachLine(agentsFile, texts[0], []string{"apple-mpp", "image-proxy", "scanner", "preview", "program", "bot"}, func(reason, kinds, text string) error {
		if len(text) < 3 || text != strings.ToLower(text) {
			return fmt.Errorf("%q is not a text of at least 3 small letters", text)
		}
		l.agents = append(l.agents, agentSign{reason, kinds, text})
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", l.agents))
	l.hash = hex.EncodeToString(sum[:8])
	err = eachLine(networksFile, texts[1], []string{"scanner-network", "proxy-network"}, func(reason, kinds, text string) error {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil || p.Addr().Is4In6():
			return fmt.Errorf("%q is not a network such as 192.0.2.0/24 or 2001:db8::/48", text)
		case p != p.Masked():
			return fmt.Errorf("%s has bits behind its length: write %s", text, p.Masked())
		case p.Bits() < 8:
			return fmt.Errorf("%s is too much of the Internet: at least /8", text)
		case p.Addr().Is6() && p.Bits() > 64:
			return fmt.Errorf("%s is longer than /64, by which IPv6 addresses are looked at", text)
		}
		l.networks[p] = append(l.networks[p], networkSign{reason, kinds})
		if !slices.Contains(l.bits, p.Bits()) {
			l.bits = append(l.bits, p.Bits())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// eachLine reads a list: lines of a reason, kinds of hits and a text.
func eachLine(file string, list []byte, reasons []string, add func(reason, kinds, text string) error) error {
	if len(list) > maxListFile {
		return fmt.Errorf("%s: %d bytes are more than %d", file, len(list), maxListFile)
	}
	for i, line := range strings.Split(string(list), "\n") {
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		reason, rest, _ := strings.Cut(line, " ")
		kinds, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
		var err error
		switch text = strings.TrimSpace(text); {
		case !slices.Contains(reasons, reason):
			err = fmt.Errorf("unknown reason %q, one of: %s", reason, strings.Join(reasons, ", "))
		case kinds != kindOpen && kinds != "all":
			err = fmt.Errorf("unknown hits %q: open or all", kinds)
		default:
			err = add(reason, kinds, text)
		}
		if err != nil {
			return fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
	}
	return nil
}

// request tells why a single request was made by a machine, by all that it shows; empty when it may have been a person. from is page.Origin's, and is kept nowhere.
func (l *lists) request(kind, method, agent, from string, prefetched bool) string {
	if prefetched {
		return "prefetch"
	}
	if method == "HEAD" {
		return "head"
	}
	if reason := l.network(kind, from); reason != "" {
		return reason
	}
	return l.agent(kind, agent)
}

// agent tells why a request with this User-Agent was made by a machine; empty when it may have been a person.
func (l *lists) agent(kind, agent string) string {
	agent = clip(agent, maxAgent) // as it is stored, so that it is told again the same
	reason, ok := l.known.get([2]string{kind, agent})
	if !ok {
		reason = l.lookUp(kind, agent)
		l.known.put([2]string{kind, agent}, reason)
	}
	return reason
}

func (l *lists) lookUp(kind, agent string) string {
	low := strings.ToLower(strings.TrimSpace(agent))
	if low == "" {
		return "no-agent"
	}
	marked := "^" + low + "$"
	for _, a := range l.agents {
		if fits(a.kinds, kind) && strings.Contains(marked, a.text) {
			return a.reason
		}
	}
	if useragent.Parse(agent).Bot {
		return "bot"
	}
	if kind != kindOpen && !slices.ContainsFunc(browserNames(), func(name string) bool { return strings.HasPrefix(low, name) }) {
		return "program"
	}
	return ""
}

// browserNames begin the agents of all browsers, also of old telephones. Mail programs, which fetch pixels, have other names.
func browserNames() []string {
	return []string{"mozilla/", "opera/", "ucweb", "dalvik/", "nokia", "samsung", "blackberry", "sonyericsson", "lg-", "mot-", "huawei", "zte"}
}

// network tells why a request from this place, as page.Origin gives it, was made by a machine.
func (l *lists) network(kind, from string) string {
	a, err := netip.ParseAddr(from)
	if err != nil {
		p, err := netip.ParsePrefix(from)
		if err != nil {
			return ""
		}
		a = p.Addr()
	}
	for _, bits := range l.bits {
		p, err := a.Prefix(bits)
		if err != nil {
			continue // longer than an IPv4 address
		}
		for _, n := range l.networks[p] {
			if fits(n.kinds, kind) {
				return n.reason
			}
		}
	}
	return ""
}
