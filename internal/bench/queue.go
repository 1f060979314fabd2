package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/limit"
	"freshen/internal/retry"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

const (
	queueRounds  = 7
	queueDebts   = 6_400 // a round
	queueServers = 640   // of ten debts each
	// together is how many callers there are at once, and how many changes a commit of the bare statements has.
	together = 64
	// enough is how much of the bare statements' rate the store is to reach.
	enough = 0.6
)

var queuePolicy = retry.Policy{First: 30 * time.Second, Most: 6 * time.Hour, GiveUpAfter: 7 * 24 * time.Hour}

// rival is one database, written by the store, and another, written by bare statements.
type rival struct {
	database string
	store    *store.Store
	plain    *sql.Conn
	begin    string
	yes, no  any // as the database's columns want them
}

// queue measures what is owed being recorded, asked for again, claimed and paid, durably, by as many callers as share a
// commit, beside the bare statements that write the same rows, 64 changes a commit.
func queue(b *bench) error {
	for _, rival := range []func(*bench) (*rival, error){sqliteRival, postgresRival} {
		r, err := rival(b)
		if errors.Is(err, storetest.ErrMissing) {
			b.out.add(row{name: "Postgres: not measured, for there is none on this machine"})
			continue
		}
		if err != nil {
			return err
		}
		if err := r.race(b); err != nil {
			return err
		}
	}
	return nil
}

// postgresRival has two databases of one server that is durable, on this machine.
func postgresRival(b *bench) (*rival, error) {
	server, err := storetest.Start(b.ctx, storetest.Options{Durable: true})
	if err != nil {
		return nil, err
	}
	b.Cleanup(func() { _ = server.Close() })
	r := &rival{database: "Postgres", begin: "BEGIN", yes: 1, no: 0}
	for _, name := range []string{"plain", "store"} {
		database, err := server.CreateDatabase(b.ctx)
		if err != nil {
			return nil, err
		}
		s, err := store.Open(b.ctx, store.Config{URL: server.URL(database), PerDestination: boundless, Log: quiet()})
		if err != nil {
			return nil, err
		}
		if name == "store" {
			r.store = s
			b.Cleanup(func() { _ = s.Close() })
			break
		}
		if err := s.Close(); err != nil {
			return nil, err
		}
		db, err := sql.Open("pgx", server.URL(database).String())
		if err != nil {
			return nil, err
		}
		b.Cleanup(func() { _ = db.Close() })
		if r.plain, err = db.Conn(b.ctx); err != nil {
			return nil, err
		}
		b.Cleanup(func() { _ = r.plain.Close() })
	}
	return r, nil
}

func sqliteRival(b *bench) (*rival, error) {
	r := &rival{database: "SQLite", begin: "BEGIN IMMEDIATE", yes: 1, no: 0}
	for _, name := range []string{"plain", "store"} {
		path := filepath.Join(b.TempDir(), name+".db")
		s, err := store.Open(b.ctx, store.Config{Path: path, PerDestination: boundless, Log: quiet()})
		if err != nil {
			return nil, err
		}
		if name == "store" {
			r.store = s
			b.Cleanup(func() { _ = s.Close() })
			break
		}
		if err := s.Close(); err != nil {
			return nil, err
		}
		db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(ON)")
		if err != nil {
			return nil, err
		}
		b.Cleanup(func() { _ = db.Close() })
		if r.plain, err = db.Conn(b.ctx); err != nil {
			return nil, err
		}
		b.Cleanup(func() { _ = r.plain.Close() })
	}
	return r, nil
}

// boundless is a rate that holds nobody back.
var boundless = limit.Rate{Every: time.Microsecond, Burst: 1_000_000}

// backlog is a round's debts.
type backlog struct {
	now      time.Time
	targets  []id.UserID
	lists    []*freshen.DeviceList
	failures []*freshen.Failure
	next     []time.Time // when each debt is tried again, as the failure's record said
}

func newBacklog(round int) (*backlog, error) {
	l := &backlog{now: time.Now().Add(time.Duration(round) * 10 * 24 * time.Hour), next: make([]time.Time, queueDebts)}
	for i := range queueDebts {
		server := fmt.Sprintf("s%d.r%d.example", i%queueServers, round)
		target := id.NewUserID(fmt.Sprintf("user%d", i), server)
		list, err := freshen.ParseDeviceList(deviceList(target, 3, 1), target)
		if err != nil {
			return nil, err
		}
		l.targets, l.lists = append(l.targets, target), append(l.lists, list)
		l.failures = append(l.failures, &freshen.Failure{
			Destination: server, Reason: freshen.ReasonConnect,
			Sentence: fmt.Sprintf("%s refused the connection when it was asked for its user %d.", server, i),
		})
	}
	return l, nil
}

// race runs every step over every round's backlog, in turns.
func (r *rival) race(b *bench) error {
	steps := []struct {
		name  string
		plain func(*bench, *backlog) error
		store func(*bench, *backlog) error
	}{
		{"a failure recorded", r.plainRecord, r.record},
		{"asked for again", r.plainAsk, r.ask},
		{"claimed, and failed again", r.plainFail, r.fail},
		{"claimed, and paid", r.plainPay, r.pay},
	}
	rates := make([][2][]float64, len(steps))
	for round := range queueRounds {
		l, err := newBacklog(round)
		if err != nil {
			return err
		}
		for i, step := range steps {
			for way, do := range []func(*bench, *backlog) error{step.plain, step.store} {
				began := time.Now()
				if err := do(b, l); err != nil {
					return fmt.Errorf("%s, %s: %w", r.database, step.name, err)
				}
				rates[i][way] = append(rates[i][way], queueDebts/time.Since(began).Seconds())
			}
		}
	}
	for i, step := range steps {
		ratio := median(ratios(rates[i][1], rates[i][0]))
		b.out.add(row{
			name:   fmt.Sprintf("%s, %d callers: %s, a second", r.database, together, step.name),
			direct: fmt.Sprintf("%.0f", median(rates[i][0])), freshen: fmt.Sprintf("%.0f", median(rates[i][1])),
			ratio: times(ratio), target: fmt.Sprintf("≥ %.1f×", enough), met: ratio >= enough,
		})
	}
	return nil
}

// callers has do called for each debt, by 64 at once.
func callers(ctx context.Context, do func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for caller := range together {
		g.Go(func() error {
			for i := caller; i < queueDebts; i += together {
				if err := do(ctx, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (r *rival) record(b *bench, l *backlog) error {
	return callers(b.ctx, func(ctx context.Context, i int) (err error) {
		l.next[i], err = r.store.RecordFailure(ctx, store.Failed{
			Target: l.targets[i], Destination: l.failures[i].Destination, At: l.now, Requesters: []id.UserID{"@alice:a.example"}, Failure: l.failures[i],
		}, l.verdict(i, l.now))
		return err
	})
}

func (l *backlog) verdict(i int, now time.Time) store.Verdict {
	return func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		dest, debt, ending := queuePolicy.Failure(dest, debt, l.failures[i], now, 0.5)
		return dest, debt, ending == retry.Owed
	}
}

func (r *rival) ask(b *bench, l *backlog) error {
	return callers(b.ctx, func(ctx context.Context, i int) error {
		var known time.Time
		if !r.store.Shared() { // as the refresh engine knows it
			known = l.next[i]
		}
		_, err := r.store.AskAgain(ctx, l.targets[i], []id.UserID{"@anna:a.example"}, l.now, known, func(debt store.Debt) store.Debt {
			return retry.Policy{}.Begins(debt, l.failures[i], l.now, 0.5)
		})
		return err
	})
}

func (r *rival) fail(b *bench, l *backlog) error {
	return r.work(b, l, func(ctx context.Context, debt store.Debt, i int, now time.Time) error {
		_, err := r.store.RecordFailure(ctx, store.Failed{
			Target: debt.Target, Destination: debt.Destination, At: now, Lease: debt.Lease, Failure: l.failures[i],
		}, l.verdict(i, now))
		return err
	})
}

func (r *rival) pay(b *bench, l *backlog) error {
	return r.work(b, l, func(ctx context.Context, debt store.Debt, i int, now time.Time) error {
		_, err := r.store.Keep(ctx, store.Fetched{List: l.lists[i], At: now, PaidGen: debt.Gen})
		return err
	})
}

// work claims and finishes as many debts as the backlog has, 64 at once. When nothing is due, the clock is put forward
// past every wait.
func (r *rival) work(b *bench, l *backlog, finish func(ctx context.Context, debt store.Debt, i int, now time.Time) error) error {
	type claimed struct {
		debt store.Debt
		now  time.Time
	}
	g, ctx := errgroup.WithContext(b.ctx)
	work, finished := make(chan claimed, together), make(chan struct{}, queueDebts)
	g.Go(func() error {
		defer close(work)
		for begun, ended := 0, 0; begun < queueDebts; {
			most := min(together, queueDebts-begun)
			debts, err := r.store.Claim(ctx, l.now, 2*time.Minute, "bench", store.Places{Fine: most, Failing: most})
			if err != nil {
				return err
			}
			for _, debt := range debts {
				select {
				case work <- claimed{debt, l.now}:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			begun += len(debts)
			if len(debts) > 0 {
				continue
			}
			for ; ended < begun; ended++ {
				select {
				case <-finished:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			l.now = l.now.Add(8 * time.Hour)
		}
		return nil
	})
	for range together {
		g.Go(func() error {
			for c := range work {
				var i int
				if _, err := fmt.Sscanf(string(c.debt.Target), "@user%d:", &i); err != nil {
					return err
				}
				if err := finish(ctx, c.debt, i, c.now); err != nil {
					return err
				}
				finished <- struct{}{}
			}
			return nil
		})
	}
	return g.Wait()
}
