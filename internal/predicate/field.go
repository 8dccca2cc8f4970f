package predicate

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/spec"
)

// A value that is not of its field's type counts as missing: one contact's broken value must not fail a statement about all of them. These say what can be
// cast without an error: a day of the calendar, and an instant with an offset (RFC 3339).
const (
	dateForm = `^(?:(?!0000)[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|` +
		`(?!0000)(?:[0-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)`
	instantForm = dateForm + `[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:[Zz]|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])$`
)

func (c *compiler) field(t *spec.FieldTest, is bool) (string, error) {
	typ, ok := c.env.fieldType(t.Field)
	if !ok {
		return "", fmt.Errorf("there is no field %q", t.Field)
	}
	if !t.Op.Fits(typ) {
		return "", fmt.Errorf("%s does not fit the field %q, a %s", t.Op, t.Field, typ)
	}
	test, same := positive(t.Test)
	sql, err := c.typed(t.Field, test, typ)
	if err != nil {
		return "", fmt.Errorf("field %s: %w", t.Field, err)
	}
	return unless(sql, is == same), nil
}

// positive gives the test that a missing value fails, and whether it is the same as t or its opposite.
func positive(t spec.Test) (test spec.Test, same bool) {
	switch {
	case t.Op == spec.OpIsNot:
		t.Op = spec.OpIs
	case t.Op == spec.OpNotIn:
		t.Op = spec.OpIn
	case t.Op == spec.OpHasNone:
		t.Op = spec.OpHasAny
	case t.Op == spec.OpExists && !t.Exists:
		t.Exists = true
	default:
		return t, true
	}
	return t, false
}

// typed is a positive test.
func (c *compiler) typed(field string, t spec.Test, typ spec.FieldType) (string, error) {
	switch field {
	case "email":
		return c.words("c.email", t)
	case "external_id":
		return c.words("c.external_id", t)
	case "created":
		return c.instants("c.created_at", t)
	case "tags":
		return c.tags(t)
	}
	if group, ok := spec.ScoreGroup(field); ok {
		if c.env.NoScores {
			return c.numbers("0", t)
		}
		return c.numbers(contact.ScoreSQL("c", c.text(group)), t)
	}
	switch typ {
	case spec.TypeNumber:
		if t.Op == spec.OpExists {
			return "(jsonb_typeof(c.fields->" + c.text(field) + ") = 'number')", nil
		}
		return c.scalars(field, t, typ)
	case spec.TypeBoolean:
		if t.Op == spec.OpExists {
			return "(jsonb_typeof(c.fields->" + c.text(field) + ") = 'boolean')", nil
		}
		return c.scalars(field, t, typ)
	case spec.TypeDate:
		return c.days(field, t)
	case spec.TypeDatetime:
		return c.times(field, t)
	case spec.TypeMultiselect:
		return c.set(elements("c.fields->"+c.text(field)), t)
	default:
		return c.words("c.fields->>"+c.text(field), t)
	}
}

// path is an SQL/JSON path to a field.
func path(field string) string {
	name, _ := json.Marshal(field) // of a string it cannot fail
	return "$." + string(name)
}

var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// scalars compares a number, or true and false, by an SQL/JSON path, which raises no error whatever value is there. It is strict: a list is not taken for what is in it.
func (c *compiler) scalars(field string, t spec.Test, typ spec.FieldType) (string, error) {
	compare := func(op string, v spec.Value) (string, error) {
		literal := v.Text
		switch {
		case typ == spec.TypeBoolean:
			literal = strconv.FormatBool(v.Bool)
		case !jsonNumber.MatchString(literal):
			return "", fmt.Errorf("%q is not a number", literal)
		}
		return path(field) + " " + op + " " + literal, nil
	}
	ops, by := []string{"=="}, " || "
	switch t.Op {
	case spec.OpIs, spec.OpIn:
	case spec.OpBetween:
		ops, by = []string{">=", "<="}, " && "
	default:
		op, ok := comparison(t.Op)
		if !ok {
			return "", fmt.Errorf("%s does not fit numbers", t.Op)
		}
		ops[0] = op
	}
	parts := make([]string, len(t.Values))
	for i, v := range t.Values {
		var err error
		if parts[i], err = compare(ops[min(i, len(ops)-1)], v); err != nil {
			return "", err
		}
	}
	if ops[0] == "==" && len(parts) > manyValues { // JSON knows 5 and 5.0 as equal, and no text or list as a number
		return c.lookedUp("c.fields->"+c.text(field), "w::jsonb", texts(t.Values)), nil
	}
	sql := "c.fields @@ " + c.arg("strict "+strings.Join(parts, by), "jsonpath")
	if typ == spec.TypeNumber && ops[0] == "==" {
		return "(" + sql + ")", nil
	}
	return "coalesce(" + sql + ", false)", nil // Postgres takes @@ for rare, and coalesce for an even chance
}

func asNumber(value string) string {
	return "(CASE WHEN jsonb_typeof(" + value + ") = 'number' THEN (" + value + ")::numeric END)"
}

// asLooseNumber also takes a number that was sent as text, as programs do with properties, which have no type. It is bounded, so that no text is too large a number.
func asLooseNumber(value, text string) string {
	return "(CASE jsonb_typeof(" + value + ") WHEN 'number' THEN (" + value + ")::numeric WHEN 'string' THEN CASE WHEN (" + text +
		") ~ '^-?[0-9]{1,30}([.][0-9]{1,30})?$' THEN (" + text + ")::numeric END END)"
}

func elements(value string) string {
	return "(SELECT lower(e.v) FROM jsonb_array_elements_text(CASE WHEN jsonb_typeof(" + value + ") = 'array' THEN " + value + " ELSE '[]' END) e(v) WHERE e.v <> '')"
}

// words are tests of text, which ignore case. An empty text is a missing one.
func (c *compiler) words(value string, t spec.Test) (string, error) {
	one := func() string { return "lower(" + c.text(t.Values[0].Text) + ")" }
	switch t.Op {
	case spec.OpExists:
		return "(" + value + " <> '')", nil
	case spec.OpIs, spec.OpIn:
		if len(t.Values) > manyValues {
			return c.lookedUp("lower("+value+")", "lower(w)", texts(t.Values)), nil
		}
		words := c.lowered(t.Values)
		if words == "" {
			return "false", nil
		}
		return "(lower(" + value + ") IN (" + words + "))", nil
	case spec.OpContains:
		return "(position(" + one() + " IN lower(" + value + ")) > 0)", nil
	case spec.OpStartsWith:
		return "starts_with(lower(" + value + "), " + one() + ")", nil
	case spec.OpEndsWith:
		v := one()
		return "(right(lower(" + value + "), length(" + v + ")) = " + v + ")", nil
	case spec.OpMatches:
		re, err := postgresPattern(t.Values[0].Text)
		if err != nil {
			return "", err
		}
		return "(" + value + " <> '' AND left(" + value + ", 4096) ~ " + c.text(re) + ")", nil
	default:
		return "", fmt.Errorf("%s does not fit text", t.Op)
	}
}

// manyValues are so many that they are looked up: each of a list is compared, and made lower, once for each contact.
const manyValues = 20

// lookedUp is a condition that is never NULL: a value is among those of a list, each of which is made of a text w by an expression. IS TRUE has Postgres keep the list
// hashed for all contacts, where it would make a join of IN, which hashes it for each contact anew inside of another subquery.
func (c *compiler) lookedUp(value, of string, list []string) string {
	return "((" + value + " IN (SELECT " + of + " FROM unnest(" + c.arg(list, "text[]") + ") w)) IS TRUE)"
}

// texts are those of values, without the empty one, which is nobody's value.
func texts(values []spec.Value) []string {
	out := make([]string, 0, len(values))
	for _, v := range values {
		if v.Text != "" {
			out = append(out, v.Text)
		}
	}
	return out
}

// lowered is a list of words in lower case, as Postgres makes it; without the empty one, which is nobody's value.
func (c *compiler) lowered(values []spec.Value) string {
	var parts []string
	for _, v := range values {
		if v.Text != "" {
			parts = append(parts, "lower("+c.text(v.Text)+")")
		}
	}
	return strings.Join(parts, ", ")
}

// loweredTags are a contact's tags in lower case.
const loweredTags = "lower(c.tags::text)::text[]"

// tagged is a condition that is never NULL: the contact has one of the tags.
func (c *compiler) tagged(tags []spec.Value) string {
	if len(tags) > manyValues {
		return "c.tags <> '{}' AND EXISTS (SELECT FROM unnest(" + loweredTags + ") x WHERE " + c.lookedUp("x", "lower(w)", texts(tags)) + ")"
	}
	return "c.tags <> '{}' AND " + loweredTags + " && ARRAY[" + c.lowered(tags) + "]::text[]"
}

// allOf is a condition that all of many words are among elements x of a FROM item.
func (c *compiler) allOf(from string, words []spec.Value) string {
	list := texts(words)
	return "((SELECT count(DISTINCT x) FROM " + from + " WHERE " + c.lookedUp("x", "lower(w)", list) + ") = (SELECT count(DISTINCT lower(w)) FROM unnest(" + c.arg(list, "text[]") + ") w))"
}

func (c *compiler) tags(t spec.Test) (string, error) {
	switch t.Op {
	case spec.OpExists:
		return "(c.tags <> '{}')", nil
	case spec.OpHasAny:
		return "(" + c.tagged(t.Values) + ")", nil
	case spec.OpHasAll:
		if len(t.Values) > manyValues {
			return "(c.tags <> '{}' AND " + c.allOf("unnest("+loweredTags+") x", t.Values) + ")", nil
		}
		return "(c.tags <> '{}' AND " + loweredTags + " @> ARRAY[" + c.lowered(t.Values) + "]::text[])", nil
	default:
		return "", fmt.Errorf("%s does not fit lists", t.Op)
	}
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
	for _, v := range t.Values {
		if !jsonNumber.MatchString(v.Text) {
			return "", fmt.Errorf("%q is not a number", v.Text)
		}
	}
	switch t.Op {
	case spec.OpExists:
		return "(" + value + " IS NOT NULL)", nil
	case spec.OpIs, spec.OpIn:
		if len(t.Values) > manyValues {
			return c.lookedUp(value, "w::numeric", texts(t.Values)), nil
		}
		parts := make([]string, len(t.Values))
		for i, v := range t.Values {
			parts[i] = c.numeric(v)
		}
		return "(" + value + " IN (" + strings.Join(parts, ", ") + "))", nil
	case spec.OpBetween:
		return "(" + value + " BETWEEN " + c.numeric(t.Values[0]) + " AND " + c.numeric(t.Values[1]) + ")", nil
	default:
		op, ok := comparison(t.Op)
		if !ok {
			return "", fmt.Errorf("%s does not fit numbers", t.Op)
		}
		return "(" + value + " " + op + " " + c.numeric(t.Values[0]) + ")", nil
	}
}

// set are tests of a list, given as a subquery of its elements in lower case. An empty list is a missing one.
func (c *compiler) set(elements string, t spec.Test) (string, error) {
	switch t.Op {
	case spec.OpExists:
		return "EXISTS " + elements, nil
	case spec.OpHasAny:
		if len(t.Values) > manyValues {
			return "EXISTS (SELECT FROM " + elements + " s(x) WHERE " + c.lookedUp("x", "lower(w)", texts(t.Values)) + ")", nil
		}
		return "EXISTS (SELECT FROM " + elements + " s(x) WHERE x IN (" + c.lowered(t.Values) + "))", nil
	case spec.OpHasAll:
		if len(t.Values) > manyValues {
			return c.allOf(elements+" s(x)", t.Values), nil
		}
		return "(NOT EXISTS (SELECT FROM unnest(ARRAY[" + c.lowered(t.Values) + "]) w(x) WHERE x NOT IN " + elements + "))", nil
	default:
		return "", fmt.Errorf("%s does not fit lists", t.Op)
	}
}
