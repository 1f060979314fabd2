package app

import "time"

// SetGrace shortens what running requests get when freshen stops, before Run.
func (a *App) SetGrace(d time.Duration) { a.grace = d }
