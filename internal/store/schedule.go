package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// destinationRow is what says when the next debt of a destination may be claimed, in the tables' milliseconds.
type destinationRow struct {
	failures int
	retryAt  int64
	due      sql.NullInt64 // as it stands
	first    sql.NullInt64 // the first debt's due time; not valid: it is owed nothing
	running  int           // claims that have not ended
	ends     int64         // when the first of them ends by time
}

// allowed is how many claims there may be at once.
func (r destinationRow) allowed() int {
	if r.failures > 0 {
		return 1
	}
	return perDestination
}

// dueAt is when the next debt may be claimed; not valid where nothing is owed.
func (r destinationRow) dueAt() sql.NullInt64 {
	if !r.first.Valid {
		return sql.NullInt64{}
	}
	due := max(r.first.Int64, r.retryAt)
	if r.running >= r.allowed() {
		due = max(due, r.ends)
	}
	return sql.NullInt64{Int64: due, Valid: true}
}

const (
	selectRow = `SELECT failures, retry_at, due_at, ` + claimsOf + ` FROM destinations WHERE name = $1`
	claimsOf  = `(SELECT min(due_at) FROM debts WHERE destination = $1),
		(SELECT count(*) FROM debts WHERE destination = $1 AND lease <> '' AND due_at > $2),
		(SELECT min(due_at) FROM debts WHERE destination = $1 AND lease <> '' AND due_at > $2)`
)

// row reads a destination's row and what is owed to it. A destination that is not known is fine and owed nothing.
func (t *tx) row(ctx context.Context, name string, now time.Time) (r destinationRow, err error) {
	var ends sql.NullInt64
	err = t.QueryRowContext(ctx, selectRow, name, millis(now)).Scan(&r.failures, &r.retryAt, &r.due, &r.first, &r.running, &ends)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	r.ends = ends.Int64
	return r, err
}

// schedule works out when the destination's next debt may be claimed, and forgets one that is owed nothing and is fine.
func (t *tx) schedule(ctx context.Context, name string, now time.Time) error {
	r, err := t.row(ctx, name, now)
	if err != nil {
		return err
	}
	if !r.first.Valid && r.failures == 0 {
		_, err := t.exec(ctx, `DELETE FROM destinations WHERE name = $1`, name)
		return err
	}
	return t.setDue(ctx, name, r)
}

func (t *tx) setDue(ctx context.Context, name string, r destinationRow) error {
	due := r.dueAt()
	if due == r.due {
		return nil
	}
	_, err := t.exec(ctx, `UPDATE destinations SET due_at = $1 WHERE name = $2`, due, name)
	return err
}

// pay settles the target's debt up to gen, and clears its destination's backoff, which makes all of its debts due.
func (t *tx) pay(ctx context.Context, target id.UserID, gen int64, now time.Time) (paid, recovered bool, err error) {
	settled, err := t.exec(ctx, `DELETE FROM debts WHERE user_id = $1 AND gen <= $2`, target, gen)
	if err != nil {
		return false, false, err
	}
	if settled == 0 {
		// What was asked for meanwhile is not settled, but its user has just been shown to be fine.
		if _, err := t.exec(ctx, `UPDATE debts SET lease = '', failures = 0, due_at = $1 WHERE user_id = $2`, millis(now), target); err != nil {
			return false, false, err
		}
	}
	recovered, err = t.recover(ctx, freshen.Destination(target), now)
	return settled > 0, recovered, err
}

// recover clears a destination's backoff, if it has one, which makes what waits for that due.
func (t *tx) recover(ctx context.Context, name string, now time.Time) (recovered bool, err error) {
	r, err := t.row(ctx, name, now)
	if err != nil {
		return false, err
	}
	recovered = r.failures > 0
	r.failures, r.retryAt = 0, 0
	switch {
	case !r.first.Valid:
		_, err = t.exec(ctx, `DELETE FROM destinations WHERE name = $1`, name)
	case recovered:
		_, err = t.exec(ctx, `UPDATE destinations SET failures = 0, failing_since = 0, retry_at = 0, reason = '', sentence = '', due_at = $1
			WHERE name = $2`, r.dueAt(), name)
	default:
		err = t.setDue(ctx, name, r)
	}
	return recovered, err
}

// putDestination stores how a destination stands, and when its next debt may be claimed.
func (t *tx) putDestination(ctx context.Context, d Destination, due sql.NullInt64) error {
	_, err := t.exec(ctx, `INSERT INTO destinations (name, failures, failing_since, retry_at, reason, sentence, due_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (name) DO UPDATE SET failures = excluded.failures, failing_since = excluded.failing_since,
			retry_at = excluded.retry_at, reason = excluded.reason, sentence = excluded.sentence, due_at = excluded.due_at`,
		d.Name, d.Failures, millis(d.FailingSince), millis(d.RetryAt), d.Reason, d.Sentence, due)
	return err
}

// standing is how a target's debt and its destination stand, but for the words of their last failures.
type standing struct {
	destination Destination
	debt        Debt
	owed        bool // there is a debt
}

// selectStanding reads both in one statement, which is much of what a change costs.
func selectStanding(lock string) string {
	return `WITH dest AS (SELECT failures, failing_since, retry_at FROM destinations WHERE name = $1` + lock + `),
		debt AS (SELECT gen, asked_at, failures, due_at, lease FROM debts WHERE user_id = $2` + lock + `)
		SELECT coalesce(dest.failures, 0), coalesce(dest.failing_since, 0), coalesce(dest.retry_at, 0),
			coalesce(debt.gen, 0), coalesce(debt.asked_at, 0), coalesce(debt.failures, 0), coalesce(debt.due_at, 0), coalesce(debt.lease, '')
		FROM (SELECT 1 AS one) always LEFT JOIN dest ON true LEFT JOIN debt ON true`
}

func (t *tx) standing(ctx context.Context, destination string, target id.UserID) (s standing, err error) {
	s.destination.Name = destination
	s.debt.Target, s.debt.Destination = target, destination
	var since, retry, asked, due int64
	err = t.QueryRowContext(ctx, t.dialect.standing, destination, target).Scan(
		&s.destination.Failures, &since, &retry, &s.debt.Gen, &asked, &s.debt.Failures, &due, &s.debt.Lease)
	s.destination.FailingSince, s.destination.RetryAt = fromMillis(since), fromMillis(retry)
	s.debt.AskedAt, s.debt.DueAt = fromMillis(asked), fromMillis(due)
	s.owed = s.debt.Gen > 0
	return s, err
}

// putStanding stores what a failure made of the destination, and when its next debt may be claimed. While it fails, that
// is the end of its backoff: should something else have to be waited for as well, whoever then comes to claim finds that
// out, which is cheaper than to look at each failure what else is owed.
func (t *tx) putStanding(ctx context.Context, before, d Destination, owed bool, now time.Time) error {
	var err error
	switch {
	case d != before && owed && d.Failures > 0:
		return t.putDestination(ctx, d, sql.NullInt64{Int64: millis(d.RetryAt), Valid: true})
	case d != before:
		err = t.putDestination(ctx, d, sql.NullInt64{})
	case owed:
		err = t.owesTo(ctx, d.Name)
	}
	if err != nil {
		return err
	}
	return t.schedule(ctx, d.Name, now)
}

// owesTo has a row for a destination, if there is none.
func (t *tx) owesTo(ctx context.Context, name string) error {
	_, err := t.exec(ctx, `INSERT INTO destinations (name) VALUES ($1) ON CONFLICT (name) DO NOTHING`, name)
	return err
}
