package refresh

import (
	"context"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/retry"
	"freshen/internal/store"
)

const (
	// payAgain is how long a retry waits that our own side kept from being made.
	payAgain = 10 * time.Second
	// sharingAfter is how long after it was last asked for it is found out, before each try of a debt, whether those who
	// were promised it still share a room with its target.
	sharingAfter = time.Hour
	// maxPromised is the most users who are asked about for that; where there are more, somebody will share one.
	maxPromised = 20
)

// Pay tries a debt that the caller has claimed, and records what came of it.
func (e *Engine) Pay(ctx context.Context, debt store.Debt) error {
	if !e.cfg.ServerAllowed(debt.Destination) {
		return e.dropDenied(ctx, debt.Destination)
	}
	if gone, err := e.nobodyShares(ctx, debt); gone || err != nil {
		return err
	}
	f := e.board(debt.Target, func(f *flight) { f.lease = debt.Lease })
	select {
	case <-f.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.lease == debt.Lease && f.recorded {
		return nil
	}
	// A request's flight that had landed before we came, or none at all: we are shutting down, or cannot record.
	now := e.cfg.Now()
	again := now
	if f.err != nil {
		again = now.Add(max(f.err.RetryAfter, payAgain))
	}
	return e.store.Postpone(ctx, debt, now, again)
}

// LongestPay is how long [Engine.Pay] takes at most.
func (e *Engine) LongestPay() time.Duration {
	return concernsTimeout + (maxFetches+1)*(e.cfg.Timeout+2*commitTimeout)
}

// DropDenied ends all debts to destinations that the configuration denies by now.
func (e *Engine) DropDenied(ctx context.Context) error {
	names, err := e.store.OwedDestinations(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if e.cfg.ServerAllowed(name) {
			continue
		}
		if err := e.dropDenied(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) dropDenied(ctx context.Context, destination string) error {
	n, err := e.store.DropDestination(ctx, destination)
	if err != nil {
		return err
	}
	e.ended.count(retry.Denied, n)
	e.log.Info("dropped what was owed to a destination that the configuration denies", "destination", destination, "debts", n)
	return nil
}

// giveUp ends the debts of a failing destination that are too old, also those whose turn never comes: it is asked for
// one of them at a time.
func (e *Engine) giveUp(ctx context.Context, destination string, now time.Time) {
	n, err := e.store.GiveUp(ctx, destination, now.Add(-e.cfg.Retry.GiveUpAfter), now)
	if err != nil {
		e.log.Error("could not give up what is owed for too long; trying again at the next failure", "destination", destination, "err", err)
		return
	}
	if n > 0 {
		e.ended.count(retry.GivenUp, n)
		e.log.Warn("gave up debts that are owed for too long", "destination", destination, "debts", n)
	}
}

// nobodyShares ends a debt that nobody has a use for any more: each of those who were promised it was known to share a
// room with the target at some time, and is known not to now.
func (e *Engine) nobodyShares(ctx context.Context, debt store.Debt) (gone bool, err error) {
	if e.cfg.Now().Sub(debt.AskedAt) < sharingAfter {
		return false, nil
	}
	promised, err := e.store.Promised(ctx, debt.Target, maxPromised+1)
	if err != nil || len(promised) == 0 || len(promised) > maxPromised {
		return false, err
	}
	users := make([]id.UserID, len(promised))
	once := make(map[id.UserID]bool, len(promised))
	for i, p := range promised {
		users[i], once[p.UserID] = p.UserID, p.Shared
	}
	asking, cancel := context.WithTimeout(ctx, concernsTimeout)
	defer cancel()
	yes, no := e.rooms.Sharing(asking, users, debt.Target)
	var learnt []id.UserID
	for _, user := range yes {
		if !once[user] {
			learnt = append(learnt, user)
		}
	}
	if len(learnt) > 0 {
		return false, e.store.MarkPromisedShared(ctx, debt.Target, learnt)
	}
	left := 0
	for _, user := range no {
		if once[user] {
			left++
		}
	}
	if left < len(promised) {
		return false, nil
	}
	gone, err = e.store.DropDebt(ctx, debt, e.cfg.Now())
	if gone {
		e.ended.count(retry.NobodyShares, 1)
		e.log.Info("dropped a debt: nobody who asked for it shares a room with its target any more", "target", debt.Target)
	}
	return gone, err
}

// concerns says whether one of those who asked, now or, for a retry, when it was promised, shares a room with the target.
// A long list is kept only then: anybody may ask for strangers, whose own server makes their lists as long as it likes.
func (e *Engine) concerns(ctx context.Context, f *flight) bool {
	ctx, cancel := context.WithTimeout(ctx, concernsTimeout)
	defer cancel()
	for user, cred := range f.requesters {
		if shares, err := e.rooms.Shares(ctx, user, cred, f.target); err == nil && shares {
			return true
		}
	}
	if f.lease == "" {
		return false
	}
	promised, err := e.store.Promised(ctx, f.target, maxPromised)
	if err != nil {
		return false
	}
	users := make([]id.UserID, len(promised))
	for i, p := range promised {
		if p.Shared {
			return true
		}
		users[i] = p.UserID
	}
	yes, _ := e.rooms.Sharing(ctx, users, f.target)
	return len(yes) > 0
}

// Ended counts the debts that have ended since the start, by how.
func (e *Engine) Ended() map[retry.Ending]int64 {
	return map[retry.Ending]int64{
		retry.Paid: e.ended.paid.Load(), retry.GivenUp: e.ended.givenUp.Load(),
		retry.Denied: e.ended.denied.Load(), retry.NobodyShares: e.ended.nobodyShares.Load(),
		retry.Dropped: e.ended.dropped.Load(),
	}
}

// Dropped counts debts that the administrator has ended.
func (e *Engine) Dropped(n int64) { e.ended.count(retry.Dropped, n) }

type endings struct{ paid, givenUp, denied, nobodyShares, dropped atomic.Int64 }

func (e *endings) count(how retry.Ending, n int64) {
	switch how {
	case retry.Paid:
		e.paid.Add(n)
	case retry.GivenUp:
		e.givenUp.Add(n)
	case retry.Denied:
		e.denied.Add(n)
	case retry.NobodyShares:
		e.nobodyShares.Add(n)
	case retry.Dropped:
		e.dropped.Add(n)
	}
}
