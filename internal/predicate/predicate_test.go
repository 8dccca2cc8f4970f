package predicate_test

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// who has these fields is found by a naive reading of the language, in Go; and by SQL.
type person struct {
	id        int64
	email     *string
	created   time.Time
	fields    map[string]any
	tags      []string
	topics    map[string]string
	suppress  string
	segments  map[string]string // kept
	events    []happening
	mails     []mail
	journeys  map[string]string
	erased    bool
	forwarded bool
	scores    map[string]int64
	stage     string
}

type happening struct {
	kind, name string
	data       map[string]any
	at         time.Time
	verdict    string // of the hit behind a click, as it is now
}

type mail struct {
	state, email string
	at           time.Time
}

func fieldTypes() map[string]spec.FieldType {
	return map[string]spec.FieldType{
		"plan": spec.TypeText, "level": spec.TypeNumber, "vip": spec.TypeBoolean, "birthday": spec.TypeDate, "seen": spec.TypeDatetime,
		"likes": spec.TypeMultiselect, "country": spec.TypeCountry,
	}
}

// words and days are few, so that random predicates meet them.
func words() []string { return []string{"Free", "free", "paid", "Ünder", "a%b_c", `x\y`, "NO"} }

func zone() *time.Location {
	loc, err := time.LoadLocation("Europe/Paris")
	if err != nil {
		panic(err)
	}
	return loc
}

func drawDay(t *rapid.T) time.Time {
	around := rapid.SampledFrom([]string{"2026-11-24", "2027-02-28", "2024-02-29", "2026-03-29"}).Draw(t, "around")
	d, _ := time.Parse("2006-01-02", around)
	return d.AddDate(rapid.IntRange(-2, 1).Draw(t, "years"), 0, rapid.IntRange(-9, 9).Draw(t, "days"))
}

func drawInstant(t *rapid.T) time.Time {
	return drawDay(t).Add(time.Duration(rapid.SampledFrom([]int{0, 1, 720, 1379, 1380, 1439}).Draw(t, "minute")) * time.Minute)
}

func drawPerson(t *rapid.T) *person {
	p := &person{fields: map[string]any{}, topics: map[string]string{}, segments: map[string]string{}, journeys: map[string]string{}}
	has := func(what string) bool { return rapid.IntRange(0, 3).Draw(t, what) > 0 }
	if has("has email") {
		s := rapid.SampledFrom([]string{"ada@example.no", "bob@example.com", "x"}).Draw(t, "email")
		p.email = &s
	}
	p.created = drawInstant(t)
	if has("has plan") {
		p.fields["plan"] = rapid.SampledFrom(append(words(), "")).Draw(t, "plan")
	}
	if has("has level") {
		p.fields["level"] = rapid.SampledFrom([]any{0, 1, 5, json.Number("5.0"), 5.5, -3, "5", true, []int{5}}).Draw(t, "level")
	}
	if has("has vip") {
		p.fields["vip"] = rapid.SampledFrom([]any{true, false, "true"}).Draw(t, "vip")
	}
	if has("has birthday") {
		p.fields["birthday"] = rapid.SampledFrom([]any{drawDay(t).Format("2006-01-02"), "2026-02-30", "soon", "0000-01-01", 7}).Draw(t, "birthday")
	}
	if has("has seen") {
		p.fields["seen"] = rapid.SampledFrom([]any{
			drawInstant(t).Format(time.RFC3339), drawInstant(t).In(zone()).Format(time.RFC3339),
			"2026-02-30T00:00:00Z", "2026-11-24", "2026-11-24T00:00:00", "",
		}).Draw(t, "seen")
	}
	if has("has likes") {
		p.fields["likes"] = rapid.SampledFrom([]any{[]string{}, []string{"ski"}, []string{"Ski", "sail"}, []any{"sail", nil}, "ski"}).Draw(t, "likes")
	}
	if has("has country") {
		p.fields["country"] = rapid.SampledFrom([]string{"NO", "FR"}).Draw(t, "country")
	}
	p.scores = rapid.MapOf(rapid.SampledFrom([]string{"score", "fit", "other"}), rapid.Int64Range(-3, 6)).Draw(t, "scores")
	p.stage = rapid.SampledFrom([]string{"", "cold", "hot"}).Draw(t, "stage")
	p.tags = rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"VIP", "web", `Ü,"{b}\ `}), 0, 3, rapid.ID).Draw(t, "tags")
	for _, topic := range []string{"news", "offers"} {
		if s := rapid.SampledFrom([]string{"", "pending", "granted", "withdrawn"}).Draw(t, topic); s != "" {
			p.topics[topic] = s
		}
	}
	p.suppress = rapid.SampledFrom([]string{"", "", "complaint", "bounce", "over"}).Draw(t, "suppressed")
	if s := rapid.SampledFrom([]string{"no", "no", "", "in", "out"}).Draw(t, "member"); s != "no" {
		p.segments["partners"] = s
	}
	for range rapid.IntRange(0, 3).Draw(t, "events") {
		kind := rapid.SampledFrom([]string{"email.clicked", "order.placed", "page.viewed", "consent.granted", "tag.changed"}).Draw(t, "kind")
		h := happening{kind: kind, at: drawInstant(t)}
		switch kind {
		case "email.clicked":
			h.name = rapid.SampledFrom([]string{"welcome", "offer"}).Draw(t, "of")
			h.verdict = rapid.SampledFrom([]string{"human", "machine"}).Draw(t, "verdict")
		case "order.placed":
			h.kind, h.name = "event.tracked", kind
			h.data = map[string]any{"total": rapid.SampledFrom([]any{5, 99.5, 100, "100", nil}).Draw(t, "total"), "deep": map[string]any{"word": "Free"}}
			h.data["at"] = drawDay(t).Format("2006-01-02")
			if rapid.Bool().Draw(t, "at a time") {
				h.data["at"] = drawInstant(t).In(time.FixedZone("", rapid.SampledFrom([]int{-14, 0, 1, 14}).Draw(t, "offset")*3600)).Format(time.RFC3339)
			}
		case "page.viewed":
			h.data = map[string]any{"url": rapid.SampledFrom([]string{"https://example.com/pricing/x", "https://example.com/"}).Draw(t, "url")}
		}
		p.events = append(p.events, h)
	}
	for range rapid.IntRange(0, 2).Draw(t, "mails") {
		p.mails = append(p.mails, mail{
			rapid.SampledFrom([]string{"sent", "failed", "deferred"}).Draw(t, "outcome"),
			rapid.SampledFrom([]string{"welcome", "offer"}).Draw(t, "email"), drawInstant(t),
		})
	}
	if s := rapid.SampledFrom([]string{"", "active", "done", "goal", "left", "cancelled"}).Draw(t, "journey"); s != "" {
		p.journeys["onboarding"] = s
	}
	p.erased = rapid.IntRange(0, 9).Draw(t, "erased") == 0
	p.forwarded = rapid.IntRange(0, 9).Draw(t, "merged") == 0
	return p
}

// drawPredicate gives a predicate in the words of the language.
func drawPredicate(t *rapid.T, depth int) any {
	kinds := []string{"field", "field", "field", "field", "field", "tag", "stage", "topic", "reachable", "segment", "event", "event", "campaign", "sample"}
	if depth > 0 {
		kinds = append(kinds, "all", "any", "not", "not")
	}
	switch kind := rapid.SampledFrom(kinds).Draw(t, "predicate"); kind {
	case "all", "any":
		var list []any
		for range rapid.IntRange(1, 3).Draw(t, "n") {
			list = append(list, drawPredicate(t, depth-1))
		}
		return map[string]any{kind: list}
	case "not":
		return map[string]any{"not": drawPredicate(t, depth-1)}
	case "tag":
		return map[string]any{"tag": rapid.SampledFrom([]string{"vip", "Web", "none"}).Draw(t, "tag")}
	case "stage":
		return map[string]any{"stage": rapid.SampledFrom([]string{"hot", "none"}).Draw(t, "stage")}
	case "topic":
		return map[string]any{"topic": "news", "state": rapid.SampledFrom([]string{"subscribed", "pending", "unsubscribed", "never"}).Draw(t, "state")}
	case "reachable":
		return map[string]any{"reachable": rapid.SampledFrom([]string{"news", "offers"}).Draw(t, "topic")}
	case "segment":
		return map[string]any{"segment": rapid.SampledFrom([]string{"partners", "empty"}).Draw(t, "segment")}
	case "campaign":
		return map[string]any{"campaign": "onboarding", "state": rapid.SampledFrom([]string{"active", "done", "goal", "left", "never"}).Draw(t, "state")}
	case "sample":
		return map[string]any{"sample": rapid.SampledFrom([]any{0.5, 10, 50, 99, 100}).Draw(t, "percent"), "seed": rapid.SampledFrom([]string{"a", "b"}).Draw(t, "seed")}
	case "event":
		return drawEvent(t)
	}
	types := fieldTypes()
	types["email"], types["external_id"], types["created"], types["tags"] = spec.TypeText, spec.TypeText, spec.TypeDatetime, spec.TypeMultiselect
	types["score"], types["score.fit"] = spec.TypeNumber, spec.TypeNumber
	names := make([]string, 0, len(types))
	for n := range types {
		names = append(names, n)
	}
	slices.Sort(names)
	name := rapid.SampledFrom(names).Draw(t, "field")
	p := drawTest(t, types[name])
	p["field"] = name
	return p
}

func drawMoment(t *rapid.T) string {
	return rapid.SampledFrom([]string{
		"now", "today", "-30d", "+2h", "-1mo", drawDay(t).Format("2006-01-02"), drawInstant(t).Format("2006-01-02T15:04"), drawInstant(t).Format(time.RFC3339),
	}).Draw(t, "moment")
}

func drawDuration(t *rapid.T) string {
	return rapid.SampledFrom([]string{"1h", "3d", "1w", "5d12h", "1mo", "11mo", "1y", "2y"}).Draw(t, "duration")
}

func drawTest(t *rapid.T, typ spec.FieldType) map[string]any {
	var ops []spec.Op
	for _, op := range []spec.Op{
		spec.OpIs, spec.OpIsNot, spec.OpIn, spec.OpNotIn, spec.OpGt, spec.OpGte, spec.OpLt, spec.OpLte, spec.OpBetween, spec.OpContains, spec.OpStartsWith, spec.OpEndsWith,
		spec.OpMatches, spec.OpHasAny, spec.OpHasAll, spec.OpHasNone, spec.OpExists, spec.OpBefore, spec.OpAfter, spec.OpInLast, spec.OpInNext, spec.OpOlderThan, spec.OpYearly,
	} {
		if op.Fits(typ) {
			ops = append(ops, op)
		}
	}
	op := rapid.SampledFrom(ops).Draw(t, "op")
	value := func() any {
		switch typ {
		case spec.TypeNumber:
			return rapid.SampledFrom([]any{0, 1, 5, json.Number("5.00"), 5.5, -3, 0.1}).Draw(t, "number")
		case spec.TypeBoolean:
			return rapid.Bool().Draw(t, "boolean")
		case spec.TypeDate, spec.TypeDatetime:
			return drawMoment(t)
		case spec.TypeMultiselect:
			return rapid.SampledFrom([]string{"ski", "SAIL", "vip", "none", `ü,"{B}\ `}).Draw(t, "option")
		case spec.TypeCountry:
			return rapid.SampledFrom([]string{"NO", "fr"}).Draw(t, "country")
		default:
			return rapid.SampledFrom(append(words(), "ada", ".no", "@", "%", "ÜNDER")).Draw(t, "word")
		}
	}
	switch op {
	case spec.OpIn, spec.OpNotIn, spec.OpHasAny, spec.OpHasAll, spec.OpHasNone:
		list := []any{value(), value()}
		for n := rapid.SampledFrom([]int{0, 0, 30}).Draw(t, "more values"); n > 0; n-- { // of so many, SQL looks values up
			if op == spec.OpHasAll {
				list = append(list, list[n%2])
			} else {
				list = append(list, value())
			}
		}
		return map[string]any{string(op): list}
	case spec.OpBetween:
		a, b := value(), value()
		if typ == spec.TypeNumber && number(a).Cmp(number(b)) > 0 {
			a, b = b, a
		}
		if typ != spec.TypeNumber { // the order of absolute ones is checked
			a, b = drawDay(t).Format("2006-01-02"), "today"
		}
		return map[string]any{string(op): []any{a, b}}
	case spec.OpExists:
		return map[string]any{string(op): rapid.Bool().Draw(t, "exists")}
	case spec.OpInLast, spec.OpInNext, spec.OpOlderThan:
		return map[string]any{string(op): drawDuration(t)}
	case spec.OpYearly:
		return map[string]any{string(op): map[string]any{rapid.SampledFrom([]string{"inNext", "inLast"}).Draw(t, "yearly"): drawDuration(t)}}
	case spec.OpMatches:
		return map[string]any{string(op): rapid.SampledFrom([]string{"^f", "e$", "a.b", `\bfree\b`, "[^a-z]", "fr|no", "(?:e{2}|x)", `\\`, "ü"}).Draw(t, "re")}
	default:
		return map[string]any{string(op): value()}
	}
}

func drawEvent(t *rapid.T) map[string]any {
	e := map[string]any{"event": rapid.SampledFrom([]string{"email.clicked", "email.sent", "email.failed", "order.placed", "page.viewed", "consent.granted", "tag.changed"}).Draw(t, "event")}
	has := func(what string) bool { return rapid.Bool().Draw(t, what) }
	switch e["event"] {
	case "email.clicked", "email.sent", "email.failed":
		if has("of") {
			e["of"] = rapid.SampledFrom([]string{"welcome", "offer"}).Draw(t, "of")
		}
	case "page.viewed":
		if has("where") {
			e["where"] = map[string]any{"url": map[string]any{"startsWith": "https://example.com/PRICING"}}
		}
	case "order.placed":
		if has("where") {
			e["where"] = rapid.SampledFrom([]any{
				map[string]any{"total": map[string]any{"gte": 99}},
				map[string]any{"total": 100},
				map[string]any{"total": map[string]any{"isNot": 5}},
				map[string]any{"deep.word": "FREE"},
				map[string]any{"at": map[string]any{"inLast": "1y"}},
				map[string]any{"at": map[string]any{"yearly": map[string]any{"inNext": "1w"}}},
				map[string]any{"at": map[string]any{"yearly": map[string]any{"inLast": "3d"}}, "total": map[string]any{"exists": true}},
				map[string]any{"total": map[string]any{"in": []any{5, 7, "100"}}},
				map[string]any{"total": map[string]any{"notIn": manyNumbers()}},
				map[string]any{"deep.word": map[string]any{"in": append([]any{"free", 5}, manyNumbers()...)}},
				map[string]any{"none": map[string]any{"exists": false}},
				map[string]any{"total": map[string]any{"exists": true}, "at": map[string]any{"before": "2026-01-01"}},
			}).Draw(t, "properties")
		}
	}
	switch rapid.IntRange(0, 2).Draw(t, "when") {
	case 1:
		e["within"] = drawDuration(t)
	case 2:
		e["between"] = []any{drawDay(t).Format("2006-01-02"), "now"}
	}
	switch rapid.IntRange(0, 4).Draw(t, "count") {
	case 1:
		e["count"] = map[string]any{"gte": 2}
	case 2:
		e["count"] = 0
	case 3:
		e["count"] = map[string]any{"lt": 2}
	case 4:
		e["count"] = map[string]any{"between": []any{1, 2}}
	}
	return e
}

// manyNumbers are so many that SQL looks values up among them: 5 is one.
func manyNumbers() []any {
	list := []any{json.Number("5.0")}
	for n := range 30 {
		list = append(list, 1000+n)
	}
	return list
}

// The naive evaluator.
type naive struct {
	now time.Time
	loc *time.Location
}

func (n naive) eval(p *spec.Predicate, c *person) bool {
	switch {
	case len(p.All) > 0:
		for i := range p.All {
			if !n.eval(&p.All[i], c) {
				return false
			}
		}
		return true
	case len(p.Any) > 0:
		for i := range p.Any {
			if n.eval(&p.Any[i], c) {
				return true
			}
		}
		return false
	case p.Not != nil:
		return !n.eval(p.Not, c)
	case p.Tag != "":
		return slices.ContainsFunc(c.tags, func(t string) bool { return strings.EqualFold(t, p.Tag) })
	case p.Stage != "":
		return c.stage == p.Stage
	case p.Topic != nil:
		state := map[string]spec.TopicState{"": spec.StateNever, "granted": spec.StateSubscribed, "pending": spec.StatePending, "withdrawn": spec.StateUnsubscribed}
		return state[c.topics[p.Topic.Topic]] == p.Topic.State
	case p.Reachable != "":
		return !c.erased && !c.forwarded && c.email != nil && (c.suppress == "" || c.suppress == "over") && c.topics[p.Reachable] == "granted"
	case p.Segment != "":
		kept, ok := c.segments[p.Segment]
		return ok && kept != "out"
	case p.Campaign != nil:
		state, ok := c.journeys[p.Campaign.Campaign]
		if p.Campaign.State == spec.CampaignNever {
			return !ok
		}
		return state == string(p.Campaign.State)
	case p.Sample != nil:
		sum := md5.Sum([]byte(p.Sample.Seed + "/" + strconv.FormatInt(c.id, 10)))
		return float64(binary.BigEndian.Uint32(sum[:4])) < p.Sample.Percent/100*(1<<32)
	case p.Event != nil:
		return n.event(p.Event, c)
	}
	return n.field(p.Field, c)
}

func (n naive) event(e *spec.EventTest, c *person) bool {
	count := 0
	one := func(name string, at time.Time, data map[string]any) {
		if e.Of != "" && e.Of != name {
			return
		}
		if e.Within != nil && (at.Before(e.Within.Neg().AddTo(n.now, n.loc)) || at.After(n.now)) {
			return
		}
		if e.Between != nil {
			lo, _ := e.Between[0].Moment()
			hi, _ := e.Between[1].Moment()
			if at.Before(lo.In(n.now, n.loc)) || !n.upTo(at, hi) {
				return
			}
		}
		for _, p := range e.Where {
			var v any = data
			for _, step := range strings.Split(p.Name, ".") {
				m, _ := v.(map[string]any)
				v = m[step]
			}
			if !n.loose(v, p.Test) {
				return
			}
		}
		count++
	}
	if state, ok := strings.CutPrefix(e.Event, "email."); ok && state != "clicked" {
		for _, m := range c.mails {
			if m.state == state {
				one(m.email, m.at, nil)
			}
		}
	}
	for _, h := range c.events {
		if h.verdict == "machine" {
			continue
		}
		if h.kind == e.Event || h.kind == "event.tracked" && h.name == e.Event {
			name := h.name
			if h.kind == "event.tracked" {
				name = ""
			}
			one(name, h.at, h.data)
		}
	}
	return e.Count.Matches(float64(count))
}

func (n naive) upTo(at time.Time, m spec.Moment) bool {
	if m.WholeDay() {
		return at.Before(m.End(n.now, n.loc))
	}
	return !at.After(m.In(n.now, n.loc))
}

// loose tests a property, by the type of its value and of what it is compared with.
func (n naive) loose(v any, t spec.Test) bool {
	if t.Op == spec.OpIs || t.Op == spec.OpIsNot || t.Op == spec.OpIn || t.Op == spec.OpNotIn {
		text := ""
		if v != nil {
			text = fmt.Sprint(v)
		}
		_, isText := v.(string)
		same := slices.ContainsFunc(t.Values, func(w spec.Value) bool {
			return text != "" && strings.EqualFold(text, w.Text) || !isText && w.Kind == spec.NumberValue && number(v) != nil && number(v).Cmp(number(w.Text)) == 0
		})
		return same == (t.Op == spec.OpIs || t.Op == spec.OpIn)
	}
	if t.Op == spec.OpExists {
		return (v != nil && v != "") == t.Exists
	}
	if len(t.Values) > 0 && t.Values[0].Kind == spec.NumberValue {
		return n.number(v, t)
	}
	s, _ := v.(string)
	if t.Op == spec.OpStartsWith {
		return n.word(s, t)
	}
	if _, err := time.Parse("2006-01-02", s); err == nil {
		return n.date(s, t)
	}
	return n.instant(s, t)
}

func number(v any) *big.Rat {
	switch v.(type) {
	case bool, nil, []int:
		return nil
	}
	r, ok := new(big.Rat).SetString(fmt.Sprint(v))
	if !ok {
		return nil
	}
	return r
}

func (n naive) field(f *spec.FieldTest, c *person) bool {
	switch f.Field {
	case "email":
		if c.email == nil {
			return n.word("", f.Test)
		}
		return n.word(*c.email, f.Test)
	case "external_id":
		return n.word("x"+strconv.FormatInt(c.id, 10), f.Test)
	case "created":
		return n.instant(c.created.Format(time.RFC3339), f.Test)
	case "tags":
		return n.set(c.tags, f.Test)
	case "score": // what was never given is 0, and not missing
		return n.number(int(c.scores["score"]), f.Test)
	case "score.fit":
		return n.number(int(c.scores["fit"]), f.Test)
	}
	v := c.fields[f.Field]
	switch fieldTypes()[f.Field] {
	case spec.TypeNumber:
		if _, text := v.(string); text {
			v = nil
		}
		return n.number(v, f.Test)
	case spec.TypeBoolean:
		b, ok := v.(bool)
		switch f.Op {
		case spec.OpExists:
			return ok == f.Exists
		case spec.OpIs:
			return ok && b == f.Values[0].Bool
		default:
			return !ok || b != f.Values[0].Bool
		}
	case spec.TypeDate:
		s, _ := v.(string)
		return n.date(s, f.Test)
	case spec.TypeDatetime:
		s, _ := v.(string)
		return n.instant(s, f.Test)
	case spec.TypeMultiselect:
		var list []string
		switch v := v.(type) {
		case []string:
			list = v
		case []any:
			for _, e := range v {
				if s, ok := e.(string); ok {
					list = append(list, s)
				}
			}
		}
		return n.set(list, f.Test)
	default:
		s, _ := v.(string)
		return n.word(s, f.Test)
	}
}

func (n naive) number(v any, t spec.Test) bool {
	x := number(v)
	if x == nil {
		return t.Op == spec.OpIsNot || t.Op == spec.OpNotIn || t.Op == spec.OpExists && !t.Exists
	}
	cmp := func(i int) int { return x.Cmp(number(t.Values[i].Text)) }
	in := func() bool {
		return slices.ContainsFunc(t.Values, func(v spec.Value) bool { return x.Cmp(number(v.Text)) == 0 })
	}
	switch t.Op {
	case spec.OpExists:
		return t.Exists
	case spec.OpIs, spec.OpIn:
		return in()
	case spec.OpIsNot, spec.OpNotIn:
		return !in()
	case spec.OpGt:
		return cmp(0) > 0
	case spec.OpGte:
		return cmp(0) >= 0
	case spec.OpLt:
		return cmp(0) < 0
	case spec.OpLte:
		return cmp(0) <= 0
	case spec.OpBetween:
		return cmp(0) >= 0 && cmp(1) <= 0
	default:
		panic(t.Op)
	}
}

func (n naive) word(s string, t spec.Test) bool {
	in := s != "" && slices.ContainsFunc(t.Values, func(v spec.Value) bool { return strings.EqualFold(s, v.Text) })
	low := strings.ToLower
	switch t.Op {
	case spec.OpExists:
		return (s != "") == t.Exists
	case spec.OpIs, spec.OpIn:
		return in
	case spec.OpIsNot, spec.OpNotIn:
		return !in
	case spec.OpContains:
		return s != "" && strings.Contains(low(s), low(t.Values[0].Text))
	case spec.OpStartsWith:
		return s != "" && strings.HasPrefix(low(s), low(t.Values[0].Text))
	case spec.OpEndsWith:
		return s != "" && strings.HasSuffix(low(s), low(t.Values[0].Text))
	case spec.OpMatches:
		return s != "" && t.Pattern.MatchString(s)
	default:
		panic(t.Op)
	}
}

func (n naive) set(list []string, t spec.Test) bool {
	has := func(v spec.Value) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, v.Text) })
	}
	switch t.Op {
	case spec.OpExists:
		return (len(list) > 0) == t.Exists
	case spec.OpHasAny:
		return slices.ContainsFunc(t.Values, has)
	case spec.OpHasNone:
		return !slices.ContainsFunc(t.Values, has)
	case spec.OpHasAll:
		return !slices.ContainsFunc(t.Values, func(v spec.Value) bool { return !has(v) })
	default:
		panic(t.Op)
	}
}

func (n naive) date(s string, t spec.Test) bool {
	d, err := time.Parse("2006-01-02", s)
	if err != nil || d.Year() == 0 {
		return t.Op == spec.OpIsNot || t.Op == spec.OpNotIn || t.Op == spec.OpExists && !t.Exists
	}
	on := func(i int) time.Time {
		m, err := t.Values[i].Moment()
		if err != nil {
			panic(err)
		}
		return m.Date(n.now, n.loc)
	}
	day := func(x spec.Duration) time.Time {
		y, m, d := x.AddTo(n.now, n.loc).In(n.loc).Date()
		return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	}
	in := func() bool {
		for i := range t.Values {
			if on(i).Equal(d) {
				return true
			}
		}
		return false
	}
	between := func(a, b time.Time) bool { return !d.Before(a) && !d.After(b) }
	switch t.Op {
	case spec.OpExists:
		return t.Exists
	case spec.OpIs, spec.OpIn:
		return in()
	case spec.OpIsNot, spec.OpNotIn:
		return !in()
	case spec.OpGt, spec.OpAfter:
		return d.After(on(0))
	case spec.OpGte:
		return !d.Before(on(0))
	case spec.OpLt, spec.OpBefore:
		return d.Before(on(0))
	case spec.OpLte:
		return !d.After(on(0))
	case spec.OpBetween:
		return between(on(0), on(1))
	case spec.OpInLast:
		return between(day(t.Duration.Neg()), day(spec.Duration{}))
	case spec.OpInNext:
		return between(day(spec.Duration{}), day(t.Duration))
	case spec.OpOlderThan:
		return d.Before(day(t.Duration.Neg()))
	case spec.OpYearly:
		a, b := day(spec.Duration{}), day(t.Duration)
		if t.Yearly == spec.OpInLast {
			a, b = day(t.Duration.Neg()), a
		}
		for x := a; !x.After(b); x = x.AddDate(0, 0, 1) {
			if x.Month() == d.Month() && (x.Day() == d.Day() || d.Day() == 29 && d.Month() == 2 && x.Day() == 28 && x.AddDate(0, 0, 1).Day() == 1) {
				return true
			}
		}
		return false
	default:
		panic(t.Op)
	}
}

func (n naive) instant(s string, t spec.Test) bool {
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t.Op == spec.OpIsNot || t.Op == spec.OpNotIn || t.Op == spec.OpExists && !t.Exists
	}
	moment := func(i int) spec.Moment {
		m, err := t.Values[i].Moment()
		if err != nil {
			panic(err)
		}
		return m
	}
	from := func(i int) bool { return !at.Before(moment(i).In(n.now, n.loc)) }
	in := func() bool {
		for i := range t.Values {
			if from(i) && n.upTo(at, moment(i)) {
				return true
			}
		}
		return false
	}
	between := func(a, b time.Time) bool { return !at.Before(a) && !at.After(b) }
	switch t.Op {
	case spec.OpExists:
		return t.Exists
	case spec.OpIs, spec.OpIn:
		return in()
	case spec.OpIsNot, spec.OpNotIn:
		return !in()
	case spec.OpGt, spec.OpAfter:
		return !n.upTo(at, moment(0))
	case spec.OpGte:
		return from(0)
	case spec.OpLt, spec.OpBefore:
		return !from(0)
	case spec.OpLte:
		return n.upTo(at, moment(0))
	case spec.OpBetween:
		return from(0) && n.upTo(at, moment(1))
	case spec.OpInLast:
		return between(t.Duration.Neg().AddTo(n.now, n.loc), n.now)
	case spec.OpInNext:
		return between(n.now, t.Duration.AddTo(n.now, n.loc))
	case spec.OpOlderThan:
		return at.Before(t.Duration.Neg().AddTo(n.now, n.loc))
	case spec.OpYearly:
		return n.date(at.In(n.loc).Format("2006-01-02"), t)
	default:
		panic(t.Op)
	}
}

// store writes the people; the tables are those of the tenant.
func store(ctx context.Context, tx *postgres.Tx, people []*person) error {
	for _, sql := range []string{
		"INSERT INTO entity (kind, name) VALUES ('Segment', 'partners'), ('Campaign', 'onboarding'), ('Email', 'welcome'), ('Email', 'offer')",
		"INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}', '' FROM entity",
		"INSERT INTO run (kind, entity, document, state) SELECT 'campaign', d.entity, d.id, 'running' FROM document d ORDER BY d.id",
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	b := &pgx.Batch{}
	batch := 0
	for i, p := range people {
		p.id = int64(i + 1)
		fields, err := json.Marshal(p.fields)
		if err != nil {
			return err
		}
		var email *string
		if p.email != nil { // unique; the test adds to its end what no predicate asks for
			e := *p.email
			email = &e
		}
		b.Queue(`INSERT INTO contact (id, email, external_id, fields, tags, created_at, erased_at, merged_into, scores, stage) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4, $5, $6,
			CASE WHEN $7 THEN now() END, CASE WHEN $8 THEN 1::bigint END, $9, nullif($10, ''))`, p.id, email, fmt.Sprintf("x%d", p.id), fields, p.tags, p.created, p.erased, p.forwarded, p.scores, p.stage)
		for topic, state := range p.topics {
			b.Queue("INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, $2, $3, 0, now())", p.id, topic, state)
		}
		if p.suppress != "" {
			reason, until := p.suppress, time.Now().Add(time.Hour)
			if reason == "over" {
				reason, until = "bounce", time.Now().Add(-time.Hour)
			}
			b.Queue("INSERT INTO suppression (hash, reason, contact, until) VALUES ($1::text::bytea, $2, $3, $4)", fmt.Sprint(p.id), reason, p.id, until)
		}
		for segment, kept := range p.segments {
			b.Queue("INSERT INTO member (segment, contact, kept) SELECT id, $2, $3 FROM entity WHERE name = $1", segment, p.id, kept)
		}
		for _, h := range p.events {
			data, err := json.Marshal(h.data)
			if err != nil {
				return err
			}
			switch h.kind {
			case "email.clicked":
				b.Queue(`WITH h AS (INSERT INTO hit (kind, contact, verdict) VALUES ('click', $3, $5) RETURNING id)
					INSERT INTO fact (kind, name, contact, data, at) SELECT $1, $2, $3, jsonb_build_object('hit', id) || CASE WHEN $5 = 'machine' THEN '{"taken": true}'::jsonb ELSE '{}' END, $4 FROM h`, h.kind, h.name, p.id, h.at, h.verdict)
			case "tag.changed":
				b.Queue("INSERT INTO fact (kind, name, contacts, data, at) VALUES ($1, $2, ARRAY[$3::bigint], $4, $5)", h.kind, h.name, p.id, data, h.at)
			default:
				b.Queue("INSERT INTO fact (kind, name, contact, data, at) VALUES ($1, $2, $3, $4, $5)", h.kind, h.name, p.id, data, h.at)
			}
		}
		for _, m := range p.mails {
			batch++
			b.Queue(`INSERT INTO batch (id, run, email, contacts) SELECT $1, (SELECT min(id) FROM run), d.id, ARRAY[$3::bigint] FROM document d JOIN entity e ON e.id = d.entity WHERE e.name = $2`, batch, m.email, p.id)
			b.Queue("INSERT INTO delivery (id, contact, state, at) VALUES ($1, $2, $3, $4)", batch<<9|1, p.id, m.state, m.at)
		}
		for campaign, state := range p.journeys {
			b.Queue(`INSERT INTO journey (run, contact, document, state, step) SELECT r.id, $2, r.document, $3, '' FROM run r JOIN entity e ON e.id = r.entity WHERE e.name = $1`, campaign, p.id, state)
		}
	}
	return tx.SendBatch(ctx, b).Close()
}

// deep draws predicates of so many levels.
func deep(levels int) *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any { return drawPredicate(t, levels) })
}

// onPeople has a property hold of n predicates, each asked of at most so many people, who are stored, at a moment.
func onPeople(t *testing.T, most, n int, who *rapid.Generator[*person], predicates *rapid.Generator[any],
	holds func(ctx context.Context, t *rapid.T, tx *postgres.Tx, people []*person, now time.Time, source []byte, p *spec.Predicate) error,
) {
	t.Helper()
	d := pgtest.New(t)
	d.Own(t, "acme", "ALTER TABLE contact DROP CONSTRAINT contact_email_key")
	db := d.DB(t)
	rolledBack := errors.New("rolled back")
	rapid.Check(t, func(t *rapid.T) {
		people := rapid.SliceOfN(who, 1, most).Draw(t, "people")
		now := drawInstant(t).Add(17 * time.Hour)
		err := db.InTenant(context.Background(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
			if err := store(ctx, tx, people); err != nil {
				return err
			}
			for range n {
				source, err := json.Marshal(predicates.Draw(t, "predicate"))
				if err != nil {
					return fmt.Errorf("write a predicate: %w", err)
				}
				p, err := spec.ParsePredicate(string(source))
				if err != nil {
					return fmt.Errorf("%s: %w", source, err)
				}
				if err := holds(ctx, t, tx, people, now, source, p); err != nil {
					return err
				}
			}
			return rolledBack
		})
		if !errors.Is(err, rolledBack) {
			t.Fatal(err)
		}
	})
}

func TestSQLAgreesWithANaiveReading(t *testing.T) {
	t.Parallel()
	onPeople(t, 12, 25, rapid.Custom(drawPerson), deep(3), func(ctx context.Context, _ *rapid.T, tx *postgres.Tx, people []*person, now time.Time, source []byte, p *spec.Predicate) error {
		q, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now, First: 2})
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		rows, err := tx.Query(ctx, "SELECT c.id FROM contact c WHERE c.id > $1 AND "+q.SQL+" ORDER BY c.id", append([]any{0}, q.Args...)...)
		if err != nil {
			return err
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil {
			return fmt.Errorf("%s: %s: %w", source, q.SQL, err)
		}
		var want []int64
		for _, c := range people {
			if (naive{now, zone()}).eval(p, c) {
				want = append(want, c.id)
			}
		}
		if len(got)+len(want) > 0 && !cmp.Equal(got, want) {
			return fmt.Errorf("%s at %s: SQL gives %v, a naive reading %v: %s %v", source, now, got, want, q.SQL, q.Args)
		}
		return nil
	})
}

// Whether an expression matches, Postgres and Go say the same of every text.
func TestPatternsMeanTheSame(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	atom := rapid.SampledFrom([]string{
		"a", "B", "é", "K", "ß", "-", ".", `\.`, "[a-c]", "[^a]", `[\]\\-]`, `\d`, `\w`, `\W`, `\s`, `\pL`, "[[:upper:]]", "^", "$", `\b`, `\B`, "()", "(a|b)", "(?:ab)",
		"(?-i:A)", "(?s:.)", "(?m:^a$)", `\x41`, `\x{1F600}`, `\Qa+b\E`, " ", "_",
	})
	quantifier := rapid.SampledFrom([]string{"", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "+?"})
	piece := rapid.Custom(func(t *rapid.T) string { return "(?:" + atom.Draw(t, "atom") + ")" + quantifier.Draw(t, "quantifier") })
	pattern := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(piece, 1, 4).Draw(t, "pieces"), rapid.SampledFrom([]string{"", "", "|"}).Draw(t, "glue"))
	})
	text := rapid.StringOfN(rapid.SampledFrom([]rune("aAbBcKk\u212aéÉßẞ.-_ \n\\]5+x😀")), 1, 6, -1)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		rapid.Check(t, func(t *rapid.T) {
			re := pattern.Draw(t, "pattern")
			source, err := json.Marshal(map[string]any{"field": "word", "matches": re})
			if err != nil {
				t.Fatal(err)
			}
			p, err := spec.ParsePredicate(string(source))
			if err != nil {
				t.Fatalf("%s: %v", re, err)
			}
			q, err := predicate.Compile(p, predicate.Env{Fields: map[string]spec.FieldType{"word": spec.TypeText}, First: 2})
			if err != nil {
				t.Fatalf("%s: %v", re, err)
			}
			for range 8 {
				s := text.Draw(t, "text")
				row, err := json.Marshal(map[string]string{"word": s})
				if err != nil {
					t.Fatal(err)
				}
				var got bool
				if err := tx.QueryRow(ctx, "SELECT "+q.SQL+" FROM (SELECT $1::jsonb AS fields) c", append([]any{row}, q.Args...)...).Scan(&got); err != nil {
					t.Fatalf("%s: %v: %v", re, q.Args, err)
				}
				if want := p.Field.Pattern.MatchString(s); got != want {
					t.Fatalf("%q of %q: Postgres says %v, Go %v: %v", re, s, got, want, q.Args)
				}
			}
		})
		return nil
	})
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		`{field: gone, is: x}`:                                               `there is no field "gone"`,
		`{field: plan, matches: "(a{200}){5}"}`:                              "too large",
		`{field: plan, matches: "a{300}"}`:                                   "at most 255",
		`{field: level, contains: x}`:                                        "does not fit",
		`{not: {any: [{field: level, is: 1}, {field: gone, exists: true}]}}`: "no field",
	} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", source, err, want)
		}
	}
}

// Values never reach the SQL, however they are made.
func TestValuesAreParameters(t *testing.T) {
	t.Parallel()
	const evil = `x'; DROP TABLE contact; --`
	for _, p := range []spec.Predicate{
		{Field: &spec.FieldTest{Field: evil, Test: spec.Test{Op: spec.OpIs, Values: []spec.Value{{Text: evil}}}}},
		{Field: &spec.FieldTest{Field: evil, Test: spec.Test{Op: spec.OpMatches, Values: []spec.Value{{Text: evil}}}}},
		{Field: &spec.FieldTest{Field: evil, Test: spec.Test{Op: spec.OpIn, Values: []spec.Value{{Text: evil}, {Text: evil}}}}},
		{Tag: evil},
		{Stage: evil},
		{Topic: &spec.TopicTest{Topic: evil, State: spec.StateNever}},
		{Reachable: evil},
		{Segment: evil},
		{Event: &spec.EventTest{
			Event: evil, Of: evil, Where: []spec.Property{{Name: evil, Test: spec.Test{Op: spec.OpContains, Values: []spec.Value{{Text: evil}}}}},
			Count: spec.Test{Op: spec.OpGte, Values: []spec.Value{{Kind: spec.NumberValue, Text: "1", Number: 1}}},
		}},
		{Campaign: &spec.CampaignTest{Campaign: evil, State: spec.CampaignActive}},
		{Sample: &spec.SampleTest{Percent: 1, Seed: evil}},
	} {
		q, err := predicate.Compile(&p, predicate.Env{Fields: map[string]spec.FieldType{evil: spec.TypeText}})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(q.SQL, "DROP") || len(q.Args) == 0 {
			t.Errorf("%s", q.SQL)
		}
	}
}
