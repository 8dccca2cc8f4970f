package segment

import (
	"context"
	"crypto/md5" //nolint:gosec // the language says so
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// oracle says who is in which segment by reading all rows there are and going by the words of the language, one person after the other. It is written apart from package predicate, of which it
// uses nothing, and knows no more operators than the segments of the property test have.
type oracle struct {
	now      time.Time
	zone     *time.Location
	types    map[string]spec.FieldType
	segments map[string]*spec.Segment // those in force
	people   map[int64]*somebody      // those who are no one else, and not erased
}

type somebody struct {
	id              int64
	email, external string
	stage           string
	created         time.Time
	fields          map[string]any
	tags            []string
	scores          map[string]float64
	topics          map[string]string
	suppressed      bool
	journeys        map[string][]string // their states, by campaign
	happened        []occurrence
}

type occurrence struct {
	kind, name string
	at         time.Time
	data       map[string]any
}

// readOracle reads a tenant's rows.
func readOracle(ctx context.Context, tx *postgres.Tx, zone *time.Location, types map[string]spec.FieldType) (*oracle, error) {
	o := &oracle{now: tx.Now(), zone: zone, types: types, segments: map[string]*spec.Segment{}, people: map[int64]*somebody{}}
	each := func(sql string, to []any, f func() error) error {
		rows, err := tx.Query(ctx, sql)
		if err == nil {
			_, err = pgx.ForEachRow(rows, to, f)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	}
	var id int64
	var a, b string
	var at time.Time
	var first, second []byte
	var ids []int64
	var tags []string
	var name string
	of := func(id int64, f func(p *somebody)) {
		if p := o.people[id]; p != nil {
			f(p)
		}
	}
	for _, read := range []error{
		each("SELECT e.name, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = 'Segment'", []any{&name, &first}, func() (err error) {
			o.segments[name], err = spec.DecodeAs[*spec.Segment](spec.KindSegment, first)
			return err
		}),
		each("SELECT id, coalesce(email, ''), coalesce(external_id, ''), coalesce(stage, ''), created_at, tags, fields, scores FROM contact WHERE erased_at IS NULL AND merged_into IS NULL",
			[]any{&id, &a, &b, &name, &at, &tags, &first, &second}, func() error {
				p := &somebody{id: id, email: a, external: b, stage: name, created: at, tags: slices.Clone(tags), topics: map[string]string{}, journeys: map[string][]string{}}
				o.people[id] = p
				if err := json.Unmarshal(first, &p.fields); err != nil {
					return err
				}
				return json.Unmarshal(second, &p.scores)
			}),
		each("SELECT contact, purpose, state FROM subscription", []any{&id, &a, &b}, func() error {
			of(id, func(p *somebody) { p.topics[a] = b })
			return nil
		}),
		each("SELECT contact, until FROM (SELECT contact, CASE WHEN until = 'infinity' THEN '9999-01-01' ELSE until END AS until FROM suppression WHERE contact IS NOT NULL AND channel = 'email') s",
			[]any{&id, &at}, func() error {
				of(id, func(p *somebody) { p.suppressed = p.suppressed || at.After(o.now) })
				return nil
			}),
		each("SELECT j.contact, e.name, j.state FROM journey j JOIN run r ON r.id = j.run JOIN entity e ON e.id = r.entity", []any{&id, &a, &b}, func() error {
			of(id, func(p *somebody) { p.journeys[a] = append(p.journeys[a], b) })
			return nil
		}),
		each("SELECT contact, state, at FROM delivery", []any{&id, &a, &at}, func() error {
			of(id, func(p *somebody) { p.happened = append(p.happened, occurrence{kind: "email." + a, at: at}) })
			return nil
		}),
		each("SELECT coalesce(contacts, ARRAY[contact]), kind, name, coalesce(data, '{}'), at FROM fact WHERE contact IS NOT NULL OR contacts IS NOT NULL", []any{&ids, &a, &b, &first, &at}, func() error {
			h := occurrence{kind: a, name: b, at: at}
			if json.Unmarshal(first, &h.data) != nil || h.data["taken"] != nil {
				return nil
			}
			for _, id := range ids {
				of(id, func(p *somebody) { p.happened = append(p.happened, h) })
			}
			return nil
		}),
	} {
		if read != nil {
			return nil, read
		}
	}
	return o, nil
}

// members of a segment, in order.
func (o *oracle) members(name string) (ids []int64) {
	for id, p := range o.people {
		if o.in(name, p) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (o *oracle) in(name string, p *somebody) bool {
	s := o.segments[name]
	if s == nil {
		return false
	}
	listed := func(who []string) bool {
		return slices.ContainsFunc(who, func(w string) bool { return w == p.external || p.email != "" && strings.EqualFold(w, p.email) })
	}
	return !listed(s.Out) && (listed(s.In) || s.Where != nil && o.is(s.Where, p))
}

func (o *oracle) is(q *spec.Predicate, p *somebody) bool {
	switch {
	case q.All != nil:
		for i := range q.All {
			if !o.is(&q.All[i], p) {
				return false
			}
		}
		return true
	case q.Any != nil:
		for i := range q.Any {
			if o.is(&q.Any[i], p) {
				return true
			}
		}
		return false
	case q.Not != nil:
		return !o.is(q.Not, p)
	case q.Field != nil:
		return o.field(q.Field, p)
	case q.Tag != "":
		return slices.ContainsFunc(p.tags, func(t string) bool { return strings.EqualFold(t, q.Tag) })
	case q.Stage != "":
		return p.stage == q.Stage
	case q.Topic != nil:
		return p.topics[q.Topic.Topic] == map[spec.TopicState]string{spec.StateSubscribed: "granted", spec.StatePending: "pending", spec.StateUnsubscribed: "withdrawn", spec.StateNever: ""}[q.Topic.State]
	case q.Reachable != "":
		return p.email != "" && !p.suppressed && p.topics[q.Reachable] == "granted"
	case q.Segment != "":
		return o.in(q.Segment, p)
	case q.Event != nil:
		return o.event(q.Event, p)
	case q.Campaign != nil:
		states := p.journeys[q.Campaign.Campaign]
		if q.Campaign.State == spec.CampaignNever {
			return len(states) == 0
		}
		return slices.Contains(states, string(q.Campaign.State))
	case q.Sample != nil:
		sum := md5.Sum(fmt.Appendf(nil, "%s/%d", q.Sample.Seed, p.id)) //nolint:gosec // the language says so
		return float64(binary.BigEndian.Uint32(sum[:4])) < q.Sample.Percent/100*(1<<32)
	}
	panic(fmt.Sprintf("%+v", q))
}

// lacking is what tests say of a value that is missing.
func lacking(t spec.Test) bool {
	return t.Op == spec.OpIsNot || t.Op == spec.OpNotIn || t.Op == spec.OpHasNone || t.Op == spec.OpExists && !t.Exists
}

func (o *oracle) field(t *spec.FieldTest, p *somebody) bool {
	value, typ := p.fields[t.Field], o.types[t.Field]
	switch {
	case t.Field == "email":
		value, typ = p.email, spec.TypeText
	case t.Field == "created":
		return o.instant(p.created, t.Test)
	case t.Field == "tags":
		value, typ = p.tags, spec.TypeMultiselect
	case t.Field == "score":
		value, typ = p.scores["score"], spec.TypeNumber
	case strings.HasPrefix(t.Field, "score."):
		value, typ = p.scores[strings.TrimPrefix(t.Field, "score.")], spec.TypeNumber
	}
	switch typ {
	case spec.TypeNumber:
		n, ok := value.(float64)
		return o.known(t.Test, ok, func() bool { return number(n, t.Test) })
	case spec.TypeBoolean:
		is, ok := value.(bool)
		return o.known(t.Test, ok, func() bool { return (is == t.Values[0].Bool) == (t.Op == spec.OpIs) })
	case spec.TypeMultiselect:
		var list []string
		switch v := value.(type) {
		case []string:
			list = v
		case []any:
			for _, x := range v {
				list = append(list, x.(string))
			}
		}
		return o.known(t.Test, len(list) > 0, func() bool { return among(list, t.Test) })
	case spec.TypeDate:
		s, _ := value.(string)
		d, err := time.ParseInLocation(time.DateOnly, s, time.UTC)
		return o.known(t.Test, err == nil, func() bool { return o.date(d, t.Test) })
	case spec.TypeDatetime:
		s, _ := value.(string)
		at, err := time.Parse(time.RFC3339, s)
		return o.known(t.Test, err == nil, func() bool { return o.instant(at, t.Test) })
	default:
		s, _ := value.(string)
		return o.known(t.Test, s != "", func() bool { return text(s, t.Test) })
	}
}

func (o *oracle) known(t spec.Test, is bool, says func() bool) bool {
	switch {
	case !is:
		return lacking(t)
	case t.Op == spec.OpExists:
		return t.Exists
	}
	return says()
}

func number(n float64, t spec.Test) bool {
	a := t.Values[0].Number
	switch t.Op {
	case spec.OpIs:
		return n == a
	case spec.OpIsNot:
		return n != a
	case spec.OpGt:
		return n > a
	case spec.OpGte:
		return n >= a
	case spec.OpLt:
		return n < a
	case spec.OpLte:
		return n <= a
	case spec.OpBetween:
		return n >= a && n <= t.Values[1].Number
	default:
		panic(t.Op)
	}
}

func text(s string, t spec.Test) bool {
	is := func(v spec.Value) bool { return strings.EqualFold(s, v.Text) }
	low, first := strings.ToLower(s), ""
	if len(t.Values) > 0 {
		first = strings.ToLower(t.Values[0].Text)
	}
	switch t.Op {
	case spec.OpIs, spec.OpIn:
		return slices.ContainsFunc(t.Values, is)
	case spec.OpIsNot, spec.OpNotIn:
		return !slices.ContainsFunc(t.Values, is)
	case spec.OpContains:
		return strings.Contains(low, first)
	case spec.OpStartsWith:
		return strings.HasPrefix(low, first)
	case spec.OpEndsWith:
		return strings.HasSuffix(low, first)
	case spec.OpMatches:
		return t.Pattern.MatchString(s)
	default:
		panic(t.Op)
	}
}

func among(list []string, t spec.Test) bool {
	n := 0
	for _, v := range t.Values {
		if slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, v.Text) }) {
			n++
		}
	}
	switch t.Op {
	case spec.OpHasAny:
		return n > 0
	case spec.OpHasAll:
		return n == len(t.Values)
	case spec.OpHasNone:
		return n == 0
	default:
		panic(t.Op)
	}
}

// ago is so long before now, by the clocks of the zone; ahead so long after it.
func (o *oracle) ago(d spec.Duration) time.Time   { return d.Neg().AddTo(o.now, o.zone) }
func (o *oracle) ahead(d spec.Duration) time.Time { return d.AddTo(o.now, o.zone) }

func within(at, from, to time.Time) bool { return !at.Before(from) && !at.After(to) }

// dayOf is the day that it is in the zone, as a date without one.
func (o *oracle) dayOf(at time.Time) time.Time {
	y, m, d := at.In(o.zone).Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

// span is what a value of a document stands for: an instant, or a whole day in the zone.
func (o *oracle) span(v spec.Value) (from, to time.Time) {
	m, err := v.Moment()
	if err != nil {
		panic(err)
	}
	from = m.In(o.now, o.zone)
	if !m.WholeDay() {
		return from, from
	}
	y, mo, d := from.In(o.zone).Date()
	return from, time.Date(y, mo, d+1, 0, 0, 0, 0, o.zone).Add(-time.Microsecond)
}

func (o *oracle) date(d time.Time, t spec.Test) bool {
	day := func(i int) time.Time {
		from, _ := o.span(t.Values[i])
		return o.dayOf(from)
	}
	today := o.dayOf(o.now)
	switch t.Op {
	case spec.OpBefore:
		return d.Before(day(0))
	case spec.OpAfter:
		return d.After(day(0))
	case spec.OpBetween:
		return within(d, day(0), day(1))
	case spec.OpInLast:
		return within(d, o.dayOf(o.ago(t.Duration)), today)
	case spec.OpInNext:
		return within(d, today, o.dayOf(o.ahead(t.Duration)))
	case spec.OpOlderThan:
		return d.Before(o.dayOf(o.ago(t.Duration)))
	case spec.OpYearly:
		from, to := today, o.dayOf(o.ahead(t.Duration))
		if t.Yearly == spec.OpInLast {
			from, to = o.dayOf(o.ago(t.Duration)), today
		}
		for on := from; !on.After(to); on = on.AddDate(0, 0, 1) {
			leapless := on.Month() == time.February && on.Day() == 28 && on.AddDate(0, 0, 1).Day() == 1
			if on.Month() == d.Month() && (on.Day() == d.Day() || leapless && d.Day() == 29) {
				return true
			}
		}
		return false
	default:
		panic(t.Op)
	}
}

func (o *oracle) instant(at time.Time, t spec.Test) bool {
	switch t.Op {
	case spec.OpInLast:
		return within(at, o.ago(t.Duration), o.now)
	case spec.OpInNext:
		return within(at, o.now, o.ahead(t.Duration))
	case spec.OpOlderThan:
		return at.Before(o.ago(t.Duration))
	case spec.OpYearly:
		return o.date(o.dayOf(at), t)
	default:
	}
	from, to := o.span(t.Values[0])
	switch t.Op {
	case spec.OpBefore:
		return at.Before(from)
	case spec.OpAfter:
		return at.After(to)
	case spec.OpBetween:
		_, end := o.span(t.Values[1])
		return within(at, from, end)
	default:
		panic(t.Op)
	}
}

// event counts what happened.
func (o *oracle) event(t *spec.EventTest, p *somebody) bool {
	n := 0
	for _, h := range p.happened {
		kind, name := h.kind, h.name
		if kind == "event.tracked" {
			kind, name = name, ""
		}
		if kind != t.Event || t.Of != "" && name != t.Of {
			continue
		}
		if t.Within != nil && !within(h.at, o.ago(*t.Within), o.now) {
			continue
		}
		if t.Between != nil {
			from, _ := o.span(t.Between[0])
			if _, to := o.span(t.Between[1]); !within(h.at, from, to) {
				continue
			}
		}
		if slices.ContainsFunc(t.Where, func(w spec.Property) bool { return !property(h.data[w.Name], w.Test) }) {
			continue
		}
		n++
	}
	return number(float64(n), t.Count)
}

func property(v any, t spec.Test) bool {
	switch v := v.(type) {
	case float64:
		return number(v, t)
	case string:
		return text(v, t)
	}
	return lacking(t)
}
