package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// ErrSuperseded is what the outcome of a fetch gets that another instance has begun anew meanwhile, because this one
// did not finish it in time: nothing of it was recorded.
var ErrSuperseded = errors.New("another instance has fetched this device list meanwhile")

// Fetch is a fetch that is about to begin. It ends with [Store.Keep], [Store.RecordFailure] or [Store.Abandon].
type Fetch struct {
	Target id.UserID
	// Token names this fetch and no other.
	Token string
	Now   time.Time
	// Lease is how long it may take; after that another instance may begin the same.
	Lease time.Duration
	// Claimed says that this is a retry, for which [Store.Claim] has taken a place in the destination's rate. It is made
	// whatever came of a fetch just before.
	Claimed bool
	// Spare says that nobody waits for it: it leaves half of the rate's burst to those who do.
	Spare bool
}

// Begun says how a fetch begins, or, if Wait, Busy or Past is set, that it does not.
type Begun struct {
	// Gen is the target's debt as it stands: what a success will pay. 0 if nothing is owed.
	Gen int64
	// Destination is how the destination stands.
	Destination Destination

	// Wait: the destination's rate is used up, for so long.
	Wait time.Duration
	// Busy: another instance fetches this list, or is trying this destination, which is backing off.
	Busy bool
	// Past is what came of a fetch that another instance made just before.
	Past *Past
}

// Past is how a fetch ended that was made a moment ago. Failure is nil for a success.
type Past struct {
	At      time.Time
	Failure *freshen.Failure
}

// Begin is asked before each fetch: it keeps to the destination's rate, over all instances, and to one fetch of a target
// at a time. This instance itself fetches a target once at a time, and knows what it tries of a destination that is
// backing off; so a fetch of its own that is running is one whose end it could not record.
func (s *Store) Begin(ctx context.Context, f Fetch) (begun Begun, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if s.sharing != nil {
		return s.beginShared(ctx, f)
	}
	name := freshen.Destination(f.Target)
	if !f.Claimed {
		take := s.rates.Take
		if f.Spare {
			take = s.rates.TakeSpare
		}
		if wait := take(name, f.Now); wait > 0 {
			return Begun{Wait: wait}, nil
		}
	}
	return begun, s.named(begun.read(ctx, s.read, f.Target))
}

// read finds out how the target's debt and its destination stand.
func (b *Begun) read(ctx context.Context, q querier, target id.UserID) error {
	err := q.QueryRowContext(ctx, `SELECT gen FROM debts WHERE user_id = $1`, target).Scan(&b.Gen)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	name := freshen.Destination(target)
	b.Destination, err = scanDestination(name, q.QueryRowContext(ctx, selectDestination, name))
	return err
}

// Abandon ends a fetch of which nothing is to be recorded.
func (s *Store) Abandon(ctx context.Context, target id.UserID, token string) error {
	if s.sharing == nil {
		return nil // one process has its fetches in memory
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	if _, err := s.read.ExecContext(ctx, `UPDATE fetches SET token = '' WHERE target = $1 AND token = $2`, target, token); err != nil {
		return s.explain(err)
	}
	return nil
}
