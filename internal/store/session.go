package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
)

// session is the writer's connection. On SQLite it lasts, and prepares each statement once: parsing these short ones
// takes longer than running them. On Postgres the driver does the same.
type session struct {
	conn     *sql.Conn
	prepared map[string]*sql.Stmt // nil where the driver does it
}

func (s *session) close() error {
	return errors.Join(s.forget(), s.conn.Close())
}

// forget closes what is prepared, which must come before the connection's end: the driver crashes on a statement whose
// connection is gone.
func (s *session) forget() error {
	var errs []error
	for _, stmt := range s.prepared {
		errs = append(errs, stmt.Close())
	}
	clear(s.prepared)
	return errors.Join(errs...)
}

// begin begins a transaction. The connection may have been lost since the last one, so another is tried.
func (s *Store) begin(ctx context.Context) error {
	for again := false; ; again = true {
		if s.writer == nil {
			conn, err := s.write.Conn(ctx)
			if err != nil {
				return err
			}
			s.writer = &session{conn: conn}
			if !s.dialect.shared {
				s.writer.prepared = map[string]*sql.Stmt{}
			}
		}
		_, err := s.writer.ExecContext(ctx, s.dialect.begin)
		if err == nil {
			return nil
		}
		s.undo(ctx)
		s.giveBack()
		if again || !s.dialect.shared || !cut(err) {
			return err
		}
	}
}

// undo rolls back. Where that fails, it is mostly since the database has undone all by itself, as on a full disk. If not,
// the transaction must not stay open for the next batch: it ends with its connection.
func (s *Store) undo(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoWithin)
	defer cancel()
	if _, err := s.writer.ExecContext(ctx, `ROLLBACK`); err != nil {
		_ = s.writer.forget()
		_ = s.writer.conn.Raw(func(any) error { return driver.ErrBadConn })
		_ = s.writer.close()
		s.writer = nil
	}
}

// giveBack returns a connection over a network to the pool, which looks whether it is still there before it is used again.
func (s *Store) giveBack() {
	if s.dialect.shared && s.writer != nil {
		_ = s.writer.close() // what is committed is, whatever becomes of the connection
		s.writer = nil
	}
}

// batchContext bounds a batch on Postgres. A file needs no bound, since a disk that hangs heeds none, and a context that
// may end costs two goroutines a statement.
func (s *Store) batchContext() (context.Context, context.CancelFunc) {
	if s.dialect.batchWithin == 0 {
		return context.Background(), func() {}
	}
	return context.WithTimeout(context.Background(), s.dialect.batchWithin)
}

func (s *session) prepare(ctx context.Context, query string) (*sql.Stmt, error) {
	if stmt := s.prepared[query]; stmt != nil {
		return stmt, nil
	}
	stmt, err := s.conn.PrepareContext(ctx, query)
	if err == nil {
		s.prepared[query] = stmt
	}
	return stmt, err
}

// ExecContext is [sql.Conn.ExecContext], prepared. The query must be one of a fixed few.
func (s *session) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if s.prepared == nil {
		return s.conn.ExecContext(ctx, query, args...)
	}
	stmt, err := s.prepare(ctx, query) //nolint:sqlclosecheck // close closes it
	if err != nil {
		return nil, err
	}
	return stmt.ExecContext(ctx, args...)
}

// QueryContext is [sql.Conn.QueryContext], prepared.
func (s *session) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if s.prepared == nil {
		return s.conn.QueryContext(ctx, query, args...)
	}
	stmt, err := s.prepare(ctx, query) //nolint:sqlclosecheck // close closes it
	if err != nil {
		return nil, err
	}
	return stmt.QueryContext(ctx, args...)
}

// QueryRowContext is [sql.Conn.QueryRowContext], prepared.
func (s *session) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if s.prepared == nil {
		return s.conn.QueryRowContext(ctx, query, args...)
	}
	stmt, err := s.prepare(ctx, query) //nolint:sqlclosecheck // close closes it
	if err != nil {
		return s.conn.QueryRowContext(ctx, query, args...) // which fails as well, and keeps the error for Scan
	}
	return stmt.QueryRowContext(ctx, args...)
}
