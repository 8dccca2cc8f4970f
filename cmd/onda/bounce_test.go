package main

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

// A mail server goes by the exit status: what was taken or never will be is done with, the rest comes again.
func TestBounceAsAPipe(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := context.Background()
	admin := db.Admin(t)
	tenant, err := admin.Tenant(ctx, pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := func(known bool) string {
		key, err := token.NewProgramKey(token.SecretKey, tenant.Number)
		if err != nil {
			t.Fatal(err)
		}
		if sum := key.Hash(); known {
			if err := admin.AddProgramKey(ctx, tenant.Name, string(token.SecretKey), "relay", sum[:]); err != nil {
				t.Fatal(err)
			}
		}
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, []byte(key.Reveal()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	known, unknown, cut := keyFile(true), keyFile(false), keyFile(true)
	if err := os.Truncate(cut, 30); err != nil {
		t.Fatal(err)
	}
	in, err := fn.Start(ctx, "bounce", bounce.Build, envconfig.MapLookuper(map[string]string{"ONDA_DATABASE_URL": db.URL}), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Stop(ctx) })
	function := httptest.NewServer(in)
	t.Cleanup(function.Close)
	away := httptest.NewServer(nil)
	away.Close()
	status := func(code int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", function.URL+"/bounces/acme")
			w.WriteHeader(code)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	reply := "From: ada@example.com\r\nAuto-Submitted: auto-replied\r\n\r\nAway.\r\n"
	for name, c := range map[string]struct {
		url, key, mail string
		want           int
		says           string
	}{
		"taken":                       {url: function.URL + "/bounces/acme", mail: reply, want: 0, says: `{"result":"unattributed"}`},
		"no report":                   {url: function.URL + "/bounces/acme", mail: "hello", want: 0, says: `{"result":"ignored"}`},
		"nothing":                     {url: function.URL + "/bounces/acme", want: 0, says: `{"result":"ignored"}`},
		"larger than the function":    {url: function.URL + "/bounces/acme", mail: reply + strings.Repeat("0123456789\r\n", 500_000), want: 0, says: `{"result":"unattributed"}`},
		"an unknown key":              {url: function.URL + "/bounces/acme", key: unknown, mail: reply, want: exitTempFail, says: "403"},
		"a key file that is away":     {url: function.URL + "/bounces/acme", key: "/nowhere/key", mail: reply, want: exitTempFail, says: "/nowhere/key"},
		"a key file without a key":    {url: function.URL + "/bounces/acme", key: os.DevNull, mail: reply, want: exitTempFail, says: "onda tenant key"},
		"a key file that is no file":  {url: function.URL + "/bounces/acme", key: t.TempDir(), mail: reply, want: exitTempFail, says: "is a directory"},
		"a key file that was cut off": {url: function.URL + "/bounces/acme", key: cut, mail: reply, want: exitTempFail, says: "onda_sk_"},
		"another's key file":          {url: function.URL + "/bounces/acme", key: "bounce_test.go", mail: reply, want: exitTempFail, says: "onda_sk_"},
		"a wrong path":                {url: function.URL + "/bounce/acme", mail: reply, want: exitTempFail, says: "404"},
		"no URL":                      {url: "api.example.com", mail: reply, want: exitTempFail, says: "--url"},
		"away":                        {url: away.URL, mail: reply, want: exitTempFail, says: "post the mail"},
		"busy":                        {url: status(503), mail: reply, want: exitTempFail, says: "503"},
		"a redirect":                  {url: status(302), mail: reply, want: exitTempFail, says: "302"},
		"never taken":                 {url: status(413), mail: reply, want: 0, says: "never taken"},
		"never taken as it is":        {url: status(400), mail: reply, want: 0, says: "never taken"},
		"a tenant that is not ours":   {url: function.URL + "/bounces/brava", mail: reply, want: exitTempFail, says: "403"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := c.key
			if key == "" {
				key = known
			}
			var out, errs bytes.Buffer
			got := run(ctx, []string{"bounce", "--url", c.url, "--key-file", key, "--recipient", "b@acme.example"}, strings.NewReader(c.mail), &out, &errs)
			if said := out.String() + errs.String(); got != c.want || !strings.Contains(said, c.says) {
				t.Errorf("status %d, %s; want %d, %s", got, said, c.want, c.says)
			}
			if secret, err := os.ReadFile(key); err == nil && len(secret) > 0 && strings.Contains(out.String()+errs.String(), strings.TrimSpace(string(secret))) {
				t.Errorf("it shows the key: %s", &errs)
			}
		})
	}
	var out, errs bytes.Buffer
	if got := run(ctx, []string{"bounce", "--url", function.URL, "--key-file", known}, broken{}, &out, &errs); got != exitTempFail {
		t.Errorf("a pipe that breaks: status %d, %s", got, &errs)
	}
	if got := run(ctx, []string{"bounce", "--no-such-flag"}, strings.NewReader(reply), &out, &errs); got != exitUsage {
		t.Errorf("used wrongly: status %d", got)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }
