package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	gomail "github.com/wneessen/go-mail"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
)

const connections = 16

// mailFields are those of a contact that the mail names.
func mailFields() []string {
	return []string{"first_name", "last_name", "city", "company", "plan", "seat"}
}

const paragraph = "The regatta begins at nine, wind permitting, and ends where the harbour wall turns towards the old lighthouse. Bring a warm jacket, " +
	"something to drink and the good temper that you had last year; everything else is on board and has been looked after through the winter. " +
	"Whoever would rather watch finds a place on the terrace, where coffee is served from eight, and can follow each boat on the large screen by the door until the last one is home. "

// mailHTML is the mail: with six fields and eight links some 10 KB once it is built with its text.
func mailHTML() string {
	var b strings.Builder
	b.WriteString("<h1>Dear {{ contact.first_name }} {{ contact.last_name }}</h1>\n<p>There is news from {{ contact.city }} for {{ contact.company }}, on plan {{ contact.plan }}, seat {{ contact.seat }}.</p>\n")
	for i := range 8 {
		fmt.Fprintf(&b, "<p>%s<a href=\"https://example.com/stories/%d\">Read on</a>.</p>\n", paragraph, i)
	}
	b.WriteString("<p><a href=\"{{ unsubscribe_url }}\">Unsubscribe</a></p>\n")
	return b.String()
}

func mailDocuments() string {
	var b strings.Builder
	b.WriteString("apiVersion: onda/v1\nkind: Topic\nmetadata: {name: news}\nspec: {optIn: single}\n")
	for _, f := range mailFields() {
		fmt.Fprintf(&b, "---\napiVersion: onda/v1\nkind: Field\nmetadata: {name: %s}\nspec: {type: text}\n", f)
	}
	b.WriteString("---\napiVersion: onda/v1\nkind: Email\nmetadata: {name: news}\nspec:\n  topic: news\n  from: \"Harbour <news@harbour.example>\"\n" +
		"  subject: \"News for {{ contact.first_name }}\"\n  html: |\n    " + strings.ReplaceAll(mailHTML(), "\n", "\n    ") + "\n")
	return b.String()
}

// prepareSend measures the way of a mail that is planned: leased, marked, past the gate, rendered with its signed links, handed over, its outcome committed.
// The reference builds the same mail with go-mail for each recipient and hands it over on as many connections, without any database.
func prepareSend(ctx context.Context, l *lab) (r rounds, err error) {
	to, err := startSinkProcess(ctx)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, to.close)
	return prepareSending(ctx, l, to.port, to.ask)
}

// prepareSendPostfix measures the same against Postfix's smtp-sink, which parses as a relay does. It tells nobody what came.
func prepareSendPostfix(ctx context.Context, l *lab) (r rounds, err error) {
	port, end, err := startPostfixSink(ctx)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, end)
	return prepareSending(ctx, l, port, func() (counts, error) {
		return counts{Mails: int64(l.mails), Size: 1}, ctx.Err()
	})
}

// prepareSending measures sending to a port of this machine; came tells what came there since it was asked before.
func prepareSending(ctx context.Context, l *lab, port int, came func() (counts, error)) (r rounds, err error) {
	bare, err := startBare(ctx)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, bare.close)
	if err := prepareMails(ctx, l); err != nil {
		return r, err
	}
	err = l.start(ctx, "send", "ONDA_LANE=bulk", "ONDA_SMTP_URL=smtp://127.0.0.1:"+strconv.Itoa(port)+"?tls=none", "ONDA_SMTP_CONNECTIONS="+strconv.Itoa(connections))
	if err != nil {
		return r, err
	}
	var ours int64 // size of one of our mails
	cpu := &beside{name: "CPU of send", unit: "ms a mail", goal: 0.2}
	server := &beside{name: "CPU of Postgres", unit: "s a 1,000", goal: 1, reference: []float64{0.04}}
	r.beside = []*beside{cpu, server}
	r.ours = func(ctx context.Context) (float64, error) {
		all := came
		var seen *watch
		if l.plot != "" {
			var err error
			if seen, err = l.watched(ctx, came); err != nil {
				return 0, err
			}
			all = seen.end
		}
		took, used, err := l.blast(ctx, l.side, func() (counts, error) {
			got, err := all()
			ours = got.Size
			return got, err
		})
		if err != nil {
			return 0, err
		}
		if seen != nil {
			if err := seen.tell(ctx, l, l.plot); err != nil {
				return 0, err
			}
		}
		cpu.ours = append(cpu.ours, used.process/float64(l.mails)*1000)
		server.ours = append(server.ours, used.postgres/float64(l.mails)*1000)
		return float64(l.mails) / took.Seconds(), nil
	}
	r.reference = func(ctx context.Context) (float64, error) {
		before, err := cpuOf(bare.cmd.Process.Pid, false)
		if err != nil {
			return 0, err
		}
		took, err := bare.do(bareTask{port, l.mails})
		if err != nil {
			return 0, err
		}
		after, err := cpuOf(bare.cmd.Process.Pid, false)
		if err != nil {
			return 0, err
		}
		got, err := came()
		if err != nil {
			return 0, err
		}
		if got.Mails != int64(l.mails) {
			return 0, fmt.Errorf("%d of %d mails came", got.Mails, l.mails)
		}
		if got.Size > ours*11/10 || got.Size < ours*9/10 {
			return 0, fmt.Errorf("its mails have %d bytes, ours %d: that compares nothing", got.Size, ours)
		}
		cpu.reference = append(cpu.reference, (after-before)/float64(l.mails)*1000)
		return float64(l.mails) / took.Seconds(), nil
	}
	return r, nil
}

// blast plans the mail to everybody, has a process send it, and sees to it that each mail came and is recorded as sent.
func (l *lab) blast(ctx context.Context, by *side, came func() (counts, error)) (took time.Duration, u used, err error) {
	if err := planMails(ctx, l); err != nil {
		return 0, u, err
	}
	process, err := l.costs(ctx, by.cmd.Process.Pid)
	if err != nil {
		return 0, u, err
	}
	if took, err = by.do(task{Until: "SELECT NOT EXISTS (SELECT FROM batch WHERE state = 'open' AND lane = 0)"}); err != nil {
		return 0, u, err
	}
	if u, err = process(); err != nil {
		return 0, u, err
	}
	got, err := came()
	if err != nil {
		return 0, u, err
	}
	sent, err := l.one(ctx, `SELECT count(*) FROM delivery WHERE state = 'sent' AND id >> 9 IN (SELECT id FROM batch WHERE lane = 0 ORDER BY id DESC LIMIT $1)`,
		(l.mails+delivery.MaxBatch-1)/delivery.MaxBatch)
	if err != nil {
		return 0, u, err
	}
	if got.Mails != int64(l.mails) || sent != int64(l.mails) {
		return 0, u, fmt.Errorf("%d mails came and %d are recorded as sent, of %d", got.Mails, sent, l.mails)
	}
	return took, u, nil
}

// prepareMails makes as many contacts as there are mails, who want them, and a run.
func prepareMails(ctx context.Context, l *lab, more ...string) error {
	if err := l.apply(ctx, mailDocuments()+strings.Join(more, "")); err != nil {
		return err
	}
	err := l.exec(ctx,
		`INSERT INTO contact (email, fields) SELECT 'u' || n || '@example.org', jsonb_build_object('first_name', 'Grace', 'last_name', 'Hopper' || n, 'city', 'Lisbon',
			'company', 'Company ' || n, 'plan', 'paid', 'seat', 'A' || n) FROM generate_series(1, `+strconv.Itoa(l.mails)+`) n`,
		`INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, p, 'granted', 0, onda.now() FROM contact, unnest('{news,tracking.email}'::text[]) p WHERE email LIKE '%@example.org'`,
		`INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', e.id, e.current, 'running' FROM entity e WHERE e.kind = 'Email' AND e.name = 'news'`)
	if err != nil {
		return err
	}
	return l.refresh(ctx)
}

// used is the processor time that something took, in seconds.
type used struct{ process, postgres float64 }

// costs begins to measure what a process and Postgres use.
func (l *lab) costs(ctx context.Context, pid int) (func() (used, error), error) {
	now := func() (u used, err error) {
		if u.process, err = cpuOf(pid, false); err != nil {
			return u, err
		}
		u.postgres, err = l.postgresCPU(ctx)
		return u, err
	}
	before, err := now()
	return func() (used, error) {
		after, err := now()
		return used{after.process - before.process, after.postgres - before.postgres}, err
	}, err
}

// bareProcess is the reference in a process of its own.
type bareProcess struct {
	cmd *exec.Cmd
	in  *json.Encoder
	raw io.WriteCloser
	out *json.Decoder
}

func startBare(ctx context.Context) (*bareProcess, error) {
	b := &bareProcess{}
	var err error
	if b.cmd, b.raw, b.out, err = startSelf(ctx, sideEnv+"=bare"); err != nil {
		return nil, err
	}
	b.in = json.NewEncoder(b.raw)
	return b, nil
}

// bareTask is how many mails it sends, to which port of this machine.
type bareTask struct{ Port, Mails int }

func (b *bareProcess) do(t bareTask) (time.Duration, error) {
	var r report
	err := b.in.Encode(t)
	if err == nil {
		err = b.out.Decode(&r)
	}
	if err == nil && r.Err != "" {
		err = errors.New(r.Err)
	}
	if err != nil {
		return 0, fmt.Errorf("ask the reference: %w", err)
	}
	return time.Duration(r.Seconds * float64(time.Second)), nil
}

func (b *bareProcess) close() error { return errors.Join(b.raw.Close(), b.cmd.Wait()) }

// serveBare is the reference's process.
func serveBare(in io.Reader, out io.Writer) error {
	tasks, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var t bareTask
		if err := tasks.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		took, err := bareLoop(context.Background(), t.Port, t.Mails, connections)
		r := report{Seconds: took.Seconds()}
		if err != nil {
			r.Err = err.Error()
		}
		if err := answers.Encode(r); err != nil {
			return err
		}
	}
}

// planMails plans the mail to everybody.
func planMails(ctx context.Context, l *lab) error {
	return l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, "SELECT id FROM contact WHERE email LIKE '%@example.org' ORDER BY id")
		if err != nil {
			return fmt.Errorf("read contacts: %w", err)
		}
		contacts, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return fmt.Errorf("read contacts: %w", err)
		}
		p := delivery.Plan{Step: "send", Contacts: contacts, Cause: "bench"}
		if err := tx.QueryRow(ctx, "SELECT id, document FROM run WHERE kind = 'broadcast'").Scan(&p.Run, &p.Email); err != nil {
			return fmt.Errorf("read the run: %w", err)
		}
		_, err = delivery.Enqueue(ctx, tx, p)
		return err
	})
}

// bareLoop sends mails of the same size as ours, built by go-mail, on a number of connections, and gives how long it took, the dialling included.
func bareLoop(ctx context.Context, port, mails, connections int) (time.Duration, error) {
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	for c := range connections {
		g.Go(func() error {
			client, err := gomail.NewClient("127.0.0.1", gomail.WithPort(port), gomail.WithTLSPolicy(gomail.NoTLS), gomail.WithHELO("localhost"), gomail.WithoutNoop())
			if err != nil {
				return err
			}
			if err := client.DialWithContext(ctx); err != nil {
				return err
			}
			for n := c; n < mails; n += connections {
				m, err := bareMail(n)
				if err != nil {
					return err
				}
				if err := client.Send(m); err != nil {
					return err
				}
			}
			return client.Close()
		})
	}
	err := g.Wait()
	return time.Since(began), err
}

// bareMail is the same mail, made for one recipient by putting texts in the place of others.
func bareMail(n int) (*gomail.Msg, error) {
	var pairs []string
	id := strconv.Itoa(n)
	for i, f := range mailFields() {
		pairs = append(pairs, "{{ contact."+f+" }}", []string{"Grace", "Hopper" + id, "Lisbon", "Company " + id, "paid", "A" + id}[i])
	}
	html := strings.NewReplacer(append(pairs, "{{ unsubscribe_url }}", "http://localhost:8080/u/abcdefghijklmnopqrstuvwxyz0123456789", "https://example.com/stories/", "http://localhost:8080/c/abcdefghijklmnopqrstuvwxyz0123456789abcdef")...).Replace(mailHTML())
	text := strings.NewReplacer("<p>", "", "</p>", "\r\n", "<h1>", "", "</h1>", "\r\n", "<a href=\"", "", "\">", " ", "</a>", "").Replace(html)
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := m.From("Harbour <news@harbour.example>"); err != nil {
		return nil, err
	}
	if err := m.To("u" + id + "@example.org"); err != nil {
		return nil, err
	}
	m.Subject("News for Grace")
	m.SetDate()
	m.SetMessageID()
	m.SetGenHeader(gomail.HeaderListUnsubscribe, "<http://localhost:8080/u/abcdefghijklmnopqrstuvwxyz0123456789>")
	m.SetGenHeader(gomail.HeaderListUnsubscribePost, "List-Unsubscribe=One-Click")
	m.SetBodyString(gomail.TypeTextPlain, text)
	m.AddAlternativeString(gomail.TypeTextHTML, html)
	return m, nil
}
