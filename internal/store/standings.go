package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// Standing is what is known of a target.
type Standing struct {
	freshen.Standing
	// Asked: the user in question has had this target refreshed, or was promised it, within 90 days.
	Asked bool
}

// Standings tells of those of the targets of whom anything is known, and which of those who has asked for. It is one
// query, with a few look-ups by key for each target.
func (s *Store) Standings(ctx context.Context, who id.UserID, targets []id.UserID, now time.Time) (map[id.UserID]Standing, error) {
	found := map[id.UserID]Standing{}
	if len(targets) == 0 {
		return found, nil
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	names, err := json.Marshal(targets)
	if err != nil {
		return nil, err
	}
	parts, err := queryAll(ctx, s.read, scanStandingPart, s.dialect.standings, string(names), who)
	if err != nil {
		return nil, s.explain(err)
	}
	for _, part := range parts {
		one := found[part.target]
		part.into(&one, now)
		found[part.target] = one
	}
	return found, nil
}

// standingPart is what one table says of a target.
type standingPart struct {
	kind                string
	target              id.UserID
	fetched, due, retry int64
	lease               string
	reason              freshen.Reason
}

func scanStandingPart(rows *sql.Rows) (p standingPart, err error) {
	return p, rows.Scan(&p.kind, &p.target, &p.fetched, &p.due, &p.retry, &p.lease, &p.reason)
}

func (p *standingPart) into(s *Standing, now time.Time) {
	switch p.kind {
	case "kept":
		s.Fetched, s.FetchedAgo = true, max(0, now.Sub(fromMillis(p.fetched))) // the clock may have been set back
	case "owed":
		s.Owed = &freshen.Owed{
			Reason: p.reason, Running: p.lease != "" && fromMillis(p.due).After(now),
			RetryAfter: max(0, fromMillis(max(p.due, p.retry)).Sub(now)),
		}
	case "asked":
		s.Asked = true
	}
}

// selectStandings takes a JSON array of targets, oneOf being the comparison with what stands in it, and who asks. Joined,
// the tables might be read from end to end.
func selectStandings(oneOf func(placeholder string) string) string {
	return `SELECT 'kept', user_id, fetched_at, 0, 0, '', '' FROM kept_lists WHERE user_id ` + oneOf(`$1`) + `
		UNION ALL SELECT 'owed', user_id, 0, due_at, coalesce((SELECT retry_at FROM destinations WHERE name = debts.destination), 0), lease, reason
			FROM debts WHERE user_id ` + oneOf(`$1`) + `
		UNION ALL SELECT 'asked', target, 0, 0, 0, '', '' FROM requesters WHERE target ` + oneOf(`$1`) + ` AND user_id = $2`
}
