package store

import (
	"context"
	"database/sql"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// Query is one with its arguments.
type Query struct {
	SQL  string
	Args []any
}

// Hot are the queries that run for each retry and each refresh.
func (s *Store) Hot() map[string]Query {
	return map[string]Query{
		"due destinations that are fine": {dueFine, []any{int64(1_700_000_000_000), 64}},
		"due destinations that fail":     {dueFailing, []any{int64(1_700_000_000_000), 64}},
		"due debts of a destination":     {dueDebts, []any{"s1.org", int64(1_700_000_000_000), 4}},
		"what was claimed":               {s.dialect.claimDebts, []any{"t", int64(1_700_000_000_000), `["@u1:s1.org"]`}},
		"whose debts were claimed":       {s.dialect.claimDestinations, []any{int64(1_700_000_000_000), `["s1.org"]`}},
		"how a destination stands":       {selectRow, []any{"s1.org", int64(1_700_000_000_000)}},
		"when something is due":          {nextDue, nil},
		"a debt and its destination":     {s.dialect.standing, []any{"s1.org", "@u1:s1.org"}},
		"a debt that is asked for again": {askDebtWhen, []any{int64(1_700_000_000_000), "@u1:s1.org"}},
		"a destination":                  {selectDestination, []any{"s1.org"}},
		"the audience of a list":         {selectAudience, []any{"@u1:s1.org", true, maxAudience}},
		"a kept list":                    {selectKept, []any{"@u1:s1.org"}},
		"what a client asks about":       {s.dialect.standings, []any{`["@u1:s1.org","@u2:s2.org"]`, "@alice:a.org"}},
	}
}

// BoundDeliveries has fewer than 10,000 wait for the homeserver, and fewer than 1,000 be remembered.
func (s *Store) BoundDeliveries(waiting, told int) { s.most = deliveriesAtMost{waiting, told} }

// Explain is how the database would run a query.
func (s *Store) Explain(ctx context.Context, query string, args ...any) ([]string, error) {
	if s.dialect.shared {
		return queryAll(ctx, s.read, func(rows *sql.Rows) (line string, err error) { return line, rows.Scan(&line) }, `EXPLAIN `+query, args...)
	}
	return queryAll(ctx, s.read, func(rows *sql.Rows) (line string, err error) {
		var node, parent, unused int
		err = rows.Scan(&node, &parent, &unused, &line)
		return line, err
	}, `EXPLAIN QUERY PLAN `+query, args...)
}

// Analyze has the database learn what stands in its tables.
func (s *Store) Analyze(ctx context.Context) error {
	return s.update(ctx, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `ANALYZE`)
		return err
	})
}

// HangInBegin begins a fetch and hangs while the target is locked, until resume is closed.
func (s *Store) HangInBegin(ctx context.Context, target id.UserID, inside chan<- struct{}, resume <-chan struct{}) error {
	return s.apart(ctx, func(ctx context.Context, t *tx) error {
		if _, err := t.lastFetch(ctx, target, freshen.Destination(target)); err != nil {
			return err
		}
		close(inside)
		<-resume
		return nil
	})
}
