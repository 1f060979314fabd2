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
	"sync/atomic"
	"time"

	"freshen/internal/clientapi"
	"freshen/internal/config"
	"freshen/internal/federation"
	"freshen/internal/homeserver"
	"freshen/internal/listen"
	"freshen/internal/metrics"
	"freshen/internal/overlay"
	"freshen/internal/page"
	"freshen/internal/probe"
	"freshen/internal/store"
)

// grace is how long running requests may take to end when freshen is told to stop. Refreshes that wait for another server
// are told to come back a little before.
const grace = 10 * time.Second

// App is freshen, open and listening. Run serves; Close gives everything back.
//
// What passes through needs no database. If that is away when freshen starts, everything passes all the same, refreshes
// are refused, and it is tried again until it is there; from then on nothing tells that it was not.
type App struct {
	cfg        *config.Config
	log        *slog.Logger
	now        func() time.Time
	hs         *homeserver.Client
	federation *federation.Client
	delivery   *ownDelivery // nil unless the homeserver is to announce changes itself
	proxy      *overlay.Proxy
	metrics    *metrics.Metrics
	probeKey   probe.Key
	reloading  sync.Mutex             // guards live, and is held while it is put in force
	live       *config.Config         // cfg, or what it was reloaded with
	engine     atomic.Pointer[engine] // nil while the database is away since the start
	away       error                  // why it was away

	public, admin net.Listener
	handler       http.Handler
	grace         time.Duration
	closed        sync.Once
}

// Open reads the signing key, opens the database and takes the ports. Its errors are sentences for the administrator. A
// database that is away is none, but one that can be reached and not be used is.
func Open(ctx context.Context, cfg *config.Config, log *slog.Logger) (*App, error) {
	return open(ctx, cfg, log, time.Now)
}

func open(ctx context.Context, cfg *config.Config, log *slog.Logger, now func() time.Time) (_ *App, err error) {
	a := &App{cfg: cfg, live: cfg, log: log, now: now, grace: grace, metrics: metrics.New(Version())}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if err := a.openFederation(); err != nil {
		return nil, err
	}
	a.openHandler()
	a.watch()
	err = a.openEngine(ctx)
	if away, ok := errors.AsType[*store.UnreachableError](err); ok {
		a.away = away
	} else if err != nil {
		return nil, err
	}
	listeners, err := listen.Open(ctx, listen.Wanted{Key: "listen", Address: cfg.Listen}, listen.Wanted{Key: "admin.listen", Address: cfg.Admin.Listen})
	if err != nil {
		return nil, err
	}
	a.public, a.admin = listeners[0], listeners[1]
	return a, nil
}

// openFederation reads the signing key, and makes what uses it.
func (a *App) openFederation() error {
	key, warning, err := federation.ReadSigningKey(a.cfg.Homeserver.SigningKey)
	if err != nil {
		return fmt.Errorf("homeserver.signing_key: %w", err)
	}
	if warning != "" {
		a.log.Warn("the signing key is not safe", "warning", warning)
	}
	a.probeKey = key.Derive(probe.Purpose)
	if a.delivery, err = openDelivery(a.cfg.Homeserver, key, a.log, a.now); err != nil {
		return err
	}
	roots, err := federation.LoadRoots(a.cfg.Federation.CAFile)
	if err != nil {
		return fmt.Errorf("federation.ca_file: %w", err)
	}
	a.federation, err = federation.New(federation.Config{
		ServerName:    a.cfg.Homeserver.Name,
		Key:           key,
		Roots:         roots,
		AllowNetworks: a.cfg.Federation.AllowNetworks,
		UserAgent:     fmt.Sprintf("freshen/%s (device lists for %s)", Version(), a.cfg.Homeserver.Name),
	})
	return err
}

// openHandler makes what serves with the database and without.
func (a *App) openHandler() {
	a.hs = homeserver.New(a.cfg.Homeserver.URL, nil)
	a.proxy = overlay.New(overlay.Config{Homeserver: a.cfg.Homeserver.URL, Who: a.hs, Log: a.log, Now: a.now})
	own, button := clientapi.New(a.hs, refresher{a}, a.log), page.Handler()
	a.handler = probe.Handler(a.probeKey, a.now, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case own.Match(r):
			own.ServeHTTP(w, r)
		case a.cfg.Page && page.Match(r):
			button.ServeHTTP(w, r)
		default:
			a.proxy.ServeHTTP(w, r)
		}
	}))
}

// Addr is where clients are served.
func (a *App) Addr() net.Addr { return a.public.Addr() }

// AdminAddr is where operators are served.
func (a *App) AdminAddr() net.Addr { return a.admin.Addr() }

// Run serves until ctx is done. Then it hurries the long polls, lets running requests end, for ten seconds at the
// most, and saves what is in memory alone. A listener that fails ends it with an error.
func (a *App) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { a.boundMemory(background) })
	wg.Go(func() {
		// Who stops waits for no database.
		if a.engine.Load() != nil || a.awaitEngine(ctx) {
			a.engine.Load().run(background)
		}
	})

	// Requests outlive ctx; this one ends what Shutdown leaves alone, connections that were upgraded.
	requests, endRequests := context.WithCancel(background)
	defer endRequests()
	public, admin := a.server(requests, a.handler), a.server(requests, a.adminHandler())
	failed := make(chan error, 2)
	wg.Go(func() { failed <- public.Serve(a.public) })
	wg.Go(func() { failed <- admin.Serve(a.admin) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		cancel()
	}
	a.proxy.Hurry()
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), a.grace)
	defer cancelLast()
	// Who waits for a fetch must have an answer while there is time to give it.
	defer time.AfterFunc(a.grace*4/5, a.endRefreshes).Stop()
	for _, server := range []*http.Server{public, admin} {
		if server.Shutdown(last) != nil {
			a.log.Warn("some requests did not end in time and were cut off", "after", a.grace)
			_ = server.Close()
		}
	}
	endRequests()
	a.endRefreshes()
	stop()
	wg.Wait()
	return err
}

func (a *App) endRefreshes() {
	if e := a.engine.Load(); e != nil {
		e.refresh.Close()
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
		a.endRefreshes()
		if a.proxy != nil {
			a.proxy.Close()
		}
		if e := a.engine.Load(); e != nil {
			errs = append(errs, e.close())
		}
		if a.delivery != nil {
			errs = append(errs, a.delivery.Close())
		}
		if a.federation != nil {
			a.federation.Close()
		}
		if a.hs != nil {
			a.hs.CloseIdleConnections()
		}
	})
	return errors.Join(errs...)
}
