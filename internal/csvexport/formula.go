package csvexport

// Guard keeps a spreadsheet from computing a text: one that begins as a formula does gets a ' before it, and one that looks as if it had such a ' gets another. Unguard takes it away again.
func Guard(s string) string {
	if isFormula(s) {
		return "'" + s
	}
	return s
}

// Unguard gives what Guard made a cell of, and every other cell as it is.
func Unguard[T string | []byte](cell T) T {
	if len(cell) > 0 && cell[0] == '\'' && isFormula(cell) {
		return cell[1:]
	}
	return cell
}

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
