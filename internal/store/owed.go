package store

import (
	"context"
	"database/sql"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// OwedDebt is a debt, and how its destination stands.
type OwedDebt struct {
	Debt
	Standing Destination
}

// Owed lists what is owed, by destination and target, at most limit debts.
func (s *Store) Owed(ctx context.Context, limit int) ([]OwedDebt, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	all, err := queryAll(ctx, s.read, func(rows *sql.Rows) (o OwedDebt, err error) {
		var asked, due, since, retry int64
		d, n := &o.Debt, &o.Standing
		err = rows.Scan(&d.Target, &d.Destination, &d.Gen, &asked, &d.Failures, &due, &d.Lease, &d.Reason, &d.Sentence,
			&n.Failures, &since, &retry, &n.Reason, &n.Sentence)
		d.AskedAt, d.DueAt = fromMillis(asked), fromMillis(due)
		n.Name, n.FailingSince, n.RetryAt = d.Destination, fromMillis(since), fromMillis(retry)
		return o, err
	}, `SELECT d.user_id, d.destination, d.gen, d.asked_at, d.failures, d.due_at, d.lease, d.reason, d.sentence,
		coalesce(n.failures, 0), coalesce(n.failing_since, 0), coalesce(n.retry_at, 0), coalesce(n.reason, ''), coalesce(n.sentence, '')
		FROM debts d LEFT JOIN destinations n ON n.name = d.destination ORDER BY d.destination, d.user_id LIMIT $1`, limit)
	return all, s.named(err)
}

// Backlog is what is owed in numbers.
type Backlog struct {
	Debts int
	// Oldest is when the debt was last asked for that has waited longest since; zero where nothing is owed.
	Oldest time.Time
	// BackingOff counts destinations.
	BackingOff int
	// Undelivered counts the lists that the homeserver is not known to have announced, though it was told to.
	Undelivered int
}

// Backlog counts what is owed. It reads all debts.
func (s *Store) Backlog(ctx context.Context) (b Backlog, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var oldest int64
	err = s.read.QueryRowContext(ctx, `SELECT count(*), coalesce(min(asked_at), 0), (SELECT count(*) FROM destinations WHERE failures > 0),
		(SELECT count(*) FROM deliveries WHERE reason <> '') FROM debts`).
		Scan(&b.Debts, &oldest, &b.BackingOff, &b.Undelivered)
	b.Oldest = fromMillis(oldest)
	return b, s.named(err)
}

// Forgive forgets what is owed about a target, and says whether anything was. A fetch that is running changes nothing of
// that.
func (s *Store) Forgive(ctx context.Context, target id.UserID, now time.Time) (n int64, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		if n, err = t.exec(ctx, `DELETE FROM debts WHERE user_id = $1`, target); err != nil || n == 0 {
			return err
		}
		if err := t.owesNothing(ctx, target); err != nil {
			return err
		}
		return t.schedule(ctx, freshen.Destination(target), now)
	})
	return n, err
}

// TryNow makes what is owed about a target due, also where its destination is backing off, and says whether anything is.
func (s *Store) TryNow(ctx context.Context, target id.UserID, now time.Time) (n int64, err error) {
	return s.tryNow(ctx, `user_id`, string(target), freshen.Destination(target), now)
}

// TryDestinationNow makes all that is owed to a destination due, and says how much that is. While it is backing off it is
// still asked for one of them at a time.
func (s *Store) TryDestinationNow(ctx context.Context, name string, now time.Time) (n int64, err error) {
	return s.tryNow(ctx, `destination`, name, name, now)
}

func (s *Store) tryNow(ctx context.Context, column, value, destination string, now time.Time) (n int64, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		if err := t.QueryRowContext(ctx, `SELECT count(*) FROM debts WHERE `+column+` = $1`, value).Scan(&n); err != nil || n == 0 {
			return err
		}
		// What is claimed is being tried.
		if _, err := t.exec(ctx, `UPDATE debts SET due_at = $1 WHERE `+column+` = $2 AND lease = '' AND due_at > $1`, millis(now), value); err != nil {
			return err
		}
		if _, err := t.exec(ctx, `UPDATE destinations SET retry_at = $1 WHERE name = $2 AND retry_at > $1`, millis(now), destination); err != nil {
			return err
		}
		return t.schedule(ctx, destination, now)
	})
	return n, err
}
