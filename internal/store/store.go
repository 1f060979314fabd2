// Package store keeps in SQL what must survive a crash: debts, kept device lists, announcements and what each device
// has acknowledged.
//
// Every write goes through one goroutine that commits many callers' changes together (group commit), with
// synchronous=FULL: when a method returns without an error, its change survives a power cut. Reads have a pool of their
// own and never wait for a write.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"time"

	"freshen"
	"freshen/internal/limit"
)

// batchSize is the most changes in one commit; measured, more gains nothing.
const batchSize = 64

// ErrClosed is what a call gets that comes after Close.
var ErrClosed = errors.New("the database is closed")

// Store is an open database. Its methods are safe for concurrent use.
type Store struct {
	read  *sql.DB
	write *sql.DB
	log   *slog.Logger
	rates *limit.Limiter // of destinations

	changes chan *change
	closing chan struct{}
	done    chan struct{}

	// onCommit is called by the writer after each commit that kept or announced something.
	onCommit func(Committed)
}

// Committed is what one commit brought that others hold in memory: the lists kept, and the announcements in the order
// of their positions.
type Committed struct {
	Kept      []KeptInfo
	Announced []Announcement
}

// change is one caller's part of a commit.
type change struct {
	apply     func(ctx context.Context, tx *tx) error
	committed Committed
	result    chan error
}

// tx is what a change may do.
type tx struct {
	conn   *sql.Conn
	change *change
}

// Config says which database to open, and what its instances have in common.
type Config struct {
	// Path is an SQLite file.
	Path string
	// URL is a Postgres database, in place of Path.
	URL *url.URL
	// PerDestination limits the fetches from one server, over all instances of freshen.
	PerDestination limit.Rate
	// SuccessFor and FailureFor are how long the outcome of one instance's fetch answers for the others.
	SuccessFor, FailureFor time.Duration
	Log                    *slog.Logger
}

// Open opens the database, creates an SQLite file that is missing, and brings the tables up to date. An error is a
// sentence for the administrator that names the database.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.URL != nil {
		return nil, errors.New("database: this version of freshen keeps its data in SQLite only; name a file instead of a Postgres URL")
	}
	if err := probeFile(cfg.Path); err != nil {
		return nil, err
	}
	s := &Store{
		log:     cfg.Log,
		rates:   limit.New(cfg.PerDestination),
		changes: make(chan *change, batchSize),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	if err := s.openSQLite(ctx, cfg.Path); err != nil {
		return nil, errors.Join(err, s.closePools())
	}
	go s.writeLoop()
	return s, nil
}

// OnCommit sets who is told of lists and announcements right after each commit, before the call that made them returns.
// It must be set before the first of them and must not block.
func (s *Store) OnCommit(f func(Committed)) { s.onCommit = f }

// Ready says whether the database answers.
func (s *Store) Ready(ctx context.Context) error {
	var head int64
	return s.read.QueryRowContext(ctx, `SELECT head FROM stream`).Scan(&head)
}

// Close ends the writer after what it has in hand and closes the database. A call that comes later gets [ErrClosed].
func (s *Store) Close() error {
	close(s.closing)
	<-s.done
	return s.closePools()
}

func (s *Store) closePools() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// update runs apply inside the next commit and returns once that is durable. apply may run while ctx is already done;
// once it has begun, update waits for its end.
func (s *Store) update(ctx context.Context, apply func(ctx context.Context, tx *tx) error) error {
	c := &change{apply: apply, result: make(chan error, 1)}
	select {
	case s.changes <- c:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return ErrClosed
	}
	select {
	case err := <-c.result:
		return err
	case <-s.done:
		select {
		case err := <-c.result:
			return err
		default:
			return ErrClosed
		}
	}
}

func (s *Store) writeLoop() {
	defer close(s.done)
	for {
		select {
		case c := <-s.changes:
			s.commit(s.gather(c))
		case <-s.closing:
			for {
				select {
				case c := <-s.changes:
					s.commit(s.gather(c))
				default:
					return
				}
			}
		}
	}
}

func (s *Store) gather(first *change) []*change {
	batch := []*change{first}
	for len(batch) < batchSize {
		select {
		case c := <-s.changes:
			batch = append(batch, c)
		default:
			return batch
		}
	}
	return batch
}

// commit applies the batch in one transaction, each change in a savepoint of its own, so that one that fails takes
// nothing from the others.
func (s *Store) commit(batch []*change) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	errs, err := s.tryCommit(ctx, batch)
	if err != nil {
		for _, c := range batch {
			c.result <- fmt.Errorf("database: %w", err)
		}
		return
	}
	var all Committed
	for i, c := range batch {
		if errs[i] == nil {
			all.Kept = append(all.Kept, c.committed.Kept...)
			all.Announced = append(all.Announced, c.committed.Announced...)
		}
	}
	if len(all.Kept)+len(all.Announced) > 0 && s.onCommit != nil {
		s.onCommit(all)
	}
	for i, c := range batch {
		c.result <- errs[i]
	}
}

func (s *Store) tryCommit(ctx context.Context, batch []*change) (errs []error, err error) {
	conn, err := s.write.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if _, err := conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return nil, err
	}
	errs = make([]error, len(batch))
	for i, c := range batch {
		if errs[i], err = applyOne(ctx, conn, c); err != nil {
			_, undo := conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`)
			return nil, errors.Join(err, undo)
		}
	}
	if _, err := conn.ExecContext(ctx, `COMMIT`); err != nil {
		_, undo := conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`)
		return nil, errors.Join(err, undo)
	}
	return errs, nil
}

// applyOne returns the change's own error, and err where the whole transaction is lost.
func applyOne(ctx context.Context, conn *sql.Conn, c *change) (own, err error) {
	if _, err := conn.ExecContext(ctx, `SAVEPOINT change`); err != nil {
		return nil, err
	}
	if own = c.apply(ctx, &tx{conn: conn, change: c}); own != nil {
		own = fmt.Errorf("database: %w", own)
		if _, err := conn.ExecContext(ctx, `ROLLBACK TO change`); err != nil {
			return own, err
		}
	}
	_, err = conn.ExecContext(ctx, `RELEASE change`)
	return own, err
}

func (t *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := t.conn.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// Away turns a database error into what a client is told.
func Away(err error) *freshen.Error {
	return &freshen.Error{
		Code:    freshen.CodeDatabaseAway,
		Message: "freshen cannot reach its own database, so it can promise nothing: please try again in a minute.",
		Err:     err,
	}
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// probeFile finds out what SQLite would only tell in a riddle, and creates the file so that others cannot read it.
func probeFile(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("database: %s is a directory; name a file", path)
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("database: %s is no regular file", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("database: %s cannot be opened for writing: let the user that freshen runs as write the file and its folder", path)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("database: the folder of %s does not exist; create it and let the user that freshen runs as write to it", path)
	case err != nil:
		return fmt.Errorf("database: %w", err)
	}
	return f.Close()
}
