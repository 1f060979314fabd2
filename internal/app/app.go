// Package app wires everything that freshen is made of, in one place for the command, the demo and the tests.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"freshen/internal/announce"
	"freshen/internal/clientapi"
	"freshen/internal/config"
	"freshen/internal/federation"
	"freshen/internal/homeserver"
	"freshen/internal/kept"
	"freshen/internal/limit"
	"freshen/internal/overlay"
	"freshen/internal/refresh"
	"freshen/internal/retry"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

// grace is how long running requests may take to end when freshen is told to stop. Refreshes that wait for another server
// are told to come back a little before.
const grace = 10 * time.Second

// App is freshen, open and listening. Run serves; Close gives everything back.
type App struct {
	log        *slog.Logger
	store      *store.Store
	hs         *homeserver.Client
	federation *federation.Client
	announcer  *announce.Announcer
	lists      *kept.Lists
	engine     *refresh.Engine
	worker     *retry.Worker
	proxy      *overlay.Proxy

	public, admin net.Listener
	handler       http.Handler
	grace         time.Duration
	closed        sync.Once
}

// Open reads the signing key, opens the database and takes the ports. Its errors are sentences for the administrator.
func Open(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *App, err error) {
	a := &App{log: log, grace: grace}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if err := a.openFederation(cfg); err != nil {
		return nil, err
	}
	if a.store, err = store.Open(ctx, store.Config{
		Path: cfg.Database.Path, URL: cfg.Database.URL, PerDestination: limit.Rate(cfg.Limits.PerDestination),
		SuccessFor: cfg.Cache.Success, FailureFor: cfg.Cache.Failure, Log: log,
	}); err != nil {
		return nil, err
	}
	if err := a.openEngine(ctx, cfg); err != nil {
		return nil, err
	}
	if a.public, err = listen(ctx, "listen", cfg.Listen); err != nil {
		return nil, err
	}
	if a.admin, err = listen(ctx, "admin.listen", cfg.Admin.Listen); err != nil {
		return nil, err
	}
	// Not before the ports are ours: another freshen that has them may have this database as well.
	if err := a.settle(ctx, cfg); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *App) openFederation(cfg *config.Config) error {
	key, warning, err := federation.ReadSigningKey(cfg.Homeserver.SigningKey)
	if err != nil {
		return fmt.Errorf("homeserver.signing_key: %w", err)
	}
	if warning != "" {
		a.log.Warn("the signing key is not safe", "warning", warning)
	}
	roots, err := federation.LoadRoots(cfg.Federation.CAFile)
	if err != nil {
		return fmt.Errorf("federation.ca_file: %w", err)
	}
	a.federation, err = federation.New(federation.Config{
		ServerName:    cfg.Homeserver.Name,
		Key:           key,
		Roots:         roots,
		AllowNetworks: cfg.Federation.AllowNetworks,
		UserAgent:     fmt.Sprintf("freshen/%s (device lists for %s)", Version(), cfg.Homeserver.Name),
	})
	return err
}

func (a *App) openEngine(ctx context.Context, cfg *config.Config) (err error) {
	a.hs = homeserver.New(cfg.Homeserver.URL, nil)
	if a.lists, err = kept.Load(ctx, a.store, a.log, time.Now); err != nil {
		return fmt.Errorf("database: the kept device lists cannot be read: %w", err)
	}
	neighbours := rooms.New(a.hs, cfg.Homeserver.Name, time.Now, a.lists.Shared)
	if a.announcer, err = announce.Open(ctx, a.store, neighbours, a.log, time.Now); err != nil {
		return fmt.Errorf("database: the announcements cannot be read: %w", err)
	}
	// What is kept is known before the clients are told to ask for it.
	a.store.OnCommit(func(c store.Committed) {
		a.lists.Put(c.Kept)
		a.announcer.Announced(c.Announced)
	})
	policy := retry.Policy{First: cfg.Retry.First, Most: cfg.Retry.Most, GiveUpAfter: cfg.Retry.GiveUpAfter}
	a.engine = refresh.New(refresh.Config{
		ServerName:      cfg.Homeserver.Name,
		Timeout:         cfg.Federation.Timeout,
		SuccessFor:      cfg.Cache.Success,
		FailureFor:      cfg.Cache.Failure,
		PerUser:         limit.Rate(cfg.Limits.PerUser),
		SharedRoomsOnly: cfg.Limits.SharedRoomsOnly,
		ServerAllowed:   cfg.Federation.ServerAllowed,
		Retry:           policy,
		Fetching:        a.lists.Fetching,
		Owed:            func() { a.worker.Poke() },
	}, a.store, a.federation, a.announcer, a.log)
	a.worker = retry.NewWorker(a.store, retry.Config{
		Pay: a.engine.Pay, Lease: a.engine.LongestPay(), Policy: policy, Log: a.log, Now: time.Now,
	})
	a.proxy = overlay.New(overlay.Config{
		Homeserver: cfg.Homeserver.URL,
		Who:        a.hs,
		Announcer:  a.announcer,
		Lists:      a.lists,
		Rooms:      neighbours,
		Refresher:  a.engine,
		Log:        a.log,
		Now:        time.Now,
	})
	own := clientapi.New(a.hs, a.engine, a.log)
	a.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if own.Match(r) {
			own.ServeHTTP(w, r)
			return
		}
		a.proxy.ServeHTTP(w, r)
	})
	return nil
}

// settle brings what is owed in line with this start: claims of the process before are void, where no other instance may
// hold them, and destinations that the configuration denies by now are owed nothing.
func (a *App) settle(ctx context.Context, cfg *config.Config) error {
	if cfg.Database.URL == nil {
		if err := a.store.ReleaseClaims(ctx, time.Now()); err != nil {
			return err
		}
	}
	if err := a.engine.DropDenied(ctx); err != nil {
		return fmt.Errorf("database: what is owed cannot be read: %w", err)
	}
	return nil
}

// Addr is where clients are served.
func (a *App) Addr() net.Addr { return a.public.Addr() }

// AdminAddr is where /health and /ready are served.
func (a *App) AdminAddr() net.Addr { return a.admin.Addr() }

// Run serves until ctx is done. Then it hurries the long polls, lets running requests end, for ten seconds at the
// most, and saves what is in memory alone. A listener that fails ends it with an error.
func (a *App) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { a.announcer.Run(background) })
	wg.Go(func() { a.worker.Run(background) })
	wg.Go(func() { a.lists.Run(background, time.Now) })

	// Requests outlive ctx; this one ends what Shutdown leaves alone, connections that were upgraded.
	requests, endRequests := context.WithCancel(background)
	defer endRequests()
	public, admin := a.server(requests, a.handler), a.server(requests, a.adminHandler())
	failed := make(chan error, 2)
	wg.Go(func() { failed <- public.Serve(a.public) })
	wg.Go(func() { failed <- admin.Serve(a.admin) })
	a.logOwed(ctx)

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	a.proxy.Hurry()
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), a.grace)
	defer cancelLast()
	// Who waits for a fetch must have an answer while there is time to give it.
	defer time.AfterFunc(a.grace*4/5, a.engine.Close).Stop()
	for _, server := range []*http.Server{public, admin} {
		if server.Shutdown(last) != nil {
			a.log.Warn("some requests did not end in time and were cut off", "after", a.grace)
			_ = server.Close()
		}
	}
	endRequests()
	a.engine.Close()
	stop()
	wg.Wait()
	return err
}

func (a *App) logOwed(ctx context.Context) {
	switch debts, err := a.store.Debts(ctx); {
	case err != nil:
		a.log.Error("cannot count what is owed", "err", err)
	case debts > 0:
		a.log.Info("device lists are owed from before and will be fetched", "debts", debts)
	}
}

func (a *App) server(requests context.Context, handler http.Handler) *http.Server {
	return &http.Server{
		BaseContext:       func(net.Listener) context.Context { return requests },
		Handler:           handler,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute, // longer than a proxy in front keeps its connections
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
}

// Close gives everything back. It may be called twice, and after Run.
func (a *App) Close() error {
	var errs []error
	a.closed.Do(func() {
		for _, listener := range []net.Listener{a.public, a.admin} {
			if listener != nil {
				if err := listener.Close(); !errors.Is(err, net.ErrClosed) {
					errs = append(errs, err)
				}
			}
		}
		if a.engine != nil {
			a.engine.Close()
		}
		if a.proxy != nil {
			a.proxy.Close()
		}
		if a.lists != nil {
			a.lists.Close()
		}
		if a.federation != nil {
			a.federation.Close()
		}
		if a.hs != nil {
			a.hs.CloseIdleConnections()
		}
		if a.store != nil {
			errs = append(errs, a.store.Close())
		}
	})
	return errors.Join(errs...)
}

func listen(ctx context.Context, key, address string) (net.Listener, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot listen on %s, is another program using it? %w", key, address, err)
	}
	return listener, nil
}
