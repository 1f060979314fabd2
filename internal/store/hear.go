package store

import (
	"context"
	"database/sql"
)

// Committed is what was committed since the last time, by this instance or another, that others hold in memory: lists
// that were kept, retired, doubted or found to be of use, and the announcements in the order of their positions. Of
// several changes of one list, or announcements of one target to the same audience, only the last is there.
type Committed struct {
	Kept      []KeptInfo
	Announced []Announcement
}

// OnCommit sets who is told of lists and announcements: of this instance's own before the call that made them returns,
// of another's a moment later. What was committed while the database was opened is told, too, so it may be known already.
// f must not block.
func (s *Store) OnCommit(f func(Committed)) {
	s.hearing.Lock()
	s.onCommit = f
	s.hearing.Unlock()
}

// startHearing makes what is committed from now on news.
func (s *Store) startHearing(ctx context.Context) error {
	return s.read.QueryRowContext(ctx, `SELECT head, version FROM stream`).Scan(&s.seenHead, &s.seenVersion)
}

// hear reads what is new and hands it over. What it cannot read now, it reads the next time.
func (s *Store) hear(ctx context.Context) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	s.hearing.Lock()
	defer s.hearing.Unlock()
	if s.onCommit == nil {
		return nil
	}
	var head, version int64
	if err := s.read.QueryRowContext(ctx, `SELECT head, version FROM stream`).Scan(&head, &version); err != nil {
		return s.explain(err)
	}
	var news Committed
	var err error
	// In this order: what is announced is kept already.
	if head > s.seenHead {
		news.Announced, err = queryAll(ctx, s.read, scanAnnouncement,
			`SELECT `+announcementColumns+` FROM announcements WHERE position > $1 ORDER BY position`, s.seenHead)
		if err != nil {
			return s.explain(err)
		}
	}
	if version > s.seenVersion {
		news.Kept, err = queryAll(ctx, s.read, scanKeptInfo,
			`SELECT `+keptColumns+` FROM kept_lists WHERE version > $1 ORDER BY version`, s.seenVersion)
		if err != nil {
			return s.explain(err)
		}
	}
	if len(news.Announced)+len(news.Kept) > 0 {
		s.onCommit(news)
	}
	s.seenHead, s.seenVersion = max(s.seenHead, head), max(s.seenVersion, version)
	if n := len(news.Announced); n > 0 {
		s.seenHead = max(s.seenHead, news.Announced[n-1].Position)
	}
	if n := len(news.Kept); n > 0 {
		s.seenVersion = max(s.seenVersion, news.Kept[n-1].Version)
	}
	return nil
}

const announcementColumns = `target, audience, position, announced_at`

func scanAnnouncement(rows *sql.Rows) (a Announcement, err error) {
	var at int64
	err = rows.Scan(&a.Target, &a.Audience, &a.Position, &at)
	a.At = fromMillis(at)
	return a, err
}

const keptColumns = `user_id, fetched_at, suspect, shared, CASE WHEN list IS NULL THEN 1 ELSE 0 END, version`

func scanKeptInfo(rows *sql.Rows) (k KeptInfo, err error) {
	var at int64
	err = rows.Scan(&k.UserID, &at, &k.Suspect, &k.Shared, &k.Retired, &k.Version)
	k.FetchedAt = fromMillis(at)
	return k, err
}

// stir moves the stream's head by n announcements and, if kept, numbers a change of kept lists; it returns the new head
// and the change's version.
func (t *tx) stir(ctx context.Context, n int, kept bool) (head, version int64, err error) {
	t.stirred = true
	err = t.QueryRowContext(ctx, `UPDATE stream SET head = head + $1, version = version + $2 RETURNING head, version`, n, flag(kept)).
		Scan(&head, &version)
	return head, version, err
}

// flag is a truth value as the tables hold it.
func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
