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
	"database/sql/driver"
	"errors"
	"log/slog"
	"net/url"
	"sync"
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
	// intact finds out, before each commit, that a promise would be lost with it; nil for a database that needs no such look.
	intact func() error
	// explain names the database in an error of its own and says what can be done.
	explain func(error) error

	closeOnce sync.Once
	closeErr  error
	lock      *fileLock // of an SQLite file
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
// sentence for the administrator that names the database; a [*UnreachableError] means that it may go away by itself.
//
// An SQLite file is for one Store alone, of all processes, until that is closed.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.URL != nil {
		return nil, errors.New("database: this version of freshen keeps its data in SQLite only; name a file instead of a Postgres URL")
	}
	s := &Store{
		log:     cfg.Log,
		rates:   limit.New(cfg.PerDestination),
		changes: make(chan *change, batchSize),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	if err := s.openSQLite(ctx, cfg.Path); err != nil {
		return nil, errors.Join(err, s.release())
	}
	go s.writeLoop()
	return s, nil
}

// OnCommit sets who is told of lists and announcements right after each commit, before the call that made them returns.
// It must be set before the first of them and must not block.
func (s *Store) OnCommit(f func(Committed)) { s.onCommit = f }

// Ready says whether the database answers and takes what is written.
func (s *Store) Ready(ctx context.Context) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `UPDATE stream SET head = head`)
		return err
	})
}

// Close ends the writer after what it has in hand and closes the database. A call that comes later gets [ErrClosed]. It
// may be called twice.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		<-s.done
		s.closeErr = s.release()
	})
	return s.closeErr
}

// release closes the connections, and last the lock.
func (s *Store) release() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.release())
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
			c.result <- s.explain(err)
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
	defer func() { _ = conn.Close() }() // what is committed is, whatever becomes of the connection
	if _, err := conn.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return nil, err
	}
	if errs, err = s.applyAll(ctx, conn, batch); err == nil {
		_, err = conn.ExecContext(ctx, `COMMIT`)
	}
	if err != nil {
		if _, undo := conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`); undo != nil {
			// Mostly since the database has undone all by itself, as on a full disk. If not, the transaction must not stay
			// open for the next batch: it ends with its connection.
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		return nil, err
	}
	return errs, nil
}

// applyAll returns each change's own error, and err where the whole transaction is lost.
func (s *Store) applyAll(ctx context.Context, conn *sql.Conn, batch []*change) (errs []error, err error) {
	errs = make([]error, len(batch))
	for i, c := range batch {
		if errs[i], err = s.applyOne(ctx, conn, c); err != nil {
			return nil, err
		}
	}
	if s.intact != nil {
		return errs, s.intact()
	}
	return errs, nil
}

func (s *Store) applyOne(ctx context.Context, conn *sql.Conn, c *change) (own, err error) {
	if _, err := conn.ExecContext(ctx, `SAVEPOINT change`); err != nil {
		return nil, err
	}
	if own = c.apply(ctx, &tx{conn: conn, change: c}); own != nil {
		if _, err := conn.ExecContext(ctx, `ROLLBACK TO change`); err != nil {
			// Not the savepoint's fault: with it, the database has undone the whole transaction.
			return nil, own
		}
		own = s.explain(own)
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
