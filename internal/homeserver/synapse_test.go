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
	client.Deliver(t.Context(), list)
	want := "POST /_synapse/replication/multi_user_device_resync " + `{"user_ids":["@bob:b.org"]}`
	if len(s.asked) != 1 || s.asked[0] != want {
		t.Errorf("Synapse was asked %q, want %q", s.asked, want)
	}
	if s.log.Len() != 0 {
		t.Errorf("it is told that something went wrong: %s", &s.log)
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
	client.Deliver(t.Context(), listOf(t, 1))
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
	client.Deliver(t.Context(), list)
	if len(s.asked) != 2 || s.log.Len() != 0 {
		t.Errorf("Synapse was asked %d times, want 2: %s", len(s.asked), &s.log)
	}
}

// A failure means that an administrator whose clients hear nothing finds nothing about it in the log, or that what Synapse
// could not do is not left to it.
func TestWhatGoesWrongIsTold(t *testing.T) {
	t.Parallel()
	many := listOf(t, 1001)
	for name, c := range map[string]struct {
		answer string
		list   *freshen.DeviceList
		says   string
		marks  int
	}{
		"it failed":                      {"null", listOf(t, 1), "could not reach the other server", 1},
		"no replication listener":        {"404", listOf(t, 1), "listener with the resource replication", 1},
		"no device lists":                {`"x"`, listOf(t, 1), "something else than device lists", 0},
		"another list, again and again":  {`{"stream_id":1,"devices":[]}`, listOf(t, 1), "another device list than freshen", 1},
		"too many devices":               {answerOf(many), many, "more than 1000 devices", 0},
		"no devices":                     {answerOf(listOf(t, 0)), listOf(t, 0), "announces it to nobody", 0},
		"cross-signing keys that vanish": {answerOf(listOf(t, 1)), listOf(t, 1), "cross-signing keys that are gone", 0},
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
			client.Deliver(t.Context(), c.list)
			if log := s.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, c.says) {
				t.Errorf("the log should warn once of %q, and has\n%s", c.says, log)
			}
			if rows, _ := s.marked(); rows != c.marks {
				t.Errorf("%d rows are marked, want %d", rows, c.marks)
			}
		})
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
