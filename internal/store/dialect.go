package store

import (
	"context"
	"database/sql"
	"time"
)

// dialect is where the databases differ. All other SQL here is text that both understand: placeholders in the order of
// their numbers, since SQLite binds "$2" by where it first stands; flags as 0 and 1; CASE for the larger of two values.
type dialect struct {
	// shared says that several instances may use the database at once.
	shared bool
	// begin begins a batch, for which it waits until no other batch is being written.
	begin string
	// notify tells the other instances, when the batch is committed, that it has announced or kept something.
	notify string
	// skip is put after a SELECT whose rows are to stay as they are until the transaction ends. It leaves out a row that
	// somebody else has.
	skip string
	// standing is selectStanding, with locks that wait.
	standing string
	// claimDebts and claimDestinations are the functions of these names, with how a JSON array is read.
	claimDebts, claimDestinations string
	// standings is selectStandings.
	standings string
	// batchWithin bounds one batch; 0 where nothing does.
	batchWithin time.Duration
}

var sqliteDialect = dialect{
	begin:    `BEGIN IMMEDIATE`,
	standing: selectStanding(""),

	claimDebts:        claimDebts(oneOfSQLite),
	claimDestinations: claimDestinations(oneOfSQLite),

	standings: selectStandings(oneOfSQLite),
}

func oneOfSQLite(placeholder string) string {
	return `IN (SELECT value FROM json_each(` + placeholder + `))`
}

const commit = `COMMIT`

// querier is a connection or a transaction.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// tx is what a change may do.
type tx struct {
	querier
	dialect dialect
	// stirred is set once something was announced or kept, of which others are to hear.
	stirred bool
}

func (t *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	result, err := t.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// apart runs apply in a transaction of its own where several instances share the database: it waits for no batch. What it
// locks, it locks in this order: the fetch of a target, and then the rate of a destination; or destinations and their
// debts, none of which it waits for, and then their rates. A batch locks rates never. So no two of them can each wait for
// the other.
func (s *Store) apart(ctx context.Context, apply func(context.Context, *tx) error) error {
	if !s.dialect.shared {
		return s.update(ctx, apply)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	for range readers {
		again, err := s.tryApart(ctx, apply)
		if err == nil {
			return nil
		}
		if !again || ctx.Err() != nil {
			return s.explain(err)
		}
	}
	_, err := s.tryApart(ctx, apply)
	return s.named(err)
}

// tryApart is one attempt. again says that it failed by a connection that was lost before anything was committed: after a
// restart of Postgres all that the pool keeps are such, each of which is found out by using it.
func (s *Store) tryApart(ctx context.Context, apply func(context.Context, *tx) error) (again bool, err error) {
	conn, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return lost(err), err
	}
	if err := apply(ctx, &tx{querier: conn, dialect: s.dialect}); err != nil {
		_ = conn.Rollback() // a connection that is lost has undone all as well
		return lost(err), err
	}
	return false, conn.Commit()
}

// bounded is for a question that somebody waits for: a database on the network may never answer.
func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if !s.dialect.shared {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, answersWithin)
}
