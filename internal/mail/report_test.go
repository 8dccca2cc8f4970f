package mail_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/mail"
)

func reports(tb testing.TB) map[string][]byte {
	tb.Helper()
	paths, err := filepath.Glob("testdata/report_*.eml")
	if err != nil || len(paths) < 14 {
		tb.Fatalf("%d reports, %v", len(paths), err)
	}
	all := map[string][]byte{}
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			tb.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(p), ".eml")] = raw
	}
	return all
}

// TestReports reads reports of many mail systems, with CR LF and with LF alone, and compares with the golden reading.
func TestReports(t *testing.T) {
	t.Parallel()
	for name, raw := range reports(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rep, err := mail.ParseReport(bytes.NewReader(raw))
			if name == "report_answer" {
				if !errors.Is(err, mail.ErrNotReport) {
					t.Fatalf("was read as %+v, %v", rep, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(rep, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", append(got, '\n'))
			if strings.Contains(rep.Diagnostic, "@") {
				t.Errorf("the diagnostic shows an address: %s", rep.Diagnostic)
			}
			for _, changed := range [][]byte{
				bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n")),
				append([]byte("From MAILER-DAEMON Tue Nov 24 09:05:10 2026\n"), raw...),
				append([]byte("\r\n\r\n"), raw...),
			} {
				again, err := mail.ParseReport(bytes.NewReader(changed))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(rep, again); diff != "" {
					t.Errorf("with other line ends or lines before it, it reads differently:\n%s", diff)
				}
			}
		})
	}
}

func TestReportRecipients(t *testing.T) {
	t.Parallel()
	raw := reports(t)["report_several_recipients"]
	rep, err := mail.ParseReport(bytes.NewReader(raw), "postmaster@acme.example", "b+meareb6h6qkdausligosynbrr4@bounce.acme.example")
	if err != nil || rep.ReturnPathToken != "meareb6h6qkdausligosynbrr4" {
		t.Errorf("the envelope's recipient does not count: %+v, %v", rep, err)
	}
}

func TestReportBounds(t *testing.T) {
	t.Parallel()
	exim := reports(t)["report_exim_reputation"]
	t.Run("a large returned mail is left out", func(t *testing.T) {
		t.Parallel()
		at := bytes.LastIndex(exim, []byte("Hello"))
		large := append(append(bytes.Clone(exim[:at]), bytes.Repeat([]byte("0123456789\r\n"), 1<<20)...), exim[at:]...)
		rep, err := mail.ParseReport(bytes.NewReader(large))
		if err != nil || rep.Class != mail.Block || rep.OriginalMessageID != "<d13hw.t7@acme.example>" {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	t.Run("deep nesting ends", func(t *testing.T) {
		t.Parallel()
		var b strings.Builder
		for range 10000 {
			b.WriteString("Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n")
		}
		if rep, err := mail.ParseReport(strings.NewReader(b.String())); !errors.Is(err, mail.ErrNotReport) {
			t.Errorf("%+v, %v", rep, err)
		}
		b.Reset()
		for range 10000 {
			b.WriteString("Content-Type: message/rfc822\r\n\r\n")
		}
		if rep, err := mail.ParseReport(strings.NewReader(b.String())); !errors.Is(err, mail.ErrNotReport) {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	t.Run("many parts end", func(t *testing.T) {
		t.Parallel()
		s := "Content-Type: multipart/report; boundary=x\r\n\r\n" + strings.Repeat("--x\r\n\r\na\r\n", 50000)
		if rep, err := mail.ParseReport(strings.NewReader(s)); !errors.Is(err, mail.ErrNotReport) {
			t.Errorf("%+v, %v", rep, err)
		}
	})
	for _, s := range []string{"", "\r\n", "not a mail", "\x00\x01\x02", "A: b\r\n\r\n", "From x\n", "Content-Type: multipart/report\r\n\r\n"} {
		if rep, err := mail.ParseReport(strings.NewReader(s)); !errors.Is(err, mail.ErrNotReport) {
			t.Errorf("%q was read as %+v, %v", s, rep, err)
		}
	}
	broken := errors.New("broken")
	if _, err := mail.ParseReport(failing{broken}); !errors.Is(err, broken) || errors.Is(err, mail.ErrNotReport) {
		t.Errorf("%v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzParseReport(f *testing.F) {
	for _, raw := range reports(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rep, err := mail.ParseReport(bytes.NewReader(raw))
		if err != nil {
			if rep != nil {
				t.Fatal("both a report and an error")
			}
			return
		}
		switch {
		case rep.Kind == mail.DSN && rep.Action == "", rep.Kind == mail.ARF && rep.FeedbackType == "", rep.Kind == mail.AutoReply && rep.Action+rep.FeedbackType != "":
			t.Fatalf("a report without its point: %+v", rep)
		case (rep.Action == "failed" || rep.Action == "delayed") != (rep.Class != ""):
			t.Fatalf("class %q for action %q", rep.Class, rep.Action)
		case strings.ContainsAny(rep.Diagnostic, "\r\n\x00") || len(rep.Diagnostic) > 1000:
			t.Fatalf("diagnostic %q", rep.Diagnostic)
		case rep.OriginalRecipient != "" && mail.CheckAddress(rep.OriginalRecipient) != nil:
			t.Fatalf("recipient %q", rep.OriginalRecipient)
		}
	})
}
