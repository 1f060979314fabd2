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
	// Retired: no list is kept any more; FetchedAt is the last one's.
	Retired bool
	// Version grows with each change of what is known of any kept list.
	Version int64
}

const (
	selectKept     = `SELECT hash, shared FROM kept_lists WHERE user_id = $1`
	selectAudience = `SELECT user_id FROM requesters WHERE target = $1 AND (owed = 1 OR $2) ORDER BY owed DESC, asked_at DESC LIMIT $3`
)

// Keep stores the list, announces it, pays the debt and clears the destination's backoff, all in one transaction. The
// error may be [ErrSuperseded].
func (s *Store) Keep(ctx context.Context, f Fetched) (kept Kept, err error) {
	target := f.List.UserID
	encoded := f.List.Encode()
	hash := f.List.Hash()
	err = s.update(ctx, func(ctx context.Context, t *tx) error {
		began, err := t.endFetch(ctx, target, f.Token, f.At, nil)
		if err != nil {
			return err
		}
		var before []byte
		var shared bool
		err = t.QueryRowContext(ctx, selectKept, target).Scan(&before, &shared)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		kept = Kept{Changed: !bytes.Equal(before, hash[:])}
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
		version, err := t.announce(ctx, target, audience, f.At, true)
		if err != nil {
			return err
		}
		var raw any // NULL
		if !f.HashOnly || shared {
			raw = encoded
		}
		_, err = t.exec(ctx, `INSERT INTO kept_lists (user_id, list, hash, began_at, fetched_at, version) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (user_id) DO UPDATE SET list = excluded.list, hash = excluded.hash, began_at = excluded.began_at,
				fetched_at = excluded.fetched_at, version = excluded.version,
				suspect = CASE WHEN kept_lists.announced_at >= excluded.began_at THEN 1 ELSE 0 END`,
			target, raw, hash[:], millis(began), millis(f.At), version)
		return err
	})
	return kept, err
}

// AnnounceTo announces the target to these users alone, as for a request that the short-lived cache answers.
func (s *Store) AnnounceTo(ctx context.Context, target id.UserID, requesters []id.UserID, at time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		if err := t.putRequesters(ctx, target, requesters, at, false); err != nil {
			return err
		}
		_, err := t.announce(ctx, target, requesters, at, false)
		return err
	})
}

// audience is whom a success is announced to: who asked and who was promised, and for a changed list everybody ("") and
// those who ever asked.
func (t *tx) audience(ctx context.Context, target id.UserID, asking []id.UserID, changed bool) ([]id.UserID, error) {
	recorded, err := queryAll(ctx, t, func(rows *sql.Rows) (user id.UserID, err error) { return user, rows.Scan(&user) },
		selectAudience,
		target, changed, maxAudience)
	if err != nil {
		return nil, err
	}
	if err := t.owesNothing(ctx, target); err != nil {
		return nil, err
	}
	audience := append(slices.Clone(asking), recorded...)
	if changed {
		audience = append(audience, "")
	}
	slices.Sort(audience)
	return slices.Compact(audience), nil
}

// announce moves the target to the head of the stream, for each of the audience. version is that of the change of a kept
// list, if that is what it is about.
func (t *tx) announce(ctx context.Context, target id.UserID, audience []id.UserID, at time.Time, kept bool) (version int64, err error) {
	head, version, err := t.stir(ctx, len(audience), kept)
	if err != nil {
		return 0, err
	}
	for i, who := range audience {
		position := head - int64(len(audience)-1-i)
		if _, err := t.exec(ctx, `INSERT INTO announcements (target, audience, position, announced_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (target, audience) DO UPDATE SET position = excluded.position, announced_at = excluded.announced_at`,
			target, who, position, millis(at)); err != nil {
			return 0, err
		}
	}
	return version, nil
}

func (t *tx) putRequesters(ctx context.Context, target id.UserID, users []id.UserID, at time.Time, owed bool) error {
	for _, user := range users {
		if _, err := t.exec(ctx, `INSERT INTO requesters (target, user_id, asked_at, owed) VALUES ($1, $2, $3, $4)
			ON CONFLICT (target, user_id) DO UPDATE SET asked_at = excluded.asked_at, owed = CASE WHEN requesters.owed = 1 THEN 1 ELSE excluded.owed END`,
			target, user, millis(at), flag(owed)); err != nil {
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
	all, err := queryAll(ctx, s.read, scanKeptInfo, `SELECT `+keptColumns+` FROM kept_lists WHERE list IS NOT NULL`)
	if err != nil {
		return nil, s.explain(err)
	}
	return all, nil
}

// KeptList reads one list; nil if none is kept or it is retired.
func (s *Store) KeptList(ctx context.Context, user id.UserID) (*freshen.DeviceList, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	var raw []byte
	err := s.read.QueryRowContext(ctx, `SELECT list FROM kept_lists WHERE user_id = $1`, user).Scan(&raw)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && raw == nil) {
		return nil, nil
	}
	if err != nil {
		return nil, s.explain(err)
	}
	return freshen.DecodeKept(raw)
}

// MarkSuspect records that the homeserver itself announced the users of these lists at that time: the lists may be out of
// date, and so may be any whose fetch began before that.
func (s *Store) MarkSuspect(ctx context.Context, lists []KeptInfo, at time.Time) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, version, err := t.stir(ctx, 0, true)
		if err != nil {
			return err
		}
		for _, l := range lists {
			if _, err := t.exec(ctx, `UPDATE kept_lists SET
				suspect = CASE WHEN fetched_at = $1 OR began_at <= $2 THEN 1 ELSE suspect END,
				announced_at = CASE WHEN announced_at < $2 THEN $2 ELSE announced_at END, version = $3 WHERE user_id = $4`,
				millis(l.FetchedAt), millis(at), version, l.UserID); err != nil {
				return err
			}
		}
		return nil
	})
}

// MarkShared records that a local user shares a room with this one.
func (s *Store) MarkShared(ctx context.Context, user id.UserID) error {
	return s.changeKept(ctx, `UPDATE kept_lists SET version = $1, shared = 1 WHERE user_id = $2`, user)
}

// Retire drops the list that was fetched at that time, and keeps its hash. A newer one stays.
func (s *Store) Retire(ctx context.Context, user id.UserID, fetchedAt time.Time) error {
	return s.changeKept(ctx, `UPDATE kept_lists SET version = $1, list = NULL WHERE user_id = $2 AND fetched_at = $3`, user, millis(fetchedAt))
}

// changeKept runs a query whose first argument is the change's version.
func (s *Store) changeKept(ctx context.Context, query string, args ...any) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, version, err := t.stir(ctx, 0, true)
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, query, append([]any{version}, args...)...)
		return err
	})
}
