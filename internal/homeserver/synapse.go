package homeserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"maunium.net/go/mautrix/id"

	"freshen"
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
	isMarked         = `SELECT EXISTS (SELECT 1 FROM device_lists_remote_resync WHERE user_id = $1)`
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
			Transport:     newTransport(),
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

// Deliver makes Synapse fetch the list of a user who was marked, and compares what it got with the list that freshen has
// got. All that goes wrong, or that Synapse will not announce, is told in the log.
func (s *Synapse) Deliver(ctx context.Context, list *freshen.DeviceList) {
	log := s.log.With("target", list.UserID)
	for range resyncTries {
		switch marked, err := s.marked(ctx, list.UserID); {
		case ctx.Err() != nil:
			return // freshen stops; the mark stands
		case err != nil:
			log.Warn("cannot read in Synapse's database whether a device list is stale; Synapse fetches it by itself within a minute", "err", err)
			return
		case !marked:
			log.Info("Synapse has fetched the device list already, or does not track this user, who is in none of its rooms")
			return
		}
		got, err := s.fetch(ctx, list.UserID)
		if err != nil {
			if ctx.Err() == nil {
				log.Warn("Synapse did not fetch a stale device list; it tries again by itself", "err", err)
			}
			return
		}
		if got.is(list) {
			s.tellHoles(ctx, log, list)
			return
		}
		// A fetch that began before the mark has taken it away, or the list has changed in between.
		if err := s.Mark(ctx, list.UserID); err != nil {
			if ctx.Err() != nil {
				return
			}
			log.Warn("Synapse fetched another device list than freshen, and cannot be told to fetch it again", "err", err)
			return
		}
	}
	log.Warn("Synapse got another device list than freshen twice; it fetches it once more by itself",
		"devices", len(list.Devices))
}

func (s *Synapse) marked(ctx context.Context, target id.UserID) (marked bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	return marked, s.db.QueryRowContext(ctx, isMarked, string(target)).Scan(&marked)
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
func (f *fetched) is(list *freshen.DeviceList) bool {
	for _, device := range list.Devices {
		if !f.devices[device.ID] {
			return false
		}
	}
	return len(f.devices) == len(list.Devices) || len(list.Dropped) > 0
}

// fetch has Synapse fetch a list and waits for its answer, which is null where it failed.
func (s *Synapse) fetch(ctx context.Context, target id.UserID) (*fetched, error) {
	body, err := json.Marshal(map[string][]id.UserID{"user_ids": {target}})
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, resyncTimeout)
	defer cancel()
	// Synapse remembers answers by the transaction's name for half an hour, so each has one of its own.
	request, err := http.NewRequestWithContext(asking, http.MethodPost, s.resync.JoinPath(rand.Text()).String(), bytes.NewReader(body))
	if err != nil {
		return nil, WithoutURL(err)
	}
	request.Header.Set("Content-Type", "application/json")
	if s.secret != "" {
		request.Header.Set("Authorization", "Bearer "+s.secret)
	}
	response, err := s.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("homeserver.synapse.replication gives no answer: %w", WithoutURL(err))
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := readAtMost(response.Body, maxResyncBytes)
	switch {
	case err != nil:
		return nil, err
	case response.StatusCode == http.StatusNotFound:
		return nil, errors.New("homeserver.synapse.replication answers 404: is it the listener with the resource replication, of the main process or of the worker that writes device lists?")
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("homeserver.synapse.replication answers with HTTP status %d: is homeserver.synapse.replication_secret_file Synapse's worker_replication_secret?", response.StatusCode)
	}
	var users map[id.UserID]*fetched
	if err := json.Unmarshal(answer, &users); err != nil {
		return nil, fmt.Errorf("homeserver.synapse.replication answers with something else than device lists: %w", err)
	}
	if users[target] == nil {
		return nil, errors.New("it could not reach the other server, or backs off from it")
	}
	return users[target], nil
}

// tellHoles warns where Synapse has fetched a list, and its clients do not learn of it all the same.
func (s *Synapse) tellHoles(ctx context.Context, log *slog.Logger, list *freshen.DeviceList) {
	const cure = "route /sync and /keys/query to freshen, or live with it"
	if n := len(list.Devices); n > mostOfSynapse {
		log.Warn("Synapse drops a device list of more than 1000 devices and takes its old one for current", "devices", n, "cure", cure)
	}
	if len(list.Devices) == 0 {
		log.Warn("Synapse stores that a user has no devices any more and announces it to nobody", "cure", cure)
	}
	ctx, cancel := context.WithTimeout(ctx, markTimeout)
	defer cancel()
	has, err := s.crossSigning(ctx, list.UserID)
	if err != nil {
		log.Warn("cannot read in Synapse's database which cross-signing keys it has; it never removes any", "err", err)
		return
	}
	if list.MasterKey != nil {
		delete(has, "master")
	}
	if list.SelfSigningKey != nil {
		delete(has, "self_signing")
	}
	if len(has) > 0 {
		log.Warn("Synapse goes on to serve cross-signing keys that are gone", "keys", slices.Sorted(maps.Keys(has)), "cure", cure)
	}
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
