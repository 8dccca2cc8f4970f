package postgres

import "time"

// SetPatience says how long the Admin waits for others' transactions when it makes an index.
func (a *Admin) SetPatience(d time.Duration) { a.patience = d }
