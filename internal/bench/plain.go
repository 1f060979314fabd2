package main

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// The bare statements, which write the rows that the store writes for the same changes, without reading any.
const (
	putDestination = `INSERT INTO destinations (name, failures, failing_since, retry_at, due_at, reason, sentence) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (name) DO UPDATE SET failures = excluded.failures, failing_since = excluded.failing_since,
			retry_at = excluded.retry_at, due_at = excluded.due_at, reason = excluded.reason, sentence = excluded.sentence`
	putDebt = `INSERT INTO debts (user_id, destination, gen, asked_at, failures, due_at, lease, reason, sentence) VALUES ($1, $2, 1, $3, 0, $4, '', $5, $6)
		ON CONFLICT (user_id) DO UPDATE SET gen = excluded.gen, asked_at = excluded.asked_at, failures = excluded.failures,
			due_at = excluded.due_at, lease = excluded.lease, reason = excluded.reason, sentence = excluded.sentence`
	askDebt      = `UPDATE debts SET gen = gen + 1, asked_at = $1 WHERE user_id = $2`
	putRequester = `INSERT INTO requesters (target, user_id, asked_at, owed) VALUES ($1, $2, $3, $4)
		ON CONFLICT (target, user_id) DO UPDATE SET asked_at = excluded.asked_at, owed = excluded.owed`
	claimDebt        = `UPDATE debts SET lease = $1, due_at = $2 WHERE user_id = $3`
	claimDestination = `UPDATE destinations SET due_at = $1 WHERE name = $2`
	failDebt         = `UPDATE debts SET lease = '', due_at = $1, reason = $2, sentence = $3 WHERE user_id = $4`
	failDestination  = `UPDATE destinations SET failures = failures + 1, retry_at = $1, due_at = $2, reason = $3, sentence = $4 WHERE name = $5`
	payDebt          = `DELETE FROM debts WHERE user_id = $1`
	payDestination   = `UPDATE destinations SET failures = 0, failing_since = 0, retry_at = 0, reason = '', sentence = '', due_at = $1 WHERE name = $2`
	forget           = `DELETE FROM destinations WHERE name = $1`
	payRequesters    = `UPDATE requesters SET owed = $1 WHERE target = $2`
	keepList         = `INSERT INTO kept_lists (user_id, list, hash, fetched_at, suspect) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id) DO UPDATE SET list = excluded.list, hash = excluded.hash, fetched_at = excluded.fetched_at, suspect = excluded.suspect`
	moveHead     = `UPDATE stream SET head = head + $1 RETURNING head`
	announceList = `INSERT INTO announcements (target, audience, position, announced_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (target, audience) DO UPDATE SET position = excluded.position, announced_at = excluded.announced_at`
)

// plainTx prepares each statement once for the whole step.
type plainTx struct {
	ctx      context.Context
	conn     *sql.Conn
	prepared map[string]*sql.Stmt
}

func (t *plainTx) stmt(query string) (stmt *sql.Stmt, err error) {
	if stmt = t.prepared[query]; stmt == nil {
		if stmt, err = t.conn.PrepareContext(t.ctx, query); err == nil {
			t.prepared[query] = stmt
		}
	}
	return stmt, err
}

func (t *plainTx) exec(query string, args ...any) error {
	if len(args) == 0 {
		_, err := t.conn.ExecContext(t.ctx, query)
		return err
	}
	stmt, err := t.stmt(query) //nolint:sqlclosecheck // batches closes it
	if err != nil {
		return err
	}
	_, err = stmt.ExecContext(t.ctx, args...)
	return err
}

// batches has do called for each batch of 64 debts, which are committed together.
func (r *rival) batches(do func(t *plainTx, from, to int) error) (err error) {
	// Without an end to the context: to watch for one costs a goroutine each statement.
	t := &plainTx{ctx: context.Background(), conn: r.plain, prepared: map[string]*sql.Stmt{}}
	defer func() {
		for _, stmt := range t.prepared {
			err = errors.Join(err, stmt.Close())
		}
	}()
	for from := 0; from < queueDebts; from += together {
		if err := t.exec(r.begin); err != nil {
			return err
		}
		if err := do(t, from, min(from+together, queueDebts)); err != nil {
			return errors.Join(err, t.exec(`ROLLBACK`))
		}
		if err := t.exec(`COMMIT`); err != nil {
			return err
		}
	}
	return nil
}

// each is batches where a batch is nothing but its changes one by one.
func (r *rival) each(do func(t *plainTx, i int) error) error {
	return r.batches(func(t *plainTx, from, to int) error {
		for i := from; i < to; i++ {
			if err := do(t, i); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *rival) plainRecord(_ *bench, l *backlog) error {
	now, then := l.now.UnixMilli(), l.now.Add(30*time.Second).UnixMilli()
	return r.each(func(t *plainTx, i int) error {
		f := l.failures[i]
		return errors.Join(
			t.exec(putDestination, f.Destination, 1, now, then, then, f.Reason, f.Sentence),
			t.exec(putDebt, l.targets[i], f.Destination, now, now, f.Reason, f.Sentence),
			t.exec(putRequester, l.targets[i], "@alice:a.example", now, r.yes),
		)
	})
}

func (r *rival) plainAsk(_ *bench, l *backlog) error {
	now := l.now.UnixMilli()
	return r.each(func(t *plainTx, i int) error {
		return errors.Join(t.exec(askDebt, now, l.targets[i]), t.exec(putRequester, l.targets[i], "@anna:a.example", now, r.yes))
	})
}

// claimed has each batch claimed in the commit before the one that finishes it, as the store does under load.
func (r *rival) claimed(l *backlog, finish func(t *plainTx, i int) error) error {
	ends := l.now.Add(2 * time.Minute).UnixMilli()
	claim := func(t *plainTx, from, to int) error {
		for i := from; i < min(to, queueDebts); i++ {
			if err := errors.Join(t.exec(claimDebt, "bench", ends, l.targets[i]), t.exec(claimDestination, ends, l.failures[i].Destination)); err != nil {
				return err
			}
		}
		return nil
	}
	return r.batches(func(t *plainTx, from, to int) error {
		if from == 0 {
			if err := claim(t, from, to); err != nil {
				return err
			}
		}
		if err := claim(t, to, to+together); err != nil {
			return err
		}
		for i := from; i < to; i++ {
			if err := finish(t, i); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *rival) plainFail(_ *bench, l *backlog) error {
	now, then := l.now.UnixMilli(), l.now.Add(time.Hour).UnixMilli()
	return r.claimed(l, func(t *plainTx, i int) error {
		f := l.failures[i]
		return errors.Join(
			t.exec(failDebt, now, f.Reason, f.Sentence, l.targets[i]),
			t.exec(failDestination, then, then, f.Reason, f.Sentence, f.Destination),
		)
	})
}

func (r *rival) plainPay(_ *bench, l *backlog) error {
	now := l.now.UnixMilli()
	return r.claimed(l, func(t *plainTx, i int) error {
		hash := l.lists[i].Hash()
		err := errors.Join(
			t.exec(keepList, l.targets[i], l.lists[i].Encode(), hash[:], now, r.no),
			t.exec(payDebt, l.targets[i]),
			t.exec(payRequesters, r.no, l.targets[i]),
		)
		if i < queueDebts-queueServers {
			err = errors.Join(err, t.exec(payDestination, now, l.failures[i].Destination))
		} else {
			err = errors.Join(err, t.exec(forget, l.failures[i].Destination))
		}
		return errors.Join(err, t.announce(string(l.targets[i]), []string{"", "@alice:a.example", "@anna:a.example"}, now))
	})
}

func (t *plainTx) announce(target string, audience []string, now int64) error {
	move, err := t.stmt(moveHead) //nolint:sqlclosecheck // batches closes it
	if err != nil {
		return err
	}
	var head int64
	if err := move.QueryRowContext(t.ctx, len(audience)).Scan(&head); err != nil {
		return err
	}
	for i, who := range audience {
		if err := t.exec(announceList, target, who, head-int64(i), now); err != nil {
			return err
		}
	}
	return nil
}
