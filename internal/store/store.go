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
	"errors"
	"log/slog"
	"net/url"
	"runtime"
	"slices"
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
	// yields is how often in a row the writer lets others run before it commits less than a batch.
	yields = 3
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
	writer  *session // the write loop's, while it has a connection
	changes chan *change
	timed   func(took time.Duration, changes int)
	closing chan struct{}
	done    chan struct{}

	// hearing is held while what is new is read and handed over, so that all of it comes in order.
	hearing               sync.Mutex
	onCommit              func(Committed)
	seenHead, seenVersion int64

	most deliveriesAtMost

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
	// Name is where this instance runs, if no other can run there while it does: one that did, and did not close the
	// database, is known to be dead. "" if that is not known.
	Name string
	// PerDestination limits the fetches from one server, over all instances of freshen.
	PerDestination limit.Rate
	// SuccessFor and FailureFor are how long the outcome of one instance's fetch answers for the others.
	SuccessFor, FailureFor time.Duration
	Log                    *slog.Logger
	// Committed is told how long each commit took, and of how many changes; nil for nobody. It must not block.
	Committed func(took time.Duration, changes int)
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
		timed:   cfg.Committed,
		most:    deliveriesAtMost{maxDeliveries, maxUndelivered},
	}
	if s.timed == nil {
		s.timed = func(time.Duration, int) {}
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

// SetPerDestination limits the fetches from one server to another rate from now on, those of this instance: where there
// are others, they must be told the same.
func (s *Store) SetPerDestination(rate limit.Rate) {
	s.rates.SetRate(rate)
	if s.sharing != nil {
		s.sharing.rate.Store(&rate)
	}
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
	if s.writer != nil {
		errs = append(errs, s.writer.close())
	}
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

// gather takes what waits, up to a batch, without what was taken back. The callers of the commit before are just being
// woken, and many come with their next change: it lets them run, so that those share one commit, where the first of them
// would have one alone. Nobody waits for that.
func (s *Store) gather(first *change) []*change {
	batch := make([]*change, 0, batchSize)
	for c, yielded := first, 0; ; {
		if c != nil && c.taken.CompareAndSwap(false, true) {
			batch = append(batch, c)
		}
		if len(batch) == batchSize {
			return batch
		}
		select {
		case c = <-s.changes:
			yielded = 0
		default:
			if yielded == yields {
				return batch
			}
			c = nil
			yielded++
			runtime.Gosched()
		}
	}
}

// commit applies the batch in one transaction. A change that fails takes nothing from the others.
func (s *Store) commit(batch []*change) {
	ctx, cancel := s.batchContext()
	defer cancel()
	began, changes := time.Now(), len(batch)
	defer func() { s.timed(time.Since(began), changes) }()
	for len(batch) > 0 {
		failed, err := s.tryCommit(ctx, batch)
		if err == nil {
			for _, c := range batch {
				c.result <- nil
			}
			return
		}
		if failed != nil {
			failed.result <- s.explain(err)
			batch = slices.DeleteFunc(batch, func(c *change) bool { return c == failed })
			continue
		}
		for _, c := range batch {
			c.result <- s.explain(err)
		}
		return
	}
}

// tryCommit commits the batch or nothing of it. failed is the change by which that failed, if it was one: nearly never,
// so there are no savepoints, which would cost about as much as the changes. The rest can be tried again without it.
func (s *Store) tryCommit(ctx context.Context, batch []*change) (failed *change, err error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	defer s.giveBack()
	t := &tx{querier: s.writer, dialect: s.dialect}
	for _, c := range batch {
		if err := c.apply(ctx, t); err != nil {
			s.undo(ctx)
			return c, err
		}
	}
	if s.intact != nil {
		err = s.intact()
	}
	if err == nil {
		end := commit
		if t.stirred {
			end = s.dialect.notify + commit
		}
		_, err = s.writer.ExecContext(ctx, end)
	}
	if err != nil {
		s.undo(ctx)
		return nil, err
	}
	if t.stirred {
		if err := s.hear(ctx); err != nil {
			// It stands in the database, and clients are told a little later.
			s.log.Error("what was just written could not be read back; trying again", "err", err)
			s.hearLater()
		}
	}
	return nil, nil
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
