package store_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/limit"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

// everything is each way in which freshen uses its database while it runs.
func everything(s *store.Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"Ready": s.Ready,
		"AnnounceTo": func(ctx context.Context) error {
			return s.AnnounceTo(ctx, "@bob:b.org", []id.UserID{"@alice:a.org"}, start)
		},
		"Begin": func(ctx context.Context) error {
			_, err := s.Begin(ctx, store.Fetch{Target: "@bob:b.org", Token: "t", Now: start, Lease: time.Minute, Claimed: true})
			return err
		},
		"Abandon": func(ctx context.Context) error { return s.Abandon(ctx, "@bob:b.org", "t") },
		"Claim": func(ctx context.Context) error {
			_, err := s.Claim(ctx, start, time.Minute, "t", store.Places{Fine: 10, Failing: 10})
			return err
		},
		"NextDue": func(ctx context.Context) error {
			_, _, err := s.NextDue(ctx, store.Places{Fine: 1, Failing: 1})
			return err
		},
		"Backoff": func(ctx context.Context) error {
			_, err := s.Backoff(ctx, "b.org")
			return err
		},
		"Debts": func(ctx context.Context) error {
			_, err := s.Debts(ctx)
			return err
		},
		"KeptList": func(ctx context.Context) error {
			_, err := s.KeptList(ctx, "@bob:b.org")
			return err
		},
		"DevicePosition": func(ctx context.Context) error {
			_, err := s.DevicePosition(ctx, "@alice:a.org", "PHONE")
			return err
		},
	}
}

// failsAndRecovers has everything asked at once, several times, while the database is away, and after that once more: each
// must get an error in its time, and then an answer again.
func failsAndRecovers(t *testing.T, s *store.Store, back func() error) {
	t.Helper()
	var wg sync.WaitGroup
	for name, use := range everything(s) {
		for range 5 {
			wg.Go(func() {
				if err := use(t.Context()); err == nil {
					t.Errorf("%s was answered by a database that is away", name)
				}
			})
		}
	}
	wg.Wait()
	if err := back(); err != nil {
		t.Fatal(err)
	}
	late := time.Now().Add(patience)
	for name, use := range everything(s) {
		for {
			err := use(t.Context())
			if err == nil {
				break
			}
			if time.Now().After(late) {
				t.Fatalf("%s has not recovered: %v", name, err)
			}
		}
	}
}

func ownServer(t *testing.T) (*storetest.Postgres, *store.Store, *store.Store) {
	t.Helper()
	p := storetest.StartPostgres(t, storetest.Options{})
	cfg := store.Config{
		URL: p.URL(storetest.Superuser), PerDestination: limit.Rate{Every: time.Second, Burst: 20}, Log: slog.New(slog.DiscardHandler),
	}
	return p, instance(t, cfg), instance(t, cfg)
}

// An administrator restarts Postgres, or it crashes: nobody restarts freshen after that, and nothing is lost.
func TestPostgresIsRestarted(t *testing.T) {
	t.Parallel()
	p, a, b := ownServer(t)
	ear := listen(b)
	for name, end := range map[string]func() error{"in good order": p.Stop, "after a crash": p.Crash} {
		t.Run(name, func(t *testing.T) {
			owe(t, a, "@owed:c.org", "@alice:a.org", start, 0)
			token := name
			begin(t, a, store.Fetch{Target: "@fetched:d.org", Token: token, Now: start, Lease: time.Minute, Claimed: true})
			if err := end(); err != nil {
				t.Fatal(err)
			}
			failsAndRecovers(t, a, func() error { return p.Start(t.Context()) })
			announce(t, a, id.UserID("@"+token[:2]+":b.org"))
			ear.announced(t, id.UserID("@"+token[:2]+":b.org"))
			if n, err := a.Debts(t.Context()); err != nil || n != 1 {
				t.Errorf("%d debts (%v)", n, err)
			}
			// A crash forgets which fetches are running: what came of them is then fetched again.
			_, err := a.Keep(t.Context(), store.Fetched{List: list(t, "@fetched:d.org", "key"), At: start, Token: token})
			if err != nil && (name != "after a crash" || !errors.Is(err, store.ErrSuperseded)) {
				t.Error(err)
			}
		})
	}
}

// A machine that hangs takes connections and never answers. Requests must not pile up behind it.
func TestPostgresHangs(t *testing.T) {
	t.Parallel()
	p, a, _ := ownServer(t)
	if err := p.Pause(); err != nil {
		t.Fatal(err)
	}
	failsAndRecovers(t, a, p.Resume)
	announce(t, a, "@bob:b.org")
}
