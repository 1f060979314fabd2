package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// deliveriesAtMost bounds two parts of a table.
type deliveriesAtMost struct{ waiting, told int }

const (
	// maxDeliveries is how many lists may wait for the homeserver at once: a promise beyond that is not made.
	maxDeliveries = 10_000
	// maxUndelivered is how many of those are remembered that the homeserver announces to nobody; the oldest ones go.
	maxUndelivered = 1_000
)

// ErrManyDeliveries says that so many lists wait for the homeserver that no more is promised.
var ErrManyDeliveries = errors.New("the homeserver has not taken 10,000 device lists yet, which are as many as may wait for it")

// Delivery is one target whose list the homeserver is to fetch and announce itself, and is not known to have done so.
type Delivery struct {
	Target      id.UserID
	Destination string
	// Gen grows each time the target's list is fetched for somebody: what is found out of an older one settles nothing.
	Gen int64
	// Since is from when on the homeserver is behind; AskedAt is when the list was last fetched for somebody.
	Since, AskedAt time.Time
	// DueAt is when it is tried next; zero where that would change nothing.
	DueAt time.Time
	// Tries counts those in a row that have not brought the homeserver to it.
	Tries int
	// Loose: a part of the list was left out, which the homeserver may have taken.
	Loose bool
	// Reason and Sentence say what came of the last try; empty before it.
	Reason, Sentence string
}

const deliveryColumns = `user_id, destination, gen, since, asked_at, coalesce(due_at, 0), tries, loose, reason, sentence`

func scanDelivery(rows *sql.Rows) (d Delivery, err error) {
	var since, asked, due int64
	err = rows.Scan(&d.Target, &d.Destination, &d.Gen, &since, &asked, &due, &d.Tries, &d.Loose, &d.Reason, &d.Sentence)
	d.Since, d.AskedAt, d.DueAt = fromMillis(since), fromMillis(asked), fromMillis(due)
	return d, err
}

// OweDelivery records that the homeserver is to fetch target's list, from due on. It is durable when it returns. The error
// may be [ErrManyDeliveries].
func (s *Store) OweDelivery(ctx context.Context, target id.UserID, loose bool, now, due time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, `UPDATE deliveries SET gen = gen + 1, since = CASE WHEN reason = '' THEN $1 ELSE since END, asked_at = $1,
			due_at = $2, tries = 0, loose = $3 WHERE user_id = $4`, millis(now), millis(due), flag(loose), target)
		if err != nil || n > 0 {
			return err
		}
		var waiting int
		if err := t.QueryRowContext(ctx, `SELECT count(*) FROM deliveries WHERE due_at IS NOT NULL`).Scan(&waiting); err != nil {
			return err
		}
		if waiting >= s.most.waiting {
			return ErrManyDeliveries
		}
		_, err = t.exec(ctx, `INSERT INTO deliveries (user_id, destination, gen, since, asked_at, due_at, loose) VALUES ($1, $2, 1, $3, $3, $4, $5)`,
			target, freshen.Destination(target), millis(now), millis(due), flag(loose))
		return err
	})
}

// HastenDelivery makes what the homeserver is to fetch of target due, if it is not before now.
func (s *Store) HastenDelivery(ctx context.Context, target id.UserID, now time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `UPDATE deliveries SET due_at = $1 WHERE user_id = $2 AND due_at > $1`, millis(now), target)
		return err
	})
}

const dueDeliveries = `SELECT destination FROM deliveries WHERE due_at <= $1 GROUP BY destination ORDER BY min(due_at) LIMIT $2`

// ClaimDeliveries takes what is due, at most one for each destination, none for one that is busy, and at most as many as
// there are places. Nobody else tries them before now+lease, by which time the caller must have settled or put them off.
func (s *Store) ClaimDeliveries(ctx context.Context, now time.Time, lease time.Duration, busy func(destination string) bool, running, places int) (claimed []Delivery, err error) {
	due := func(ctx context.Context, q querier) ([]string, error) {
		return queryAll(ctx, q, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) }, dueDeliveries, millis(now), running+places)
	}
	// Mostly nothing is due, and to find that out nobody has to write.
	bounded, cancel := s.bounded(ctx)
	names, err := due(bounded, s.read)
	cancel()
	if err != nil || len(names) == 0 {
		return nil, s.named(err)
	}
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		claimed = nil
		names, err := due(ctx, t)
		if err != nil {
			return err
		}
		for _, name := range names {
			if len(claimed) == places {
				return nil
			}
			if busy(name) {
				continue
			}
			one, err := queryAll(ctx, t, scanDelivery, `UPDATE deliveries SET due_at = $1 WHERE user_id =
				(SELECT user_id FROM deliveries WHERE destination = $2 AND due_at <= $3 ORDER BY due_at LIMIT 1) RETURNING `+deliveryColumns,
				millis(now.Add(lease)), name, millis(now))
			if err != nil {
				return err
			}
			claimed = append(claimed, one...)
		}
		return nil
	})
	return claimed, err
}

// SettleDelivery forgets a delivery that was made, unless the list was fetched anew since.
func (s *Store) SettleDelivery(ctx context.Context, d Delivery) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `DELETE FROM deliveries WHERE user_id = $1 AND gen = $2`, d.Target, d.Gen)
		return err
	})
}

// PutOffDelivery records what came of a try: d's DueAt, Tries, Reason and Sentence. It changes nothing if the list was
// fetched anew since.
func (s *Store) PutOffDelivery(ctx context.Context, d Delivery) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		var due any // NULL
		if !d.DueAt.IsZero() {
			due = millis(d.DueAt)
		}
		n, err := t.exec(ctx, `UPDATE deliveries SET due_at = $1, tries = $2, reason = $3, sentence = $4 WHERE user_id = $5 AND gen = $6`,
			due, d.Tries, d.Reason, d.Sentence, d.Target, d.Gen)
		if err != nil || n == 0 || due != nil {
			return err
		}
		_, err = t.exec(ctx, `DELETE FROM deliveries WHERE due_at IS NULL AND user_id IN
			(SELECT user_id FROM deliveries WHERE due_at IS NULL ORDER BY asked_at DESC, user_id LIMIT $1 OFFSET $2)`, maxDeliveries, s.most.told)
		return err
	})
}

// Undelivered lists what was tried, and the homeserver is not known to have announced, by destination and target, at most
// limit of it.
func (s *Store) Undelivered(ctx context.Context, limit int) ([]Delivery, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	all, err := queryAll(ctx, s.read, scanDelivery, `SELECT `+deliveryColumns+` FROM deliveries WHERE reason <> '' ORDER BY destination, user_id LIMIT $1`, limit)
	return all, s.named(err)
}

// ForgetUndelivered forgets those of a target, or if that is empty of a whole destination, as [Store.Undelivered] lists
// them, and says how many that were.
func (s *Store) ForgetUndelivered(ctx context.Context, target id.UserID, destination string) (n int64, err error) {
	column, value := whose(target, destination)
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		n, err = t.exec(ctx, `DELETE FROM deliveries WHERE `+column+` = $1 AND reason <> ''`, value)
		return err
	})
	return n, err
}

// TryUndelivered makes the same due, and says how many that are.
func (s *Store) TryUndelivered(ctx context.Context, target id.UserID, destination string, now time.Time) (n int64, err error) {
	column, value := whose(target, destination)
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		n, err = t.exec(ctx, `UPDATE deliveries SET due_at = $1, asked_at = $1 WHERE `+column+` = $2 AND reason <> ''`, millis(now), value)
		return err
	})
	return n, err
}

func whose(target id.UserID, destination string) (column, value string) {
	if target != "" {
		return `user_id`, string(target)
	}
	return `destination`, destination
}
