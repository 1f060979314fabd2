package app

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/metrics"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/store"
)

// watch has the metrics read what is held in memory and in the database.
func (a *App) watch() {
	a.metrics.Watch(metrics.State{
		Backlog: func(ctx context.Context) (store.Backlog, error) {
			if e := a.engine.Load(); e != nil {
				return e.store.Backlog(ctx)
			}
			return store.Backlog{}, a.away
		},
		Ended: func() (map[retry.Ending]int64, bool) {
			e := a.engine.Load()
			if e == nil {
				return nil, false
			}
			return e.refresh.Ended(), true
		},
		Announced: func() (int64, bool) {
			e := a.engine.Load()
			if e == nil {
				return 0, false
			}
			return e.announcer.Count(), true
		},
		Overlay: a.proxy.Stats,
		Now:     a.now,
		Log:     a.log,
	})
}

// timed measures fetches.
type timed struct {
	next    refresh.Fetcher
	metrics *metrics.Metrics
}

func (t timed) FetchDeviceList(ctx context.Context, target id.UserID) (*freshen.DeviceList, error) {
	began := time.Now()
	list, err := t.next.FetchDeviceList(ctx, target)
	t.metrics.Fetched(time.Since(began), err)
	return list, err
}
