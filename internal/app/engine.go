package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/announce"
	"freshen/internal/config"
	"freshen/internal/delivery"
	"freshen/internal/homeserver"
	"freshen/internal/kept"
	"freshen/internal/limit"
	"freshen/internal/metrics"
	"freshen/internal/overlay"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

const (
	// firstWait and mostWait are how long it takes until a database that was away at the start is tried again: the first
	// time, and where the doubling ends.
	firstWait = 500 * time.Millisecond
	mostWait  = 15 * time.Second
)

// engine is all that needs the database.
type engine struct {
	log       *slog.Logger
	now       func() time.Time
	store     *store.Store
	lists     *kept.Lists
	announcer *announce.Announcer
	refresh   *refresh.Engine
	worker    *retry.Worker
	desk      *delivery.Desk // nil unless the homeserver is to announce changes itself
}

// openEngine opens the database and has refreshes and the proxy use it.
func (a *App) openEngine(ctx context.Context) error {
	e := &engine{log: a.log, now: a.now}
	knowledge, err := e.open(ctx, a.cfg, a.hs, timed{a.federation, a.metrics}, a.metrics, a.serverAllowed, a.delivery)
	if err != nil {
		return errors.Join(err, e.close())
	}
	if a.away != nil {
		// What the homeserver announced meanwhile, nobody has watched, nor what its answers lacked.
		e.lists.Announced(e.lists.Users())
		before := e.announcer.Unseen()
		before.Nobodys()
		before.Ended("")
	}
	a.engine.Store(e)
	a.enforce(e)
	a.proxy.Learn(knowledge)
	return nil
}

// awaitEngine tries again and again to open the database, and says whether it could before ctx was done.
func (a *App) awaitEngine(ctx context.Context) bool {
	a.log.Error("the database is away: everything passes through, but refreshes are refused until it is back; trying again by itself", "err", a.away)
	last := a.away.Error()
	for wait := firstWait; ; wait = min(2*wait, mostWait) {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
		err := a.openEngine(ctx)
		if err == nil {
			a.log.Info("the database is back: freshen works in full")
			return true
		}
		if ctx.Err() == nil && err.Error() != last {
			last = err.Error()
			a.log.Error("the database still cannot be used; trying again by itself", "err", err)
		}
	}
}

func (e *engine) open(ctx context.Context, cfg *config.Config, hs *homeserver.Client, fetch refresh.Fetcher, m *metrics.Metrics, allowed func(string) bool,
	deliverTo *ownDelivery) (k overlay.Knowledge, err error) {
	if e.store, err = store.Open(ctx, store.Config{
		Path: cfg.Database.Path, URL: cfg.Database.URL, Name: instanceName(cfg.Listen), PerDestination: limit.Rate(cfg.Limits.PerDestination),
		SuccessFor: cfg.Cache.Success, FailureFor: cfg.Cache.Failure, Log: e.log, Committed: m.Committed,
	}); err != nil {
		return k, err
	}
	if e.lists, err = kept.Load(ctx, e.store, e.log, e.now); err != nil {
		return k, fmt.Errorf("the kept device lists cannot be read: %w", err)
	}
	neighbours := rooms.New(hs, cfg.Homeserver.Name, e.now, e.lists.Shared)
	if e.announcer, err = announce.Open(ctx, e.store, neighbours, e.log, e.now); err != nil {
		return k, fmt.Errorf("the announcements cannot be read: %w", err)
	}
	e.announcer.OnWoken(m.Woken)
	// What is kept is known before the clients are told to ask for it.
	e.store.OnCommit(func(c store.Committed) {
		e.lists.Put(c.Kept)
		e.announcer.Announced(c.Announced)
	})
	policy := retry.Policy{First: cfg.Retry.First, Most: cfg.Retry.Most, GiveUpAfter: cfg.Retry.GiveUpAfter}
	var deliverer refresh.Deliverer // a nil one is none
	if deliverTo != nil {
		e.desk = delivery.New(delivery.Config{
			Homeserver: deliverTo.Homeserver, Store: e.store, GiveUpAfter: cfg.Retry.GiveUpAfter, Log: e.log, Now: e.now,
		})
		deliverer = e.desk
	}
	e.refresh = refresh.New(refresh.Config{
		ServerName:      cfg.Homeserver.Name,
		Timeout:         cfg.Federation.Timeout,
		SuccessFor:      cfg.Cache.Success,
		FailureFor:      cfg.Cache.Failure,
		PerUser:         limit.Rate(cfg.Limits.PerUser),
		SharedRoomsOnly: cfg.Limits.SharedRoomsOnly,
		ServerAllowed:   allowed,
		Retry:           policy,
		Fetching:        e.lists.Fetching,
		Deliverer:       deliverer,
		Owed:            func() { e.worker.Poke() },
		Observe:         m.Refreshed,
		Now:             e.now,
	}, e.store, fetch, e.announcer, e.log)
	e.worker = retry.NewWorker(e.store, retry.Config{
		Pay: e.refresh.Pay, Lease: e.refresh.LongestPay(), Policy: policy, Log: e.log, Now: e.now,
	})
	if err := e.settle(ctx, cfg); err != nil {
		return k, err
	}
	return overlay.Knowledge{Announcer: e.announcer, Lists: e.lists, Rooms: neighbours, Refresher: e.refresh}, nil
}

// instanceName is where this instance runs. Two cannot run there at once.
func instanceName(listen string) string {
	host, err := os.Hostname()
	if err != nil || strings.HasSuffix(listen, ":0") {
		return "" // it is not known
	}
	return host + " " + listen
}

// settle brings what is owed in line with this start: claims of the process before are void, where the database is for
// this one alone, and destinations that the configuration denies by now are owed nothing.
func (e *engine) settle(ctx context.Context, cfg *config.Config) error {
	if cfg.Database.URL == nil {
		if err := e.store.ReleaseClaims(ctx, e.now()); err != nil {
			return err
		}
	}
	if err := e.refresh.DropDenied(ctx); err != nil {
		return fmt.Errorf("database: what is owed cannot be read: %w", err)
	}
	return nil
}

// run works until ctx is done, and saves what is in memory alone.
func (e *engine) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { e.announcer.Run(ctx) })
	wg.Go(func() { e.worker.Run(ctx) })
	wg.Go(func() { e.lists.Run(ctx, e.now) })
	if e.desk != nil {
		wg.Go(func() { e.desk.Run(ctx) })
	}
	switch debts, err := e.store.Debts(ctx); {
	case err != nil && ctx.Err() == nil:
		e.log.Error("cannot count what is owed", "err", err)
	case debts > 0:
		e.log.Info("device lists are owed from before and will be fetched", "debts", debts)
	}
	wg.Wait()
}

// close ends what was opened of it.
func (e *engine) close() error {
	if e.refresh != nil {
		e.refresh.Close()
	}
	if e.lists != nil {
		e.lists.Close()
	}
	if e.store != nil {
		return e.store.Close()
	}
	return nil
}

// refresher is the engine of refreshes, or says that there is none yet.
type refresher struct{ app *App }

func (r refresher) Refresh(ctx context.Context, who freshen.Requester, target id.UserID, cred homeserver.Credentials) error {
	if e := r.app.engine.Load(); e != nil {
		return e.refresh.Refresh(ctx, who, target, cred)
	}
	return store.Away(r.app.away)
}

func (r refresher) Standing(ctx context.Context, who freshen.Requester, users []id.UserID, cred homeserver.Credentials) (map[id.UserID]freshen.Standing, error) {
	if e := r.app.engine.Load(); e != nil {
		return e.refresh.Standing(ctx, who, users, cred)
	}
	return nil, store.Away(r.app.away)
}
