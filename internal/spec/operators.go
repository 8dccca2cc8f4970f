package spec

import (
	"slices"
	"sync"

	"github.com/onda-run/onda/internal/fieldvalue"
)

// Op is an operator of the predicate language.
type Op string

// The operators of language.md.
const (
	OpIs         Op = "is"
	OpIsNot      Op = "isNot"
	OpIn         Op = "in"
	OpNotIn      Op = "notIn"
	OpGt         Op = "gt"
	OpGte        Op = "gte"
	OpLt         Op = "lt"
	OpLte        Op = "lte"
	OpBetween    Op = "between"
	OpContains   Op = "contains"
	OpStartsWith Op = "startsWith"
	OpEndsWith   Op = "endsWith"
	OpMatches    Op = "matches"
	OpHasAny     Op = "hasAny"
	OpHasAll     Op = "hasAll"
	OpHasNone    Op = "hasNone"
	OpExists     Op = "exists"
	OpBefore     Op = "before"
	OpAfter      Op = "after"
	OpInLast     Op = "inLast"
	OpInNext     Op = "inNext"
	OpOlderThan  Op = "olderThan"
	OpYearly     Op = "yearly"
)

// FieldType is the type of a Field's values.
type FieldType = fieldvalue.Type

// The types of language.md.
const (
	TypeText        = fieldvalue.Text
	TypeNumber      = fieldvalue.Number
	TypeBoolean     = fieldvalue.Boolean
	TypeDate        = fieldvalue.Date
	TypeDatetime    = fieldvalue.Datetime
	TypeSelect      = fieldvalue.Select
	TypeMultiselect = fieldvalue.Multiselect
	TypeCountry     = fieldvalue.Country
	TypeLanguage    = fieldvalue.Language
	TypeTimezone    = fieldvalue.Timezone
	TypeURL         = fieldvalue.URL
	TypePhone       = fieldvalue.Phone
)

// FieldTypes gives every type, in the order of language.md.
func FieldTypes() []FieldType {
	return []FieldType{
		TypeText, TypeNumber, TypeBoolean, TypeDate, TypeDatetime, TypeSelect, TypeMultiselect,
		TypeCountry, TypeLanguage, TypeTimezone, TypeURL, TypePhone,
	}
}

// operand is what stands after an operator.
type operand int

const (
	oneValue    operand = iota // one scalar
	values                     // a list of scalars
	twoValues                  // [low, high], both included
	ordered                    // a number or a moment
	moment                     // a date, absolute or relative
	length                     // a duration
	words                      // text
	pattern                    // RE2
	presence                   // true or false
	anniversary                // {inNext: 7d}
)

// operator says what an operator takes and which types of fields it fits.
type operator struct {
	op    Op
	takes operand
	types []FieldType
}

// operators is the table that the decoders, the checks, the schema and the
// documentation are made from. It is made once and never changed.
var operators = sync.OnceValue(makeOperators)

func makeOperators() []operator {
	var (
		single  = slices.DeleteFunc(FieldTypes(), func(t FieldType) bool { return t == TypeMultiselect })
		listed  = slices.DeleteFunc(slices.Clone(single), func(t FieldType) bool { return t == TypeBoolean })
		scale   = []FieldType{TypeNumber, TypeDate, TypeDatetime}
		letters = []FieldType{TypeText, TypeSelect, TypeLanguage, TypeTimezone, TypeURL, TypePhone}
		dates   = []FieldType{TypeDate, TypeDatetime}
		many    = []FieldType{TypeMultiselect}
	)
	return []operator{
		{OpIs, oneValue, single},
		{OpIsNot, oneValue, single},
		{OpIn, values, listed},
		{OpNotIn, values, listed},
		{OpGt, ordered, scale},
		{OpGte, ordered, scale},
		{OpLt, ordered, scale},
		{OpLte, ordered, scale},
		{OpBetween, twoValues, scale},
		{OpContains, words, letters},
		{OpStartsWith, words, letters},
		{OpEndsWith, words, letters},
		{OpMatches, pattern, letters},
		{OpHasAny, values, many},
		{OpHasAll, values, many},
		{OpHasNone, values, many},
		{OpExists, presence, FieldTypes()},
		{OpBefore, moment, dates},
		{OpAfter, moment, dates},
		{OpInLast, length, dates},
		{OpInNext, length, dates},
		{OpOlderThan, length, dates},
		{OpYearly, anniversary, dates},
	}
}

func findOperator(op Op) (operator, bool) {
	all := operators()
	i := slices.IndexFunc(all, func(o operator) bool { return o.op == op })
	if i < 0 {
		return operator{}, false
	}
	return all[i], true
}

// operatorNames names them all; nobody changes the list.
var operatorNames = sync.OnceValue(func() []string {
	var names []string
	for _, o := range operators() {
		names = append(names, string(o.op))
	}
	return names
})

// Fits says whether the operator can be asked of fields of this type.
func (op Op) Fits(t FieldType) bool {
	o, ok := findOperator(op)
	return ok && slices.Contains(o.types, t)
}

// operatorsFor names the operators that fit a type.
func operatorsFor(t FieldType) []string {
	var names []string
	for _, o := range operators() {
		if slices.Contains(o.types, t) {
			names = append(names, string(o.op))
		}
	}
	return names
}
