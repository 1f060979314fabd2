package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// Destination is how a remote server has fared. The zero value but for the name is one that last answered.
type Destination struct {
	Name string
	// Failures counts failures in a row that the destination is to blame for; 0 means that it is not backing off.
	Failures     int
	FailingSince time.Time
	// RetryAt is the end of its backoff.
	RetryAt time.Time
	// Reason and Sentence are its last failure's.
	Reason   freshen.Reason
	Sentence string
}

// Debt is one target whose refresh somebody was told will be retried.
type Debt struct {
	Target      id.UserID
	Destination string
	// Gen grows each time the debt is asked for again. A success pays the debt only up to the Gen that stood when its
	// fetch began, so that what was asked for meanwhile is not swallowed.
	Gen int64
	// AskedAt is when it was last asked for.
	AskedAt time.Time
	// Failures counts failures in a row that this user is to blame for.
	Failures int
	// DueAt is when it may be tried, as far as the user is concerned; the destination's backoff comes on top.
	DueAt time.Time
	// Lease names the claim that holds it, if one does.
	Lease string
	// Probe is set by [Store.Claim] where the destination is backing off.
	Probe    bool
	Reason   freshen.Reason
	Sentence string
}

// Failed is one fetch that failed, as it is recorded.
type Failed struct {
	Target      id.UserID
	Destination string
	At          time.Time
	// Requesters are the local users whose request this was; none for a retry.
	Requesters []id.UserID
	// Lease is the retry's claim; empty for a request. A claim that was lost meanwhile changes the debt no more.
	Lease string
	// Token is the fetch's, and Failure what came of it.
	Token   string
	Failure *freshen.Failure
}

// Verdict says how the states change by a failure, whose words a state that changes must be given: those of the failure
// before are not read. It is pure: it may run more than once.
type Verdict func(Destination, Debt) (dest Destination, debt Debt, owed bool)

// RecordFailure makes the failure and what is owed for it durable. nextTry is when the debt will be tried next; zero if
// nothing is owed any more. The error may be [ErrSuperseded].
func (s *Store) RecordFailure(ctx context.Context, f Failed, verdict Verdict) (nextTry time.Time, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		nextTry = time.Time{}
		if _, err := t.endFetch(ctx, f.Target, f.Token, f.At, f.Failure); err != nil {
			return err
		}
		stands, err := t.standing(ctx, f.Destination, f.Target)
		if err != nil {
			return err
		}
		debt, found := stands.debt, stands.owed
		asked := len(f.Requesters) > 0
		mine := asked || (found && debt.Lease == f.Lease)
		if !found {
			debt = Debt{Target: f.Target, Destination: f.Destination, DueAt: f.At}
		}
		if asked {
			debt.Gen, debt.AskedAt = debt.Gen+1, f.At
		}
		dest, debt, owed := verdict(stands.destination, debt)
		switch {
		case !mine: // the claim was lost, or the debt paid meanwhile
			owed = found
		case !owed:
			err = t.dropDebt(ctx, f.Target)
		default:
			debt.Lease = ""
			nextTry = later(dest.RetryAt, debt.DueAt)
			err = errors.Join(t.putDebt(ctx, debt), t.putRequesters(ctx, f.Target, f.Requesters, f.At, true))
		}
		if err != nil {
			return err
		}
		return t.putStanding(ctx, stands.destination, dest, owed, f.At)
	})
	return nextTry, err
}

// AskAgain records that requesters asked for a target of which nothing was fetched just now, mostly because it failed a
// moment ago: they too will hear of the success. What is owed already keeps its schedule; known is when it is tried, which
// saves reading it, or zero. begins says how a debt begins that there was not, is pure, and may run more than once.
func (s *Store) AskAgain(ctx context.Context, target id.UserID, requesters []id.UserID, at, known time.Time, begins func(Debt) Debt) (nextTry time.Time, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		if err := t.putRequesters(ctx, target, requesters, at, true); err != nil {
			return err
		}
		var owed bool
		if nextTry, owed, err = t.askAgain(ctx, target, at, known); owed || err != nil {
			return err
		}
		name := freshen.Destination(target)
		stands, err := t.standing(ctx, name, target)
		if err != nil {
			return err
		}
		debt := begins(Debt{Target: target, Destination: name, Gen: 1, AskedAt: at, DueAt: at})
		nextTry = later(stands.destination.RetryAt, debt.DueAt)
		return errors.Join(t.putDebt(ctx, debt), t.owesTo(ctx, name), t.schedule(ctx, name, at))
	})
	return nextTry, err
}

const askDebt = `UPDATE debts SET gen = gen + 1, asked_at = $1 WHERE user_id = $2`

const askDebtWhen = askDebt + `
	RETURNING due_at, lease, coalesce((SELECT retry_at FROM destinations WHERE name = debts.destination), 0)`

// askAgain records that what is owed already was asked for again, and says when it is tried.
func (t *tx) askAgain(ctx context.Context, target id.UserID, at, known time.Time) (nextTry time.Time, owed bool, err error) {
	if !known.IsZero() {
		owed, err := t.exec(ctx, askDebt, millis(at), target)
		return later(at, known), owed > 0, err
	}
	var due, retry int64
	var lease string
	err = t.QueryRowContext(ctx, askDebtWhen, millis(at), target).Scan(&due, &lease, &retry)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, false, nil
	}
	if lease != "" { // it is being tried, or the claim has ended: due_at is the lease's end
		due = millis(at)
	}
	return fromMillis(max(due, retry)), true, err
}

// Debts counts what is owed in all.
func (s *Store) Debts(ctx context.Context) (n int, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	err = s.read.QueryRowContext(ctx, `SELECT count(*) FROM debts`).Scan(&n)
	return n, s.named(err)
}

// Backoff is how the destination stands. One that nothing is known of is not backing off.
func (s *Store) Backoff(ctx context.Context, name string) (Destination, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	d, err := scanDestination(name, s.read.QueryRowContext(ctx, selectDestination, name))
	return d, s.named(err)
}

// Postpone gives a claimed debt back, to be claimed again at until, without counting a failure.
func (s *Store) Postpone(ctx context.Context, debt Debt, now, until time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `UPDATE debts SET lease = '', due_at = $1 WHERE user_id = $2 AND lease = $3`,
			millis(until), debt.Target, debt.Lease)
		if err != nil {
			return err
		}
		return t.schedule(ctx, debt.Destination, now)
	})
}

// NextDue is when the first debt may be claimed for which there is a place; ok is false if nothing is owed.
func (s *Store) NextDue(ctx context.Context, free Places) (at time.Time, ok bool, err error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var fine, failing sql.NullInt64
	if err := s.read.QueryRowContext(ctx, nextDue).Scan(&fine, &failing); err != nil {
		return time.Time{}, false, s.named(err)
	}
	for _, kind := range []struct {
		due    sql.NullInt64
		places int
	}{{fine, free.Fine}, {failing, free.Failing}} {
		if due := time.UnixMilli(kind.due.Int64); kind.due.Valid && kind.places > 0 && (!ok || due.Before(at)) {
			at, ok = due, true
		}
	}
	return at, ok, nil
}

const nextDue = `SELECT (SELECT min(due_at) FROM destinations WHERE due_at IS NOT NULL AND failures = 0),
	(SELECT min(due_at) FROM destinations WHERE due_at IS NOT NULL AND failures > 0)`

// OwedDestinations names the destinations that are owed something.
func (s *Store) OwedDestinations(ctx context.Context) ([]string, error) {
	names, err := queryAll(ctx, s.read, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) },
		`SELECT name FROM destinations WHERE due_at IS NOT NULL`)
	return names, s.named(err)
}

// DropDestination forgets all that is owed to a destination, and says how many debts that were.
func (s *Store) DropDestination(ctx context.Context, name string) (n int64, err error) {
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `UPDATE requesters SET owed = 0 WHERE target IN (SELECT user_id FROM debts WHERE destination = $1)`, name)
		if err != nil {
			return err
		}
		if n, err = t.exec(ctx, `DELETE FROM debts WHERE destination = $1`, name); err != nil {
			return err
		}
		_, err = t.exec(ctx, `DELETE FROM destinations WHERE name = $1`, name)
		return err
	})
	return n, err
}

// ReleaseClaims gives back what an earlier process had claimed when it ended, and makes deliveries due that it had not
// tried. Only the sole user of a database may call it.
func (s *Store) ReleaseClaims(ctx context.Context, now time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		names, err := queryAll(ctx, t, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) },
			`SELECT DISTINCT destination FROM debts WHERE lease <> ''`)
		if err != nil {
			return err
		}
		if _, err := t.exec(ctx, `UPDATE debts SET lease = '', due_at = $1 WHERE lease <> ''`, millis(now)); err != nil {
			return err
		}
		if _, err := t.exec(ctx, `UPDATE deliveries SET due_at = $1 WHERE due_at > $1 AND tries = 0`, millis(now)); err != nil {
			return err
		}
		for _, name := range names {
			if err := t.schedule(ctx, name, now); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *tx) dropDebt(ctx context.Context, target id.UserID) error {
	if _, err := t.exec(ctx, `DELETE FROM debts WHERE user_id = $1`, target); err != nil {
		return err
	}
	return t.owesNothing(ctx, target)
}

// owesNothing records that nobody is to hear of a success any more.
func (t *tx) owesNothing(ctx context.Context, target id.UserID) error {
	_, err := t.exec(ctx, `UPDATE requesters SET owed = 0 WHERE target = $1 AND owed = 1`, target)
	return err
}

const debtColumns = `user_id, destination, gen, asked_at, failures, due_at, lease, reason, sentence`

// scanDebt reads debtColumns, and what stands behind them into more.
func scanDebt(rows *sql.Rows, more ...any) (d Debt, err error) {
	var asked, due int64
	err = rows.Scan(append([]any{&d.Target, &d.Destination, &d.Gen, &asked, &d.Failures, &due, &d.Lease, &d.Reason, &d.Sentence}, more...)...)
	d.AskedAt, d.DueAt = fromMillis(asked), fromMillis(due)
	return d, err
}

func (t *tx) putDebt(ctx context.Context, d Debt) error {
	_, err := t.exec(ctx, `INSERT INTO debts (`+debtColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
		ON CONFLICT (user_id) DO UPDATE SET gen = excluded.gen, asked_at = excluded.asked_at, failures = excluded.failures,
			due_at = excluded.due_at, lease = excluded.lease, reason = excluded.reason, sentence = excluded.sentence`,
		d.Target, d.Destination, d.Gen, millis(d.AskedAt), d.Failures, millis(d.DueAt), d.Lease, d.Reason, d.Sentence)
	return err
}

const selectDestination = `SELECT failures, failing_since, retry_at, reason, sentence FROM destinations WHERE name = $1`

func scanDestination(name string, row *sql.Row) (Destination, error) {
	d := Destination{Name: name}
	var since, retry int64
	err := row.Scan(&d.Failures, &since, &retry, &d.Reason, &d.Sentence)
	if errors.Is(err, sql.ErrNoRows) {
		return d, nil
	}
	d.FailingSince, d.RetryAt = fromMillis(since), fromMillis(retry)
	return d, err
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func queryAll[T any](ctx context.Context, q querier, scan func(*sql.Rows) (T, error), query string, args ...any) (all []T, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}
