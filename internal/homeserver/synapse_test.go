package homeserver_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/store/storetest"
)

const (
	target = id.UserID("@bob:b.org")
	secret = "replication secret"
)

// synapse is what freshen uses of one: three of its tables, and the replication listener, which answers from a script.
type synapse struct {
	t   *testing.T
	db  *pgx.Conn
	log bytes.Buffer

	mu      sync.Mutex
	answers []string // one for each request; the last one again
	asked   []string // path and body
	// finish is what Synapse does once it has fetched: it takes the mark away.
	finish bool
}

func newSynapse(t *testing.T, answers ...string) (*synapse, *homeserver.Synapse) {
	t.Helper()
	where := storetest.Shared(t).NewDatabase(t)
	db, err := pgx.Connect(t.Context(), where.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	s := &synapse{t: t, db: db, answers: answers, finish: true}
	s.exec(`CREATE TABLE device_lists_remote_resync (user_id text NOT NULL, added_ts bigint NOT NULL)`)
	s.exec(`CREATE UNIQUE INDEX device_lists_remote_resync_idx ON device_lists_remote_resync (user_id)`)
	s.exec(`CREATE TABLE current_state_events (event_id text, room_id text, type text, state_key text, membership text)`)
	s.exec(`CREATE TABLE e2e_cross_signing_keys (user_id text, keytype text, keydata text, stream_id bigint)`)
	s.exec(`INSERT INTO current_state_events VALUES ('$e', '!r', 'm.room.member', $1, 'join')`, target)
	where.User = url.User(s.documentedRole())
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	replication, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := homeserver.NewSynapse(homeserver.SynapseConfig{
		Database: where, Replication: replication, Secret: secret,
		Log: slog.New(slog.NewTextHandler(&s.log, nil)), Now: func() time.Time { return time.UnixMilli(1_700_000_000_000) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, client
}

func (s *synapse) exec(statement string, args ...any) {
	s.t.Helper()
	if _, err := s.db.Exec(s.t.Context(), statement, args...); err != nil {
		s.t.Fatal(err)
	}
}

// documentedRole makes a role that may do what the documentation grants to freshen's.
func (s *synapse) documentedRole() string {
	s.t.Helper()
	text, err := os.ReadFile("../../docs/delivery.md")
	if err != nil {
		s.t.Fatal(err)
	}
	grants := regexp.MustCompile(`(?m)^(GRANT .*) TO freshen;$`).FindAllStringSubmatch(string(text), -1)
	if len(grants) == 0 {
		s.t.Fatal("docs/delivery.md grants nothing")
	}
	role := "freshen_" + strings.ToLower(rand.Text())
	s.exec("CREATE ROLE " + role + " LOGIN")
	for _, grant := range grants {
		s.exec(grant[1] + " TO " + role)
	}
	return role
}

// marked counts the rows of target's, and says when it was marked.
func (s *synapse) marked() (rows int, at int64) {
	s.t.Helper()
	err := s.db.QueryRow(s.t.Context(), `SELECT count(*), coalesce(max(added_ts), 0) FROM device_lists_remote_resync`).Scan(&rows, &at)
	if err != nil {
		s.t.Fatal(err)
	}
	return rows, at
}

func (s *synapse) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	path, txn := r.URL.Path[:strings.LastIndex(r.URL.Path, "/")], r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s", r.Method, path, body))
	switch answer := s.answers[min(len(s.asked), len(s.answers))-1]; {
	case r.Header.Get("Authorization") != "Bearer "+secret || txn == "":
		w.WriteHeader(http.StatusInternalServerError)
	case answer == "404":
		w.WriteHeader(http.StatusNotFound)
	default:
		if s.finish && answer != "null" {
			if _, err := s.db.Exec(r.Context(), `DELETE FROM device_lists_remote_resync`); err != nil {
				s.t.Error(err)
			}
		}
		_, _ = fmt.Fprintf(w, `{%q:%s}`, target, answer)
	}
}

func listOf(t *testing.T, devices int) *freshen.DeviceList {
	t.Helper()
	parts := make([]string, devices)
	for i := range parts {
		parts[i] = fmt.Sprintf(`{"device_id":"D%d","keys":{"user_id":%q,"device_id":"D%d","algorithms":[],"keys":{},"signatures":{}}}`, i, target, i)
	}
	list, err := freshen.ParseDeviceList(fmt.Appendf(nil, `{"user_id":%q,"stream_id":7,"devices":[%s]}`, target, strings.Join(parts, ",")), target)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// answerOf is what Synapse answers when it has fetched that list.
func answerOf(list *freshen.DeviceList) string { return string(list.Encode()) }

// A failure means that Synapse answers from its cache or waits for half a minute, or that a second request breaks.
func TestMarkAndDeliver(t *testing.T) {
	t.Parallel()
	list := listOf(t, 2)
	s, client := newSynapse(t, answerOf(list))
	for range 2 {
		if err := client.Mark(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		if rows, at := s.marked(); rows != 1 || at != 1_700_000_000_000 {
			t.Fatalf("%d rows are marked, at %d", rows, at)
		}
	}
	if outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: list}); outcome != (homeserver.Outcome{}) {
		t.Errorf("it is told that something went wrong: %+v", outcome)
	}
	want := "POST /_synapse/replication/multi_user_device_resync " + `{"user_ids":["@bob:b.org"]}`
	if len(s.asked) != 1 || s.asked[0] != want {
		t.Errorf("Synapse was asked %q, want %q", s.asked, want)
	}
}

// A failure means that Synapse keeps a list that nobody updates, and takes it for current once a room is shared.
func TestStrangersAreNotMarked(t *testing.T) {
	t.Parallel()
	s, client := newSynapse(t, "null")
	s.exec(`UPDATE current_state_events SET membership = 'leave'`)
	if err := client.Mark(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: listOf(t, 1)}); outcome != (homeserver.Outcome{}) {
		t.Errorf("%+v", outcome)
	}
	if rows, _ := s.marked(); rows != 0 || len(s.asked) != 0 {
		t.Errorf("%d rows are marked, Synapse was asked %q", rows, s.asked)
	}
}

// A failure means that a list which Synapse was fetching already, and that lacks the newest device, ends its being stale.
func TestAnOlderFetchIsRepeated(t *testing.T) {
	t.Parallel()
	list := listOf(t, 2)
	s, client := newSynapse(t, `{"D0":{"keys":{}}}`, answerOf(list))
	if err := client.Mark(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: list})
	if len(s.asked) != 2 || outcome != (homeserver.Outcome{}) {
		t.Errorf("Synapse was asked %d times, want 2: %+v", len(s.asked), outcome)
	}
}

// A failure means that an administrator whose clients hear nothing is told nothing about it, that what Synapse could not do
// is not left to it, or that trying goes on where it is of no use, or ends where it is.
func TestWhatGoesWrongIsTold(t *testing.T) {
	t.Parallel()
	many := listOf(t, 1001)
	for name, c := range map[string]struct {
		answer string
		list   *freshen.DeviceList
		hole   homeserver.Hole
		says   string
		marks  int
	}{
		"it failed":                      {"null", listOf(t, 1), homeserver.HoleNotFetched, "could not reach the other server", 1},
		"no replication listener":        {"404", listOf(t, 1), homeserver.HoleAway, "listener with the resource replication", 1},
		"no device lists":                {`"x"`, listOf(t, 1), homeserver.HoleAway, "something else than device lists", 0},
		"another list, again and again":  {`{"stream_id":1,"devices":[]}`, listOf(t, 1), homeserver.HoleOther, "another list than freshen", 1},
		"too many devices":               {answerOf(many), many, homeserver.HoleTooMany, "more than 1000 devices", 0},
		"no devices":                     {answerOf(listOf(t, 0)), listOf(t, 0), homeserver.HoleNoDevices, "announces it to nobody", 0},
		"cross-signing keys that vanish": {answerOf(listOf(t, 1)), listOf(t, 1), homeserver.HoleKeysGone, "cross-signing keys that are gone (master)", 0},
		"no devices, and keys vanish":    {answerOf(listOf(t, 0)), listOf(t, 0), homeserver.HoleNoDevices, "cross-signing keys that are gone (master)", 0},
		"no list to compare with":        {`{"stream_id":1,"devices":[]}`, nil, homeserver.HoleNone, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, client := newSynapse(t, c.answer)
			if strings.Contains(name, "vanish") {
				s.exec(`INSERT INTO e2e_cross_signing_keys VALUES ($1, 'master', '{}', 1), ($1, 'user_signing', '{}', 2)`, target)
			}
			if err := client.Mark(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: c.list})
			if outcome.Hole != c.hole || !strings.Contains(outcome.Sentence, c.says) || (outcome.Sentence == "") != (c.says == "") {
				t.Errorf("it should be told of %q, and is told %+v", c.says, outcome)
			}
			if rows, _ := s.marked(); rows != c.marks {
				t.Errorf("%d rows are marked, want %d", rows, c.marks)
			}
		})
	}
}

// A failure means that what Synapse fetched by itself later, when its backoff had ended, is shown as not fetched for ever, or
// that what it does not announce is not shown.
func TestSynapseFetchedByItself(t *testing.T) {
	t.Parallel()
	s, client := newSynapse(t, "null")
	if err := client.Mark(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	if outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: listOf(t, 0)}); outcome.Hole != homeserver.HoleNotFetched {
		t.Errorf("%+v", outcome)
	}
	s.exec(`DELETE FROM device_lists_remote_resync`)
	for devices, want := range []homeserver.Hole{homeserver.HoleNoDevices, homeserver.HoleNone} {
		if outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: listOf(t, devices)}); outcome.Hole != want {
			t.Errorf("%d devices: %+v", devices, outcome)
		}
	}
	if len(s.asked) != 1 {
		t.Errorf("Synapse was asked %q", s.asked)
	}
}

// A failure means that a promise is made which Synapse will not keep, or that a password is logged.
func TestSynapseDatabaseIsAway(t *testing.T) {
	t.Parallel()
	nowhere := &url.URL{Scheme: "postgres", User: url.UserPassword("synapse", "hunter2"), Host: "127.0.0.1:1", Path: "/synapse"}
	client, err := homeserver.NewSynapse(homeserver.SynapseConfig{
		Database: nowhere, Replication: nowhere, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Mark(t.Context(), target); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error is %v", err)
	}
}
