package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/mail"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/onda-run/onda/internal/dnstest"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/fntest"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/mailbox"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// patience is how long anything may take that a script waits for.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "onda" { // a script's: testscript runs the command and exits
		testscript.Main(m, map[string]func(){"onda": main})
	}
	testscript.Main(withPostgres{m}, map[string]func(){"onda": main})
}

// withPostgres stops the package's Postgres after the tests.
type withPostgres struct{ m *testing.M }

func (w withPostgres) Run() int { return pgtest.Run(w.m) }

// TestScript runs the scripts of testdata/script: each with a database of its own, onda as a command, and the example documents at hand.
func TestScript(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("scripts: %v, %v", files, err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			s := &scripted{t: t, db: db, ports: map[string]net.Listener{}}
			testscript.Run(t, testscript.Params{
				Files: []string{file}, RequireExplicitExec: true, RequireUniqueNames: true,
				Setup: func(env *testscript.Env) error {
					env.Setenv("ONDA_DATABASE_URL", db.URL)
					env.Setenv("ONDA_ADMIN_DATABASE_URL", db.ManagedURL)
					env.Setenv("ONDA_TENANT", pgtest.Acme)
					env.Setenv("ONDA_LINK_URL", "https://links.example")
					env.Setenv("ONDA_TICK", "1m")
					env.Setenv("ROOT", root)
					env.Setenv("NO_COLOR", "1")
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"run": s.run, "sql": s.sql, "admin": s.admin, "json": isJSON, "world": s.world, "settle": s.settle, "events": s.events, "got": s.got, "production": s.mark(false), "development": s.mark(true), "until": s.until, "bounced": bounced, "confirmed": s.confirmed, "unchecked": s.unchecked,
					"port": s.port, "take": s.take, "answers": s.answers, "rows": makeRows, "replace": replace, "inbytes": inBytes, "hide": hide, "dns": s.dns,
				},
			})
		})
	}
}

// scripted is what the commands of one script share.
type scripted struct {
	t     *testing.T
	db    *pgtest.Database
	fn    *fntest.World
	box   *mailbox.Server
	ports map[string]net.Listener
}

// run [STATUS] ARG...: runs onda, which must end with the status, 0 if none is given.
func (s *scripted) run(ts *testscript.TestScript, neg bool, args []string) {
	want := 0
	if len(args) > 0 {
		if n, err := strconv.Atoi(args[0]); err == nil {
			want, args = n, args[1:]
		}
	}
	if neg {
		ts.Fatalf("say the status: run 1 %s", strings.Join(args, " "))
	}
	err := ts.Exec("onda", args...)
	status := 0
	if ended, ok := asExit(err); ok {
		status = ended
	} else if err != nil {
		ts.Fatalf("onda %v: %v", args, err)
	}
	if status != want {
		ts.Fatalf("onda %s ended with %d, want %d", strings.Join(args, " "), status, want)
	}
	said := ts.ReadFile("stdout") + ts.ReadFile("stderr")
	for _, secret := range []string{"hunter2", "panic:", "%!"} {
		if strings.Contains(said, secret) {
			ts.Fatalf("onda %s says %q", strings.Join(args, " "), secret)
		}
	}
	if want != 0 && strings.TrimSpace(ts.ReadFile("stderr")) == "" {
		ts.Fatalf("onda %s ended with %d and did not say why", strings.Join(args, " "), want)
	}
}

func asExit(err error) (int, bool) {
	if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // as testscript gives it
		return e.ExitCode(), true
	}
	return 0, err == nil
}

// sql TENANT QUERY WANT: what one value of the tenant is, as text.
func (s *scripted) sql(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: sql TENANT QUERY WANT")
	}
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.db.AdminURL)
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, "SELECT set_config('search_path', quote_ident($1) || ', onda, public', false)", args[0])
	ts.Check(err)
	var got *string
	ts.Check(conn.QueryRow(ctx, "SELECT ("+args[1]+")::text").Scan(&got))
	if got == nil {
		got = new(string)
	}
	if *got != args[2] {
		ts.Fatalf("%s: %s is %q, want %q", args[0], args[1], *got, args[2])
	}
}

// admin STATEMENT: runs it as superuser.
func (s *scripted) admin(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: admin STATEMENT")
	}
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, s.db.AdminURL)
	ts.Check(err)
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, args[0])
	ts.Check(err)
}

// dns FILE...: serves the records that are in files, or were printed for publishing, at $RESOLVER.
func (s *scripted) dns(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("usage: dns FILE...")
	}
	var zone strings.Builder
	for _, name := range args {
		for line := range strings.Lines(ts.ReadFile(name)) {
			if regexp.MustCompile(`^[^ ]+\. (A|MX|TXT|CNAME) `).MatchString(line) {
				zone.WriteString(line)
			}
		}
	}
	ts.Setenv("RESOLVER", dnstest.Serve(s.t, zone.String()))
}

// json [PATH WANT]...: standard output is one JSON value, in which each path (keys and numbers, joined by dots) has the value, as text.
func isJSON(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args)%2 != 0 {
		ts.Fatalf("usage: json [PATH WANT]...")
	}
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		ts.Fatalf("standard output is no JSON: %v", err)
	}
	if d.More() {
		ts.Fatalf("standard output is more than one JSON value")
	}
	for i := 0; i < len(args); i += 2 {
		at := v
		for _, key := range strings.Split(args[i], ".") {
			switch x := at.(type) {
			case map[string]any:
				at = x[key]
			case []any:
				n, err := strconv.Atoi(key)
				if err != nil || n >= len(x) {
					ts.Fatalf("%s: there is no %s in a list of %d", args[i], key, len(x))
				}
				at = x[n]
			default:
				ts.Fatalf("%s: there is no %s in %v", args[i], key, at)
			}
		}
		if got := fmt.Sprint(at); got != args[i+1] {
			ts.Fatalf("%s is %s, want %s", args[i], got, args[i+1])
		}
	}
}

// world [unchecked]: starts all functions, the broker and a mailbox, and sets the environment that leads onda to them.
func (s *scripted) world(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: world [unchecked]")
	}
	box, err := mailbox.Start(context.Background(), mailbox.Config{Dir: s.t.TempDir(), SMTPAddr: "127.0.0.1:0", Rules: mailbox.DefaultRules()})
	ts.Check(err)
	s.t.Cleanup(func() { _ = box.Close() })
	s.box = box
	const links = "https://links.example"
	s.fn = fntest.Start(s.t, fntest.Config{
		Builds: builds(), Unchecked: len(args) == 1,
		Env: map[string]string{
			"ONDA_DATABASE_URL": s.db.URL, "ONDA_SMTP_URL": box.SMTPURL(), "ONDA_LINK_URL": links, "ONDA_FORM_URL": links, "ONDA_API_URL": links, "ONDA_TICK": "1m",
		},
		ServiceEnv: map[string]map[string]string{
			"schedule": {"ONDA_DATABASE_URL": s.db.ScheduleURL, "ONDA_SPREAD": "0s"},
		},
	})
	ts.Setenv("K_SINK", s.fn.URL()+"/broker")
	ts.Setenv("ONDA_SMTP_URL", box.SMTPURL())
}

// settle: lets the functions do all that is to be done.
func (s *scripted) settle(ts *testscript.TestScript, _ bool, args []string) {
	if s.fn == nil || len(args) != 0 {
		ts.Fatalf("usage: settle, after world")
	}
	for range 2 { // what one round leaves for the sweep, the next one finds
		s.rest()
	}
}

// rest is what a script does between two looks at something: in a world it lets the functions work.
func (s *scripted) rest() {
	if s.fn == nil {
		<-time.After(50 * time.Millisecond)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s.fn.Settle(ctx)
	s.fn.Tick(ctx)
	s.fn.Settle(ctx)
}

// events off|on: lets the broker drop all of them, or none.
func (s *scripted) events(ts *testscript.TestScript, neg bool, args []string) {
	if s.fn == nil || neg || len(args) != 1 {
		ts.Fatalf("usage: events off|on, after world")
	}
	chaos := localbroker.Chaos{}
	if args[0] == "off" {
		chaos.Drop = 1
	}
	s.fn.SetChaos(chaos)
}

// got ADDRESS N: how many mails the mailbox has of a recipient, or comes to have.
func (s *scripted) got(ts *testscript.TestScript, neg bool, args []string) {
	if s.box == nil || neg || len(args) != 2 {
		ts.Fatalf("usage: got ADDRESS N, after world")
	}
	if _, err := mail.ParseAddress(args[0]); err != nil {
		ts.Fatalf("%v", err)
	}
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	n := s.box.CountsTo(args[0]).Received
	for end := time.Now().Add(patience); n < want && time.Now().Before(end); n = s.box.CountsTo(args[0]).Received {
		s.rest()
	}
	if n != want {
		ts.Fatalf("%s got %d mails, want %d", args[0], n, want)
	}
}

// confirmed FORM ADDRESS: writes the fact that a contact confirmed a form, as render-form does.
func (s *scripted) confirmed(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: confirmed FORM ADDRESS")
	}
	db := s.db.DB(s.t)
	ts.Check(db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, "SELECT id FROM contact WHERE email = $1", args[1]).Scan(&id); err != nil {
			return err
		}
		return tx.AddFacts(ctx, postgres.Fact{Kind: "form.confirmed", Contact: id, Name: args[0], Data: json.RawMessage(`{"submission":1}`)})
	}))
}

// unchecked TYPE DATA: posts an event to the broker that onda event send would refuse.
func (s *scripted) unchecked(ts *testscript.TestScript, neg bool, args []string) {
	if s.fn == nil || neg || len(args) != 2 {
		ts.Fatalf("usage: unchecked TYPE DATA, after world")
	}
	e := cloudevents.NewEvent()
	e.SetID("unchecked-" + args[0])
	e.SetType(args[0])
	e.SetSource("/tenants/" + pgtest.Acme + "/functions/onda")
	e.SetExtension(event.ExtTenant, pgtest.Acme)
	ts.Check(e.SetData(cloudevents.ApplicationJSON, json.RawMessage(args[1])))
	ts.Check(fn.NewPublisher("", "").Post(context.Background(), s.fn.URL()+"/broker", e))
}

// production: makes the database one that is not for development; development: one that is.
func (s *scripted) mark(development bool) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, _ bool, _ []string) {
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, s.db.AdminURL)
		ts.Check(err)
		defer func() { _ = conn.Close(ctx) }()
		_, err = conn.Exec(ctx, "UPDATE onda.database SET development = $1", development)
		ts.Check(err)
	}
}

// until PATTERN|0 COMMAND ARG...: runs a command, and lets the functions work in between, until it ends with 0 and, unless that is enough, says something that
// matches. Once is not always enough: a transaction that any test has open on the server holds what is read with a cursor back.
func (s *scripted) until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN|0 COMMAND ARG...")
	}
	pattern := regexp.MustCompile("(?m)" + args[0])
	if args[0] == "0" {
		pattern = regexp.MustCompile("")
	}
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if err := ts.Exec(args[1], args[2:]...); err == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
		s.rest()
	}
	ts.Fatalf("%s never said %q", strings.Join(args[1:], " "), pattern)
}

// bounced PAGES SMTP ADDRESS: lets the newest mail of the mailbox to an address come back to its return path, as a server would that has no such user.
func bounced(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: bounced PAGES SMTP ADDRESS")
	}
	get := func(path string, v any) {
		resp, err := http.Get("http://127.0.0.1:" + args[0] + path)
		ts.Check(err)
		defer func() { _ = resp.Body.Close() }()
		ts.Check(json.NewDecoder(resp.Body).Decode(v))
	}
	type mail struct {
		ID         int64  `json:"id"`
		To         string `json:"to"`
		ReturnPath string `json:"returnPath"`
	}
	var list struct {
		Mails []mail `json:"mails"`
	}
	get("/api/mails", &list)
	var newest mail
	for _, m := range list.Mails {
		if m.To == args[2] && m.ID > newest.ID {
			newest = m
		}
	}
	if newest.ID == 0 {
		ts.Fatalf("there is no mail to %s among %d", args[2], len(list.Mails))
	}
	report := strings.NewReplacer("TO", newest.ReturnPath, "WHO", args[2], "\n", "\r\n").Replace(`From: <mailer@example.com>
To: <TO>
Subject: Undelivered
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="x"

--x
Content-Type: text/plain

No such user.
--x
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.com

Final-Recipient: rfc822; WHO
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--x--
`)
	ts.Check(smtp.SendMail("127.0.0.1:"+args[1], nil, "mailer@example.com", []string{newest.ReturnPath}, []byte(report)))
}

// port NAME...: puts a port that nobody listens on into each variable.
func (s *scripted) port(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		ts.Setenv(name, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
		defer func() { _ = l.Close() }() // only now, so that no two are the same
	}
}

// take PORT: listens on it; ! take PORT: leaves it.
func (s *scripted) take(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: take PORT")
	}
	if neg {
		ts.Check(s.ports[args[0]].Close())
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+args[0])
	ts.Check(err)
	s.ports[args[0]] = l
	s.t.Cleanup(func() { _ = l.Close() }) // once more does no harm
}

// answers URL [PATTERN]: waits until the URL answers 200 with something that matches.
func (s *scripted) answers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: answers URL [PATTERN]")
	}
	pattern := regexp.MustCompile(strings.Join(args[1:], " "))
	client := &http.Client{Timeout: 10 * time.Second}
	last := "nothing"
	for until := time.Now().Add(patience); time.Now().Before(until); {
		resp, err := client.Get(args[0])
		if err == nil {
			var body bytes.Buffer
			_, err = body.ReadFrom(resp.Body)
			_ = resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK && pattern.Match(body.Bytes()) {
				return
			}
			last = resp.Status + "\n" + body.String()
		} else {
			last = err.Error()
		}
		<-time.After(50 * time.Millisecond)
	}
	ts.Fatalf("%s does not answer with %q; it answers: %s", args[0], pattern, last)
}

// rows FILE N [LINE=TEXT]...: writes a CSV file of N contacts; single lines may be given, the header is line 1.
func makeRows(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: rows FILE N [LINE=TEXT]...")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	special := map[int]string{}
	for _, a := range args[2:] {
		at, text, _ := strings.Cut(a, "=")
		line, err := strconv.Atoi(at)
		ts.Check(err)
		special[line] = text
	}
	var b bytes.Buffer
	b.WriteString("email,first_name,country\n")
	for i := range n {
		if text, ok := special[i+2]; ok {
			b.WriteString(text + "\n")
			continue
		}
		fmt.Fprintf(&b, "reader%d@example.com,Reader %d,NO\n", i, i)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o644))
}

// replace FILE OLD NEW: changes the first place in a file.
func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace FILE OLD NEW")
	}
	was := ts.ReadFile(args[0])
	if !strings.Contains(was, args[1]) {
		ts.Fatalf("%s has no %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(was, args[1], args[2], 1)), 0o644))
}

// inbytes FILE: turns \xNN in a file into bytes.
func inBytes(ts *testscript.TestScript, _ bool, args []string) {
	text := regexp.MustCompile(`\\x[0-9a-f]{2}`).ReplaceAllStringFunc(ts.ReadFile(args[0]), func(s string) string {
		n, err := strconv.ParseUint(s[2:], 16, 8)
		ts.Check(err)
		return string([]byte{byte(n)})
	})
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}

// hide NAME...: takes variables out of the environment.
func hide(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ts.Setenv(name, "")
	}
}

// TestEveryCommandHasAnExample walks the commands, so that one without fails; and their texts fit a terminal.
func TestEveryCommandHasAnExample(t *testing.T) {
	t.Parallel()
	parser, err := kong.New(&cli{}, kong.Name("onda"))
	if err != nil {
		t.Fatal(err)
	}
	var commands [][]string
	var walk func(n *kong.Node, path []string)
	walk = func(n *kong.Node, path []string) {
		for _, c := range n.Children {
			if c.Type != kong.CommandNode {
				continue
			}
			at := slices.Concat(path, []string{c.Name})
			if c.Leaf() {
				commands = append(commands, at)
			}
			walk(c, at)
		}
	}
	walk(parser.Model.Node, nil)
	if len(commands) < 20 {
		t.Fatalf("only %d commands were found: %v", len(commands), commands)
	}
	for _, c := range commands {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			if status := run(t.Context(), append(c, "--help"), strings.NewReader(""), &out, &errs); status != 0 {
				t.Errorf("status %d, %s", status, &errs)
			}
			_, example, ok := strings.Cut(out.String(), "Example:\n")
			if !ok || !regexp.MustCompile(`(?m)^ +onda (--tenant acme )?`+strings.Join(c, " ")).MatchString(example) {
				t.Errorf("no example of onda %s in its help:\n%s", strings.Join(c, " "), &out)
			}
			for line := range strings.Lines(out.String()) {
				if n := len([]rune(strings.TrimRight(line, "\n"))); n > 80 {
					t.Errorf("%d columns: %s", n, line)
				}
			}
		})
	}
}
