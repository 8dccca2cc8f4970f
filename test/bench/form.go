package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/onda-run/onda/internal/fn"
)

const (
	pageCount     = 40_000
	submitCount   = 2_000 // of a round of either side
	knownContacts = 50_000
	formPath      = "/f/" + tenant + "/newsletter"
	// bytesEnv is the file with what the reference of a page answers, rowsEnv the database that the reference of a submission writes to.
	bytesEnv = "ONDA_BENCH_BYTES"
	rowsEnv  = "ONDA_BENCH_ROWS"
)

// formDocuments are a form with the usual inputs, and a confirmation of each address.
func formDocuments() string {
	return mailDocuments() + `---
apiVersion: onda/v1
kind: Field
metadata: {name: forename}
spec: {type: text, visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: country}
spec: {type: country, visitorWritable: true}
---
apiVersion: onda/v1
kind: Email
metadata: {name: confirm}
spec:
  transactional: true
  from: "Harbour <news@harbour.example>"
  subject: Please confirm
  html: '<p><a href="{{ confirm_url }}">Confirm</a></p>'
---
apiVersion: onda/v1
kind: Form
metadata: {name: newsletter}
spec:
  locales: {default: en, texts: {en: {title: News from the harbour, submit: Sign me up, email: Email, forename: First name, country: Country, consent: Send me the news., thanks: Thank you.}}}
  inputs:
    - {field: email, required: true}
    - {field: forename}
    - {field: country, as: select}
    - {consent: news, label: consent, required: true}
    - {hidden: utm, from: query}
  confirm: {email: confirm}
  result: {message: thanks}
`
}

// prepareFormPage measures the page of a form over loopback, asked for by many clients at once on connections that stay. The reference is the same server with
// a handler that answers the same bytes and knows nothing.
func prepareFormPage(ctx context.Context, l *lab) (r rounds, err error) {
	to, err := l.startForms(ctx)
	if err != nil {
		return r, err
	}
	ask := func(to string) func(ctx context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			request := "GET " + formPath + "?utm=spring HTTP/1.1\r\nHost: " + to + "\r\nAccept-Language: en\r\nUser-Agent: " + agent + "\r\n\r\n"
			began := time.Now()
			_, err := load(ctx, to, clients, pageCount, http.StatusOK, func(int) string { return request })
			return pageCount / time.Since(began).Seconds(), err
		}
	}
	res, err := http.Get("http://" + to + formPath + "?utm=spring") //nolint:noctx // of this program's own child
	if err != nil {
		return r, fmt.Errorf("ask for a page: %w", err)
	}
	page, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return r, fmt.Errorf("read a page: %w", err)
	}
	dir, err := os.MkdirTemp("", "onda-bench-")
	if err != nil {
		return r, fmt.Errorf("make a directory: %w", err)
	}
	l.closers = append(l.closers, func() error { return os.RemoveAll(dir) })
	file := filepath.Join(dir, "page")
	if err := os.WriteFile(file, page, 0o600); err != nil {
		return r, fmt.Errorf("write a page: %w", err)
	}
	reference, err := l.startReference(ctx, bytesEnv+"="+file)
	if err != nil {
		return r, err
	}
	return rounds{ours: ask(to), reference: ask(reference)}, nil
}

// prepareFormSubmit measures all that becomes of a form that is sent in by somebody new: the contact, the consent with its proof, the submission, the mail that asks for
// a confirmation, the facts and the events. The reference is the same server with a handler that writes the row of the submission, and commits, for each request.
func prepareFormSubmit(ctx context.Context, l *lab) (r rounds, err error) {
	to, err := l.startForms(ctx)
	if err != nil {
		return r, err
	}
	if err := l.own(ctx, "CREATE TABLE plain_submission (LIKE submission INCLUDING ALL)"); err != nil {
		return r, err
	}
	if err := l.known(ctx); err != nil {
		return r, err
	}
	reference, err := l.startReference(ctx, rowsEnv+"="+l.url)
	if err != nil {
		return r, err
	}
	var sent atomic.Int64
	ask := func(to string) func(ctx context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			began := time.Now()
			_, err := load(ctx, to, clients, submitCount, http.StatusOK, func(int) string {
				n := sent.Add(1)
				body := url.Values{"email": {fmt.Sprintf("u%d@example.org", n)}, "forename": {"Ada"}, "country": {"NO"}, "consent.news": {"on"}, "utm": {"spring"}}.Encode()
				return "POST " + formPath + " HTTP/1.1\r\nHost: " + to + "\r\nContent-Type: application/x-www-form-urlencoded\r\nX-Forwarded-For: 192.0.2." + strconv.FormatInt(n%250, 10) +
					"\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
			})
			return submitCount / time.Since(began).Seconds(), err
		}
	}
	ours := ask(to)
	r.ours = func(ctx context.Context) (float64, error) {
		const done = "SELECT count(*) FROM submission s JOIN request r ON r.delivery = s.delivery JOIN subscription p ON p.contact = s.contact AND p.state = 'pending' WHERE s.state = 'pending'"
		before, err := l.one(ctx, done)
		if err != nil {
			return 0, err
		}
		rate, err := ours(ctx)
		if err != nil {
			return 0, err
		}
		after, err := l.one(ctx, done)
		if err == nil && after-before != submitCount {
			err = fmt.Errorf("%d submissions are stored of %d that were answered", after-before, submitCount)
		}
		return rate, err
	}
	r.reference = ask(reference)
	return r, nil
}

// known makes the contacts that a tenant with a form has already, and has Postgres know how many they are: the plans of a tenant that has none hold for the first minute alone.
func (l *lab) known(ctx context.Context) error {
	err := l.exec(ctx,
		fmt.Sprintf("INSERT INTO contact (email) SELECT 'known-' || n || '@example.org' FROM generate_series(1, %d) n", knownContacts),
		"INSERT INTO consent (contact, purpose, state, basis) SELECT id, 'news', 'granted', 'import' FROM contact",
		"INSERT INTO subscription (contact, purpose, state, consent, at) SELECT contact, purpose, state, id, at FROM consent")
	if err != nil {
		return err
	}
	return l.refresh(ctx)
}

// startForms starts render-form with a form, and gives where it listens.
func (l *lab) startForms(ctx context.Context) (to string, err error) {
	if err := l.apply(ctx, formDocuments()); err != nil {
		return "", err
	}
	if err := l.refresh(ctx); err != nil {
		return "", err
	}
	if err := l.start(ctx, "render-form", "ONDA_SERVE=http", "ONDA_FORM_URL=http://localhost:8080", "ONDA_FORM_PER_MINUTE=1000000"); err != nil {
		return "", err
	}
	r, err := l.side.ask(task{Listen: true})
	return r.Address, err
}

// startReference starts the process that answers the same without doing it.
func (l *lab) startReference(ctx context.Context, settings ...string) (to string, err error) {
	s, err := l.startSide(ctx, "reference", append(settings, "ONDA_SERVE=http")...)
	if err != nil {
		return "", err
	}
	l.closers = append(l.closers, func() error {
		_, err := s.end()
		return err
	})
	r, err := s.ask(task{Listen: true})
	return r.Address, err
}

// buildReference is a function that answers a page out of memory, or stores one row.
func buildReference(ctx context.Context, _ *fn.Runtime) (h fn.Handler, err error) {
	if file := os.Getenv(answerEnv); file != "" {
		h.HTTP, err = answerRecorded(file)
		return h, err
	}
	mux := http.NewServeMux()
	h.HTTP = mux
	if file := os.Getenv(bytesEnv); file != "" {
		page, err := os.ReadFile(file)
		if err != nil {
			return h, fmt.Errorf("read the page: %w", err)
		}
		mux.HandleFunc("GET /f/{tenant}/{form}", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Length", strconv.Itoa(len(page)))
			_, _ = w.Write(page)
		})
		return h, nil
	}
	cfg, err := pgxpool.ParseConfig(os.Getenv(rowsEnv))
	if err != nil {
		return h, fmt.Errorf("%s: %w", rowsEnv, err)
	}
	cfg.MaxConns = trackConns // as a function has
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return h, fmt.Errorf("connect to postgres: %w", err)
	}
	h.Close = func(context.Context) error { pool.Close(); return nil }
	mux.HandleFunc("POST /f/{tenant}/{form}", func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseForm(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, err := pool.Exec(r.Context(), `INSERT INTO `+tenant+`.plain_submission (form, document, contact, state, once, data, origin, delivery, expires_at, keep_until)
			VALUES (1, 1, 1, 'pending', NULL, jsonb_build_object('email', $1::text, 'forename', $2::text, 'country', $3::text), $4, 512, now() + interval '7 days', now() + interval '1 year')`,
			r.PostForm.Get("email"), r.PostForm.Get("forename"), r.PostForm.Get("country"), make([]byte, 32))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return h, nil
}

// load sends n requests on so many connections, each the next one when it was answered, and checks the status of each answer. took is how long each waited for it.
func load(ctx context.Context, to string, at, n, want int, request func(n int) string) (took []time.Duration, err error) {
	type client struct {
		conn net.Conn
		in   *bufio.Reader
	}
	free := make(chan *client, at)
	defer func() {
		for range len(free) {
			_ = (<-free).conn.Close()
		}
	}()
	for range at {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		free <- &client{conn, bufio.NewReaderSize(conn, 64<<10)}
	}
	took = make([]time.Duration, n)
	err = together(ctx, at, n, func(_ context.Context, n int) error {
		c := <-free
		defer func() { free <- c }()
		began := time.Now()
		defer func() { took[n] = time.Since(began) }()
		if _, err := io.WriteString(c.conn, request(n)); err != nil {
			return fmt.Errorf("send a request: %w", err)
		}
		res, err := http.ReadResponse(c.in, nil)
		if err != nil {
			return fmt.Errorf("read an answer: %w", err)
		}
		var says strings.Builder
		if res.StatusCode == want {
			_, err = io.Copy(io.Discard, res.Body)
		} else {
			_, err = io.Copy(&says, io.LimitReader(res.Body, 2_000))
			err = errors.Join(err, fmt.Errorf("a request was answered with %d: %s", res.StatusCode, says.String()))
		}
		return errors.Join(err, res.Body.Close())
	})
	return took, err
}

// listen serves the function on a port of its own.
func (f *function) listen(ctx context.Context) (address string, err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: f.in, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }() // until the process ends
	return listener.Addr().String(), nil
}
