package app

import (
	"context"

	"freshen/internal/config"
	"freshen/internal/limit"
)

// Reload puts in force what of a configuration can change while freshen runs: limits, and which servers are allowed and
// denied. restart names what else is different, which counts from the next start.
func (a *App) Reload(ctx context.Context, cfg *config.Config) (restart []string) {
	a.reloading.Lock()
	a.live = cfg
	a.reloading.Unlock()
	if e := a.engine.Load(); e != nil {
		a.enforce(e)
		if err := e.refresh.DropDenied(ctx); err != nil && ctx.Err() == nil {
			// Each is dropped at its next try, at the latest.
			a.log.Warn("what is owed to servers that are denied now could not be dropped yet", "err", err)
		}
	}
	return a.cfg.NeedsRestart(cfg)
}

// enforce has the engine keep to the limits as they stand.
func (a *App) enforce(e *engine) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	limits := a.live.Limits
	e.refresh.Limit(limit.Rate(limits.PerUser), limits.SharedRoomsOnly)
	e.store.SetPerDestination(limit.Rate(limits.PerDestination))
}

// serverAllowed says whether the configuration, as it stands, lets a server be asked.
func (a *App) serverAllowed(name string) bool {
	a.reloading.Lock()
	federation := a.live.Federation
	a.reloading.Unlock()
	return federation.ServerAllowed(name)
}
