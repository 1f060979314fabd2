package app

import (
	"context"
	"net/http"
	"time"

	"freshen/internal/owed"
)

// adminHandler answers the site's own monitoring: /health says that the process runs, which is all that what passes
// through needs; /ready that the database answers as well.
func (a *App) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		e := a.engine.Load()
		if e == nil {
			http.Error(w, "the database is away", http.StatusServiceUnavailable)
			return
		}
		if err := e.store.Ready(ctx); err != nil {
			a.log.Error("not ready: the database does not answer", "err", err)
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	mux.Handle("/owed", owed.Handler(a.ledger, a.log))
	mux.Handle("/owed/", owed.Handler(a.ledger, a.log))
	return mux
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
	}}
}
