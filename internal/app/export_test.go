package app

import (
	"context"
	"log/slog"
	"time"

	"freshen/internal/config"
)

// SetGrace shortens what running requests get when freshen stops, before Run.
func (a *App) SetGrace(d time.Duration) { a.grace = d }

// OpenAt is Open with a clock of the test's.
func OpenAt(ctx context.Context, cfg *config.Config, log *slog.Logger, now func() time.Time) (*App, error) {
	return open(ctx, cfg, log, now)
}
