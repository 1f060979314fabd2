package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
)

// errNotNow undoes a Begin that does not let the fetch begin.
var errNotNow = errors.New("the fetch does not begin")

// beginShared is Begin where other instances fetch as well.
func (s *Store) beginShared(ctx context.Context, f Fetch) (begun Begun, err error) {
	err = s.apart(ctx, func(ctx context.Context, t *tx) error {
		begun = Begun{}
		name := freshen.Destination(f.Target)
		last, err := t.lastFetch(ctx, f.Target, name)
		if err != nil {
			return err
		}
		if err := begun.read(ctx, t, f.Target); err != nil {
			return err
		}
		if begun.Busy = last.token != "" && last.instance != s.sharing.instance && holds(last.leaseEnd, f); begun.Busy {
			return errNotNow
		}
		if begun.Past, err = s.past(ctx, t, f, last); err != nil {
			return err
		}
		if begun.Past != nil {
			return errNotNow
		}
		// From here on, no other fetch of this destination begins.
		whole, err := t.rate(ctx, name)
		if err != nil {
			return err
		}
		if begun.Destination.Failures > 0 {
			if begun.Busy, err = s.probed(ctx, t, f); err != nil {
				return err
			}
		}
		if begun.Busy {
			return errNotNow
		}
		if !f.Claimed {
			take := s.sharing.rate.Load().Take
			if f.Spare {
				take = s.sharing.rate.Load().TakeSpare
			}
			whole, begun.Wait = take(whole, f.Now)
			if err := t.putRate(ctx, name, whole); err != nil {
				return err
			}
		}
		if begun.Wait > 0 {
			return errNotNow
		}
		_, err = t.exec(ctx, `UPDATE fetches SET token = $1, instance = $2, began_at = $3, lease_end = $4 WHERE target = $5`,
			f.Token, s.sharing.instance, millis(f.Now), millis(f.Now.Add(f.Lease)), f.Target)
		return err
	})
	if errors.Is(err, errNotNow) {
		err = nil
	}
	return begun, err
}

// lastFetch is a target's row of fetches, as it is read.
type lastFetch struct {
	token, instance   string
	leaseEnd, endedAt time.Time
	failure           []byte
}

// lastFetch locks the target's row of fetches and reads it.
func (t *tx) lastFetch(ctx context.Context, target id.UserID, destination string) (last lastFetch, err error) {
	var lease, ended int64
	err = t.QueryRowContext(ctx, `INSERT INTO fetches (target, destination) VALUES ($1, $2)
		ON CONFLICT (target) DO UPDATE SET target = excluded.target RETURNING token, instance, lease_end, ended_at, failure`, target, destination).
		Scan(&last.token, &last.instance, &lease, &ended, &last.failure)
	last.leaseEnd, last.endedAt = fromMillis(lease), fromMillis(ended)
	return last, err
}

// holds says whether a lease has not run out. One that ends later than any that began now was taken before the clock was
// set back, and says nothing any more.
func holds(end time.Time, f Fetch) bool {
	return end.After(f.Now) && !end.After(f.Now.Add(2*f.Lease))
}

// past is what came of the last fetch, if that still answers. A list whose user was announced since does not.
func (s *Store) past(ctx context.Context, t *tx, f Fetch, last lastFetch) (*Past, error) {
	fresh := s.sharing.successFor
	if last.failure != nil {
		fresh = s.sharing.failureFor
	}
	// A time to come is as in holds.
	if age := f.Now.Sub(last.endedAt); f.Claimed || last.endedAt.IsZero() || age >= fresh || age <= -fresh {
		return nil, nil
	}
	past := &Past{At: last.endedAt}
	if last.failure != nil {
		past.Failure = &freshen.Failure{}
		return past, json.Unmarshal(last.failure, past.Failure)
	}
	var suspect bool
	err := t.QueryRowContext(ctx, `SELECT suspect FROM kept_lists WHERE user_id = $1`, f.Target).Scan(&suspect)
	if suspect || errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return past, err
}

// probed says whether another instance is trying the destination.
func (s *Store) probed(ctx context.Context, t *tx, f Fetch) (bool, error) {
	ends, err := queryAll(ctx, t, func(rows *sql.Rows) (end int64, err error) { return end, rows.Scan(&end) },
		`SELECT lease_end FROM fetches WHERE destination = $1 AND token <> '' AND instance <> $2`, freshen.Destination(f.Target), s.sharing.instance)
	for _, end := range ends {
		if holds(fromMillis(end), f) {
			return true, nil
		}
	}
	return false, err
}

// endFetch frees the target for other fetches and leaves them the outcome; failure is nil for a success. began is when the
// fetch was begun. The error is [ErrSuperseded] if it is not the one that is running.
func (t *tx) endFetch(ctx context.Context, target id.UserID, token string, at time.Time, failure *freshen.Failure) (began time.Time, err error) {
	if !t.dialect.shared || token == "" { // in one process a fetch is not overtaken
		return at, nil
	}
	var outcome any // NULL
	if failure != nil {
		told := *failure
		told.Err = nil // for the log alone
		if outcome, err = json.Marshal(told); err != nil {
			return at, err
		}
	}
	var ms int64
	err = t.QueryRowContext(ctx, `UPDATE fetches SET token = '', ended_at = $1, failure = $2 WHERE target = $3 AND token = $4 RETURNING began_at`,
		millis(at), outcome, target, token).Scan(&ms)
	if errors.Is(err, sql.ErrNoRows) {
		return at, ErrSuperseded
	}
	return fromMillis(ms), err
}

// spares locks the rates of these destinations, over all instances.
func (sh *sharing) spares(ctx context.Context, t *tx, due []claimable) (spares, error) {
	names := make([]string, len(due))
	for i, d := range due {
		names[i] = d.name
	}
	type rate struct {
		Destination string `json:"destination"`
		Whole       int64  `json:"whole"` // nanoseconds since 1970
	}
	read, err := queryAll(ctx, t, func(rows *sql.Rows) (r rate, err error) { return r, rows.Scan(&r.Destination, &r.Whole) },
		`INSERT INTO rates (destination, whole_at) SELECT jsonb_array_elements_text($1::jsonb), 0
		ON CONFLICT (destination) DO UPDATE SET destination = excluded.destination RETURNING destination, whole_at`, jsonText(names))
	if err != nil {
		return spares{}, err
	}
	rates := make(map[string]*rate, len(read))
	for i := range read {
		rates[read[i].Destination] = &read[i]
	}
	limit := sh.rate.Load()
	taken := map[string]*rate{}
	take := func(destination string, now time.Time) time.Duration {
		r := rates[destination]
		whole, wait := limit.TakeSpare(time.Unix(0, r.Whole), now)
		if wait == 0 {
			r.Whole = whole.UnixNano()
			taken[destination] = r
		}
		return wait
	}
	put := func(ctx context.Context, t *tx) error {
		if len(taken) == 0 {
			return nil
		}
		_, err := t.exec(ctx, `UPDATE rates SET whole_at = taken.whole FROM jsonb_to_recordset($1::jsonb) AS taken (destination text, whole bigint)
			WHERE rates.destination = taken.destination`, jsonText(slices.Collect(maps.Values(taken))))
		return err
	}
	return spares{take, put}, nil
}

// rate locks the destination's rate and reads when its allowance is whole again.
func (t *tx) rate(ctx context.Context, destination string) (whole time.Time, err error) {
	var ns int64
	err = t.QueryRowContext(ctx, `INSERT INTO rates (destination, whole_at) VALUES ($1, 0)
		ON CONFLICT (destination) DO UPDATE SET destination = excluded.destination RETURNING whole_at`, destination).Scan(&ns)
	return time.Unix(0, ns), err
}

func (t *tx) putRate(ctx context.Context, destination string, whole time.Time) error {
	_, err := t.exec(ctx, `UPDATE rates SET whole_at = $1 WHERE destination = $2`, whole.UnixNano(), destination)
	return err
}

// pruneShared forgets what the instances told each other about fetches, and those that are gone. It waits for nobody; see [Store.apart].
func (s *Store) pruneShared(ctx context.Context, before time.Time) error {
	if s.sharing == nil {
		return nil
	}
	return s.apart(ctx, func(ctx context.Context, t *tx) error {
		if _, err := t.exec(ctx, `DELETE FROM fetches WHERE target IN
			(SELECT target FROM fetches WHERE lease_end < $1 AND ended_at < $1`+t.dialect.skip+`)`, millis(before)); err != nil {
			return err
		}
		if _, err := t.exec(ctx, `DELETE FROM rates WHERE destination IN
			(SELECT destination FROM rates WHERE whole_at < $1`+t.dialect.skip+`)`, before.UnixNano()); err != nil {
			return err
		}
		_, err := t.exec(ctx, `DELETE FROM instances WHERE beat_at < clock_timestamp() - $1 * interval '1 second'`, rememberFor.Seconds())
		return err
	})
}
