package app

import (
	"context"
	"net/http"
	"net/http/pprof"
	"time"

	"freshen/internal/owed"
	"freshen/internal/probe"
)

// readyWithin bounds how long /ready looks.
const readyWithin = 5 * time.Second

// adminHandler is for operators alone: /health says that the process runs, which is all that what passes through needs;
// /ready that the database takes what is written and the homeserver answers; /metrics, /owed and, where it is configured,
// /debug/pprof/. It answers the doctor's probes, as the public listener does: by that the doctor knows that it has the same
// signing key.
func (a *App) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyWithin)
		defer cancel()
		if why := a.notReady(ctx); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	mux.Handle("GET /metrics", a.metrics.Handler(a.log))
	ledger := owed.Handler(a.ledger, a.log)
	mux.Handle("/owed", ledger)
	mux.Handle("/owed/", ledger)
	if a.cfg.Admin.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return probe.Handler(a.probeKey, a.now, mux)
}

// notReady says in a few words what keeps refreshes from working; "" if nothing does.
func (a *App) notReady(ctx context.Context) string {
	e := a.engine.Load()
	if e == nil {
		return "the database is away"
	}
	if err := e.store.Ready(ctx); err != nil {
		a.log.Error("not ready: the database does not answer", "err", err)
		return "the database does not answer"
	}
	if err := a.hs.Answers(ctx); err != nil {
		a.log.Error("not ready: the homeserver does not answer", "err", err)
		return "the homeserver does not answer"
	}
	return ""
}

// ledger is what is owed; nil while the database is away.
func (a *App) ledger() *owed.Ledger {
	e := a.engine.Load()
	if e == nil {
		return nil
	}
	return &owed.Ledger{Store: e.store, GiveUpAfter: a.cfg.Retry.GiveUpAfter, Now: a.now, Changed: func(dropped int64) {
		e.refresh.Dropped(dropped)
		e.worker.Poke()
		if e.desk != nil {
			e.desk.Poke()
		}
	}}
}
