package mail

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	netmail "net/mail"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // reports come in every charset
)

// ReportKind tells reports of delivery, reports of abuse and automatic replies apart.
type ReportKind string

// The kinds of reports.
const (
	DSN       ReportKind = "dsn"       // RFC 3464, or a plain-text bounce that means the same
	ARF       ReportKind = "arf"       // RFC 5965
	AutoReply ReportKind = "autoreply" // RFC 3834: an answer by the recipient's mailbox, which the mail thus has reached
)

// Report is what came back about one mail.
type Report struct {
	Kind ReportKind

	// Of a DSN.
	Action     string // failed, delayed, delivered, relayed or expanded
	Status     string // RFC 3463, such as 5.1.1; "" if none was given
	Code       int    // SMTP reply code in the diagnostic; 0 if none
	Diagnostic string // first line, addresses blanked out
	Class      Class  // of failed and delayed
	MTA        string // who reports

	// Of an ARF.
	FeedbackType string // abuse, fraud, virus, not-spam, opt-out, other ...

	// Which mail it is about. Every one may be missing; a token is proven by package token, the rest proves nothing.
	ReturnPathToken   string
	UnsubscribeToken  string // from the returned mail's List-Unsubscribe
	OriginalMessageID string // with angle brackets
	OriginalRecipient string // personal: never into a log, an event or a URL
}

// ErrNotReport is what a mail that is no report matches: a person's answer, spam.
var ErrNotReport = errors.New("not a delivery or feedback report, nor an automatic reply")

// Bounds of what is read of a report. What comes after is ignored: reports put what matters first and a returned mail last.
const (
	MaxReport      = 1 << 20
	maxReportDepth = 6
	maxReportParts = 40
	maxReportField = 4096
)

// ParseReport reads a report. recipients are the envelope recipients it was sent to, if known: the return-path token is in one of
// them; without, the header is searched for it, and the mail that was returned. An error matches ErrNotReport when it is a
// well-formed mail of another sort, or tells what is wrong with it.
func ParseReport(r io.Reader, recipients ...string) (*Report, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxReport))
	if err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	// Some deliver with a Unix envelope line or with blank lines before the header.
	raw = bytes.TrimLeft(raw, "\r\n")
	if bytes.HasPrefix(raw, []byte("From ")) {
		if i := bytes.IndexByte(raw, '\n'); i > 0 {
			raw = raw[i+1:]
		}
	}
	entity, err := message.Read(bytes.NewReader(raw))
	if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
		return nil, fmt.Errorf("%w: its header does not parse: %s", ErrNotReport, redact(err.Error()))
	}
	p := &reportParser{}
	p.walk(entity, 0)
	rep := p.judge(entity.Header, raw)
	if rep == nil {
		return nil, ErrNotReport
	}
	p.identify(rep, entity.Header, recipients)
	return rep, nil
}

// reportParser gathers what the parts of a report say.
type reportParser struct {
	parts     int
	status    []textproto.MIMEHeader // groups of message/delivery-status: the first is about the message, the others about recipients
	feedback  textproto.MIMEHeader
	returned  message.Header // of the mail the report is about
	hasReturn bool
	text      strings.Builder // the readable parts
}

// walk visits the parts. Whatever breaks in the middle, a boundary or an encoding, ends that part only: what was read counts.
func (p *reportParser) walk(e *message.Entity, depth int) {
	if p.parts++; p.parts > maxReportParts || depth > maxReportDepth {
		return
	}
	kind, _, err := e.Header.ContentType()
	if err != nil {
		kind, _, _ = strings.Cut(e.Header.Get("Content-Type"), ";")
	}
	switch kind = strings.ToLower(strings.TrimSpace(kind)); kind {
	case "message/delivery-status", "message/global-delivery-status":
		p.status = append(p.status, groups(e.Body)...)
	case "message/feedback-report":
		if g := groups(e.Body); len(g) > 0 && p.feedback == nil {
			p.feedback = g[0]
		}
	case "message/rfc822", "message/global", "text/rfc822-headers", "message/rfc822-headers", "message/global-headers":
		if inner, err := message.Read(leniently(e.Body)); inner != nil && (err == nil || message.IsUnknownCharset(err)) && !p.hasReturn {
			p.returned, p.hasReturn = inner.Header, true
			p.walkReturned(inner, depth)
		}
	default:
		if parts := e.MultipartReader(); parts != nil {
			for p.parts <= maxReportParts {
				part, err := parts.NextPart()
				if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
					return
				}
				p.walk(part, depth+1)
			}
			return
		}
		if strings.HasPrefix(kind, "text/") || kind == "" {
			body, _ := io.ReadAll(io.LimitReader(e.Body, 64<<10))
			p.text.Write(body)
			p.text.WriteByte('\n')
		}
	}
}

// walkReturned looks one level deeper: some wrap a report about a report.
func (p *reportParser) walkReturned(inner *message.Entity, depth int) {
	if kind, _, err := inner.Header.ContentType(); err == nil && kind == "multipart/report" && p.status == nil && p.feedback == nil {
		p.hasReturn = false
		p.walk(inner, depth+1)
	}
}

// leniently lets a header that ends without a blank line, as text/rfc822-headers do, be read.
func leniently(r io.Reader) io.Reader {
	return io.MultiReader(io.LimitReader(r, 256<<10), strings.NewReader("\r\n\r\n"))
}

// groups reads the blocks of fields, separated by blank lines, that delivery-status and feedback-report consist of. Lines that are no
// fields are left out rather than ending the reading.
func groups(r io.Reader) []textproto.MIMEHeader {
	var all []textproto.MIMEHeader
	var current textproto.MIMEHeader
	last := ""
	lines := bufio.NewScanner(io.LimitReader(r, 64<<10))
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r \t")
		switch name, value, ok := strings.Cut(line, ":"); {
		case line == "":
			current, last = nil, ""
		case line[0] == ' ' || line[0] == '\t':
			if v := current[last]; last != "" && len(v) > 0 && len(v[len(v)-1]) < maxReportField {
				v[len(v)-1] += " " + strings.TrimSpace(line)
			}
		case ok && name != "" && !strings.ContainsAny(name, " \t"):
			if current == nil {
				if len(all) == maxReportParts {
					return all
				}
				current = textproto.MIMEHeader{}
				all = append(all, current)
			}
			last = textproto.CanonicalMIMEHeaderKey(name)
			current.Add(last, clip(strings.TrimSpace(value), maxReportField))
		}
	}
	return all
}

// judge makes the report, or nil if it is none.
func (p *reportParser) judge(header message.Header, raw []byte) *Report {
	if p.feedback != nil && p.feedback.Get("Feedback-Type") != "" {
		return p.arf()
	}
	if rep := p.dsn(p.status); rep != nil {
		return rep
	}
	if !looksLikeBounce(header) {
		if isAutoReply(header) {
			return &Report{Kind: AutoReply}
		}
		return nil
	}
	// A report whose MIME structure is broken still has its fields somewhere in the text.
	_, body, _ := bytes.Cut(bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n")), []byte("\n\n"))
	if rep := p.dsn(groups(bytes.NewReader(body))); rep != nil {
		p.searchReturned(string(body))
		return rep
	}
	return p.plain(header)
}

func (p *reportParser) arf() *Report {
	rep := &Report{
		Kind: ARF, FeedbackType: strings.ToLower(clip(p.feedback.Get("Feedback-Type"), 40)),
		MTA: mtaName(p.feedback.Get("Reporting-Mta")),
	}
	for _, name := range []string{"Original-Rcpt-To", "Removal-Recipient"} {
		if rep.OriginalRecipient == "" {
			rep.OriginalRecipient = reportAddress(p.feedback.Get(name))
		}
	}
	if token, ok := ReturnPathToken(p.feedback.Get("Original-Mail-From")); ok {
		rep.ReturnPathToken = token
	}
	return rep
}

// gravity orders the actions: of a report about several recipients, the gravest counts.
func gravity(action string) int {
	switch action {
	case "failed":
		return 5
	case "delayed":
		return 4
	case "delivered":
		return 3
	case "relayed":
		return 2
	case "expanded":
		return 1
	default:
		return 0
	}
}

var statusInField = pattern(`\b([245]\.\d{1,3}\.\d{1,3})\b`)

// dsn makes a report of delivery-status fields.
func (p *reportParser) dsn(blocks []textproto.MIMEHeader) *Report {
	var best textproto.MIMEHeader
	mta := ""
	for _, b := range blocks {
		if mta == "" {
			mta = mtaName(b.Get("Reporting-Mta"))
		}
		if g := gravity(strings.ToLower(firstWord(b.Get("Action")))); g > 0 && (best == nil || g > gravity(strings.ToLower(firstWord(best.Get("Action"))))) {
			best = b
		}
	}
	if best == nil {
		return nil
	}
	rep := &Report{Kind: DSN, MTA: mta, Action: strings.ToLower(firstWord(best.Get("Action")))}
	if m := statusInField().FindString(best.Get("Status")); m != "" {
		rep.Status = m
	}
	for _, name := range []string{"Original-Recipient", "Final-Recipient"} {
		if rep.OriginalRecipient == "" {
			rep.OriginalRecipient = reportAddress(best.Get(name))
		}
	}
	diagnostic := best.Get("Diagnostic-Code")
	if _, text, typed := strings.Cut(diagnostic, ";"); typed {
		diagnostic = text
	}
	rep.diagnose(diagnostic)
	return rep
}

// diagnose reads an SMTP reply, and sets the class.
func (rep *Report) diagnose(text string) {
	text = strings.TrimSpace(text)
	full := text
	if code, rest, ok := replyCode(text); ok {
		rep.Code = code
		status, rest := splitEnhanced(code, rest)
		// 5.0.0 and 4.0.0 say nothing; the diagnostic often says more.
		if status != "" && (rep.Status == "" || strings.HasSuffix(rep.Status, ".0.0")) {
			rep.Status = status
		}
		text = rest
	} else if status := statusInField().FindString(text); status != "" && rep.Status == "" {
		rep.Status = status
	}
	rep.Diagnostic = redact(laterLines().ReplaceAllString(text, " "))
	if rep.Action != "failed" && rep.Action != "delayed" {
		return
	}
	status := rep.Status
	if strings.HasSuffix(status, ".0.0") {
		status = "" // let code and text tell
	}
	rep.Class = Classify(rep.Code, status, full)
	if rep.Action == "delayed" && rep.Class == Hard {
		rep.Class = Soft // whatever it says, the relay is still trying
	}
}

// ClassifyText is Classify for a refusal of which the text may begin with the code and the status, where these are not given apart (0 and "").
func ClassifyText(code int, status, text string) Class {
	rep := Report{Action: "failed", Code: code, Status: status}
	if text = strings.TrimSpace(text); code > 0 {
		if _, _, ok := replyCode(text); !ok {
			text = strconv.Itoa(code) + " " + text
		}
	}
	rep.diagnose(text)
	return rep.Class
}

// laterLines are the codes at the beginning of the further lines of a reply that was folded into one.
var laterLines = pattern(`\s+[45]\d\d[ -][45]\.\d{1,3}\.\d{1,3}\s+`)

var replyAtStart = pattern(`^([245]\d\d)(?:[ -]+|$)`)

func replyCode(text string) (code int, rest string, ok bool) {
	m := replyAtStart().FindStringSubmatch(text)
	if m == nil {
		return 0, text, false
	}
	code, _ = strconv.Atoi(m[1])
	return code, text[len(m[0]):], true
}

// looksLikeBounce tells whether a mail that is no proper report was written by a mail system about a mail that it could not deliver.
func looksLikeBounce(h message.Header) bool {
	if h.Get("X-Failed-Recipients") != "" {
		return true
	}
	if saysAutoReplied(h) {
		// An out-of-office reply, unless it claims to be a report.
		kind, params, err := h.ContentType()
		return err == nil && kind == "multipart/report" && params["report-type"] == "delivery-status"
	}
	if strings.TrimSpace(h.Get("Return-Path")) == "<>" {
		return true
	}
	return fromMailSystem(h)
}

func fromMailSystem(h message.Header) bool {
	from := strings.ToLower(h.Get("From"))
	return strings.Contains(from, "mailer-daemon@") || strings.Contains(from, "postmaster@") || strings.Contains(from, "mail delivery s")
}

// saysAutoReplied tells whether a mail says that a program answered with it: by RFC 3834 section 5, or by what was in use before. Mail systems say it of their
// reports too.
func saysAutoReplied(h message.Header) bool {
	return strings.HasPrefix(strings.ToLower(h.Get("Auto-Submitted")), "auto-replied") || h.Get("X-Autoreply") != "" || h.Get("X-Autorespond") != "" ||
		strings.EqualFold(strings.TrimSpace(h.Get("Precedence")), "auto_reply")
}

// isAutoReply tells whether a recipient's mailbox answered by itself, rather than a mail system that never got so far.
func isAutoReply(h message.Header) bool { return saysAutoReplied(h) && !fromMailSystem(h) }

var (
	plainReply   = pattern(`(?m)(?:^|[\s:>])([45]\d\d)[ -]+([45]\.\d{1,3}\.\d{1,3})?[ :]*([^\r\n]*(?:\r?\n[ \t]+[^\r\n]+){0,3})`)
	plainWords   = pattern(`(?i)(could not be delivered|couldn.t be delivered|wasn.t able to deliver|was not delivered|undeliver|delivery (has )?failed|delivery to the following|permanent (fatal )?error|returned to sender|unable to deliver|has been delayed|delivery (is )?delayed|not yet been delivered|message you sent could not|permanent error)`)
	plainDelayed = pattern(`(?i)(has been delayed|is delayed|not yet been delivered|will (continue to|keep) (try|be retried)|still trying|warning message only|no action is required)`)
	plainAddress = pattern(`(?m)^[ \t]*<?([^\s<>@:]+@[^\s<>@:]+?)>?:?[ \t]*\r?$`)
	plainReturn  = pattern(`(?im)^-{3,}.*(copy of (the|your) message|original message|returned message|message header|headers of).*$|^(--- )?below this line is a copy of the message`)
)

// plain reads the bounces in prose of Exim, qmail and their like.
func (p *reportParser) plain(header message.Header) *Report {
	text := p.text.String()
	if at := plainReturn().FindStringIndex(text); at != nil {
		p.searchReturned(text[at[1]:])
		text = text[:at[0]]
	}
	failed := reportAddress(strings.SplitN(header.Get("X-Failed-Recipients"), ",", 2)[0])
	if failed == "" && !plainWords().MatchString(text) && !plainDelayed().MatchString(text) {
		return nil
	}
	rep := &Report{Kind: DSN, Action: "failed", OriginalRecipient: failed}
	if plainDelayed().MatchString(text) && failed == "" {
		rep.Action = "delayed"
	}
	said := text
	if m := plainAddress().FindStringSubmatchIndex(text); m != nil {
		if rep.OriginalRecipient == "" {
			rep.OriginalRecipient = text[m[2]:m[3]]
		}
		said = text[m[1]:]
	}
	if m := plainReply().FindStringSubmatch(said); m != nil {
		rep.diagnose(clean(m[1] + " " + m[2] + " " + m[3]))
		return rep
	}
	paragraph, _, _ := strings.Cut(strings.TrimLeft(strings.ReplaceAll(said, "\r\n", "\n"), " \t\n"), "\n\n")
	rep.diagnose(clean(paragraph))
	return rep
}

// searchReturned reads the header of the returned mail out of text in which no part marks it.
func (p *reportParser) searchReturned(text string) {
	if p.hasReturn {
		return
	}
	for _, g := range groups(strings.NewReader(text)) {
		if g.Get("Message-Id") != "" && (g.Get("List-Unsubscribe") != "" || g.Get("Subject") != "" || g.Get("Return-Path") != "") && g.Get("X-Failed-Recipients") == "" {
			h := message.Header{}
			for name, values := range g {
				for _, v := range values {
					h.Add(name, v)
				}
			}
			p.returned, p.hasReturn = h, true // the last one: the report's own header comes first
		}
	}
}

// identify finds out which mail it is about.
func (p *reportParser) identify(rep *Report, header message.Header, recipients []string) {
	if rep.ReturnPathToken == "" {
		rep.ReturnPathToken = firstToken(recipients)
	}
	if rep.ReturnPathToken == "" {
		for _, name := range []string{"X-Original-To", "Envelope-To", "Delivered-To", "To", "X-Envelope-To"} {
			var values []string
			for fields := header.FieldsByKey(name); fields.Next(); {
				values = append(values, addresses(fields.Value())...)
			}
			if rep.ReturnPathToken = firstToken(values); rep.ReturnPathToken != "" {
				break
			}
		}
	}
	if p.hasReturn {
		if rep.ReturnPathToken == "" {
			rep.ReturnPathToken = firstToken([]string{p.returned.Get("Return-Path"), p.returned.Get("X-Envelope-From")})
		}
		rep.UnsubscribeToken = unsubscribeToken(p.returned.Get("List-Unsubscribe"))
		rep.OriginalMessageID = messageID(p.returned.Get("Message-Id"))
		if rep.OriginalRecipient == "" {
			if to := addresses(p.returned.Get("To")); len(to) == 1 && CheckAddress(to[0]) == nil {
				rep.OriginalRecipient = to[0]
			}
		}
	}
	if rep.OriginalMessageID == "" {
		for _, name := range []string{"X-Original-Message-Id", "In-Reply-To", "References"} {
			ids := strings.Fields(header.Get(name))
			if len(ids) > 0 && rep.OriginalMessageID == "" {
				rep.OriginalMessageID = messageID(ids[len(ids)-1])
			}
		}
	}
}

func firstToken(addrs []string) string {
	for _, a := range addrs {
		if token, ok := ReturnPathToken(a); ok {
			return token
		}
	}
	return ""
}

// addresses takes the addresses out of a field, however ill-formed.
func addresses(field string) []string {
	if list, err := netmail.ParseAddressList(field); err == nil {
		out := make([]string, len(list))
		for i, a := range list {
			out[i] = a.Address
		}
		return out
	}
	return strings.FieldsFunc(field, func(c rune) bool { return strings.ContainsRune(" \t\r\n<>,;\"", c) })
}

var messageIDs = pattern(`<?([^\s<>@]{1,200}@[^\s<>@]{1,200})>?`)

func messageID(field string) string {
	if m := messageIDs().FindStringSubmatch(field); m != nil {
		return "<" + m[1] + ">"
	}
	return ""
}

// unsubscribeToken finds our token in a List-Unsubscribe field: the last segment of a URL's path that follows /u/.
func unsubscribeToken(field string) string {
	for _, part := range strings.Split(field, ",") {
		u, err := url.Parse(strings.Trim(strings.TrimSpace(part), "<>"))
		if err != nil || u.Host == "" {
			continue
		}
		if at := strings.LastIndex(u.Path, "/u/"); at >= 0 {
			if token := strings.ToLower(u.Path[at+len("/u/"):]); isToken(token) {
				return token
			}
		}
	}
	return ""
}

// reportAddress reads rfc822;user@example.com, also without its type or in angle brackets. What is no address is left out.
func reportAddress(field string) string {
	if _, addr, typed := strings.Cut(field, ";"); typed {
		field = addr
	}
	field = strings.Trim(strings.TrimSpace(field), "<>")
	if CheckAddress(field) != nil {
		return ""
	}
	return field
}

func mtaName(field string) string {
	if _, name, typed := strings.Cut(field, ";"); typed {
		field = name
	}
	return clip(clean(field), 100)
}

func firstWord(s string) string {
	if f := strings.Fields(s); len(f) > 0 {
		return strings.TrimRight(f[0], ";,.(")
	}
	return ""
}
