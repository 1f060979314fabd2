package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/config"
)

const keysQuery = "/_matrix/client/v3/keys/query"

// homeserverSays makes body the homeserver's answer to every key query.
func (w *world) homeserverSays(status int, body string) {
	w.hs.HandleFunc(keysQuery, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("Etag", `"old"`)
		rw.WriteHeader(status)
		_, _ = io.WriteString(rw, body)
	})
}

func (w *world) query(token, body string) reply {
	w.t.Helper()
	r := w.do(w.t.Context(), http.MethodPost, keysQuery, token, strings.NewReader(body))
	if r.err != nil {
		w.t.Fatalf("the key query broke: %v", r.err)
	}
	if length := r.header.Get("Content-Length"); length != "" && length != strconv.Itoa(len(r.body)) {
		w.t.Errorf("Content-Length %s for %d bytes", length, len(r.body))
	}
	return r
}

func ask(user id.UserID, devices ...string) string {
	if devices == nil {
		devices = []string{}
	}
	asked, _ := json.Marshal(map[string]any{"device_keys": map[id.UserID][]string{user: devices}})
	return string(asked)
}

// devicesIn are the devices of user in an answer; nil if the user has no entry.
func devicesIn(t *testing.T, r reply, user id.UserID) map[string]json.RawMessage {
	t.Helper()
	var answer struct {
		Devices map[id.UserID]map[string]json.RawMessage `json:"device_keys"`
	}
	if err := json.Unmarshal([]byte(r.body), &answer); err != nil {
		t.Fatalf("the answer %q is no JSON: %v", r.body, err)
	}
	return answer.Devices[user]
}

// stale is a homeserver's answer that knows one old device of user, and what it alone knows.
func stale(user id.UserID) string {
	return fmt.Sprintf(`{"device_keys":{%q:{"OLD":%s}},"master_keys":{%[1]q:{"user_id":%[1]q,"usage":["master"],"keys":{"ed25519:M":"M"},`+
		`"signatures":{"@alice:example.org":{"ed25519:U":"mine"}}}},"user_signing_keys":{"@alice:example.org":{"x":1}},"odd": [1 , 2]}`,
		user, deviceKeys(user, "OLD"))
}

// The client that was told to ask gets the fresh list, whatever the homeserver still thinks.
func TestTheKeptListIsServed(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "NEW1", "NEW2")
	w.homeserverSays(http.StatusOK, stale(bob))
	if got := w.query(aliceToken, ask(bob)); got.body != stale(bob) || got.header.Get("Etag") == "" {
		t.Errorf("with nothing kept the answer became %s", got.body)
	}
	w.refreshed(aliceToken, bob)

	got := w.query(aliceToken, ask(bob))
	devices := devicesIn(t, got, bob)
	if len(devices) != 2 || devices["NEW1"] == nil || devices["NEW2"] == nil {
		t.Errorf("the devices are %s", got.body)
	}
	if !strings.Contains(string(devices["NEW1"]), `"device_display_name":"phone"`) {
		t.Errorf("the display name is lost: %s", devices["NEW1"])
	}
	for _, kept := range []string{`"@alice:example.org":{"ed25519:U":"mine"}`, `"user_signing_keys":{"@alice:example.org":{"x":1}}`, `"odd": [1 , 2]`} {
		if !strings.Contains(got.body, kept) {
			t.Errorf("%s is lost: Alice's own verification would be gone: %s", kept, got.body)
		}
	}
	if got.header.Get("Etag") != "" {
		t.Error("the edited answer has the ETag of another")
	}
	if devices := devicesIn(t, w.query(aliceToken, ask(bob, "NEW2", "NONE")), bob); len(devices) != 1 || devices["NEW2"] == nil {
		t.Errorf("asked for one device by name, got %v", devices)
	}
	if devices := devicesIn(t, w.query(aliceToken, ask(bob, "OLD")), bob); devices != nil {
		t.Errorf("asked for a device that is gone, got %v; an empty entry would mean that all are gone", devices)
	}
	// A homeserver that is backing off from the server.
	w.homeserverSays(http.StatusOK, fmt.Sprintf(`{"device_keys":{},"failures":{%q:{"status":503},"other.example":{}}}`, r.name))
	got = w.query(aliceToken, ask(bob))
	if devices := devicesIn(t, got, bob); len(devices) != 2 || strings.Contains(got.body, fmt.Sprintf("%q:{\"status\"", r.name)) || !strings.Contains(got.body, `"other.example":{}`) {
		t.Errorf("the client would back the whole server off: %s", got.body)
	}
}

// Whatever is not plainly ours to edit is the homeserver's, byte for byte.
func TestKeyQueriesPass(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "NEW")
	w.refreshed(aliceToken, bob)
	for name, c := range map[string]struct {
		request string
		status  int
		answer  string
	}{
		"no JSON":                {"garbage{", 400, `{"errcode":"M_NOT_JSON"}`},
		"empty":                  {"", 400, `{"errcode":"M_NOT_JSON"}`},
		"a list":                 {"[]", 400, `{}`},
		"no device_keys":         {`{}`, 200, stale(bob)},
		"wrong device_keys":      {`{"device_keys":[]}`, 200, stale(bob)},
		"wrong devices":          {fmt.Sprintf(`{"device_keys":{%q:"x"}}`, bob), 200, stale(bob)},
		"somebody else":          {ask("@eve:e.example"), 200, `{"device_keys":{ "@eve:e.example" :{}},"failures":{}}`},
		"refused":                {ask(bob), 403, stale(bob)},
		"broken":                 {ask(bob), 500, "<html>"},
		"the answer is no JSON":  {ask(bob), 200, "<html>"},
		"the answer is a list":   {ask(bob), 200, `[]`},
		"device_keys is a list":  {ask(bob), 200, `{"device_keys":[]}`},
		"the request is too big": {`{"device_keys":{` + strings.Repeat(" ", 2<<20) + fmt.Sprintf(`%q:[]}}`, bob), 200, stale(bob)},
	} {
		sent := make(chan string, 1)
		w.hs.HandleFunc(keysQuery, func(rw http.ResponseWriter, rq *http.Request) {
			body, err := io.ReadAll(rq.Body)
			if err != nil {
				t.Error(err)
			}
			sent <- string(body)
			rw.WriteHeader(c.status)
			_, _ = io.WriteString(rw, c.answer)
		})
		got := w.query(aliceToken, c.request)
		if passed := <-sent; passed != c.request {
			t.Errorf("%s: the homeserver got %.100q", name, passed)
		}
		if got.status != c.status || got.body != c.answer {
			t.Errorf("%s: %d %.300q, want %d %.300q", name, got.status, got.body, c.status, c.answer)
		}
	}
}

// When the homeserver itself announces a user, it may know more than the kept list: that is fetched again, and where that
// fails or takes too long, the homeserver's answer stands.
func TestASuspectListIsFetchedAgain(t *testing.T) {
	w := running(t, func(c *config.Config) { c.Retry.First, c.Retry.Most = time.Hour, time.Hour })
	r := w.remote()
	bob := r.has("bob", "NEW")
	// Whom a user shares no room with, the homeserver never announces to them, and freshen does not look for.
	w.hs.SetRoom("!r:x", alice, carol, bob)
	w.homeserverSays(http.StatusOK, stale(bob))
	w.refreshed(aliceToken, bob)
	announced := fmt.Sprintf(`{"next_batch":"s5","device_lists":{"changed":[%q]}}`, bob)

	w.exchange(carolToken, "since=s4&timeout=0", announced)
	r.has("bob", "NEWER")
	if devices := devicesIn(t, w.query(aliceToken, ask(bob)), bob); devices["NEWER"] == nil {
		t.Errorf("the suspect list was served: %v", devices)
	}
	asked := r.asked.Load()
	w.query(aliceToken, ask(bob))
	if r.asked.Load() != asked {
		t.Error("a list that was fetched again is not suspect any more")
	}

	w.exchange(carolToken, "since=s4&timeout=0", announced)
	r.serve(http.HandlerFunc(func(_ http.ResponseWriter, rq *http.Request) { <-rq.Context().Done() }))
	began := time.Now()
	if got := w.query(aliceToken, ask(bob)); got.body != stale(bob) {
		t.Errorf("the remote hangs, and the homeserver's answer became %s", got.body)
	}
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the client waited %v for a remote that hangs, want 2 s", took)
	}
	w.stop() // ends the fetch that hangs
	r.down()
	w.start()
	if got := w.query(aliceToken, ask(bob)); got.body != stale(bob) {
		t.Errorf("the remote is down, and the homeserver's answer became %s", got.body)
	}
}

// Once the homeserver says the same by itself the kept list has done its duty.
func TestAHealedListIsRetired(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "NEW")
	w.refreshed(aliceToken, bob)
	healed := strings.ReplaceAll(stale(bob), "OLD", "NEW")
	w.homeserverSays(http.StatusOK, healed)
	w.query(aliceToken, ask(bob))
	w.homeserverSays(http.StatusOK, stale(bob))
	if got := w.query(aliceToken, ask(bob)); got.body != stale(bob) {
		t.Errorf("the retired list is served still: %s", got.body)
	}
	w.stop()
	w.start()
	if got := w.query(aliceToken, ask(bob)); got.body != stale(bob) {
		t.Errorf("after a restart the retired list is served: %s", got.body)
	}
}

// A client that has asked has heard; one whose query failed has not.
func TestAKeyQueryAcknowledges(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "NEW")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	w.homeserverSays(http.StatusInternalServerError, `{}`)
	w.query(aliceToken, ask(bob))
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob)
	w.homeserverSays(http.StatusOK, stale(bob))
	w.query(carolToken, ask(bob)) // somebody else's
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob)
	w.query(aliceToken, ask(bob))
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`))
	// Announced after it arrived is not acknowledged by it, and the query itself announces nothing.
	w.refreshed(aliceToken, bob)
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob)
}

// An announcement made while a key query is under way is newer than what that query saw.
func TestAnAnnouncementDuringAKeyQueryStaysOwed(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "NEW")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	began, release := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	w.hs.HandleFunc(keysQuery, func(rw http.ResponseWriter, _ *http.Request) {
		if first.CompareAndSwap(false, true) {
			close(began)
			<-release
		}
		_, _ = io.WriteString(rw, stale(bob))
	})
	done := make(chan struct{})
	go func() { w.query(aliceToken, ask(bob)); close(done) }()
	await(t, began, "the key query")
	r.has("bob", "NEWER")
	w.refreshed(aliceToken, bob)
	close(release)
	await(t, done, "the end of the key query")
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob)
}

// A list that its own server says is empty deletes the devices; only such a one does.
func TestAnEmptyListDeletesAllDevices(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.user("bob")
	w.homeserverSays(http.StatusOK, stale(bob))
	w.refreshed(aliceToken, bob)
	if devices := devicesIn(t, w.query(aliceToken, ask(bob)), bob); devices == nil || len(devices) != 0 {
		t.Errorf("the devices are %v, want an entry without any", devices)
	}
}
