package mail

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
)

// dkimKeys are a key of each algorithm, and the DNS they are published in.
func dkimKeys(tb testing.TB) (keys []DKIMKey, dns map[string]string) {
	tb.Helper()
	dns = map[string]string{}
	for _, algorithm := range []string{RSA, Ed25519} {
		k, err := NewDKIMKey("acme.example", "a-selector-of-some-length-"+algorithm, algorithm)
		if err != nil {
			tb.Fatal(err)
		}
		keys = append(keys, k)
		dns[k.Name()] = k.Record()
	}
	return keys, dns
}

// verify gives the verdict of each signature, nil for a good one, and what is signed.
func verify(t *testing.T, dns map[string]string, message []byte) (verdicts []error, fields [][]string) {
	t.Helper()
	vs, err := dkim.VerifyWithOptions(bytes.NewReader(message), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		if r, ok := dns[name]; ok {
			return []string{r}, nil
		}
		return nil, fmt.Errorf("no record %s", name)
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		verdicts, fields = append(verdicts, v.Err), append(fields, v.HeaderKeys)
	}
	return verdicts, fields
}

func signedMessage() Message {
	return Message{
		From: Address{Name: "Ünïcode & Söhne", Email: "news@acme.example"}, To: Address{Email: "kari@example.com"}, ReplyTo: Address{Email: "hello@acme.example"},
		Subject: strings.Repeat("Ein langer Betreff für alle ", 8), HTML: "<p>.\r\n.. Grüße =  </p>\r\n\r\n\r\n", Text: ". Grüße \r\n\r\n",
		MessageID: "<d1.t1@acme.example>", Date: time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC),
		ListUnsubscribe: Unsubscribe{URL: "https://links.example.com/u/" + strings.Repeat("a", 40), Mailto: "u+" + strings.Repeat("a", 40) + "@bounce.acme.example"},
		ListID:          "newsletter.acme.example", FeedbackID: "12:newsletter:1:onda",
	}
}

func TestDKIMVerifies(t *testing.T) {
	t.Parallel()
	keys, dns := dkimKeys(t)
	transactional := signedMessage()
	transactional.ListUnsubscribe, transactional.ListID, transactional.FeedbackID, transactional.HTML = Unsubscribe{}, "", "", ""
	transactional.Headers = []Header{{"Auto-Submitted", "auto-generated"}}
	attached := signedMessage()
	attached.Attachments = []Attachment{{Name: "a.bin", Data: bytes.Repeat([]byte{0, '.', '\n', 255}, 5000)}}
	international := signedMessage()
	international.To.Email = "käri@bücher.example"
	for name, m := range map[string]Message{"marketing": signedMessage(), "transactional": transactional, "attached": attached, "international": international} {
		for n, some := range [][]DKIMKey{keys[:1], keys[1:], keys} {
			t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
				t.Parallel()
				s, err := NewSigner(some...)
				if err != nil {
					t.Fatal(err)
				}
				content, err := m.Build()
				if err != nil {
					t.Fatal(err)
				}
				header, err := s.Sign([]byte("before "), content[:len(content)-20], content[len(content)-20:])
				if err != nil {
					t.Fatal(err)
				}
				header, ok := bytes.CutPrefix(header, []byte("before "))
				if !ok || !bytes.HasSuffix(header, []byte("\r\n")) {
					t.Fatalf("not written behind what was there, or its line has no end: %q", header)
				}
				longest := 0
				for line := range bytes.SplitSeq(header, []byte("\r\n")) {
					longest = max(longest, len(line))
					if len(line) > 900 || has8Bit(line) {
						t.Errorf("line of the header: %q", line)
					}
				}
				if m.ListID != "" && longest <= 76 {
					t.Errorf("no line of the header has more than 76 characters: this test is of a long h=\n%s", header)
				}
				whole := slices.Concat(header, content)
				verdicts, fields := verify(t, dns, whole)
				if len(verdicts) != len(some) {
					t.Fatalf("%d signatures, want %d", len(verdicts), len(some))
				}
				for i, err := range verdicts {
					if err != nil {
						t.Errorf("signature %d: %v\n%s", i, err, header)
					}
					want := []string{"From", "From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"}
					if m.ListID != "" {
						want = append(want, "List-Unsubscribe", "List-Unsubscribe-Post", "List-Id", "Feedback-ID")
					}
					for _, f := range want {
						if count(fields[i], f) != count(want, f) {
							t.Errorf("signature %d covers %s %d times, want %d: %v", i, f, count(fields[i], f), count(want, f), fields[i])
						}
					}
				}
				// What somebody changes on the way is seen; that a relay folds otherwise is not.
				refolded := bytes.Replace(whole, []byte("Message-ID: "), []byte("Message-ID:\r\n\t"), 1)
				for change, changed := range map[string][]byte{
					"a second From":   bytes.Replace(whole, []byte("\r\nFrom:"), []byte("\r\nFrom: eve@evil.example\r\nFrom:"), 1),
					"another To":      bytes.Replace(whole, []byte("\r\nTo: <"), []byte("\r\nTo: <x"), 1),
					"another ending":  append(bytes.Clone(whole), 'x', '\r', '\n'),
					"another subject": bytes.Replace(whole, []byte("\r\nSubject:"), []byte("\r\nSubject: x"), 1),
					"refolded":        refolded,
				} {
					if bytes.Equal(changed, whole) {
						t.Errorf("%s changes nothing", change)
					}
					verdicts, _ := verify(t, dns, changed)
					for i, err := range verdicts {
						if (err == nil) != (change == "refolded") {
							t.Errorf("with %s, signature %d: %v", change, i, err)
						}
					}
				}
			})
		}
	}
}

func count(all []string, one string) (n int) {
	for _, s := range all {
		if strings.EqualFold(s, one) {
			n++
		}
	}
	return n
}

func TestDKIMSignsAtOnce(t *testing.T) {
	t.Parallel()
	keys, dns := dkimKeys(t)
	s, err := NewSigner(keys...)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	signed := make([][]byte, 16)
	for i := range signed {
		wg.Go(func() {
			m := signedMessage()
			m.Subject = fmt.Sprint("Message ", i)
			content, err := m.Build()
			if err != nil {
				t.Error(err)
				return
			}
			header, err := s.Sign(nil, content, nil)
			if err != nil {
				t.Error(err)
				return
			}
			signed[i] = append(header, content...)
		})
	}
	wg.Wait()
	for i, m := range signed {
		verdicts, _ := verify(t, dns, m)
		for _, err := range verdicts {
			if err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}
	}
}

func TestDKIMKeysAreReadBack(t *testing.T) {
	t.Parallel()
	keys, _ := dkimKeys(t)
	for i, algorithm := range []string{RSA, Ed25519} {
		private, err := keys[i].Private()
		if err != nil {
			t.Fatal(err)
		}
		k, err := ReadDKIMKey(keys[i].Domain, keys[i].Selector, private)
		if err != nil || k.Record() != keys[i].Record() || k.Algorithm() != algorithm {
			t.Errorf("%s: %v, %q, want %q", algorithm, err, k.Record(), keys[i].Record())
		}
		for n := range len(private) {
			if _, err := ReadDKIMKey("acme.example", "s", private[:n]); err == nil {
				t.Errorf("%s: of %d bytes, %d are taken for a key", algorithm, len(private), n)
			}
		}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]any{
		"DKIM key of s._domainkey.acme.example: it has 1024 bits, and 2048 are needed":                  weak,
		"DKIM key of s._domainkey.acme.example: it is a *ecdsa.PrivateKey, and neither RSA nor Ed25519": other,
		"DKIM key of s._domainkey.acme.example: it is not readable as PKCS #8":                          "text",
		"DKIM key of s._domainkey.acme.example: it is empty":                                            nil,
	} {
		var private []byte
		switch k := key.(type) {
		case string:
			private = []byte(k)
		case nil:
		default:
			if private, err = x509.MarshalPKCS8PrivateKey(k); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := ReadDKIMKey("acme.example", "s", private); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestDKIMRefuses(t *testing.T) {
	t.Parallel()
	if _, err := NewSigner(); err == nil {
		t.Error("a signer without keys")
	}
	if _, err := NewSigner(DKIMKey{Domain: "acme.example", Selector: "s"}); err == nil {
		t.Error("a signer with a key that is none")
	}
	if _, err := NewDKIMKey("acme.example", "s", "dsa"); err == nil {
		t.Error("a key of an algorithm that DKIM does not have")
	}
	keys, _ := dkimKeys(t)
	s, err := NewSigner(keys...)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"no header": "", "no end of the header": "From: a@acme.example\r\n", "bare LF": "From: a@acme.example\n\nHello\n", "no From": "To: a@acme.example\r\n\r\nHello\r\n"} {
		if got, err := s.Sign([]byte("x"), []byte(content), nil); err == nil || string(got) != "x" {
			t.Errorf("%s: signed as %q, %v", name, got, err)
		}
	}
}

// BenchmarkDKIM signs a message of about 30 KB.
func BenchmarkDKIM(b *testing.B) {
	keys, _ := dkimKeys(b)
	m := signedMessage()
	m.HTML, m.Text = strings.Repeat("<p>Hello to all who read this.</p>\n", 700), strings.Repeat("Hello to all who read this.\n", 200)
	content, err := m.Build()
	if err != nil {
		b.Fatal(err)
	}
	for name, some := range map[string][]DKIMKey{RSA: keys[:1], Ed25519: keys[1:], "both": keys} {
		b.Run(name, func(b *testing.B) {
			s, err := NewSigner(some...)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				var buf []byte
				for pb.Next() {
					var err error
					if buf, err = s.Sign(buf[:0], content, nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
