package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"
)

// perDestination is how many debts of one destination may be claimed at once; one while it is backing off.
const perDestination = 4

// Places says for how many fetches there is room. A destination that is backing off is likely to hang until the fetch
// times out, so its probes have places of their own, and those who are fine never wait for them.
type Places struct{ Fine, Failing int }

// claims is what one call of [Store.Claim] takes. It is written at the end, in few statements.
type claims struct {
	now, until time.Time
	token      string
	debts      []Debt
	// full are the destinations of which nothing more may be claimed before until.
	full []string
	// others are those of which something may be claimed at another time than they say.
	others []claimable
}

// claimable is a destination that says that something is due.
type claimable struct {
	name     string
	failures int
	// wait: its rate is used up, for so long.
	wait time.Duration
}

// Claim takes debts that are due, at most as many as there are places, so that nobody else tries them before now+lease:
// of each destination as many as its rate allows, half of the burst left to people, at most four at once, and one while
// it is backing off. A claim ends with RecordFailure, Keep, Postpone, DropDebt or by time.
func (s *Store) Claim(ctx context.Context, now time.Time, lease time.Duration, token string, free Places) (claimed []Debt, err error) {
	err = s.apart(ctx, func(ctx context.Context, t *tx) error {
		c := claims{now: now, until: now.Add(lease), token: token}
		for _, kind := range []struct {
			query  string
			places int
		}{{dueFine, free.Fine}, {dueFailing, free.Failing}} {
			due, err := queryAll(ctx, t, func(rows *sql.Rows) (d claimable, err error) { return d, rows.Scan(&d.name, &d.failures) },
				kind.query+t.dialect.skip, millis(now), kind.places)
			if err != nil {
				return err
			}
			if err := s.claim(ctx, t, &c, due, kind.places); err != nil {
				return err
			}
		}
		claimed = c.debts
		return c.write(ctx, t)
	})
	return claimed, err
}

const (
	dueFine    = `SELECT name, failures FROM destinations WHERE due_at <= $1 AND failures = 0 ORDER BY due_at LIMIT $2`
	dueFailing = `SELECT name, failures FROM destinations WHERE due_at <= $1 AND failures > 0 ORDER BY due_at LIMIT $2`
	dueDebts   = `SELECT ` + debtColumns + `, (SELECT count(*) FROM debts WHERE destination = $1 AND lease <> '' AND due_at > $2)
		FROM debts WHERE destination = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3`
)

// claim takes of each destination what it may, places in all.
func (s *Store) claim(ctx context.Context, t *tx, c *claims, due []claimable, places int) error {
	if len(due) == 0 {
		return nil
	}
	rates, err := s.spares(ctx, t, due)
	if err != nil {
		return err
	}
	for _, d := range due {
		if places == 0 {
			break
		}
		allowed := destinationRow{failures: d.failures}.allowed()
		running := 0
		debts, err := queryAll(ctx, t, func(rows *sql.Rows) (Debt, error) { return scanDebt(rows, &running) },
			dueDebts+t.dialect.skip, d.name, millis(c.now), min(places, allowed))
		if err != nil {
			return err
		}
		taken := 0
		for _, debt := range debts[:min(len(debts), max(0, allowed-running))] {
			if d.wait = rates.take(d.name, c.now); d.wait > 0 {
				break
			}
			debt.Lease, debt.DueAt, debt.Probe = c.token, c.until, d.failures > 0
			c.debts = append(c.debts, debt)
			taken++
		}
		places -= taken
		if running == 0 && taken == allowed {
			c.full = append(c.full, d.name)
		} else {
			c.others = append(c.others, d)
		}
	}
	return rates.put(ctx, t)
}

func (c *claims) write(ctx context.Context, t *tx) error {
	targets := make([]string, len(c.debts))
	for i, debt := range c.debts {
		targets[i] = string(debt.Target)
	}
	if len(targets) > 0 {
		if _, err := t.exec(ctx, t.dialect.claimDebts, c.token, millis(c.until), jsonText(targets)); err != nil {
			return err
		}
	}
	if len(c.full) > 0 {
		if _, err := t.exec(ctx, t.dialect.claimDestinations, millis(c.until), jsonText(c.full)); err != nil {
			return err
		}
	}
	for _, d := range c.others {
		if err := t.schedule(ctx, d.name, c.now); err != nil {
			return err
		}
		if d.wait == 0 {
			continue
		}
		if _, err := t.exec(ctx, `UPDATE destinations SET due_at = $1 WHERE due_at < $1 AND name = $2`,
			millis(c.now.Add(d.wait+time.Millisecond-1)), d.name); err != nil { // not a moment before, or the worker would come for nothing
			return err
		}
	}
	return nil
}

// claimDebts and claimDestinations take a JSON array of names; oneOf is the comparison with what stands in it.
func claimDebts(oneOf func(placeholder string) string) string {
	return `UPDATE debts SET lease = $1, due_at = $2 WHERE user_id ` + oneOf(`$3`)
}

func claimDestinations(oneOf func(placeholder string) string) string {
	return `UPDATE destinations SET due_at = $1 WHERE name ` + oneOf(`$2`)
}

func jsonText(values any) string {
	text, err := json.Marshal(values)
	if err != nil {
		panic(err) // strings and numbers
	}
	return string(text)
}

// spares are the rates of some destinations, from which claims take what nobody waits for.
type spares struct {
	take func(destination string, now time.Time) (wait time.Duration)
	put  func(context.Context, *tx) error
}

func (s *Store) spares(ctx context.Context, t *tx, due []claimable) (spares, error) {
	if t.dialect.shared {
		return s.sharing.spares(ctx, t, due)
	}
	return spares{take: s.rates.TakeSpare, put: func(context.Context, *tx) error { return nil }}, nil
}
