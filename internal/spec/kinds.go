package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/provider"
)

// Field is an attribute of contacts.
type Field struct {
	Meta
	Type            FieldType
	Options         []string // of select and multiselect
	Unique          bool     // no two contacts have the same value
	Personal        bool     // erased with the person, left out of what is shared
	VisitorWritable bool     // a form may write it
}

// Kind gives KindField.
func (*Field) Kind() string { return KindField }

// ValueType gives its type, for fieldvalue.
func (f *Field) ValueType() FieldType { return f.Type }

// Choices gives its options.
func (f *Field) Choices() []string { return f.Options }

// BuiltinFields are the fields that every contact has without a document:
// columns of the contact, its tags and its score. Scores of other groups are
// fields such as score.fit.
func BuiltinFields() []*Field {
	return []*Field{
		{Meta: Meta{Name: "email", Title: "Email"}, Type: TypeText, Unique: true, Personal: true, VisitorWritable: true},
		{Meta: Meta{Name: "external_id", Title: "External id"}, Type: TypeText, Unique: true},
		{Meta: Meta{Name: "created", Title: "Created"}, Type: TypeDatetime},
		{Meta: Meta{Name: "tags", Title: "Tags"}, Type: TypeMultiselect},
		{Meta: Meta{Name: MainScore, Title: "Score"}, Type: TypeNumber},
	}
}

// Two fields have a meaning of their own when a tenant has them: the contact's
// zone (Zone: contact) and language (which locale of an email is sent).
const (
	ZoneField   = "timezone" // of type timezone
	LocaleField = "locale"   // of type language
)

func builtinField(name string) (*Field, bool) {
	for _, f := range BuiltinFields() {
		if f.Name == name {
			return f, true
		}
	}
	if _, ok := ScoreGroup(name); ok {
		return &Field{Meta: Meta{Name: name, Title: name}, Type: TypeNumber}, true
	}
	return nil, false
}

func fieldKeys(o *object, f *Field) {
	get(o, "type", choice(FieldTypes()...), &f.Type, required)
	hasOptions := get(o, "options", list(optionRule(), 1), &f.Options, optional)
	get(o, "unique", boolean(), &f.Unique, optional)
	get(o, "personal", boolean(), &f.Personal, optional)
	get(o, "visitorWritable", boolean(), &f.VisitorWritable, optional)
	if o.n == nil {
		selects := []string{string(TypeSelect), string(TypeMultiselect)}
		o.rules = append(o.rules, schema{
			"if":   schema{"properties": schema{"type": schema{"enum": selects}}, "required": []string{"type"}},
			"then": schema{"required": []string{"options"}},
			"else": schema{"not": schema{"required": []string{"options"}}},
		})
	}
	o.check(func(d *decoder, n *node) {
		selects := f.Type == TypeSelect || f.Type == TypeMultiselect
		switch {
		case f.Type == "":
		case selects && n.get("options") == nil:
			d.fail(n.position, `"options" is missing: a %s needs them`, f.Type)
		case !selects && n.get("options") != nil:
			d.fail(n.at("options"), "a %s has no options", f.Type)
		}
		if hasOptions {
			for i, option := range f.Options {
				if slices.Contains(f.Options[:i], option) {
					d.fail(n.get("options").items[i].position, "%q is here twice", option)
				}
			}
		}
		if f.Unique && f.Type == TypeMultiselect {
			d.fail(n.at("unique"), "a multiselect cannot be unique")
		}
		if _, builtin := builtinField(f.Name); builtin || f.Name == "id" || f.Name == "first" || f.Name == "last" || f.Name == "size" {
			d.fail(n.position, "the name %q is taken: every contact has it, or templates do", f.Name)
		}
		switch {
		case f.Name == ZoneField && f.Type != TypeTimezone && f.Type != "":
			d.fail(n.at("type"), "the field %q is each contact's zone: its type is %s", f.Name, TypeTimezone)
		case f.Name == LocaleField && f.Type != TypeLanguage && f.Type != "":
			d.fail(n.at("type"), "the field %q is each contact's language: its type is %s", f.Name, TypeLanguage)
		}
	})
}

func optionRule() rule[string] {
	return scalar("an option: 1 to 100 characters", `^[^\s,]([^,\n]{0,98}[^\s,])?$`, asText)
}

// OptIn is how a contact subscribes to a topic.
type OptIn string

// The ways to subscribe.
const (
	OptInSingle OptIn = "single"
	OptInDouble OptIn = "double"
)

// Topic is what people subscribe to.
type Topic struct {
	Meta
	Titles       map[string]string // by language; may be empty
	Descriptions map[string]string
	Channel      string // email
	OptIn        OptIn  // double unless said otherwise
	Public       bool   // shown in the preference centre
}

// Kind gives KindTopic.
func (*Topic) Kind() string { return KindTopic }

// TitleIn gives the title in a language, else in its base language, else in
// fallback, else the title of the metadata, else the name.
func (t *Topic) TitleIn(locale, fallback string) string {
	for _, l := range append(localeChain(locale), localeChain(fallback)...) {
		if s := t.Titles[l]; s != "" {
			return s
		}
	}
	return t.DisplayTitle()
}

// DescriptionIn is TitleIn for the description, "" when there is none.
func (t *Topic) DescriptionIn(locale, fallback string) string {
	for _, l := range append(localeChain(locale), localeChain(fallback)...) {
		if s := t.Descriptions[l]; s != "" {
			return s
		}
	}
	return t.Description
}

func topicKeys(o *object, t *Topic) {
	byLanguage := dictionary(isLocale, localePattern, text())
	get(o, "title", byLanguage, &t.Titles, optional)
	get(o, "description", byLanguage, &t.Descriptions, optional)
	t.Channel, t.OptIn = "email", OptInDouble
	get(o, "channel", choice("email"), &t.Channel, optional)
	get(o, "optIn", choice(OptInSingle, OptInDouble), &t.OptIn, optional)
	get(o, "public", boolean(), &t.Public, optional)
}

// Segment is a set of contacts: those a predicate is true of, or a list kept by hand.
type Segment struct {
	Meta
	Where  *Predicate // nil for a manual one
	Manual bool
	In     []string // external ids or addresses that are members whatever Where says
	Out    []string // and those that never are
}

// Kind gives KindSegment.
func (*Segment) Kind() string { return KindSegment }

func segmentKeys(o *object, s *Segment) {
	var members string
	type keep struct{ in, out []string }
	var k keep
	get(o, "where", pointer(predicateRule()), &s.Where, optional)
	if get(o, "members", choice("manual"), &members, optional) {
		s.Manual = true
	}
	o.oneOf("where", "members")
	get(o, "keep", shape("keep", func(o *object, k *keep) {
		get(o, "in", list(text(), 0), &k.in, optional)
		get(o, "out", list(text(), 0), &k.out, optional)
	}), &k, optional)
	s.In, s.Out = k.in, k.out
	o.check(func(d *decoder, n *node) {
		for i, who := range s.Out {
			if slices.Contains(s.In, who) {
				d.fail(n.get("keep").get("out").items[i].position, "%q is both in and out", who)
			}
		}
		d.later(func(c *checker) { c.segmentCycle(s.Name, n.at("where")) })
	})
}

// Layout is the frame around the content of emails.
type Layout struct {
	Meta
	HTML Source // has {{ content }} in it; or MJML has
	MJML Source
	Text Source // may be empty: plain text goes without a frame
}

// Kind gives KindLayout.
func (*Layout) Kind() string { return KindLayout }

func layoutKeys(o *object, l *Layout) {
	get(o, "html", sourceRule(), &l.HTML, optional)
	get(o, "mjml", sourceRule(), &l.MJML, optional)
	o.oneOf("html", "mjml")
	get(o, "text", sourceRule(), &l.Text, optional)
	o.check(func(d *decoder, n *node) {
		for _, key := range []string{"html", "mjml", "text"} {
			if at := n.get(key); at != nil && at.kind == textNode {
				d.layoutTemplate(at, key)
			}
		}
	})
}

// Tracking is how much of opens and clicks is kept of a recipient.
type Tracking string

// The ways of tracking, of design section 8.
const (
	TrackFull      Tracking = "full"
	TrackAggregate Tracking = "aggregate"
	TrackNone      Tracking = "none"
)

// Cap is a limit to how many marketing mails a contact gets in a time.
type Cap struct {
	Count int
	Per   Duration
}

// Retention is how long things are kept. Zero is for ever.
type Retention struct {
	Deliveries  Duration
	Facts       Duration
	Hits        Duration
	Submissions Duration
	Visitors    Duration
}

// Settings are what holds for the whole tenant.
type Settings struct {
	Meta
	Zone       string   // IANA; UTC unless given
	Locale     string   // BCP 47; en unless given
	Tracking   Tracking // of contacts that have not said; aggregate unless given
	Retention  Retention
	Frequency  []Cap
	QuietHours *Window   // nothing of marketing is sent in it, by the contact's clock
	Pace       Pace      // of marketing
	Duplicates *Duration // the same version of an email goes to a contact once in this time; nil: as often as it is asked for
	Theme      Theme     // of visitors' pages
	Copy       string    // the transactional Email by which a person gets a copy of all that is stored of it; empty for none
	Scores     []ScoreRule
	Stages     []string // where contacts can stand; a step moves them
	WebOrigins []string // of the tenant's own site: links of mails that lead there say whose click it was
}

// Pace is how fast marketing mail goes out at most. A zero rate is no limit.
type Pace struct {
	Rate Rate // of all of it
	// Domains are by where mail goes: a domain, or one of the mailbox providers that package provider knows. Of both, that of the domain counts: see Of.
	Domains map[string]ReceiverPace
}

// ReceiverPace is how marketing mail goes to one place. Zero is no limit.
type ReceiverPace struct {
	Rate Rate
	// Connections is how many mails to there each process that sends has with the relay at once.
	Connections int
}

// Of gives what holds for a domain with a mailbox provider behind it, which may be empty, and the name that it stands under; empty where nothing does.
func (p Pace) Of(domain, provider string) (name string, of ReceiverPace) {
	for _, name := range []string{domain, provider} {
		if of, ok := p.Domains[name]; ok {
			return name, of
		}
	}
	return "", ReceiverPace{}
}

// receiverPaceRule is a rate, or an object with a rate and connections.
func receiverPaceRule() rule[ReceiverPace] {
	rate := rateRule()
	both := shape("receiverPace", func(o *object, p *ReceiverPace) {
		get(o, "rate", rateRule(), &p.Rate, optional)
		get(o, "connections", whole(1, 1000), &p.Connections, optional)
	})
	return rule[ReceiverPace]{
		read: func(d *decoder, n *node) (ReceiverPace, bool) {
			if n.kind == objectNode {
				return both.read(d, n)
			}
			r, ok := rate.read(d, n)
			return ReceiverPace{Rate: r}, ok
		},
		schema: func(b *schemaBuilder) schema { return schema{"anyOf": []any{rate.schema(b), both.schema(b)}} },
	}
}

// Kind gives KindSettings.
func (*Settings) Kind() string { return KindSettings }

// DefaultSettings are those of a tenant that has no document of them.
func DefaultSettings() *Settings {
	return &Settings{
		Meta: Meta{Name: "settings"}, Zone: "UTC", Locale: "en", Tracking: TrackAggregate,
		Retention: DefaultRetention(),
	}
}

// DefaultRetention is what holds where Settings says nothing.
func DefaultRetention() Retention {
	return Retention{
		Deliveries: Duration{Months: 24}, Facts: Duration{Months: 24}, Hits: Duration{Months: 13},
		Submissions: Duration{Months: 12}, Visitors: Duration{Days: 30},
	}
}

// Location gives the zone's location. The name was checked at apply.
func (s *Settings) Location() *time.Location { return locationOr(s.Zone, time.UTC) }

func locationOr(zone string, fallback *time.Location) *time.Location {
	if zone == "" {
		return fallback
	}
	loc, err := time.LoadLocation(zone)
	if err != nil || zone == "Local" {
		return fallback
	}
	return loc
}

func settingsKeys(o *object, s *Settings) {
	head := s.Meta
	*s = *DefaultSettings()
	s.Meta = head
	get(o, "zone", zoneName(), &s.Zone, optional)
	get(o, "locale", localeRule(), &s.Locale, optional)
	get(o, "tracking", choice(TrackFull, TrackAggregate, TrackNone), &s.Tracking, optional)
	get(o, "retention", shape("retention", func(o *object, r *Retention) {
		*r = DefaultRetention()
		get(o, "deliveries", durationRule(), &r.Deliveries, optional)
		get(o, "facts", durationRule(), &r.Facts, optional)
		get(o, "hits", durationRule(), &r.Hits, optional)
		get(o, "submissions", durationRule(), &r.Submissions, optional)
		get(o, "visitors", durationRule(), &r.Visitors, optional)
	}), &s.Retention, optional)
	get(o, "frequency", listOrOne(shape("cap", func(o *object, c *Cap) {
		get(o, "count", whole(1, 1000), &c.Count, required)
		get(o, "per", durationRule(), &c.Per, required)
	})), &s.Frequency, optional)
	get(o, "quietHours", pointer(windowRule()), &s.QuietHours, optional)
	get(o, "pace", shape("pace", func(o *object, p *Pace) {
		get(o, "rate", rateRule(), &p.Rate, optional)
		get(o, "domains", dictionary(isReceiver, receiverPattern, receiverPaceRule()), &p.Domains, optional)
	}), &s.Pace, optional)
	get(o, "duplicates", pointer(durationRule()), &s.Duplicates, optional)
	get(o, "theme", themeRule(), &s.Theme, optional)
	get(o, "privacy", shape("privacy", func(o *object, email *string) {
		get(o, "copy", reference(KindEmail), email, required)
	}), &s.Copy, optional)
	get(o, "scores", list(scoreRule(), 0), &s.Scores, optional)
	get(o, "stages", list(stageRule(), 1), &s.Stages, optional)
	get(o, "web", shape("web", func(o *object, origins *[]string) {
		get(o, "origins", list(siteRule(), 1), origins, required)
	}), &s.WebOrigins, optional)
	o.check(func(d *decoder, n *node) {
		if s.Duplicates != nil && s.Duplicates.Approx() > maxDuplicates {
			d.fail(n.get("duplicates").position, "what was sent is remembered for at most 60 days")
		}
		if at := n.get("privacy"); at != nil && s.Copy != "" {
			d.later(func(c *checker) { c.copyEmail(at.get("copy"), s.Copy) })
		}
		if s.Theme.Logo != "" && s.Title == "" {
			d.fail(n.get("theme").position, "with a logo the settings need a title in their metadata, for who does not see it")
		}
	})
}

// receiverPattern is a domain in ASCII, or the name of a mailbox provider.
const receiverPattern = `^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`

func isReceiver(d *decoder, p position, key string) bool {
	if provider.Known(key) || strings.Contains(key, ".") && compiled(receiverPattern).MatchString(key) {
		return true
	}
	d.fail(p, "not where mail goes: %q: write a domain in lower case such as gmail.com (xn-- for other alphabets), or a provider such as google", key)
	return false
}

// Broadcast is a campaign of one step: an email to all who are in a set at a time.
type Broadcast struct {
	Meta
	Email   string
	To      Predicate
	Exclude *Predicate
	At      *Moment   // nil: when it is started
	Zone    Zone      // in which At is read; the tenant's unless given
	Over    *Duration // it is spread evenly over this time, in which pauses do not count; nil: as fast as it goes
}

// Kind gives KindBroadcast.
func (*Broadcast) Kind() string { return KindBroadcast }

// ByOwnClock tells whether contacts get it at the same time by their own clocks, rather than at once.
func (b *Broadcast) ByOwnClock() bool { return b.Zone == ZoneContact && b.At != nil }

func broadcastKeys(o *object, b *Broadcast) {
	get(o, "email", reference(KindEmail), &b.Email, required)
	get(o, "to", predicateRule(), &b.To, required)
	get(o, "exclude", pointer(predicateRule()), &b.Exclude, optional)
	get(o, "at", absoluteRule(), &b.At, optional)
	get(o, "zone", zoneRule(), &b.Zone, optional)
	get(o, "over", pointer(durationRule()), &b.Over, optional)
	o.notYet("variants")
	o.check(func(d *decoder, n *node) {
		if b.Over != nil && b.Over.Approx() > maxOver {
			d.fail(n.get("over").position, "a broadcast is spread over at most 14 days")
		}
		if at := n.get("email"); at != nil && b.Email != "" {
			d.later(func(c *checker) { c.marketing(at, b.Email) })
		}
		if b.At != nil && b.At.day {
			d.fail(n.get("at").position, `the time of day is missing: write it as %sT09:00`, n.get("at").text)
		}
	})
}

// maxDuplicates bounds how far back a mail may be a duplicate: what was sent is kept for two months.
const maxDuplicates = 60 * 24 * time.Hour

// maxOver bounds how long a broadcast is spread.
const maxOver = 14 * 24 * time.Hour

const absolutePattern = `^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].+)?$`

// absoluteRule is a moment that does not move.
func absoluteRule() rule[*Moment] {
	return scalar("a date and time such as 2026-06-30T09:00", absolutePattern, func(s string) (*Moment, error) {
		m, err := ParseMoment(s)
		return &m, err
	})
}

// Zone is where clocks are read: "contact" (each contact's own, else the
// tenant's), a zone of the IANA database, or "" for the tenant's.
type Zone string

// ZoneContact is each contact's own zone.
const ZoneContact Zone = "contact"

func zoneRule() rule[Zone] {
	named := zoneName()
	return rule[Zone]{
		read: func(d *decoder, n *node) (Zone, bool) {
			if n.kind == textNode && n.text == string(ZoneContact) {
				return ZoneContact, true
			}
			if n.kind == textNode && n.text == "tenant" {
				return "", true
			}
			s, ok := named.read(d, n)
			return Zone(s), ok
		},
		schema: func(b *schemaBuilder) schema {
			return schema{"anyOf": []any{schema{"enum": []string{"contact", "tenant"}}, named.schema(b)}}
		},
	}
}

// Location gives the zone for a contact whose own zone is contact ("" when not known).
func (z Zone) Location(contact string, tenant *time.Location) *time.Location {
	switch z {
	case ZoneContact:
		return locationOr(contact, tenant)
	case "":
		return tenant
	}
	return locationOr(string(z), tenant)
}

// Rate is so many in a time.
type Rate struct {
	Count int
	Per   time.Duration
}

// PerSecond gives the rate as a number in a second; 0 for the zero rate.
func (r Rate) PerSecond() float64 {
	if r.Count == 0 {
		return 0
	}
	return float64(r.Count) / r.Per.Seconds()
}

const ratePattern = `^([1-9][0-9]{0,5})/([0-9]{0,4})(s|m|h|d)$`

// ParseRate reads a rate such as 50/s, 3/h or 10/15m.
func ParseRate(s string) (Rate, error) {
	m := compiled(ratePattern).FindStringSubmatch(s)
	if m == nil {
		return Rate{}, Problem{Msg: fmt.Sprintf("not a rate: %q: write it as 3/h or 10/15m", s)}
	}
	count, err := strconv.Atoi(m[1])
	if err != nil {
		return Rate{}, Problem{Msg: fmt.Sprintf("not a rate: %q", s)}
	}
	units := 1
	if m[2] != "" {
		if units, err = strconv.Atoi(m[2]); err != nil || units == 0 {
			return Rate{}, Problem{Msg: fmt.Sprintf("not a rate: %q: the time must be longer than 0", s)}
		}
	}
	unit := map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[m[3]]
	return Rate{Count: count, Per: time.Duration(units) * unit}, nil
}

func rateRule() rule[Rate] { return scalar("a rate such as 3/h", ratePattern, ParseRate) }
