package store

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"
)

// DevicePosition is what one device has surely heard of: every announcement up to Acked, and of the targets in Above
// those up to the position there.
type DevicePosition struct {
	UserID   id.UserID
	DeviceID id.DeviceID
	Acked    int64
	Above    map[id.UserID]int64
	SeenAt   time.Time
}

// DevicePosition reads one device's position. A device that is not known has acknowledged nothing.
func (s *Store) DevicePosition(ctx context.Context, user id.UserID, device id.DeviceID) (DevicePosition, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	p := DevicePosition{UserID: user, DeviceID: device, Above: map[id.UserID]int64{}}
	if !storable(device) {
		return p, nil
	}
	var seen int64
	err := s.read.QueryRowContext(ctx, `SELECT acked, seen_at FROM sync_positions WHERE user_id = $1 AND device_id = $2`,
		user, device).Scan(&p.Acked, &seen)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil
	}
	if err != nil {
		return p, s.explain(err)
	}
	p.SeenAt = fromMillis(seen)
	_, err = queryAll(ctx, s.read, func(rows *sql.Rows) (struct{}, error) {
		var target id.UserID
		var acked int64
		err := rows.Scan(&target, &acked)
		p.Above[target] = acked
		return struct{}{}, err
	}, `SELECT target, acked FROM sync_acks WHERE user_id = $1 AND device_id = $2`, user, device)
	return p, s.named(err)
}

// SavePositions stores what devices have acknowledged. It takes nothing back: what stands there may come from another
// instance, through which the device has synced as well.
func (s *Store) SavePositions(ctx context.Context, positions []DevicePosition) error {
	if len(positions) == 0 {
		return nil
	}
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		for _, p := range positions {
			if !storable(p.DeviceID) {
				continue
			}
			if err := t.savePosition(ctx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// storable says whether a device ID, which its client has chosen, is text to every database: in Postgres that has no NUL.
// Of a device whose ID is not, nothing is remembered; it hears of what it has heard of already, after a restart.
func storable(device id.DeviceID) bool { return !strings.ContainsRune(string(device), 0) }

func (t *tx) savePosition(ctx context.Context, p DevicePosition) error {
	if _, err := t.exec(ctx, `INSERT INTO sync_positions (user_id, device_id, acked, seen_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, device_id) DO UPDATE SET seen_at = excluded.seen_at,
			acked = CASE WHEN excluded.acked > sync_positions.acked THEN excluded.acked ELSE sync_positions.acked END`,
		p.UserID, p.DeviceID, p.Acked, millis(p.SeenAt)); err != nil {
		return err
	}
	if _, err := t.exec(ctx, `DELETE FROM sync_acks WHERE user_id = $1 AND device_id = $2 AND acked <= $3`, p.UserID, p.DeviceID, p.Acked); err != nil {
		return err
	}
	for target, acked := range p.Above {
		if _, err := t.exec(ctx, `INSERT INTO sync_acks (user_id, device_id, target, acked) VALUES ($1, $2, $3, $4)
			ON CONFLICT (user_id, device_id, target) DO UPDATE SET
				acked = CASE WHEN excluded.acked > sync_acks.acked THEN excluded.acked ELSE sync_acks.acked END`,
			p.UserID, p.DeviceID, target, acked); err != nil {
			return err
		}
	}
	return nil
}

// Prune forgets announcements, requesters, device positions, retired lists, outcomes of fetches and what the homeserver
// was not brought to, where they are older than before.
func (s *Store) Prune(ctx context.Context, before time.Time) error {
	if err := s.pruneShared(ctx, before); err != nil {
		return err
	}
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		for _, query := range []string{
			`DELETE FROM announcements WHERE announced_at < $1`,
			`DELETE FROM requesters WHERE asked_at < $1 AND owed = 0`,
			`DELETE FROM sync_positions WHERE seen_at < $1`,
			`DELETE FROM kept_lists WHERE list IS NULL AND fetched_at < $1`,
			`DELETE FROM destinations WHERE due_at IS NULL AND retry_at < $1`,
			`DELETE FROM deliveries WHERE asked_at < $1`,
		} {
			if _, err := t.exec(ctx, query, millis(before)); err != nil {
				return err
			}
		}
		return nil
	})
}
