package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/doctor"
)

type serveCmd struct{}

// Run serves until the first SIGTERM or SIGINT, then lets running requests end. A second signal ends the process at
// once, as if it were not handled.
func (*serveCmd) Run(line *cli, to console) (err error) {
	cfg, path, err := line.load()
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(cfg.Log.Level)
	log := newLogger(to.err, cfg.Log.Format, level)
	tameStandardLogger(log)
	// Before anything else: a SIGHUP that nobody expects ends the process.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	ctx, restore := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer restore()

	unwatch := context.AfterFunc(ctx, func() {
		restore()
		tellSystemd(log, daemon.SdNotifyStopping)
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
	if files, ok := openFiles(); ok && files < doctor.FilesAtLeast {
		log.Warn("few files may be open at once, and each /sync that waits takes two: connections beyond that have to wait",
			"files", files, "wanted", doctor.FilesAtLeast, "do", doctor.MoreFiles)
	}
	tellSystemd(log, daemon.SdNotifyReady) // connections come in since Open
	done := make(chan struct{})
	var reloading sync.WaitGroup
	reloading.Go(func() {
		for {
			select {
			case <-hangups:
				tellSystemd(log, daemon.SdNotifyReloading, daemon.SdNotifyMonotonicUsec())
				reload(ctx, freshen, path, level, log)
				if ctx.Err() == nil { // ready is not what one is that stops
					tellSystemd(log, daemon.SdNotifyReady)
				}
			case <-done:
				return
			}
		}
	})
	err = freshen.Run(ctx)
	close(done)
	reloading.Wait()
	if err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// reload reads the configuration again and puts in force what can change while freshen runs. A file with a mistake
// changes nothing.
func reload(ctx context.Context, freshen *app.App, path string, level *slog.LevelVar, log *slog.Logger) {
	cfg, err := config.Load(path)
	if err != nil {
		log.Error("the configuration was not reloaded; all settings stay as they were", "config", path, "err", err)
		return
	}
	level.Set(cfg.Log.Level)
	restart := freshen.Reload(ctx, cfg)
	log.Info("configuration reloaded: limits, allow_servers, deny_servers and log.level", "config", path)
	if len(restart) > 0 {
		log.Warn("some settings have changed that count from the next start only", "config", path, "keys", strings.Join(restart, ", "))
	}
}

// tellSystemd says how freshen is, where systemd asked to be told (Type=notify; sd_notify(3)). One that cannot be told is
// no reason not to serve.
func tellSystemd(log *slog.Logger, states ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(states, "\n")); err != nil {
		log.Warn("systemd cannot be told how freshen is", "say", states[0], "err", err)
	}
}

func newLogger(w io.Writer, format config.LogFormat, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == config.LogJSON {
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
