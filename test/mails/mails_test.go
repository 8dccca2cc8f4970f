// Package mails sends mails of ten kinds through a real Postfix and has OpenDKIM and SpamAssassin judge what arrives: make mails.
package mails

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"mime"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	gomessage "github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"
	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/send"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/smtptest"
	"github.com/onda-run/onda/internal/token"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	relaySelector = "relay"
	// tolerable is the most that SpamAssassin may hold against a mail; it calls one spam from 5.
	tolerable = 2.0
)

var (
	signers = [2]string{"onda", "relay"}
	// domains are those that mails are from, by signer.
	domains = map[string][2]string{"onda": {"acme.example", "bücher.example"}, "relay": {"nordlys.example", "käse.example"}}
	// punycode are the second ones as DNS has them.
	punycode = map[string]string{"onda": "xn--bcher-kva.example", "relay": "xn--kse-qla.example"}
)

// kind is one of the ten.
type kind struct {
	name string
	// spec are the lines of the Email's spec beside its from; DOMAIN in them is the sender's.
	spec string
	// from is the display name of the sender, and idn whether the domain has other letters than ASCII.
	from string
	idn  bool
	// to is the recipient's local part, before the kind's name unless it is "".
	to     string
	locale string
	// subject is what it is to be, decoded, and text what must be in its text.
	subject, text string
	// attachments are the names of those that it is asked for with; it is asked for over HTTP if transactional.
	transactional bool
	attachments   []string
}

const letter = `
      <p>Hello {{ contact.first_name | default: "there" }},</p>
      <p>The regatta begins at nine on Saturday, wind permitting, and ends where the harbour wall turns towards the old lighthouse. Bring a warm jacket and something to drink.</p>
      <p>Whoever would rather watch finds a place on the terrace, where coffee is served from eight: <a href="https://www.DOMAIN/regatta">the programme of the day</a>.</p>
      <p>Harbour Office, 12 Quay Street, Lisbon. <a href="{{ unsubscribe_url }}">Unsubscribe</a> or <a href="{{ preferences_url }}">choose what we send you</a>.</p>`

func kinds() []kind {
	long := "https://www.DOMAIN/offers?" + strings.Repeat("filter=boats-with-two-masts-and-a-galley&", 40) + "page=2"
	return []kind{
		{name: "plain", from: "Harbour", spec: "topic: news\n  subject: The regatta on Saturday\n  html: |" + letter, subject: "The regatta on Saturday", text: "old lighthouse"},
		{
			name: "unicode", from: "Bücher & Söhne 東京", spec: "topic: news\n  subject: \"Frühling für {{ contact.first_name }}: 春が来た 🌷\"\n  html: |" + letter,
			subject: "Frühling für Zoë: 春が来た 🌷", text: "Hello Zoë",
		},
		{name: "idn", from: "Harbour", idn: true, spec: "topic: news\n  subject: The regatta on Saturday\n  html: |" + letter, subject: "The regatta on Saturday", text: "old lighthouse"},
		{name: "smtputf8", from: "Harbour", to: "josé", spec: "topic: news\n  subject: The regatta on Saturday\n  html: |" + letter, subject: "The regatta on Saturday", text: "old lighthouse"},
		{
			name: "long-links", from: "Harbour", spec: "topic: news\n  utm: {campaign: spring}\n  subject: The regatta on Saturday\n  html: |" + letter + "\n      <p><a href=\"" + long + "\">All boats that are for sale this spring</a></p>",
			subject: "The regatta on Saturday", text: "All boats",
		},
		{
			name: "attachment", from: "Harbour", transactional: true, attachments: []string{"invoice 4711.txt", "Überblick für März.csv"},
			spec:    "transactional: true\n  subject: \"Your invoice {{ data.number }}\"\n  html: |\n      <p>Hello {{ contact.first_name | default: \"there\" }},</p><p>thank you for your order. Invoice {{ data.number }} is attached; it is due within thirty days.</p><p>Harbour Office, 12 Quay Street, Lisbon</p>",
			subject: "Your invoice 4711", text: "Invoice 4711 is attached",
		},
		{
			name: "transactional", from: "Harbour", transactional: true,
			spec:    "transactional: true\n  subject: \"Confirm your new address\"\n  html: |\n      <p>Hello,</p><p>somebody, hopefully you, asked to change the address of the berth {{ data.number }}. Please confirm it within a day: <a href=\"https://www.DOMAIN/confirm/{{ data.number }}\">confirm the address</a>.</p><p>Harbour Office, 12 Quay Street, Lisbon</p>",
			subject: "Confirm your new address", text: "the berth 4711",
		},
		{
			name: "markdown", from: "Harbour",
			spec:    "topic: news\n  subject: Minutes of the meeting\n  markdown: |\n      # Minutes of the meeting\n\n      Hello {{ contact.first_name }}, these points were agreed on:\n\n      1. The slipway is *closed* in April.\n      2. Berths are let [from May](https://www.DOMAIN/berths).\n\n      Harbour Office, 12 Quay Street, Lisbon. [Unsubscribe]({{ unsubscribe_url }})",
			subject: "Minutes of the meeting", text: "The slipway",
		},
		{
			name: "layout", from: "Harbour",
			spec:    "topic: news\n  layout: paper\n  subject: A new boat in the harbour\n  preheader: She came from Bergen, and stays until June.\n  markdown: |\n      # A new boat in the harbour\n\n      Hello {{ contact.first_name }}, she came from Bergen last night and stays until June. On Sundays she is open to visitors from ten to four, and the crew will show you the rigging.\n\n      ![The boat at the quay](https://www.DOMAIN/boat.jpg)\n\n      [See when she is open](https://www.DOMAIN/boat)",
			subject: "A new boat in the harbour", text: "open to visitors",
		},
		{
			name: "french", from: "Capitainerie de l'Île", locale: "fr",
			spec:    "topic: news\n  subject: The regatta on Saturday\n  html: |" + letter + "\n  locales:\n    fr:\n      subject: La régate de samedi, à neuf heures\n      html: |\n        <p>Bonjour {{ contact.first_name }},</p><p>La régate commence samedi à neuf heures, si le vent le permet, et finit là où la digue tourne vers le vieux phare. Prévoyez une veste chaude et de quoi boire.</p><p>Capitainerie, 12 rue du Quai, Lisbonne. <a href=\"{{ unsubscribe_url }}\">Se désinscrire</a></p>",
			subject: "La régate de samedi, à neuf heures", text: "le vieux phare",
		},
	}
}

// documents are those of all kinds, each once for each signer.
func documents(all []kind) string {
	var b strings.Builder
	b.WriteString("apiVersion: onda/v1\nkind: Topic\nmetadata: {name: news, title: \"News of the harbour\"}\nspec: {optIn: single}\n")
	b.WriteString("---\napiVersion: onda/v1\nkind: Field\nmetadata: {name: first_name}\nspec: {type: text}\n")
	b.WriteString(`---
apiVersion: onda/v1
kind: Layout
metadata: {name: paper}
spec:
  html: |
    <!doctype html>
    <html lang="en"><head><meta charset="utf-8"><title>Harbour</title><style>p { color: #2b3c49; } a { color: #0b5c8a; }</style></head>
    <body><table role="presentation" width="100%"><tr><td>{{ content }}</td></tr>
    <tr><td><p>Harbour Office, 12 Quay Street, Lisbon. <a href="{{ unsubscribe_url }}">Unsubscribe</a></p></td></tr></table></body></html>
  text: |
    {{ content }}
    --
    Harbour Office, 12 Quay Street, Lisbon. Unsubscribe: {{ unsubscribe_url }}
`)
	for _, signer := range signers {
		names := domains[signer]
		for i, domain := range names {
			fmt.Fprintf(&b, "---\napiVersion: onda/v1\nkind: Domain\nmetadata: {name: %s%d}\nspec: {domain: %s, ", signer, i, domain)
			if signer == "onda" {
				b.WriteString("signer: onda}\n")
			} else {
				b.WriteString("signer: relay, dkim: {selectors: [" + relaySelector + "]}}\n")
			}
		}
		for _, k := range all {
			domain := names[0]
			if k.idn {
				domain = names[1]
			}
			fmt.Fprintf(&b, "---\napiVersion: onda/v1\nkind: Email\nmetadata: {name: %s-%s}\nspec:\n  from: \"%s <office@%s>\"\n  %s\n", k.name, signer, k.from, domain, strings.ReplaceAll(k.spec, "DOMAIN", domain))
		}
	}
	return b.String()
}

// world is a tenant whose mails go through Postfix.
type world struct {
	t    *testing.T
	data *pgtest.Database
	db   *postgres.DB
	in   *fn.Instance
}

// Mails of ten kinds, half of them signed by Onda and half by the relay's OpenDKIM, arrive behind a real Postfix with their headers, with signatures that OpenDKIM finds good,
// and with nothing that SpamAssassin minds.
func TestMailsThroughPostfix(t *testing.T) {
	t.Parallel()
	root := os.Getenv("ONDA_MAIL_TOOLS")
	if root == "" {
		t.Skip("ONDA_MAIL_TOOLS is not set: make mails unpacks Postfix, OpenDKIM and SpamAssassin and does it")
	}
	all := kinds()
	k := newTools(t, root)
	w := &world{t: t, data: pgtest.New(t)}
	w.db = w.data.DB(t)
	w.apply(documents(all))
	w.notDevelopment()
	records, keys := w.keys()
	arrived := smtptest.Start(t, smtptest.Config{})
	port, err := strconv.Atoi(arrived.Addr()[strings.LastIndexByte(arrived.Addr(), ':')+1:])
	if err != nil {
		t.Fatal(err)
	}
	relay, log := k.postfix(k.signingMilter(relaySelector, keys), port)
	w.start(fmt.Sprintf("smtp://127.0.0.1:%d?tls=none", relay))
	for _, signer := range signers {
		for _, one := range all {
			w.send(one, signer)
		}
	}
	for _, function := range []string{"send", "send-api"} {
		w.sweep(function)
	}
	for _, line := range pgtest.All[string](t, w.db, pgtest.Acme, "SELECT concat_ws(' ', c.email, d.state, d.reason, d.class, d.code, d.detail) FROM delivery d JOIN contact c ON c.id = d.contact WHERE d.state <> 'sent'") {
		t.Errorf("not sent: %s", line)
	}
	if t.Failed() {
		text, _ := os.ReadFile(log)
		t.Fatalf("Postfix says:\n%s", text)
	}
	arrived.Wait("every mail to arrive", func() bool { return len(arrived.Mails()) >= len(domains)*len(all) })

	var bodies []string
	for _, one := range all {
		for _, signer := range signers {
			mails := arrived.MailsTo(one.address(signer))
			if len(mails) != 1 {
				t.Fatalf("%s, signed by %s: %d mails arrived", one.name, signer, len(mails))
			}
			bodies = append(bodies, string(mails[0].Body))
		}
	}
	first := bodies[0]
	altered := strings.Replace(first, "regatta on", "regatta  of", 1)
	judged := k.spam(append(bodies, "Subject: Hello\r\n\r\n"+gtube+"\r\n"))
	lines := []string{fmt.Sprintf("%-14s %6s  %-36s %-16s %s", "kind", "bytes", "signed by Onda", "by OpenDKIM", "SpamAssassin")}
	for n, one := range all {
		var said [2][]string
		for i, signer := range signers {
			body, judgement := bodies[2*n+i], judged[2*n+i]
			for _, problem := range one.check(signer, []byte(body)) {
				t.Errorf("%s, signed by %s: %s", one.name, signer, problem)
			}
			said[i] = k.verify(body, one.domain(signer), records)
			if want := [][]string{{"rsa-sha256 pass", "ed25519-sha256 pass"}, {"rsa-sha256 pass"}}[i]; !slices.Equal(said[i], want) {
				t.Errorf("%s, signed by %s: OpenDKIM says %v, want %v", one.name, signer, said[i], want)
			}
			if judgement.score > tolerable {
				t.Errorf("%s, signed by %s: SpamAssassin holds %.1f against it: %v", one.name, signer, judgement.score, judgement.rules)
			}
		}
		worst := slices.MaxFunc(judged[2*n:2*n+2], func(a, b judgement) int { return cmp.Compare(a.score, b.score) })
		lines = append(lines, fmt.Sprintf("%-14s %6d  %-36s %-16s %4.1f %s", one.name, len(bodies[2*n]), strings.Join(said[0], ", "), strings.Join(said[1], ", "), worst.score, strings.Join(worst.rules, " ")))
	}
	t.Log("\n" + strings.Join(lines, "\n"))

	// Both would find what is wrong.
	if said := k.verify(altered, all[0].domain("onda"), records); altered == first || slices.ContainsFunc(said, func(s string) bool { return strings.HasSuffix(s, "pass") }) {
		t.Errorf("OpenDKIM says %v of a mail that was altered", said)
	}
	if spam := judged[len(judged)-1]; spam.score < 100 {
		t.Errorf("SpamAssassin holds no more than %.1f against spam", spam.score)
	}
}

// gtube is what every filter takes for spam.
const gtube = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"

// domain is what the kind's mail is from, in ASCII.
func (k kind) domain(signer string) string {
	if k.idn {
		return punycode[signer]
	}
	return domains[signer][0]
}

// address is whom the kind's mail goes to.
func (k kind) address(signer string) string { return k.to + k.name + "-" + signer + "@reader.example" }

// check tells what is wrong with a mail that arrived.
func (k kind) check(signer string, body []byte) (problems []string) {
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	m, err := netmail.ReadMessage(bytes.NewReader(body))
	if err != nil {
		return []string{"it is not readable: " + err.Error()}
	}
	h := m.Header
	for name, values := range h {
		if len(values) > 1 && name != "Received" && name != "Dkim-Signature" {
			bad("it has %d %s", len(values), name)
		}
	}
	if subject, err := new(mime.WordDecoder).DecodeHeader(h.Get("Subject")); err != nil || subject != k.subject {
		bad("its subject is %q, %v", subject, err)
	}
	from, err := h.AddressList("From")
	domain := k.domain(signer)
	if err != nil || len(from) != 1 || from[0].Name != k.from || from[0].Address != "office@"+domain {
		bad("it is from %v, %v", from, err)
	}
	if to, err := h.AddressList("To"); err != nil || len(to) != 1 || to[0].Address != k.address(signer) {
		bad("it is to %v, %v", h["To"], err)
	}
	if _, err := h.Date(); err != nil {
		bad("its Date is %q", h.Get("Date"))
	}
	if _, _, ok := mail.ParseMessageID(h.Get("Message-ID")); !ok || !strings.HasSuffix(h.Get("Message-ID"), "@"+domain+">") {
		bad("its Message-ID is %q", h.Get("Message-ID"))
	}
	if h.Get("MIME-Version") != "1.0" {
		bad("its MIME-Version is %q", h.Get("MIME-Version"))
	}
	if n := len(h["Dkim-Signature"]); n != map[string]int{"onda": 2, "relay": 1}[signer] {
		bad("it has %d signatures", n)
	}
	list := map[string]string{"List-Unsubscribe": "<http", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click", "List-Id": "news." + domain, "Feedback-ID": ":news:"}
	for name, want := range list {
		switch got := h.Get(name); {
		case k.transactional && got != "":
			bad("it is transactional and has %s: %q", name, got)
		case !k.transactional && !strings.Contains(got, want):
			bad("its %s is %q", name, got)
		}
	}
	if auto := h.Get("Auto-Submitted"); k.transactional != (auto == "auto-generated") {
		bad("its Auto-Submitted is %q", auto)
	}
	if i := longest(body); i > 998 {
		bad("it has a line of %d bytes", i)
	}
	entity, err := gomessage.Read(bytes.NewReader(body))
	if err != nil {
		return append(problems, "its MIME is not readable: "+err.Error())
	}
	var types, attached []string
	plain := ""
	err = entity.Walk(func(_ []int, part *gomessage.Entity, err error) error {
		if err != nil {
			return err
		}
		kind, _, err := part.Header.ContentType()
		if err != nil || strings.HasPrefix(kind, "multipart/") {
			return err
		}
		var content bytes.Buffer
		if _, err := content.ReadFrom(part.Body); err != nil {
			return err
		}
		if disposition, params, _ := part.Header.ContentDisposition(); disposition == "attachment" {
			attached = append(attached, params["filename"])
			return nil
		}
		types = append(types, kind)
		if kind == "text/plain" {
			plain = content.String()
		}
		if !strings.Contains(content.String(), k.text) {
			bad("its %s says nothing of %q", kind, k.text)
		}
		return nil
	})
	if err != nil {
		bad("its MIME is not readable: %v", err)
	}
	if strings.Join(types, " ") != "text/plain text/html" {
		bad("its parts are %v", types)
	}
	if !k.transactional && !strings.Contains(plain, "/u/") {
		bad("its text has no link to unsubscribe")
	}
	if strings.Join(attached, ",") != strings.Join(k.attachments, ",") {
		bad("its attachments are %q", attached)
	}
	return problems
}

func longest(body []byte) (n int) {
	for line := range bytes.SplitSeq(body, []byte("\r\n")) {
		n = max(n, len(line))
	}
	return n
}

func (w *world) apply(docs string) {
	w.t.Helper()
	if _, _, err := apply.Directory(w.t.Context(), w.db, pgtest.Acme, fstest.MapFS{"all.yaml": {Data: []byte(docs)}}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// notDevelopment makes the database one where domains have to be verified, as in production.
func (w *world) notDevelopment() {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.data.AdminURL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(w.t.Context())) }()
	if _, err := conn.Exec(w.t.Context(), "UPDATE onda.database SET development = false"); err != nil {
		w.t.Fatal(err)
	}
}

// keys makes the keys of all domains and says that they are published: the records, and the relay's keys in PEM by domain.
func (w *world) keys() (records, relay map[string]string) {
	w.t.Helper()
	records, relay = map[string]string{}, map[string]string{}
	for signer, names := range domains {
		for i, ascii := range [2]string{names[0], punycode[signer]} {
			var published []string
			publish := func(name, value string) { published, records[name] = append(published, name), value }
			if signer == "relay" {
				key, err := rsa.GenerateKey(rand.Reader, 2048)
				if err != nil {
					w.t.Fatal(err)
				}
				public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
				if err != nil {
					w.t.Fatal(err)
				}
				relay[ascii] = string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
				publish(mail.DKIMName(relaySelector, ascii), "v=DKIM1; k=rsa; p="+base64.StdEncoding.EncodeToString(public))
			}
			pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
				if signer == "onda" {
					keys, err := senderdomain.AddKeys(ctx, tx, ascii, "first")
					if err != nil {
						return err
					}
					for _, k := range keys {
						publish(k.Name(), k.Record())
					}
				}
				d, err := senderdomain.Find(ctx, tx, names[i])
				if err != nil {
					return err
				}
				_, err = d.Checked(ctx, tx, true, published)
				return err
			})
		}
	}
	return records, relay
}

// start starts send.
func (w *world) start(relay string) {
	w.t.Helper()
	in, err := fn.Start(w.t.Context(), "send", send.Build, envconfig.MapLookuper(map[string]string{
		"ONDA_DATABASE_URL": w.data.URL, "ONDA_SMTP_URL": relay, "ONDA_LINK_URL": "https://links.acme.example",
	}), zap.NewNop())
	if err != nil {
		w.t.Fatal(err)
	}
	w.in = in
	w.t.Cleanup(func() {
		if err := in.Stop(context.WithoutCancel(w.t.Context())); err != nil {
			w.t.Error(err)
		}
	})
}

func (w *world) post(path, body string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(w.t.Context(), http.MethodPost, path, strings.NewReader(body))
	r.Header = header
	answer := httptest.NewRecorder()
	w.in.ServeHTTP(answer, r)
	return answer
}

func (w *world) sweep(function string) {
	w.t.Helper()
	e, err := event.New(pgtest.Acme, "schedule", "", event.DeriveID("test", function), event.ScheduleDue{Function: function})
	if err != nil {
		w.t.Fatal(err)
	}
	body, err := json.Marshal(e)
	if err != nil {
		w.t.Fatal(err)
	}
	if got := w.post("/", string(body), http.Header{"Content-Type": {cloudevents.ApplicationCloudEventsJSON}}); got.Code/100 != 2 {
		w.t.Fatalf("%s answered %d: %s", function, got.Code, got.Body)
	}
}

// send plans the mail of a kind to its recipient, or asks for it as a program does.
func (w *world) send(k kind, signer string) {
	w.t.Helper()
	to := k.address(signer)
	if k.transactional {
		w.request(k, signer, to)
		return
	}
	fields := `{"first_name": "Zoë"}`
	if k.locale != "" {
		fields = `{"first_name": "Zoë", "locale": "` + k.locale + `"}`
	}
	contact := pgtest.One[int64](w.t, w.db, pgtest.Acme, "INSERT INTO contact (email, fields) VALUES ($1, $2) RETURNING id", to, fields)
	pgtest.Exec(w.t, w.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) SELECT $1, p, 'granted', 0, onda.now() FROM unnest('{news,tracking.email}'::text[]) p", contact)
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		p := delivery.Plan{Step: "send", Contacts: []int64{contact}, Cause: "test"}
		err := tx.QueryRow(ctx, `INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', id, current, 'running' FROM entity WHERE kind = 'Email' AND name = $1
			RETURNING id, document`, k.name+"-"+signer).Scan(&p.Run, &p.Email)
		if err != nil {
			return err
		}
		_, err = delivery.Enqueue(ctx, tx, p)
		return err
	})
}

// request asks for a transactional mail over HTTP.
func (w *world) request(k kind, signer, to string) {
	w.t.Helper()
	number := pgtest.One[int32](w.t, w.db, pgtest.Acme, "SELECT number FROM onda.tenant WHERE name = current_user")
	key, err := token.NewProgramKey(token.SecretKey, number)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := key.Hash()
	pgtest.Exec(w.t, w.db, pgtest.Acme, "INSERT INTO key (kind, secret) VALUES ($1, $2)", string(token.SecretKey), sum[:])
	type attachment struct {
		Name    string `json:"name"`
		Type    string `json:"type"`
		Content []byte `json:"content"`
	}
	var attachments []attachment
	for _, name := range k.attachments {
		attachments = append(attachments, attachment{name, "text/plain", []byte(strings.Repeat("4711;Überführung;12,50\n", 200))})
	}
	body, err := json.Marshal(map[string]any{"to": to, "email": k.name + "-" + signer, "data": map[string]any{"number": "4711"}, "attachments": attachments})
	if err != nil {
		w.t.Fatal(err)
	}
	got := w.post("/v1/emails", string(body), http.Header{"Content-Type": {"application/json"}, "Authorization": {"Bearer " + key.Reveal()}, "Idempotency-Key": {k.name + signer}})
	if got.Code != http.StatusAccepted {
		w.t.Fatalf("%s: /v1/emails answered %d: %s", k.name, got.Code, got.Body)
	}
}
