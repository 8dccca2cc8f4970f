package compose

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	netmail "net/mail"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

// Audience are recipients of an email as they are at one moment: what their mails are made from.
type Audience struct {
	email   *Email
	tenant  int32
	name    string // the tenant's
	base    string // of links; of the moment, and so not the email's, which is kept
	forms   string // the same of links to forms
	now     time.Time
	signer  *token.Signer
	people  map[int64]person
	refused map[int64]string
	persons map[int64]int64          // of those who were merged, and of whom they are part of by now
	wishes  map[int64]contact.Wishes // of those who have any
}

// person is a contact as templates see it.
type person struct {
	address  string
	tracking contact.TrackingMode
	vars     map[string]any
	locale   string
	zone     string
}

// Audience reads what the mails to these contacts need, in one round trip whatever their number.
func (e *Email) Audience(ctx context.Context, tx *postgres.Tx, contacts []int64) (*Audience, error) {
	b := &pgx.Batch{}
	a, err := e.QueueAudience(ctx, tx, b, contacts, 0)
	if err != nil {
		return nil, err
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	return a, nil
}

// QueueAudience does the same with others in one round trip; the audience is filled as the batch is read. Of the run it tells whom others were merged into since that began, or 0 for none.
func (e *Email) QueueAudience(ctx context.Context, tx *postgres.Tx, b *pgx.Batch, contacts []int64, run int64) (*Audience, error) {
	a := &Audience{
		email: e, tenant: tx.Tenant.Number, name: tx.Tenant.Name, base: tx.Tenant.LinkURL(e.composer.base), forms: tx.Tenant.FormURL(e.composer.forms), now: tx.Now(), people: make(map[int64]person, len(contacts)),
	}
	if len(e.forms) > 0 && a.forms == "" {
		return nil, fmt.Errorf("email %q links to a form, and where forms are is not known: set ONDA_FORM_URL", e.Name)
	}
	keys, err := tx.Keys(ctx) // seldom read
	if err != nil {
		return nil, err
	}
	a.signer = keys.Signer
	args, topic := []any{contacts}, ""
	if e.Topic != "" {
		args, topic = append(args, e.Topic), "$2"
	}
	// Single fields: to take an object apart by its names costs Postgres ten times as much.
	wanted := "c.fields"
	if !e.whole {
		list := make([]string, len(e.fields))
		for i, f := range e.fields {
			args = append(args, f)
			list[i] = "c.fields -> $" + strconv.Itoa(len(args))
		}
		wanted = "jsonb_build_array(" + strings.Join(list, ", ") + ")"
	}
	own, score := "'', '{}'::text[], now()", "0::bigint"
	if e.whole || e.own {
		own = "coalesce(c.external_id, ''), c.tags, coalesce(c.created_at, now())" // of who is gone, nothing
		if tx.Tenant.Schema >= contact.ScoresSchema {
			score = contact.ScoreSQL("c", "'"+spec.MainScore+"'")
		}
	}
	wishes := "NULL::timestamptz, NULL::text"
	if e.Topic != "" && tx.Tenant.Schema >= contact.WishesSchema {
		wishes = contact.WishesSQL("c")
	}
	person := "0::bigint"
	if tx.Tenant.Schema >= contact.MergeSchema {
		args = append(args, run)
		person = contact.PersonSQL("c", "(SELECT coalesce(r.started_at, '-infinity') FROM run r WHERE r.id = $"+strconv.Itoa(len(args))+")", e.on.indexed)
	}
	// What the gate says, whether its mails may be tracked and what the texts need of a contact is in one statement: its row is read once.
	b.Queue(`SELECT u.id, c.id IS NOT NULL, coalesce(CASE WHEN c.id IS NULL THEN 'erased' ELSE `+contact.GateSQL("c", topic)+` END, ''), coalesce(t.state, ''), coalesce(c.email, ''), `+person+`, `+wishes+`, `+own+`, `+score+`, `+wanted+`
		FROM unnest($1::bigint[]) u(id) LEFT JOIN contact c ON c.id = u.id LEFT JOIN subscription t ON t.contact = u.id AND t.purpose = '`+contact.TrackingEmail+`'`, args...).Query(a.read)
	return a, nil
}

// read takes the recipients.
func (a *Audience) read(rows pgx.Rows) error {
	var id, of int64
	var there bool
	var why, external string
	var tags []string
	var created time.Time
	var score int64
	var fields []byte
	var state contact.State
	var pausedUntil *time.Time
	var frequency *string
	var p person
	_, err := pgx.ForEachRow(rows, []any{&id, &there, &why, &state, &p.address, &of, &pausedUntil, &frequency, &external, &tags, &created, &score, &fields}, func() error {
		if why != "" {
			if a.refused == nil {
				a.refused = map[int64]string{}
			}
			a.refused[id] = why
		}
		if of != 0 {
			if a.persons == nil {
				a.persons = map[int64]int64{}
			}
			a.persons[id] = of
		}
		if !there {
			return nil
		}
		p.locale, p.zone = "", ""
		p.tracking = contact.TrackingBy(state, contact.TrackingMode(a.email.Settings.Tracking))
		var err error
		if p.vars, err = a.email.variables(fields); err != nil {
			return fmt.Errorf("fields of contact %d: %w", id, err)
		}
		p.locale, _ = p.vars[spec.LocaleField].(string)
		p.zone, _ = p.vars[spec.ZoneField].(string)
		p.vars["id"], p.vars["email"] = id, p.address
		if a.email.whole || a.email.own {
			list := make([]any, len(tags))
			for i, t := range tags {
				list[i] = t
			}
			p.vars["external_id"], p.vars["tags"], p.vars["created"], p.vars[spec.MainScore] = external, list, created, score
		}
		a.people[id] = p
		if pausedUntil != nil || frequency != nil {
			if a.wishes == nil {
				a.wishes = map[int64]contact.Wishes{}
			}
			a.wishes[id] = contact.WishesOf(pausedUntil, frequency)
		}
		fields, tags = nil, nil
		return nil
	})
	if err != nil {
		return fmt.Errorf("read recipients: %w", err)
	}
	return nil
}

// Refused tells why a contact of the audience must not get the email, by the gate (see contact.GateSQL), in the transaction in which the audience was read; "" when it may.
func (a *Audience) Refused(id int64) string { return a.refused[id] }

// Person is whom a contact was merged into, or itself where others were merged into it since the run began that the audience was asked for; else 0.
func (a *Audience) Person(id int64) int64 { return a.persons[id] }

// Wishes are what a contact of the audience wishes of marketing mail beside topics. Of a transactional email they are not read.
func (a *Audience) Wishes(id int64) contact.Wishes { return a.wishes[id] }

// AnyWishes tells whether anybody in the audience wishes anything.
func (a *Audience) AnyWishes() bool { return len(a.wishes) > 0 }

// variables are a contact's fields as templates see them.
func (e *Email) variables(fields []byte) (map[string]any, error) {
	if e.whole {
		vars := map[string]any{}
		return vars, json.Unmarshal(fields, &vars)
	}
	var values []any
	if err := json.Unmarshal(fields, &values); err != nil {
		return nil, err
	}
	vars := make(map[string]any, len(values)+5)
	for i, v := range values {
		if v != nil {
			vars[e.fields[i]] = v
		}
	}
	return vars, nil
}

// Zone is the zone of a contact, else the tenant's.
func (a *Audience) Zone(id int64) *time.Location {
	return spec.ZoneContact.Location(a.people[id].zone, a.email.Settings.Location())
}

// Address is the address of a contact of the audience, normalised; "" where it has none.
func (a *Audience) Address(id int64) string { return a.people[id].address }

// Mail is one mail to one recipient, not yet rendered.
type Mail struct {
	// Now is the moment that the mail is of, on the tenant's clock: its date.
	Now time.Time
	// Data is what the templates see as data.*.
	Data        map[string]any
	Attachments []delivery.Attachment

	a        *Audience
	contact  int64
	delivery int64 // 0 in a preview: nothing in it is tracked, and nothing leads back to a delivery
	run      int64
	tracking contact.TrackingMode
	person   person
	variant  string // "" where the email has none
	to       string // the address; of a pre-production, what stands in for it
	noPixel  bool
	own      *urls // once they are made
}

// Mail is the mail of a delivery to a contact of the audience.
func (a *Audience) Mail(to, deliveryID, run int64) (*Mail, error) {
	p, ok := a.people[to]
	if !ok {
		return nil, fmt.Errorf("contact %d is not in the audience", to)
	}
	m := &Mail{Now: a.now, a: a, contact: to, delivery: deliveryID, run: run, tracking: p.tracking, person: p, to: p.address, variant: a.email.spec.VariantOf(to)}
	if a.email.on.preproduction {
		if mail.CheckAddress(p.address) == nil { // one that cannot be mailed is refused here too
			m.to = a.email.composer.standIn.Address(a.name, to)
		} else {
			m.to = ""
		}
	}
	if deliveryID == 0 {
		m.tracking = contact.None
	}
	return m, nil
}

// Data gives the data of deliveries: of transactional mails what they were asked for with, of others what the event brought that started the journey they belong to.
func (e *Email) Data(ctx context.Context, tx *postgres.Tx, deliveries []int64) (map[int64]delivery.Requested, error) {
	if e.Transactional {
		return delivery.Requests(ctx, tx, deliveries)
	}
	if !e.useData {
		return nil, nil
	}
	rows, err := tx.Query(ctx, "SELECT s.delivery, j.data FROM step s JOIN journey j ON j.id = s.journey WHERE s.delivery = ANY ($1)", deliveries)
	if err != nil {
		return nil, fmt.Errorf("read the data of journeys: %w", err)
	}
	out := map[int64]delivery.Requested{}
	var id int64
	var data []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &data}, func() error {
		var r delivery.Requested
		if err := json.Unmarshal(data, &r.Data); err != nil {
			return err
		}
		out[id] = r
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the data of journeys: %w", err)
	}
	return out, nil
}

// Tracking is how the mail is tracked: full, aggregate or none.
func (m *Mail) Tracking() string { return string(m.tracking) }

// Content is a mail's rendered texts.
type Content struct {
	spec.Edition
	Subject, HTML, Text string
}

// Render makes the texts. It may be called by several goroutines for different mails of one audience.
func (m *Mail) Render() (Content, error) {
	parts, vars, err := m.templates()
	if err != nil {
		return Content{}, err
	}
	c := Content{Edition: parts.Edition}
	if c.Subject, err = parts.Subject.Render(vars); err != nil {
		return Content{}, fmt.Errorf("subject: %w", err)
	}
	if c.HTML, err = parts.HTML.Render(vars); err != nil {
		return Content{}, fmt.Errorf("html: %w", err)
	}
	if c.Text, err = parts.Text.Render(vars); err != nil {
		return Content{}, fmt.Errorf("text: %w", err)
	}
	return c, nil
}

// Page is Render for a browser, which has no parts of a mail to look into: images that are inline in the mail are in the HTML itself. The pixel is left out, since looking
// at it is told by the request itself.
func (m *Mail) Page() (Content, error) {
	m.noPixel = true
	c, err := m.Render()
	if err != nil {
		return c, err
	}
	var images []string
	for _, a := range m.a.email.attachments {
		if a.Inline {
			data := "data:" + a.Type + ";base64," + base64.StdEncoding.EncodeToString(a.Data)
			images = append(images, `"cid:`+a.Name+`"`, `"`+data+`"`, `'cid:`+a.Name+`'`, `'`+data+`'`)
		}
	}
	if len(images) > 0 {
		c.HTML = strings.NewReplacer(images...).Replace(c.HTML)
	}
	return c, nil
}

// Attached gives the names of the files that go out with the mail.
func (m *Mail) Attached() []string {
	names := []string{}
	for _, a := range m.a.email.attachments {
		names = append(names, a.Name)
	}
	for _, a := range m.Attachments {
		names = append(names, a.Name)
	}
	return names
}

// templates are those of the recipient's language, and what they see.
func (m *Mail) templates() (*spec.Parts, map[string]any, error) {
	e := m.a.email
	locale := m.person.locale
	if locale == "" {
		locale = e.Settings.Locale
	}
	parts := e.compiled.For(locale, m.variant)
	vars, err := m.vars(locale, parts)
	return parts, vars, err
}

// vars are what the templates see.
func (m *Mail) vars(locale string, parts *spec.Parts) (map[string]any, error) {
	e := m.a.email
	urls, err := m.urls()
	if err != nil {
		return nil, err
	}
	links := make([]any, len(parts.Links))
	for i, to := range parts.Links {
		if links[i], err = m.link(to); err != nil {
			return nil, err
		}
	}
	data := m.Data
	if data == nil {
		data = map[string]any{}
	}
	vars := map[string]any{
		spec.VarContact: m.person.vars, spec.VarData: data, spec.VarLinks: links, spec.VarPixel: urls.pixel, spec.VarPixelLink: strings.TrimSuffix(urls.pixel, pixelSuffix) + UnseenSuffix,
		spec.VarUnsubscribeURL: urls.unsubscribe, spec.VarPreferencesURL: urls.preferences, spec.VarWebviewURL: urls.webView,
		spec.VarConfirmURL: data[spec.VarConfirmURL], // whoever asks for the mail makes it
	}
	if urls.pixel == "" {
		delete(vars, spec.VarPixel) // in Liquid an empty text is true
	}
	if e.topic != nil {
		vars[spec.VarTopic] = e.topicVars(locale)
	}
	if len(e.forms) > 0 {
		if vars[spec.VarFormURL], err = m.formURLs(); err != nil {
			return nil, err
		}
	}
	return vars, nil
}

// formURLs are the pages of forms that know who comes, by a token of the preference centre.
func (m *Mail) formURLs() (map[string]any, error) {
	who := ""
	if m.contact > 0 {
		c := token.Claims{Purpose: token.Preferences, Contact: m.contact}
		if m.a.email.Topic != "" {
			c.Topic = m.a.email.on.topicID
		}
		tok, err := m.sign(c)
		if err != nil {
			return nil, err
		}
		who = "?p=" + tok
	}
	all := make(map[string]any, len(m.a.email.forms))
	for _, form := range m.a.email.forms {
		all[form] = m.a.forms + "/f/" + url.PathEscape(m.a.name) + "/" + url.PathEscape(form) + who
	}
	return all, nil
}

// topicVars are what templates see of the topic in a language. In the tenant's own, which is that of most, they are made once, and nobody changes them.
func (e *Email) topicVars(locale string) map[string]any {
	if locale == e.Settings.Locale && e.ownTopic != nil {
		return e.ownTopic
	}
	return map[string]any{"name": e.Topic, "title": e.topic.TitleIn(locale, e.Settings.Locale), "description": e.topic.DescriptionIn(locale, e.Settings.Locale)}
}

// link is where a link of the mail leads: through a tracked one that knows the delivery, one that knows nobody, or straight there.
func (m *Mail) link(to string) (string, error) {
	id, ok := m.a.email.links[to]
	if !ok || m.tracking == contact.None {
		return to, nil
	}
	claims := token.Claims{Purpose: token.Click, Link: id}
	if m.tracking == contact.Full {
		claims.Delivery = m.delivery
	}
	return m.url("/c/", claims, "")
}

// The pixel, and the link beside it that people cannot see, have the same token: a signature is a tenth of what a mail costs.
const (
	pixelSuffix  = ".gif"
	UnseenSuffix = ".htm"
)

// urls are the mail's own addresses. They are empty where the mail has none.
type urls struct {
	unsubscribe, preferences, webView string
	unsubscribeToken                  string
	pixel                             string
}

func (m *Mail) urls() (u urls, err error) {
	if m.own != nil { // the texts and the header name the same ones, and signing is a tenth of what a mail costs
		return *m.own, nil
	}
	e := m.a.email
	add := func(to *string, path string, c token.Claims, suffix string) {
		if err == nil {
			*to, err = m.url(path, c, suffix)
		}
	}
	if e.Topic != "" && m.contact > 0 {
		topic := e.on.topicID
		add(&u.unsubscribe, "/u/", token.Claims{Purpose: token.Unsubscribe, Contact: m.contact, Topic: topic}, "")
		add(&u.preferences, "/p/", token.Claims{Purpose: token.Preferences, Contact: m.contact, Topic: topic}, "")
		u.unsubscribeToken = u.unsubscribe[strings.LastIndexByte(u.unsubscribe, '/')+1:]
	}
	if m.delivery > 0 {
		add(&u.webView, "/w/", token.Claims{Purpose: token.WebView, Delivery: m.delivery}, "")
		if m.tracking == contact.Full && !m.noPixel {
			add(&u.pixel, "/o/", token.Claims{Purpose: token.Open, Delivery: m.delivery}, pixelSuffix)
		}
	}
	if err == nil {
		m.own = &u
	}
	return u, err
}

func (m *Mail) url(path string, c token.Claims, suffix string) (string, error) {
	var buf [256]byte
	b := append(append(buf[:0], m.a.base...), path...)
	c.Tenant = m.a.tenant
	b, err := m.a.signer.Append(b, c)
	if err != nil {
		return "", fmt.Errorf("sign a link: %w", err)
	}
	return string(append(b, suffix...)), nil
}

func (m *Mail) sign(c token.Claims) (string, error) {
	c.Tenant = m.a.tenant
	t, err := m.a.signer.Sign(c)
	if err != nil {
		return "", fmt.Errorf("sign a link: %w", err)
	}
	return t, nil
}

// head is the message without its texts, and its envelope. In a preview it has a Message-ID of its own, and bounces go to where the mail is from.
func (m *Mail) head() (mail.Envelope, mail.Message, error) {
	e := m.a.email
	if e.Unaddressed() {
		return mail.Envelope{}, mail.Message{}, ErrPreproduction
	}
	domain, returnDomain := e.SenderDomain(), e.returnDomain()
	msg := mail.Message{From: e.from, ReplyTo: e.replyTo, To: mail.Address{Email: m.to}, Date: m.Now}
	envelope := mail.Envelope{From: e.from.Email, To: m.to}
	if m.delivery > 0 {
		if returnDomain != "" {
			back, err := m.sign(token.Claims{Purpose: token.ReturnPath, Delivery: m.delivery})
			if err != nil {
				return mail.Envelope{}, mail.Message{}, err
			}
			envelope.From = mail.ReturnPath(back, returnDomain)
		}
		msg.MessageID = mail.MessageID(m.a.tenant, m.delivery, domain)
		for _, r := range e.composer.refs {
			msg.References = append(msg.References, r.Header(m.a.tenant, m.delivery))
		}
	} else {
		msg.MessageID = "<preview." + uuid.NewString() + "@" + domain + ">"
	}
	if e.Topic != "" {
		u, err := m.urls()
		if err != nil {
			return mail.Envelope{}, mail.Message{}, err
		}
		if u.unsubscribe != "" {
			msg.ListUnsubscribe = mail.Unsubscribe{URL: u.unsubscribe}
			if returnDomain != "" {
				msg.ListUnsubscribe.Mailto = "u+" + u.unsubscribeToken + "@" + returnDomain
			}
		}
		msg.ListID = e.Topic + "." + domain
		msg.FeedbackID = strconv.FormatInt(m.run, 10) + ":" + e.Topic + ":" + strconv.Itoa(int(m.a.tenant)) + ":onda"
	} else {
		msg.Headers = []mail.Header{{Name: "Auto-Submitted", Value: "auto-generated"}} // RFC 3834: nobody's holiday answers it
	}
	if e.on.preproduction {
		msg.Headers = append(msg.Headers, mail.Header{Name: mail.PreproductionHeader, Value: m.a.name})
	}
	msg.Attachments = slices.Clip(e.attachments)
	for _, at := range m.Attachments {
		msg.Attachments = append(msg.Attachments, mail.Attachment{Name: at.Name, Type: at.Type, Data: at.Content})
	}
	return envelope, msg, nil
}

// Message makes the whole message and its envelope.
func (m *Mail) Message() (mail.Envelope, mail.Message, error) {
	envelope, msg, err := m.head()
	if err != nil {
		return mail.Envelope{}, mail.Message{}, err
	}
	c, err := m.Render()
	if err != nil {
		return mail.Envelope{}, mail.Message{}, err
	}
	msg.Subject, msg.HTML, msg.Text = c.Subject, c.HTML, c.Text
	return envelope, msg, nil
}

// Append writes the whole message behind dst. An address that cannot be mailed is an error that matches mail.ErrAddress. The email is laid out once, its own attachments too; what it cannot be
// laid out for (attachments of one mail, an address of more than ASCII) is built for the recipient alone, and is the same message.
func (m *Mail) Append(dst []byte) (mail.Outgoing, error) {
	out, err := m.append(dst)
	if err == nil {
		out.Content, err = m.Sign(out.Content, len(dst), out.Tail)
	}
	return out, err
}

func (m *Mail) append(dst []byte) (mail.Outgoing, error) {
	if len(m.Attachments) > 0 || m.delivery == 0 || !mail.PlainAddress(m.to) {
		envelope, msg, err := m.Message()
		if err != nil {
			return mail.Outgoing{}, err
		}
		body, err := msg.Build()
		return mail.Outgoing{Envelope: envelope, Content: append(dst, body...)}, err
	}
	envelope, msg, err := m.head()
	if err != nil {
		return mail.Outgoing{}, err
	}
	parts, vars, err := m.templates()
	if err != nil {
		return mail.Outgoing{}, err
	}
	v := mail.Varying{To: msg.To.Email, Date: msg.Date, MessageID: msg.MessageID, Unsubscribe: msg.ListUnsubscribe, FeedbackID: msg.FeedbackID, References: msg.References}
	if v.Subject, v.HTML, v.Text, err = holes(parts, vars); err != nil {
		return mail.Outgoing{}, err
	}
	s, err := m.a.email.laid.lay(parts, msg)
	if err != nil {
		return mail.Outgoing{}, err
	}
	content, err := s.Append(dst, v)
	return mail.Outgoing{Envelope: envelope, Content: content, Tail: s.Tail(), Ready: true}, err
}

// holes renders what differs from one recipient to the next.
func holes(parts *spec.Parts, vars map[string]any) (subject string, html, text []string, err error) {
	if subject, err = parts.Subject.Render(vars); err != nil {
		return "", nil, nil, fmt.Errorf("subject: %w", err)
	}
	if html, err = parts.HTML.Holes(vars); err != nil {
		return "", nil, nil, fmt.Errorf("html: %w", err)
	}
	if text, err = parts.Text.Holes(vars); err != nil {
		return "", nil, nil, fmt.Errorf("text: %w", err)
	}
	return subject, html, text, nil
}

// layouts are the layouts of an email, an edition each; made when the first mail needs one.
type layouts struct {
	mu sync.Mutex
	of map[*spec.Parts]*mail.Skeleton
}

func newLayouts() *layouts { return &layouts{of: map[*spec.Parts]*mail.Skeleton{}} }

func (l *layouts) lay(parts *spec.Parts, msg mail.Message) (*mail.Skeleton, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := l.of[parts]; s != nil {
		return s, nil
	}
	html, text := parts.HTML.Literals(), parts.Text.Literals()
	msg.HTML, msg.Text = strings.Join(html, "-"), strings.Join(text, "-") // whether there is any
	s, err := mail.NewSkeleton(msg, text, html)
	if err != nil {
		return nil, err
	}
	for _, other := range l.of {
		s.ShareTail(other)
		break // they have one among them
	}
	l.of[parts] = s
	return s, nil
}

// mailbox reads "Name <local@domain>" (RFC 5322 section 3.4). The domain is in its ASCII form then, in which sender domains are compared; one that has none is refused when
// the mail is made.
func mailbox(s string) (mail.Address, error) {
	a, err := netmail.ParseAddress(s)
	if err != nil {
		return mail.Address{}, fmt.Errorf("mailbox %q: %w", s, err)
	}
	at := strings.LastIndexByte(a.Address, '@') + 1
	if domain, err := spec.ASCIIDomain(a.Address[at:]); err == nil {
		a.Address = a.Address[:at] + domain
	}
	return mail.Address{Name: a.Name, Email: a.Address}, nil
}
