package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os/signal"
	"syscall"

	"freshen/internal/app"
	"freshen/internal/config"
)

type serveCmd struct{}

// Run serves until the first SIGTERM or SIGINT, then lets running requests end. A second signal ends the process at
// once, as if it were not handled.
func (*serveCmd) Run(line *cli, to console) (err error) {
	cfg, path, err := line.load()
	if err != nil {
		return err
	}
	log := newLogger(to.err, cfg.Log)
	tameStandardLogger(log)
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer restore()

	unwatch := context.AfterFunc(ctx, func() {
		restore()
		log.Info("stopping: running requests may end; a second signal stops at once")
	})
	defer unwatch()

	freshen, err := app.Open(ctx, cfg, log)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil // Who asks to stop while freshen starts gets what they asked for.
	case err != nil:
		return fmt.Errorf("cannot start: %w", err)
	}
	defer func() { err = errors.Join(err, freshen.Close()) }()
	log.Info("serving",
		"version", app.Version(),
		"config", path,
		"listen", freshen.Addr().String(),
		"admin", freshen.AdminAddr().String(),
		"server_name", cfg.Homeserver.Name,
		"homeserver", cfg.Homeserver.URL.String(),
		"database", cfg.Database.Redacted())
	if err := freshen.Run(ctx); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

func newLogger(w io.Writer, cfg config.Log) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// tameStandardLogger makes what Go's standard logger is told debug messages of log. net/http tells it of each frame and
// byte that a server sends unasked: strangers could fill the disk with lines of their own making.
func tameStandardLogger(log *slog.Logger) {
	stdlog.SetFlags(0)
	stdlog.SetOutput(slog.NewLogLogger(log.Handler(), slog.LevelDebug).Writer())
}
