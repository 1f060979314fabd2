package homeserver

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"maunium.net/go/mautrix/id"
)

const (
	// resyncTimeout is longer than Synapse gives another server.
	resyncTimeout = 90 * time.Second
	// markTimeout bounds one statement in Synapse's database, together with connecting to it.
	markTimeout     = 5 * time.Second
	maxResyncBytes  = 32 << 20
	maxSynapseConns = 4
	// resyncTries: a list that was being fetched when it was marked lacks what came since, and takes the mark away.
	resyncTries = 2
	// mostOfSynapse is how many devices of one user Synapse takes.
	mostOfSynapse = 1000
)

// markStale marks a user whose devices Synapse tracks, which are those in a room of its own. Marking others would have it
// keep a list that nobody updates, and that it takes for current once they share a room.
const markStale = `
INSERT INTO device_lists_remote_resync (user_id, added_ts)
SELECT $1::text, $2::bigint WHERE EXISTS (
	SELECT 1 FROM current_state_events WHERE type = 'm.room.member' AND state_key = $1 AND membership = 'join')
ON CONFLICT (user_id) DO NOTHING`

const (
	isMarked = `SELECT EXISTS (SELECT 1 FROM device_lists_remote_resync WHERE user_id = $1::text),
		EXISTS (SELECT 1 FROM current_state_events WHERE type = 'm.room.member' AND state_key = $1 AND membership = 'join')`
	crossSigningKeys = `SELECT DISTINCT keytype FROM e2e_cross_signing_keys WHERE user_id = $1 AND keytype IN ('master', 'self_signing')`
)

// SynapseConfig says where a Synapse is reached past its client-server API.
type SynapseConfig struct {
	// Database is its Postgres database.
	Database *url.URL
	// Replication is the replication listener of the process that writes device lists.
	Replication *url.URL
	// Secret is its worker_replication_secret, or empty.
	Secret string
	Log    *slog.Logger
	Now    func() time.Time
}

// Synapse makes a Synapse fetch device lists that it takes for current, and so announce them to its own clients: a row in
// the table in which Synapse itself notes which of its lists are stale, and the request by which its workers ask for a
// fetch. It is safe for concurrent use. What it does not manage at once Synapse does by itself, every 30 s.
type Synapse struct {
	db     *sql.DB
	http   *http.Client
	resync *url.URL
	secret string
	log    *slog.Logger
	now    func() time.Time
}

// NewSynapse opens no connection. The error is about the configuration.
func NewSynapse(cfg SynapseConfig) (*Synapse, error) {
	config, err := pgx.ParseConfig(cfg.Database.String())
	if err != nil {
		return nil, errors.New("homeserver.synapse.database is no URL that Postgres understands") // the cause may hold a password
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = markTimeout
	}
	config.RuntimeParams["application_name"] = "freshen"
	db := stdlib.OpenDB(*config)
	db.SetMaxOpenConns(maxSynapseConns)
	db.SetConnMaxIdleTime(time.Minute)
	return &Synapse{
		db: db, secret: cfg.Secret, log: cfg.Log, now: cfg.Now,
		http: &http.Client{
			Transport:     NewTransport(),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		resync: cfg.Replication.JoinPath("_synapse/replication/multi_user_device_resync"),
	}, nil
}

// Close drops all connections.
func (s *Synapse) Close() error {
	s.http.CloseIdleConnections()
	return s.db.Close()
}

// Mark notes in Synapse's database that its list of target is stale. It is no error, and without effect, if Synapse does
// not track target, since they are in none of its rooms.
func (s *Synapse) Mark(ctx context.Context, target id.UserID) error {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	if _, err := s.db.ExecContext(ctx, markStale, string(target), s.now().UnixMilli()); err != nil {
		return fmt.Errorf("the database of Synapse cannot be told that a device list is stale: %w", err)
	}
	return nil
}

// Deliver makes Synapse fetch the list of a user who was marked, compares what it got with the list that freshen has got,
// and says what its clients will not hear of.
func (s *Synapse) Deliver(ctx context.Context, d Delivery) Outcome {
	for range resyncTries {
		switch marked, tracked, err := s.marked(ctx, d.Target); {
		case err != nil:
			return Outcome{HoleAway, "The database of Synapse does not say whether its list is stale.", err}
		case !tracked:
			s.log.Info("Synapse does not track this user, who is in none of its rooms", "target", d.Target)
			return Outcome{}
		case !marked: // it has fetched the list by itself
			return s.holes(ctx, d)
		}
		got, failed := s.fetch(ctx, d.Target)
		if failed.Hole != HoleNone {
			return failed
		}
		if got.is(d) {
			return s.holes(ctx, d)
		}
		// A fetch that began before the mark has taken it away, or the list has changed in between.
		if err := s.Mark(ctx, d.Target); err != nil {
			return Outcome{HoleAway, "The database of Synapse cannot be told that its list is stale still.", err}
		}
	}
	return Outcome{Hole: HoleOther, Sentence: "Synapse got another list than freshen, twice."}
}

func (s *Synapse) marked(ctx context.Context, target id.UserID) (marked, tracked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	return marked, tracked, s.db.QueryRowContext(ctx, isMarked, string(target)).Scan(&marked, &tracked)
}

// fetched is what Synapse says it has of a user: fresh from the other server, or, where nothing was to be fetched, its
// cache, an object with the device IDs for names.
type fetched struct{ devices map[id.DeviceID]bool }

func (f *fetched) UnmarshalJSON(data []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return err
	}
	f.devices = map[id.DeviceID]bool{}
	fresh, isFresh := members["devices"]
	if _, hasStream := members["stream_id"]; !isFresh || !hasStream {
		for device := range members {
			f.devices[id.DeviceID(device)] = true
		}
		return nil
	}
	var devices []struct {
		ID id.DeviceID `json:"device_id"`
	}
	if err := json.Unmarshal(fresh, &devices); err != nil {
		return err
	}
	for _, device := range devices {
		f.devices[device.ID] = true
	}
	return nil
}

// is says whether it has the devices of a list. Devices that freshen leaves out as malformed do not count.
func (f *fetched) is(d Delivery) bool {
	if d.List == nil {
		return true
	}
	for _, device := range d.List.Devices {
		if !f.devices[device.ID] {
			return false
		}
	}
	return len(f.devices) == len(d.List.Devices) || d.Loose
}

// fetch has Synapse fetch a list and waits for its answer, which is null where it failed.
func (s *Synapse) fetch(ctx context.Context, target id.UserID) (*fetched, Outcome) {
	asking, cancel := context.WithTimeout(ctx, resyncTimeout)
	defer cancel()
	body, err := json.Marshal(map[string][]id.UserID{"user_ids": {target}})
	if err != nil {
		return nil, Outcome{HoleAway, "Synapse cannot be asked.", err}
	}
	// Synapse remembers answers by the transaction's name for half an hour, so each has one of its own.
	request, err := http.NewRequestWithContext(asking, http.MethodPost, s.resync.JoinPath(rand.Text()).String(), bytes.NewReader(body))
	if err != nil {
		return nil, Outcome{HoleAway, "Synapse cannot be asked.", WithoutURL(err)}
	}
	request.Header.Set("Content-Type", "application/json")
	if s.secret != "" {
		request.Header.Set("Authorization", "Bearer "+s.secret)
	}
	response, err := s.http.Do(request)
	if err != nil {
		return nil, unanswered(err, "homeserver.synapse.replication gives no answer")
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := readAtMost(response.Body, maxResyncBytes)
	switch {
	case err != nil:
		return nil, unanswered(err, "homeserver.synapse.replication breaks off")
	case response.StatusCode == http.StatusNotFound:
		return nil, Outcome{Hole: HoleAway, Sentence: "homeserver.synapse.replication answers 404: is it the listener with the resource replication, of the main process or of the worker that writes device lists?"}
	case response.StatusCode != http.StatusOK:
		return nil, Outcome{Hole: HoleAway, Sentence: fmt.Sprintf("homeserver.synapse.replication answers with HTTP status %d: is homeserver.synapse.replication_secret_file Synapse's worker_replication_secret?", response.StatusCode)}
	}
	var users map[id.UserID]*fetched
	if err := json.Unmarshal(answer, &users); err != nil {
		return nil, Outcome{HoleAway, "homeserver.synapse.replication answers with something else than device lists.", err}
	}
	if users[target] == nil {
		return nil, Outcome{Hole: HoleNotFetched, Sentence: "Synapse did not fetch the list: it could not reach the other server, or backs off from it. It tries again by itself."}
	}
	return users[target], Outcome{}
}

// unanswered tells a homeserver that cannot be reached from one that takes too long for one list.
func unanswered(err error, what string) Outcome {
	if _, ok := errors.AsType[*net.OpError](err); ok && !isTimeout(err) {
		return Outcome{Hole: HoleAway, Sentence: fmt.Sprintf("%s: %v.", what, WithoutURL(err))}
	}
	return Outcome{Hole: HoleNotFetched, Sentence: fmt.Sprintf("%s: %v.", what, WithoutURL(err))}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// holes says what Synapse's clients do not learn of a list that it has fetched.
func (s *Synapse) holes(ctx context.Context, d Delivery) Outcome {
	if d.List == nil {
		return Outcome{}
	}
	if n := len(d.List.Devices); n > mostOfSynapse {
		return Outcome{Hole: HoleTooMany, Sentence: fmt.Sprintf("Synapse drops a list of more than 1000 devices, as this one of %d, and takes its old one for current.", n)}
	}
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	has, err := s.crossSigning(ctx, d.Target)
	if err != nil {
		return Outcome{HoleAway, "The database of Synapse does not say which cross-signing keys it has.", err}
	}
	if d.List.MasterKey != nil {
		delete(has, "master")
	}
	if d.List.SelfSigningKey != nil {
		delete(has, "self_signing")
	}
	var told []string
	hole := HoleNone
	if len(d.List.Devices) == 0 {
		hole, told = HoleNoDevices, append(told, "Synapse stores that the user has no devices any more, and announces it to nobody.")
	}
	if len(has) > 0 {
		hole, told = cmp.Or(hole, HoleKeysGone), append(told, fmt.Sprintf("Synapse goes on to serve cross-signing keys that are gone (%s).", strings.Join(slices.Sorted(maps.Keys(has)), ", ")))
	}
	return Outcome{Hole: hole, Sentence: strings.Join(told, " ")}
}

func (s *Synapse) crossSigning(ctx context.Context, target id.UserID) (_ map[string]bool, err error) {
	rows, err := s.db.QueryContext(ctx, crossSigningKeys, string(target))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	types := map[string]bool{}
	for rows.Next() {
		var keytype string
		if err := rows.Scan(&keytype); err != nil {
			return nil, err
		}
		types[keytype] = true
	}
	return types, rows.Err()
}
