// Package store keeps in SQL what must survive a crash: debts, kept device lists, announcements and what each device
// has acknowledged.
//
// Every write goes through one goroutine that commits many callers' changes together (group commit), with
// synchronous=FULL: when a method returns without an error, its change survives a power cut. Reads have a pool of their
// own and never wait for a write.
//
// A database is an SQLite file, for one process, or a Postgres server's, for several instances (see
// docs/architecture.md).
package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"freshen"
	"freshen/internal/limit"
)

const (
	// batchSize is the most changes in one commit; measured, more gains nothing.
	batchSize = 64
	// undoWithin bounds one that is rolled back.
	undoWithin = 5 * time.Second
)

// ErrClosed is what a call gets that comes after Close.
var ErrClosed = errors.New("the database is closed")

// Store is an open database. Its methods are safe for concurrent use.
type Store struct {
	read  *sql.DB
	write *sql.DB
	log   *slog.Logger
	rates *limit.Limiter // of destinations

	dialect dialect
	changes chan *change
	closing chan struct{}
	done    chan struct{}

	// hearing is held while what is new is read and handed over, so that all of it comes in order.
	hearing               sync.Mutex
	onCommit              func(Committed)
	seenHead, seenVersion int64

	sharing *sharing // with other instances; nil for an SQLite file

	// intact finds out, before each commit, that a promise would be lost with it; nil for a database that needs no such look.
	intact func() error
	// explain names the database in an error of its own and says what can be done.
	explain func(error) error

	closeOnce sync.Once
	closeErr  error
	lock      *fileLock // of an SQLite file
}

// change is one caller's part of a commit.
type change struct {
	apply  func(ctx context.Context, tx *tx) error
	taken  atomic.Bool // by the writer, or back by the caller, whoever was first
	result chan error
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
	s := &Store{
		log:     cfg.Log,
		rates:   limit.New(cfg.PerDestination),
		changes: make(chan *change, batchSize),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
	}
	if err := s.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, s.release())
	}
	go s.writeLoop()
	return s, nil
}

func (s *Store) open(ctx context.Context, cfg Config) error {
	if cfg.URL == nil {
		s.dialect = sqliteDialect
		if err := s.openSQLite(ctx, cfg.Path); err != nil {
			return err
		}
		if err := s.startHearing(ctx); err != nil {
			return s.explain(err)
		}
		return nil
	}
	return s.openPostgres(ctx, cfg)
}

// Ready says whether the database answers and takes what is written. It waits no longer than ctx, whatever becomes of
// what it wrote.
func (s *Store) Ready(ctx context.Context) error {
	answered := make(chan error, 1)
	go func() {
		answered <- s.update(ctx, func(ctx context.Context, t *tx) error {
			_, err := t.exec(ctx, `UPDATE stream SET head = head`)
			return err
		})
	}()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the writer after what it has in hand and closes the database. A call that comes later gets [ErrClosed]. It
// may be called twice.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.closing)
		<-s.done
		if s.sharing != nil {
			s.sharing.stop()
		}
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
	if s.dialect.shared {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.dialect.batchWithin)
		defer cancel()
	}
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
	case <-ctx.Done():
		if c.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
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

// gather takes what waits, up to a batch, without what was taken back.
func (s *Store) gather(first *change) []*change {
	batch := make([]*change, 0, batchSize)
	for c := first; ; {
		if c.taken.CompareAndSwap(false, true) {
			batch = append(batch, c)
		}
		if len(batch) == batchSize {
			return batch
		}
		select {
		case c = <-s.changes:
		default:
			return batch
		}
	}
}

// commit applies the batch in one transaction, each change in a savepoint of its own, so that one that fails takes
// nothing from the others.
func (s *Store) commit(batch []*change) {
	if len(batch) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.dialect.batchWithin)
	defer cancel()
	errs, stirred, err := s.tryCommit(ctx, batch)
	if err != nil {
		for _, c := range batch {
			c.result <- s.explain(err)
		}
		return
	}
	if stirred {
		if err := s.hear(ctx); err != nil {
			// It stands in the database, and clients are told a little later.
			s.log.Error("what was just written could not be read back; trying again", "err", err)
			s.hearLater()
		}
	}
	for i, c := range batch {
		c.result <- errs[i]
	}
}

func (s *Store) tryCommit(ctx context.Context, batch []*change) (errs []error, stirred bool, err error) {
	conn, err := s.begin(ctx)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = conn.Close() }() // what is committed is, whatever becomes of the connection
	if errs, stirred, err = s.applyAll(ctx, conn, batch); err == nil {
		end := commit
		if stirred {
			end = s.dialect.notify + commit
		}
		_, err = conn.ExecContext(ctx, end)
	}
	if err != nil {
		undo(ctx, conn)
		return nil, false, err
	}
	return errs, stirred, nil
}

// begin begins a transaction. The connection may have been lost since the last one, so another is tried.
func (s *Store) begin(ctx context.Context) (conn *sql.Conn, err error) {
	for range 2 {
		if conn, err = s.write.Conn(ctx); err != nil {
			return nil, err
		}
		if _, err = conn.ExecContext(ctx, s.dialect.begin); err == nil {
			return conn, nil
		}
		undo(ctx, conn)
		_ = conn.Close()
		if !s.dialect.shared || !cut(err) {
			break
		}
	}
	return nil, err
}

// undo rolls back. Where that fails, it is mostly since the database has undone all by itself, as on a full disk. If not,
// the transaction must not stay open for the next batch: it ends with its connection.
func undo(ctx context.Context, conn *sql.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	if _, err := conn.ExecContext(ctx, `ROLLBACK`); err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
}

// applyAll returns each change's own error, and err where the whole transaction is lost.
func (s *Store) applyAll(ctx context.Context, conn *sql.Conn, batch []*change) (errs []error, stirred bool, err error) {
	errs = make([]error, len(batch))
	for i, c := range batch {
		if i > 0 {
			if _, err := conn.ExecContext(ctx, next); err != nil {
				return nil, false, err
			}
		}
		t := &tx{querier: conn, dialect: s.dialect}
		if own := c.apply(ctx, t); own != nil {
			if _, err := conn.ExecContext(ctx, `ROLLBACK TO SAVEPOINT change`); err != nil {
				// Not the savepoint's fault: with it, the database has undone the whole transaction.
				return nil, false, own
			}
			errs[i] = s.explain(own)
			continue
		}
		stirred = stirred || t.stirred
	}
	if s.intact != nil {
		return errs, stirred, s.intact()
	}
	return errs, stirred, nil
}

// named is explain for what may be no error.
func (s *Store) named(err error) error {
	if err == nil {
		return nil
	}
	return s.explain(err)
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
