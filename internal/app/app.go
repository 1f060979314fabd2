// Package app wires freshen together.
package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"time"

	"freshen/internal/config"
)

// App is a freshen that has opened all it needs.
type App struct {
	cfg           *config.Config
	public, admin net.Listener
}

// Open opens the listeners.
func Open(ctx context.Context, cfg *config.Config, _ *slog.Logger) (*App, error) {
	var lc net.ListenConfig
	public, err := lc.Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return nil, err
	}
	admin, err := lc.Listen(ctx, "tcp", cfg.Admin.Listen)
	if err != nil {
		return nil, errors.Join(err, public.Close())
	}
	return &App{cfg: cfg, public: public, admin: admin}, nil
}

// Run serves until ctx is done.
func (a *App) Run(ctx context.Context) error {
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(a.cfg.Homeserver.URL) }}
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: time.Minute}
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		stopped <- server.Shutdown(within)
	})
	if err := server.Serve(a.public); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// Close closes the listeners.
func (a *App) Close() error {
	_ = a.public.Close()
	return a.admin.Close()
}

// Addr is the public listener's address.
func (a *App) Addr() net.Addr { return a.public.Addr() }

// AdminAddr is the admin listener's address.
func (a *App) AdminAddr() net.Addr { return a.admin.Addr() }
