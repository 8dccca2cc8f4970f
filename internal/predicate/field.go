package predicate

import (
	"fmt"
	"strings"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/spec"
)

// A value that is not of its field's type counts as missing: one contact's broken value must not fail a statement about all of them. These two say what can be
// cast without an error: a day of the calendar, and an instant with an offset (RFC 3339).
const (
	dateForm = `^(?:(?!0000)[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|` +
		`(?!0000)(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)`
	instantForm = dateForm + `[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:[Zz]|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])$`
)

func (c *compiler) field(t *spec.FieldTest) (string, error) {
	typ, ok := c.env.fieldType(t.Field)
	if !ok {
		return "", fmt.Errorf("there is no field %q", t.Field)
	}
	if !t.Op.Fits(typ) {
		return "", fmt.Errorf("%s does not fit the field %q, a %s", t.Op, t.Field, typ)
	}
	sql, err := c.typed(t, typ)
	if err != nil {
		return "", fmt.Errorf("field %s: %w", t.Field, err)
	}
	return sql, nil
}

func (c *compiler) typed(t *spec.FieldTest, typ spec.FieldType) (string, error) {
	switch t.Field {
	case "email":
		return c.words("c.email", t.Test)
	case "external_id":
		return c.words("c.external_id", t.Test)
	case "created":
		return c.instants("c.created_at", t.Test)
	case "tags":
		return c.set("(SELECT lower(e.v) FROM unnest(c.tags) e(v))", t.Test)
	}
	if group, ok := spec.ScoreGroup(t.Field); ok {
		if c.env.NoScores {
			return c.numbers("0", t.Test)
		}
		return c.numbers(contact.ScoreSQL("c", c.text(group)), t.Test)
	}
	name := c.text(t.Field)
	switch typ {
	case spec.TypeNumber:
		return c.numbers(asNumber("c.fields->"+name), t.Test)
	case spec.TypeBoolean:
		return c.booleans("(CASE WHEN jsonb_typeof(c.fields->"+name+") = 'boolean' THEN (c.fields->>"+name+")::boolean END)", t.Test)
	case spec.TypeDate:
		return c.dates(asDate("c.fields->>"+name), t.Test)
	case spec.TypeDatetime:
		return c.instants(asInstant("c.fields->>"+name), t.Test)
	case spec.TypeMultiselect:
		return c.set(elements("c.fields->"+name), t.Test)
	default:
		return c.words("nullif(c.fields->>"+name+", '')", t.Test)
	}
}

func asNumber(value string) string {
	return "(CASE WHEN jsonb_typeof(" + value + ") = 'number' THEN (" + value + ")::numeric END)"
}

// asLooseNumber also takes a number that was sent as text, as programs do with properties, which have no type. It is bounded, so that no text is too large a number.
func asLooseNumber(value, text string) string {
	return "(CASE jsonb_typeof(" + value + ") WHEN 'number' THEN (" + value + ")::numeric WHEN 'string' THEN CASE WHEN (" + text +
		") ~ '^-?[0-9]{1,30}([.][0-9]{1,30})?$' THEN (" + text + ")::numeric END END)"
}

// asDate stays text: in its one form it sorts as a date.
func asDate(text string) string {
	return "(CASE WHEN (" + text + ") ~ '" + dateForm + "$' THEN (" + text + ") END)"
}

func asInstant(text string) string {
	return "(CASE WHEN (" + text + ") ~ '" + instantForm + "' THEN (" + text + ")::timestamptz END)"
}

func elements(value string) string {
	return "(SELECT lower(e.v) FROM jsonb_array_elements_text(CASE WHEN jsonb_typeof(" + value + ") = 'array' THEN " + value + " ELSE '[]' END) e(v) WHERE e.v <> '')"
}

func known(sql string) string { return "coalesce(" + sql + ", false)" }

func not(sql string) string { return "(NOT " + sql + ")" }

// presence is exists, which all types have.
func presence(value string, t spec.Test) string {
	if t.Exists {
		return "(" + value + " IS NOT NULL)"
	}
	return "(" + value + " IS NULL)"
}

// words are tests of text, which ignore case.
func (c *compiler) words(value string, t spec.Test) (string, error) {
	one := func() string { return "lower(" + c.text(t.Values[0].Text) + ")" }
	switch t.Op {
	case spec.OpExists:
		return presence(value, t), nil
	case spec.OpIs:
		return known("lower(" + value + ") = " + one()), nil
	case spec.OpIsNot:
		return not(known("lower(" + value + ") = " + one())), nil
	case spec.OpIn:
		return known("lower(" + value + ") = ANY (" + c.lowered(t.Values) + ")"), nil
	case spec.OpNotIn:
		return not(known("lower(" + value + ") = ANY (" + c.lowered(t.Values) + ")")), nil
	case spec.OpContains:
		return known("position(" + one() + " IN lower(" + value + ")) > 0"), nil
	case spec.OpStartsWith:
		return known("starts_with(lower(" + value + "), " + one() + ")"), nil
	case spec.OpEndsWith:
		v := one()
		return known("right(lower(" + value + "), length(" + v + ")) = " + v), nil
	case spec.OpMatches:
		re, err := postgresPattern(t.Values[0].Text)
		if err != nil {
			return "", err
		}
		return known("left(" + value + ", 4096) ~ " + c.text(re)), nil
	default:
		return "", fmt.Errorf("%s does not fit text", t.Op)
	}
}

// lowered is a set of words in lower case.
func (c *compiler) lowered(values []spec.Value) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = v.Text
	}
	return "SELECT lower(v) FROM unnest(" + c.arg(words, "text[]") + ") v"
}

// numeric is a number as it was written, so that 0.1 is 0.1.
func (c *compiler) numeric(v spec.Value) string {
	// As text, since a parameter of type numeric would be rounded to what Go holds.
	return "(" + c.text(v.Text) + ")::numeric"
}

func comparison(op spec.Op) (string, bool) {
	s, ok := map[spec.Op]string{spec.OpGt: ">", spec.OpGte: ">=", spec.OpLt: "<", spec.OpLte: "<=", spec.OpAfter: ">", spec.OpBefore: "<"}[op]
	return s, ok
}

func (c *compiler) numbers(value string, t spec.Test) (string, error) {
	switch t.Op {
	case spec.OpExists:
		return presence(value, t), nil
	case spec.OpIs, spec.OpIn:
		return known(value + " IN (" + c.list(t.Values, c.numeric) + ")"), nil
	case spec.OpIsNot, spec.OpNotIn:
		return not(known(value + " IN (" + c.list(t.Values, c.numeric) + ")")), nil
	case spec.OpBetween:
		return known(value + " BETWEEN " + c.numeric(t.Values[0]) + " AND " + c.numeric(t.Values[1])), nil
	default:
		op, ok := comparison(t.Op)
		if !ok {
			return "", fmt.Errorf("%s does not fit numbers", t.Op)
		}
		return known(value + " " + op + " " + c.numeric(t.Values[0])), nil
	}
}

func (c *compiler) list(values []spec.Value, one func(spec.Value) string) string {
	parts := make([]string, len(values))
	for i, v := range values {
		parts[i] = one(v)
	}
	return strings.Join(parts, ", ")
}

func (c *compiler) booleans(value string, t spec.Test) (string, error) {
	switch t.Op {
	case spec.OpExists:
		return presence(value, t), nil
	case spec.OpIs:
		return known(value + " = " + c.arg(t.Values[0].Bool, "boolean")), nil
	case spec.OpIsNot:
		return not(known(value + " = " + c.arg(t.Values[0].Bool, "boolean"))), nil
	default:
		return "", fmt.Errorf("%s does not fit true and false", t.Op)
	}
}

// set are tests of a list, given as a subquery of its elements in lower case. An empty list is a missing one.
func (c *compiler) set(elements string, t spec.Test) (string, error) {
	has := func() string {
		return "EXISTS (SELECT FROM " + elements + " s(x) WHERE x = ANY (" + c.lowered(t.Values) + "))"
	}
	switch t.Op {
	case spec.OpExists:
		if t.Exists {
			return "EXISTS " + elements, nil
		}
		return not("EXISTS " + elements), nil
	case spec.OpHasAny:
		return has(), nil
	case spec.OpHasNone:
		return not(has()), nil
	case spec.OpHasAll:
		return "(NOT EXISTS (SELECT FROM (" + c.lowered(t.Values) + ") w(x) WHERE x NOT IN " + elements + "))", nil
	default:
		return "", fmt.Errorf("%s does not fit lists", t.Op)
	}
}
