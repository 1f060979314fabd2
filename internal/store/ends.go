package store

import (
	"context"
	"database/sql"
	"time"

	"maunium.net/go/mautrix/id"
)

// Promised is a local user who was told that a target's refresh will be retried.
type Promised struct {
	UserID id.UserID
	// Shared: they were known to share a room with the target at some time.
	Shared bool
}

// Promised names those who were promised something about target, at most limit of them.
func (s *Store) Promised(ctx context.Context, target id.UserID, limit int) ([]Promised, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	all, err := queryAll(ctx, s.read, func(rows *sql.Rows) (p Promised, err error) { return p, rows.Scan(&p.UserID, &p.Shared) },
		`SELECT user_id, shared FROM requesters WHERE target = $1 AND owed = 1 LIMIT $2`, target, limit)
	return all, s.named(err)
}

// MarkPromisedShared records that these users, who asked for target, share a room with them.
func (s *Store) MarkPromisedShared(ctx context.Context, target id.UserID, users []id.UserID) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		for _, user := range users {
			if _, err := t.exec(ctx, `UPDATE requesters SET shared = 1 WHERE target = $1 AND user_id = $2`, target, user); err != nil {
				return err
			}
		}
		return nil
	})
}

// DropDebt ends a claimed debt without a fetch; dropped is false if the claim was lost or the debt was asked for again
// meanwhile.
func (s *Store) DropDebt(ctx context.Context, debt Debt, now time.Time) (dropped bool, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, `DELETE FROM debts WHERE user_id = $1 AND lease = $2 AND gen = $3`, debt.Target, debt.Lease, debt.Gen)
		dropped = n > 0
		if err != nil || !dropped {
			return err
		}
		if err := t.owesNothing(ctx, debt.Target); err != nil {
			return err
		}
		return t.schedule(ctx, debt.Destination, now)
	})
	return dropped, err
}

// GiveUp ends the debts of a destination that were last asked for before, but for those that are being tried, and says
// how many that were.
func (s *Store) GiveUp(ctx context.Context, name string, before, now time.Time) (n int64, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		const old = ` FROM debts WHERE destination = $1 AND asked_at <= $2 AND lease = ''`
		if _, err := t.exec(ctx, `UPDATE requesters SET owed = 0 WHERE owed = 1 AND target IN (SELECT user_id`+old+`)`, name, millis(before)); err != nil {
			return err
		}
		if n, err = t.exec(ctx, `DELETE`+old, name, millis(before)); err != nil || n == 0 {
			return err
		}
		return t.schedule(ctx, name, now)
	})
	return n, err
}

// Bound puts right what a clock that was set back has left in the far future: nothing waits for longer than wait from
// now on, no claim holds for longer than lease, what waits for its destination alone is due, and nothing was asked for
// later than now.
func (s *Store) Bound(ctx context.Context, now time.Time, wait, lease time.Duration) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		names, err := queryAll(ctx, t, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) },
			`SELECT DISTINCT destination FROM debts WHERE due_at > $1 AND (failures = 0 OR lease <> '' OR due_at > $2)
			UNION SELECT name FROM destinations WHERE retry_at > $2`, millis(now), millis(now.Add(wait)))
		if err != nil {
			return err
		}
		for _, bound := range []struct {
			query string
			most  time.Time
		}{
			{`UPDATE debts SET asked_at = $1 WHERE asked_at > $1`, now},
			{`UPDATE debts SET due_at = $1 WHERE due_at > $1 AND lease <> ''`, now.Add(lease)},
			{`UPDATE debts SET due_at = $1 WHERE due_at > $1 AND lease = '' AND failures = 0`, now},
			{`UPDATE debts SET due_at = $1 WHERE due_at > $1`, now.Add(wait)},
			{`UPDATE deliveries SET asked_at = $1 WHERE asked_at > $1`, now},
			{`UPDATE deliveries SET due_at = $1 WHERE due_at > $1`, now.Add(wait)},
			{`UPDATE destinations SET failing_since = $1 WHERE failing_since > $1`, now},
			{`UPDATE destinations SET retry_at = $1 WHERE retry_at > $1`, now.Add(wait)},
		} {
			if _, err := t.exec(ctx, bound.query, millis(bound.most)); err != nil {
				return err
			}
		}
		for _, name := range names {
			if err := t.schedule(ctx, name, now); err != nil {
				return err
			}
		}
		return nil
	})
}
