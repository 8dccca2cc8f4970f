package csvimport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/spec"
)

// order is in which order a date has its day, month and year.
type order byte

// The orders, as bits.
const (
	yearFirst order = 1 << iota
	dayFirst
	monthFirst
)

// words are the parts of a date in the order, with what is between them.
func (o order) words(between byte) string {
	parts := map[order][]string{yearFirst: {"year", "month", "day"}, dayFirst: {"day", "month", "year"}, monthFirst: {"month", "day", "year"}}[o]
	return strings.Join(parts, string(rune(between)))
}

// example is the last day of 2026 in the order.
func (o order) example(between byte) string {
	parts := map[order][]string{yearFirst: {"2026", "12", "31"}, dayFirst: {"31", "12", "2026"}, monthFirst: {"12", "31", "2026"}}[o]
	return strings.Join(parts, string(rune(between)))
}

// orderOf is the order that somebody gave by an example or by letters; 0 for none.
func orderOf(given string) order {
	switch strings.ToLower(given) {
	case "ymd", "iso":
		return yearFirst
	case "dmy":
		return dayFirst
	case "mdy":
		return monthFirst
	}
	d, ok := readDate([]byte(given))
	if !ok || len(d.rest) > 0 {
		return 0
	}
	switch o := d.orders(); o {
	case yearFirst, dayFirst, monthFirst:
		return o
	default: // it may be two of them
		return 0
	}
}

// date is three numbers of a cell, and what follows them.
type date struct {
	n       [3]int
	year    int  // which of them has four digits: 0 or 2
	between byte // '.', '-' or '/'
	rest    []byte
}

// readDate takes a cell apart that begins with a date of any order.
func readDate(cell []byte) (d date, ok bool) {
	i := 0
	for k := range d.n {
		begin := i
		for i < len(cell) && i-begin < 5 && cell[i] >= '0' && cell[i] <= '9' {
			d.n[k] = d.n[k]*10 + int(cell[i]-'0')
			i++
		}
		switch n := i - begin; {
		case n == 4 && k != 1 && d.year == 0 && (k == 0 || d.n[0] < 1000):
			d.year = k + 1
		case n != 1 && n != 2:
			return d, false
		}
		if k == 2 {
			break
		}
		if i == len(cell) || k == 1 && cell[i] != d.between || cell[i] != '.' && cell[i] != '-' && cell[i] != '/' {
			return d, false
		}
		d.between = cell[i]
		i++
	}
	d.rest = cell[i:]
	if d.year == 0 || len(d.rest) > 0 && d.rest[0] != ' ' && d.rest[0] != 'T' {
		return d, false
	}
	d.year--
	return d, true
}

// in is the date as it reads in an order, as the day's text, or "" where there is no such day.
func (d date) in(o order) string {
	var y, m, day int
	switch {
	case o == yearFirst && d.year == 0:
		y, m, day = d.n[0], d.n[1], d.n[2]
	case o == dayFirst && d.year == 2:
		day, m, y = d.n[0], d.n[1], d.n[2]
	case o == monthFirst && d.year == 2 && d.between != '.': // which nobody writes
		m, day, y = d.n[0], d.n[1], d.n[2]
	default:
		return ""
	}
	t := time.Date(y, time.Month(m), day, 0, 0, 0, 0, time.UTC)
	if y == 0 || t.Year() != y || int(t.Month()) != m || t.Day() != day {
		return ""
	}
	return t.Format(time.DateOnly)
}

// orders are those in which there is such a day.
func (d date) orders() (o order) {
	for _, one := range []order{yearFirst, dayFirst, monthFirst} {
		if d.in(one) != "" {
			o |= one
		}
	}
	return o
}

// cellAt is a cell of the file, to be shown.
type cellAt struct {
	row  int
	text string
}

// dates finds out in which order a column's dates are.
type dates struct {
	orders  order // that all so far read in; 0 at the beginning
	first   cellAt
	between byte
	mixed   cellAt // the first that reads in none of the orders of those before
	differs cellAt // the first that is another day in another of the orders
}

// see looks at a cell. Cells that are no dates say nothing: their rows are rejected.
func (s *dates) see(row int, cell []byte) {
	d, ok := readDate(cell)
	if !ok {
		return
	}
	o := d.orders()
	switch {
	case o == 0 || s.mixed.row > 0:
		return
	case s.orders == 0:
		s.orders, s.first, s.between = o, cellAt{row, string(cell)}, d.between
	case s.orders&o == 0:
		s.mixed = cellAt{row, string(cell)}
		return
	default:
		s.orders &= o
	}
	if s.differs.row == 0 && o&dayFirst != 0 && o&monthFirst != 0 && d.n[0] != d.n[1] {
		s.differs = cellAt{row, string(cell)}
	}
}

// iso tells that there is nothing but what can be read in one way alone.
func (s *dates) iso() bool { return s.orders|yearFirst == yearFirst && s.mixed.row == 0 }

// verdict is the column's order, 0 where it has no dates; or an error that shows both readings.
func (s *dates) verdict(header string) (order, error) {
	say := func(c cellAt) string {
		d, _ := readDate([]byte(c.text))
		var words []string
		for _, o := range []order{yearFirst, dayFirst, monthFirst} {
			if day := d.in(o); day != "" {
				t, _ := time.Parse(time.DateOnly, day)
				words = append(words, fmt.Sprintf("%s (%s)", t.Format("2 January 2006"), o.words(d.between)))
			}
		}
		return fmt.Sprintf("%q in row %d is %s", c.text, c.row, strings.Join(words, " or "))
	}
	if s.mixed.row > 0 {
		return 0, fmt.Errorf("column %s has dates in more than one format: %s, and %s: write them in one, or say with --dates which one it is, and rows in another are rejected", header, say(s.first), say(s.mixed))
	}
	switch s.orders {
	case 0, yearFirst, dayFirst, monthFirst:
		return s.orders, nil
	default: // several
	}
	if s.differs.row == 0 { // 3/3/2026 and the like are the same day in either
		return dayFirst, nil
	}
	return 0, fmt.Errorf("column %s has dates that can be read in two ways: %s, and no row tells which: say it with --dates %s or --dates %s", header, say(s.differs),
		dayFirst.example(s.between), monthFirst.example(s.between))
}

// decimals finds out which character is before the decimals of a file's numbers.
type decimals struct {
	comma     bool // one has a comma in it
	point     bool // one can be read with a point before its decimals alone
	onlyComma bool // one can be read with a comma alone
	differs   cellAt
	header    string
}

// see looks at a cell of a column of numbers.
func (s *decimals) see(header string, row int, cell []byte) {
	hasComma := bytes.IndexByte(cell, ',') >= 0
	if !hasComma && bytes.IndexByte(cell, '.') < 0 {
		return
	}
	asPoint, point := plainNumber(cell, '.')
	asComma, comma := plainNumber(cell, ',')
	if !point && !comma {
		return
	}
	s.comma = s.comma || hasComma
	switch {
	case !comma:
		s.point = true
	case !point:
		s.onlyComma = true
	case asPoint != asComma && s.differs.row == 0 && hasComma:
		s.differs, s.header = cellAt{row, string(cell)}, header
	}
}

// verdict is the character, or an error that shows both readings.
func (s *decimals) verdict() (string, error) {
	switch {
	case s.onlyComma && s.point:
		return "", errors.New("the numbers of the file have a point before their decimals in some rows and a comma in others: say with --decimal which one it is, and rows with the other are rejected")
	case s.onlyComma:
		return ",", nil
	case s.comma && !s.point && s.differs.row > 0:
		one, _ := plainNumber([]byte(s.differs.text), '.')
		other, _ := plainNumber([]byte(s.differs.text), ',')
		return "", fmt.Errorf("column %s has numbers that can be read in two ways: %q in row %d is %s or %s, and no row tells which: say it with --decimal . or --decimal ,", s.header, s.differs.text, s.differs.row, one, other)
	}
	return ".", nil
}

// plainNumber is a number without what parts its thousands and with a point before its decimals.
func plainNumber(cell []byte, decimal byte) (string, bool) {
	group := byte(',')
	if decimal == ',' {
		group = '.'
	}
	out := make([]byte, 0, len(cell))
	digits, groups, seen := 0, 0, false // digits since the last of these
	for i := 0; i < len(cell); i++ {
		switch c := cell[i]; {
		case c >= '0' && c <= '9':
			digits++
			out = append(out, c)
		case (c == '-' || c == '+') && i == 0:
			out = append(out, c)
		case c == ' ', c == '\'', c == 0xc2 && i+1 < len(cell) && cell[i+1] == 0xa0:
			if c == 0xc2 {
				i++
			}
		case c == group && !seen:
			if digits == 0 || groups == 0 && digits > 3 || groups > 0 && digits != 3 {
				return "", false
			}
			groups, digits = groups+1, 0
		case c == decimal && !seen:
			if groups > 0 && digits != 3 {
				return "", false
			}
			seen = true
			out = append(out, '.')
		default:
			return "", false
		}
	}
	if groups > 0 && !seen && digits != 3 || len(out) == 0 {
		return "", false
	}
	return string(out), true
}

// cached bounds how many values of a column are remembered, and how long they may be.
const cached, cachedLen = 2_048, 48

// appendValue appends the value of a cell, which is not empty, as JSON.
func (c *column) appendValue(b, cell []byte) ([]byte, error) {
	switch c.field.Type {
	case spec.TypeText:
		if isPlain(cell) {
			return append(append(append(b, '"'), cell...), '"'), nil
		}
	case spec.TypeNumber:
		if len(cell) < 16 && isDigits(cell) && (cell[0] != '0' || len(cell) == 1) {
			return append(b, cell...), nil
		}
	case spec.TypeDate:
		if (c.order == 0 || c.order == yearFirst) && isDay(cell) {
			return append(append(append(b, '"'), cell...), '"'), nil
		}
	default: // they have few values, which are remembered
	}
	if v, ok := c.values[string(cell)]; ok {
		return append(b, v...), nil
	}
	v, err := c.parse(cell)
	if err != nil {
		return b, err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return b, fmt.Errorf("encode a value: %w", err)
	}
	if len(c.values) < cached && len(cell) <= cachedLen {
		if c.values == nil {
			c.values = map[string][]byte{}
		}
		c.values[string(cell)] = text
	}
	return append(b, text...), nil
}

// parse reads a cell in the column's way of writing dates and numbers.
func (c *column) parse(cell []byte) (any, error) {
	text := string(cell)
	switch c.field.Type {
	case spec.TypeNumber:
		if s, ok := plainNumber(cell, c.decimal); ok {
			if other, both := plainNumber(cell, ','); c.unsure && both && other != s && bytes.IndexByte(cell, ',') >= 0 {
				return nil, fmt.Errorf("must be a number that reads in one way, and not as %s or %s (say with --decimal which it is)", s, other)
			}
			text = s
		} else if c.decimal == ',' {
			return nil, errors.New("must be a number such as 12 or 12,5")
		}
	case spec.TypeDate, spec.TypeDatetime:
		d, ok := readDate(cell)
		order := c.order
		if order == 0 || c.given && d.year == 0 {
			order = yearFirst
		}
		if !ok || order == yearFirst && d.between == '-' {
			break
		}
		day := d.in(order)
		if day == "" {
			return nil, fmt.Errorf("must be a date such as %s", order.example(d.between))
		}
		text = day
		if rest := string(bytes.TrimLeft(d.rest, " T")); rest != "" && c.field.Type == spec.TypeDatetime {
			between := "T"
			if len(rest) == len("15:04:05") {
				between = " "
			}
			text += between + rest
		} else if rest != "" && strings.Trim(rest, "0:.") != "" {
			return nil, errors.New("must be a date without a time of day")
		}
	default: // written in one way
	}
	return fieldvalue.Parse(c.field, text)
}

// isPlain tells that a text is its own JSON: in ASCII, without a quote, a backslash or a control character.
func isPlain(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return len(b) <= fieldvalue.MaxText
}

func isDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// isDay tells that a text is a day of the calendar as it is stored.
func isDay(b []byte) bool {
	if len(b) != len(time.DateOnly) || b[4] != '-' || b[7] != '-' || !isDigits(b[:4]) || !isDigits(b[5:7]) || !isDigits(b[8:]) {
		return false
	}
	year, _ := strconv.Atoi(string(b[:4]))
	month, day := int(b[5]-'0')*10+int(b[6]-'0'), int(b[8]-'0')*10+int(b[9]-'0')
	return year > 0 && month >= 1 && month <= 12 && day >= 1 && (day <= 28 || time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).Day() == day)
}
