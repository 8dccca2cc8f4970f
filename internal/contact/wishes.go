package contact

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// WishesSchema is the tenant migration from which on contacts have wishes; before it, nobody has any.
const WishesSchema = 10

// Wishes are what a person wishes of marketing mail beside topics. Mail that somebody asked for, a transactional one, goes out whatever they are.
type Wishes struct {
	// PausedUntil is when marketing mail may come again; what is due before waits as in quiet hours. Zero for now.
	PausedUntil time.Time
	// Frequency is how many may come in a time, beside the caps of the tenant's Settings.
	Frequency Frequency
}

// Frequency is at most so many mails in a calendar week or month; Count 0 is as many as there are.
type Frequency struct {
	Count int
	Per   string // week or month
}

var frequencies = regexp.MustCompile(`^([1-9][0-9]?)/(week|month)$`)

// ParseFrequency reads what String writes.
func ParseFrequency(s string) (f Frequency, ok bool) {
	if s == "" {
		return f, true
	}
	m := frequencies.FindStringSubmatch(s)
	if m == nil {
		return f, false
	}
	f.Per = m[2]
	f.Count, _ = strconv.Atoi(m[1]) // of two digits at most
	return f, true
}

// String is such as 3/week, and empty for as many as there are.
func (f Frequency) String() string {
	if f.Count == 0 {
		return ""
	}
	return strconv.Itoa(f.Count) + "/" + f.Per
}

// WishesSQL is a contact's wishes in SQL, as two columns that WishesOf reads. contact is the row's alias.
func WishesSQL(contact string) string { return contact + ".paused_until, " + contact + ".frequency" }

// WishesOf reads the two columns. A frequency that this code does not know is none.
func WishesOf(pausedUntil *time.Time, frequency *string) (w Wishes) {
	if pausedUntil != nil {
		w.PausedUntil = *pausedUntil
	}
	if frequency != nil {
		w.Frequency, _ = ParseFrequency(*frequency)
	}
	return w
}

// SetWishes notes what a contact wishes from now on. One that is erased or merged into another is left alone.
func SetWishes(ctx context.Context, tx *postgres.Tx, contact int64, w Wishes) error {
	var until *time.Time
	if !w.PausedUntil.IsZero() {
		until = &w.PausedUntil
	}
	_, err := tx.Exec(ctx, `UPDATE contact SET paused_until = $2, frequency = nullif($3, ''), changed_at = onda.now() WHERE id = $1 AND erased_at IS NULL AND merged_into IS NULL
		AND (paused_until, frequency) IS DISTINCT FROM ($2, nullif($3, ''))`, contact, until, w.Frequency.String())
	if err != nil {
		return fmt.Errorf("note what a contact wishes: %w", err)
	}
	return nil
}
