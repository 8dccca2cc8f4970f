package csvexport

// Guard keeps a spreadsheet from computing a text: one that begins as a formula does gets a ' before it, and one that looks as if it had such a ' gets another; and so does what follows
// a character at which a spreadsheet may part it. Unguard takes it away again.
func Guard(s string) string {
	if !guards(s) {
		return s
	}
	return string(appendGuarded(nil, s))
}

// guards tells whether any part of a text begins as a formula does.
func guards[T string | []byte](s T) bool {
	if isFormula(s) {
		return true
	}
	for i := range len(s) {
		if parts(s[i]) && isFormula(s[i+1:]) {
			return true
		}
	}
	return false
}

func appendGuarded[T string | []byte](b []byte, s T) []byte {
	for i := range len(s) {
		if begins(s, i) && isFormula(s[i:]) {
			b = append(b, '\'')
		}
		b = append(b, s[i])
	}
	return b
}

// Unguard gives what Guard made a cell of, and every other cell as it is.
func Unguard[T string | []byte](cell T) T {
	out, from := []byte(nil), 0
	for i := range len(cell) {
		if cell[i] == '\'' && begins(cell, i) && isFormula(cell[i:]) {
			if i == 0 { // mostly the only one
				from = 1
				continue
			}
			out = append(out, cell[from:i]...)
			from = i + 1
		}
	}
	if out == nil {
		return cell[from:]
	}
	return T(append(out, cell[from:]...))
}

// begins tells whether a part of a text begins at a place.
func begins[T string | []byte](s T, i int) bool { return i == 0 || parts(s[i-1]) }

// parts tells of a character whether a spreadsheet may part a cell at it, though that is quoted: those of other countries separate columns by semicolons, and know no quote behind a comma.
func parts(c byte) bool { return c == ';' || c == '\t' || c == '\r' || c == '\n' }

func isFormula[T string | []byte](s T) bool {
	for i := range len(s) {
		switch s[i] {
		case '\'':
			continue
		case '=', '+', '-', '@', '\t', '\r':
			return true
		}
		return false
	}
	return false
}
