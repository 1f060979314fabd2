package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// maxAudience is the most requesters of one target that an announcement names; whoever asked before them hears of it
// if they share a room with the target.
const maxAudience = 1000

// Announcement says that a target's device list is to be announced. Audience is the one local user whom it is for, or
// empty where it is for every local user to whom the target is relevant.
type Announcement struct {
	Target   id.UserID
	Audience id.UserID
	Position int64
	At       time.Time
}

// Fetched is a device list that has just been fetched.
type Fetched struct {
	List *freshen.DeviceList
	At   time.Time
	// Requesters are the local users whose request this was; none for a retry.
	Requesters []id.UserID
	// PaidGen is [Begun.Gen] of the fetch, and Token its token.
	PaidGen int64
	Token   string
	// HashOnly announces the list without keeping it, because it is too long for what is known of its user. A user with
	// whom somebody shares a room has theirs kept all the same.
	HashOnly bool
}

// Kept says what became of a fetched list.
type Kept struct {
	// Changed: the list says something else than the one before, or is the first. It was announced to everybody to whom
	// the target is relevant; an unchanged one to those alone who asked.
	Changed bool
	// Paid: a debt was settled.
	Paid bool
	// Recovered: the destination had been backing off.
	Recovered bool
}

// KeptInfo is what is known of a kept list without reading it.
type KeptInfo struct {
	UserID    id.UserID
	FetchedAt time.Time
	// Suspect: the homeserver itself has announced the user since, so it may be fresher than the list.
	Suspect bool
	// Shared: a local user is known to share a room with this one.
	Shared bool
}

// Keep stores the list, announces it, pays the debt and clears the destination's backoff, all in one transaction. The
// error may be [ErrSuperseded].
func (s *Store) Keep(ctx context.Context, f Fetched) (kept Kept, err error) {
	target := f.List.UserID
	encoded := f.List.Encode()
	hash := f.List.Hash()
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		var before []byte
		info := KeptInfo{UserID: target, FetchedAt: f.At}
		err := t.conn.QueryRowContext(ctx, `SELECT hash, shared FROM kept_lists WHERE user_id = $1`, target).Scan(&before, &info.Shared)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		kept = Kept{Changed: !bytes.Equal(before, hash[:])}
		var raw any // NULL
		if !f.HashOnly || info.Shared {
			raw = encoded
			t.change.committed.Kept = append(t.change.committed.Kept, info)
		}
		if _, err := t.exec(ctx, `INSERT INTO kept_lists (user_id, list, hash, fetched_at, suspect) VALUES ($1, $2, $3, $4, 0)
			ON CONFLICT (user_id) DO UPDATE SET list = excluded.list, hash = excluded.hash, fetched_at = excluded.fetched_at, suspect = 0`,
			target, raw, hash[:], millis(f.At)); err != nil {
			return err
		}
		if kept.Paid, kept.Recovered, err = t.pay(ctx, target, f.PaidGen, f.At); err != nil {
			return err
		}
		if err := t.putRequesters(ctx, target, f.Requesters, f.At, false); err != nil {
			return err
		}
		audience, err := t.audience(ctx, target, f.Requesters, kept.Changed)
		if err != nil {
			return err
		}
		return t.announce(ctx, target, audience, f.At)
	})
	return kept, err
}

// AnnounceTo announces the target to these users alone, as for a request that the short-lived cache answers.
func (s *Store) AnnounceTo(ctx context.Context, target id.UserID, requesters []id.UserID, at time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		if err := t.putRequesters(ctx, target, requesters, at, false); err != nil {
			return err
		}
		return t.announce(ctx, target, requesters, at)
	})
}

// audience is whom a success is announced to: who asked and who was promised, and for a changed list everybody ("") and
// those who ever asked.
func (t *tx) audience(ctx context.Context, target id.UserID, asking []id.UserID, changed bool) ([]id.UserID, error) {
	recorded, err := queryAll(ctx, t.conn, func(rows *sql.Rows) (user id.UserID, err error) { return user, rows.Scan(&user) },
		`SELECT user_id FROM requesters WHERE target = $1 AND (owed = 1 OR $2) ORDER BY owed DESC, asked_at DESC LIMIT $3`,
		target, changed, maxAudience)
	if err != nil {
		return nil, err
	}
	if _, err := t.exec(ctx, `UPDATE requesters SET owed = 0 WHERE target = $1 AND owed = 1`, target); err != nil {
		return nil, err
	}
	audience := append(slices.Clone(asking), recorded...)
	if changed {
		audience = append(audience, "")
	}
	slices.Sort(audience)
	return slices.Compact(audience), nil
}

// announce moves the target to the head of the stream, for each of the audience.
func (t *tx) announce(ctx context.Context, target id.UserID, audience []id.UserID, at time.Time) error {
	for _, who := range audience {
		var head int64
		if err := t.conn.QueryRowContext(ctx, `UPDATE stream SET head = head + 1 RETURNING head`).Scan(&head); err != nil {
			return err
		}
		if _, err := t.exec(ctx, `INSERT INTO announcements (target, audience, position, announced_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (target, audience) DO UPDATE SET position = excluded.position, announced_at = excluded.announced_at`,
			target, who, head, millis(at)); err != nil {
			return err
		}
		t.change.committed.Announced = append(t.change.committed.Announced, Announcement{Target: target, Audience: who, Position: head, At: at})
	}
	return nil
}

func (t *tx) putRequesters(ctx context.Context, target id.UserID, users []id.UserID, at time.Time, owed bool) error {
	for _, user := range users {
		if _, err := t.exec(ctx, `INSERT INTO requesters (target, user_id, asked_at, owed) VALUES ($1, $2, $3, $4)
			ON CONFLICT (target, user_id) DO UPDATE SET asked_at = excluded.asked_at, owed = max(requesters.owed, excluded.owed)`,
			target, user, millis(at), owed); err != nil {
			return err
		}
	}
	return nil
}

// Announcements returns all that stand in the stream, by position, and the stream's head.
func (s *Store) Announcements(ctx context.Context) (all []Announcement, head int64, err error) {
	// One statement, so that both are of the same moment.
	rows, err := s.read.QueryContext(ctx, `SELECT stream.head, coalesce(target, ''), coalesce(audience, ''), coalesce(position, 0), coalesce(announced_at, 0)
		FROM stream LEFT JOIN announcements ON true ORDER BY position`)
	if err != nil {
		return nil, 0, s.explain(err)
	}
	defer rows.Close()
	for rows.Next() {
		var a Announcement
		var at int64
		if err := rows.Scan(&head, &a.Target, &a.Audience, &a.Position, &at); err != nil {
			return nil, 0, s.explain(err)
		}
		if a.Position > 0 { // else there is the head alone
			a.At = fromMillis(at)
			all = append(all, a)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, 0, s.explain(err)
	}
	return all, head, nil
}

// KeptLists tells of every list that is kept and not retired.
func (s *Store) KeptLists(ctx context.Context) ([]KeptInfo, error) {
	all, err := queryAll(ctx, s.read, func(rows *sql.Rows) (k KeptInfo, err error) {
		var at int64
		err = rows.Scan(&k.UserID, &at, &k.Suspect, &k.Shared)
		k.FetchedAt = fromMillis(at)
		return k, err
	}, `SELECT user_id, fetched_at, suspect, shared FROM kept_lists WHERE list IS NOT NULL`)
	if err != nil {
		return nil, s.explain(err)
	}
	return all, nil
}

// KeptList reads one list; nil if none is kept or it is retired.
func (s *Store) KeptList(ctx context.Context, user id.UserID) (*freshen.DeviceList, error) {
	var raw []byte
	err := s.read.QueryRowContext(ctx, `SELECT list FROM kept_lists WHERE user_id = $1`, user).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && raw == nil) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return freshen.DecodeKept(raw)
}

// MarkSuspect records that the homeserver itself announced these users.
func (s *Store) MarkSuspect(ctx context.Context, users []id.UserID) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		for _, user := range users {
			if _, err := t.exec(ctx, `UPDATE kept_lists SET suspect = 1 WHERE user_id = $1`, user); err != nil {
				return err
			}
		}
		return nil
	})
}

// MarkShared records that a local user shares a room with this one.
func (s *Store) MarkShared(ctx context.Context, user id.UserID) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `UPDATE kept_lists SET shared = 1 WHERE user_id = $1`, user)
		return err
	})
}

// Retire drops the list that was fetched at that time, and keeps its hash. A newer one stays.
func (s *Store) Retire(ctx context.Context, user id.UserID, fetchedAt time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `UPDATE kept_lists SET list = NULL WHERE user_id = $1 AND fetched_at = $2`, user, millis(fetchedAt))
		return err
	})
}
