package app_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen/internal/homeserver/hstest"
)

const idle = `{"next_batch":"s1"}`

func changedIn(t *testing.T, body string) []string {
	t.Helper()
	var sync struct {
		DeviceLists struct {
			Changed []string `json:"changed"`
		} `json:"device_lists"`
	}
	if err := json.Unmarshal([]byte(body), &sync); err != nil {
		t.Fatalf("the /sync answer %q is no JSON any more: the client would lose it: %v", body, err)
	}
	return sync.DeviceLists.Changed
}

func wantChanged(t *testing.T, body string, want ...id.UserID) {
	t.Helper()
	got := changedIn(t, body)
	if len(got) != len(want) {
		t.Fatalf("device_lists.changed is %q, want %q", got, want)
	}
	for _, user := range want {
		if !slices.Contains(got, string(user)) {
			t.Fatalf("device_lists.changed is %q, want %q", got, want)
		}
	}
}

// A /sync with nothing owed that is changed in any byte would put every client of the site at freshen's mercy.
func TestSyncPassesUntouchedWithNothingOwed(t *testing.T) {
	w := running(t)
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, _ = zip.Write([]byte(idle))
	_ = zip.Close()
	for name, c := range map[string]struct {
		status int
		header http.Header
		body   string
	}{
		"ordinary":     {200, nil, `{ "next_batch" : "s1", "device_lists":{"changed":[]}, "rooms":{"join":{}}}` + "\n"},
		"empty":        {200, nil, ""},
		"garbage":      {200, nil, "\x00\xff{{{not json"},
		"gzip":         {200, http.Header{"Content-Encoding": {"gzip"}}, zipped.String()},
		"HTML and 500": {500, http.Header{"Content-Type": {"text/html"}}, "<h1>Internal Server Error</h1>"},
		"limited":      {429, http.Header{"Retry-After": {"3"}}, `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":3000}`},
		"logged out":   {401, nil, `{"errcode":"M_UNKNOWN_TOKEN","soft_logout":true}`},
		"with an ETag": {200, http.Header{"Etag": {`"x"`}, "Set-Cookie": {"a=1", "b=2"}}, idle},
	} {
		t.Run(name, func(t *testing.T) {
			replies := w.sync(t.Context(), aliceToken, "since=s0&timeout=30000")
			w.next().answer(c.status, c.header, c.body)
			r := await(t, replies, "the answer")
			if r.err != nil || r.status != c.status || r.body != c.body {
				t.Errorf("got %d %q %v, want %d %q", r.status, r.body, r.err, c.status, c.body)
			}
			for name, values := range c.header {
				if !slices.Equal(r.header[name], values) {
					t.Errorf("header %s is %q, want %q", name, r.header[name], values)
				}
			}
		})
	}
}

// The whole point: who asks for a refresh hears of it in their next /sync, until they have surely heard.
func TestRefreshIsAnnouncedUntilAcknowledged(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)

	const source = `{"next_batch":"s2","device_lists":{"left":["@x:y"],"changed":["@dora:y"]},"device_one_time_keys_count":{"signed_curve25519":50}}`
	want := fmt.Sprintf(`{"next_batch":"s2","device_lists":{"left":["@x:y"],"changed":["@dora:y",%q]},"device_one_time_keys_count":{"signed_curve25519":50}}`, bob)
	for range 2 { // the first response may have been lost: the same since gets the same entry again
		if got := w.exchange(aliceToken, "since=s1&timeout=0", source); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	// s2 proves that the response arrived.
	if got := w.waits(aliceToken, "since=s2&timeout=30000", `{"next_batch":"s3"}`); got != `{"next_batch":"s3"}` {
		t.Errorf("after it was acknowledged: %s", got)
	}
}

// A poll that waits must not wait for its timeout, and what wakes it is the homeserver's own answer: a client that gets
// one without key counts uploads keys for nothing.
func TestAWaitingSyncIsWoken(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	const query = "filter=%7b%22a%22:1%7D&since=s1&timeout=30000&set_presence=offline&odd;=%zz"
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/_matrix/client/v3/sync", nil)
	request.URL.RawQuery = query
	request.Header = http.Header{"Authorization": {"Bearer " + aliceToken}, "X-Odd": {"1", "2"}, "User-Agent": {"client"}, "Cookie": {"a=b"}}
	replies := make(chan reply, 1)
	go func() {
		response, err := w.client.Do(request)
		if err != nil {
			replies <- reply{err: err}
			return
		}
		defer response.Body.Close()
		var body bytes.Buffer
		_, err = body.ReadFrom(response.Body)
		replies <- reply{response.StatusCode, response.Header, body.String(), err}
	}()
	first := w.next()
	if first.query != query {
		t.Errorf("the homeserver got ?%s, want it byte for byte: ?%s", first.query, query)
	}
	w.refreshed(aliceToken, bob)
	await(t, first.gone, "the end of the abandoned poll")
	second := w.next()
	if want := strings.Replace(query, "timeout=30000", "timeout=0", 1); second.query != want {
		t.Errorf("asked again with ?%s, want ?%s", second.query, want)
	}
	for name, values := range first.header {
		if !slices.Equal(values, second.header[name]) {
			t.Errorf("asked again with %s: %q, want %q", name, second.header[name], values)
		}
	}
	second.ok(`{"next_batch":"s1","device_one_time_keys_count":{"signed_curve25519":50}}`)
	r := await(t, replies, "the woken answer")
	if want := fmt.Sprintf(`{"next_batch":"s1","device_one_time_keys_count":{"signed_curve25519":50},"device_lists":{"changed":[%q]}}`, bob); r.body != want {
		t.Errorf("the woken answer is %s, want %s", r.body, want)
	}

	// The token stood still: the entry comes again, but nothing is hurried for it a second time, or the client would loop.
	wantChanged(t, w.waits(aliceToken, "since=s1&timeout=30000", idle), bob)
	wantChanged(t, w.waits(aliceToken, "since=s1&timeout=30000", idle), bob)
	// Carried three times under a token that never moved.
	wantChanged(t, w.waits(aliceToken, "since=s1&timeout=30000", idle))
	// A second announcement is hurried again.
	call, woken := w.waiting(aliceToken, "s1")
	w.refreshed(aliceToken, bob)
	await(t, call.gone, "the end of the second abandoned poll")
	w.next().ok(idle)
	wantChanged(t, await(t, woken, "the woken answer").body, bob)
}

// What is announced between two polls must not wait for the next one's timeout.
func TestAnnouncedBetweenTwoPolls(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	replies := w.sync(t.Context(), aliceToken, "since=s1&timeout=30000")
	call := w.next()
	if call.query != "since=s1&timeout=0" {
		t.Errorf("the homeserver got ?%s, want timeout=0", call.query)
	}
	call.ok(`{"next_batch":"s2"}`)
	wantChanged(t, await(t, replies, "the answer").body, bob)
}

// A response that did not arrive whole carried nothing: a client behind a proxy that cuts polls would miss the change.
func TestAResponseThatIsLostIsRepeatedAndHurriedAgain(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	ctx, hangUp := context.WithCancel(t.Context())
	replies := w.sync(ctx, aliceToken, "since=s1&timeout=30000")
	call := w.next()
	w.refreshed(aliceToken, bob)
	await(t, call.gone, "the end of the abandoned poll")
	again := w.next()
	hangUp()
	await(t, again.gone, "the cancellation of the homeserver's request when the client hung up")
	await(t, replies, "the client's end")

	replies = w.sync(t.Context(), aliceToken, "since=s1&timeout=30000")
	call = w.next()
	if call.query != "since=s1&timeout=0" {
		t.Errorf("the next poll was not hurried: ?%s", call.query)
	}
	call.ok(`{"next_batch":"s2"}`)
	wantChanged(t, await(t, replies, "the answer").body, bob)
}

// The homeserver dies in the middle of an answer that carries something: the client must see it broken, and get the
// entry with the next.
func TestAnAnswerThatBreaksOffCarriesNothing(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	replies := w.sync(t.Context(), aliceToken, "since=s1&timeout=0")
	w.next().answers <- func(rw http.ResponseWriter) {
		_, _ = rw.Write([]byte(`{"next_batch":"s2","rooms":{`))
		_ = http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}
	if r := await(t, replies, "the broken answer"); r.err == nil {
		t.Errorf("the client took half an answer for a whole one: %q", r.body)
	}
	wantChanged(t, w.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2"}`), bob)
	wantChanged(t, w.exchange(aliceToken, "since=s2&timeout=0", `{"next_batch":"s3"}`))
}

// The specification has no device_lists in a first sync; such a one acknowledges nothing either.
func TestAFirstSyncCarriesNothing(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	if got := w.exchange(aliceToken, "timeout=0", idle); got != idle {
		t.Errorf("the first sync became %s", got)
	}
	wantChanged(t, w.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2"}`), bob)
}

// Who shares no room with the target hears nothing and is not disturbed; who does hears at once, on homeservers that
// have mutual_rooms and on those that do not.
func TestOnlyWhoSharesARoomHears(t *testing.T) {
	for name, mutual := range map[string]hstest.Mutual{
		"joined rooms": hstest.MutualNone, "mutual_rooms": hstest.MutualStable, "unstable mutual_rooms": hstest.MutualUnstable,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			const danToken, dan = "dan-secret-token", id.UserID("@dan:example.org")
			w.hs.AddUser(danToken, dan, "DAN")
			w.hs.SetMutual(mutual, 1)
			bob := w.remote().has("bob", "DEV1")
			w.hs.SetRoom("!both:x", alice, carol, bob)
			w.hs.SetRoom("!other:x", alice, dan)
			w.hs.SetRoom("!dans:x", dan)
			w.start()

			carols, carolHears := w.waiting(carolToken, "c1")
			dans, danHears := w.waiting(danToken, "d1")
			w.refreshed(aliceToken, bob)
			await(t, carols.gone, "waking Carol, who shares a room with Bob")
			w.next().ok(`{"next_batch":"c2"}`)
			wantChanged(t, await(t, carolHears, "Carol's answer").body, bob)

			w.settle()
			select {
			case <-dans.gone:
				t.Error("Dan was woken, who shares no room with Bob")
			default:
				dans.ok(`{"next_batch":"d2"}`)
				if got := await(t, danHears, "Dan's answer").body; got != `{"next_batch":"d2"}` {
					t.Errorf("Dan was told of somebody whom he shares no room with: %s", got)
				}
			}
			// An unchanged list concerns the requester alone.
			carols, carolHears = w.waiting(carolToken, "c2")
			w.refreshed(aliceToken, bob)
			w.settle()
			select {
			case <-carols.gone:
				t.Error("Carol was woken by a list that did not change: every refresh would set off a storm of queries")
			default:
			}
			carols.ok(`{"next_batch":"c3"}`)
			wantChanged(t, await(t, carolHears, "Carol's answer").body)
		})
	}
}

// A slow or failing whoami costs an announcement its turn, never the /sync.
func TestWhoAmIDelaysNoSync(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.refreshed(carolToken, bob) // so that there is something to find out about
	asked, release := make(chan struct{}, 10), make(chan struct{})
	w.hs.HandleFunc(hstest.PathWhoAmI, func(rw http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		hstest.WriteJSON(rw, http.StatusOK, map[string]any{"user_id": alice, "device_id": "ALICE"})
	})
	if got := w.exchange(aliceToken, "since=s0&timeout=0", idle); got != idle {
		t.Errorf("got %s", got)
	}
	await(t, asked, "whoami")
	close(release)
	w.hs.HandleFunc(hstest.PathWhoAmI, func(rw http.ResponseWriter, _ *http.Request) {
		hstest.WriteError(rw, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "unknown")
	})
	replies := w.sync(t.Context(), "unknown-token", "since=s0&timeout=30000")
	w.next().answer(http.StatusUnauthorized, nil, `{"errcode":"M_UNKNOWN_TOKEN"}`)
	if r := await(t, replies, "the refusal"); r.status != http.StatusUnauthorized || r.body != `{"errcode":"M_UNKNOWN_TOKEN"}` {
		t.Errorf("got %d %s", r.status, r.body)
	}
	w.hs.HandleFunc(hstest.PathWhoAmI, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if got := w.exchange("third-token", "since=s0&timeout=30000", idle); got != idle {
		t.Errorf("got %s", got)
	}
}

// An answer that cannot be edited passes as it came, and the client is not sent round in circles for it.
func TestAnAnswerThatCannotBeEditedPasses(t *testing.T) {
	for name, c := range map[string]struct {
		header http.Header
		body   string
	}{
		"no JSON":            {nil, `<html>`},
		"half an object":     {nil, `{"next_batch":"s1","device_lists":{`},
		"a list for lists":   {nil, `{"next_batch":"s1","device_lists":[]}`},
		"unasked for brotli": {http.Header{"Content-Encoding": {"br"}}, "\x0b\x02\x80{}\x03"},
		"gzip that is none":  {http.Header{"Content-Encoding": {"gzip"}}, "plain"},
	} {
		t.Run(name, func(t *testing.T) {
			w := running(t)
			bob := w.remote().has("bob", "DEV1")
			w.introduce(aliceToken, alice)
			w.refreshed(aliceToken, bob)
			for i := range 2 {
				replies := w.sync(t.Context(), aliceToken, "since=s1&timeout=30000")
				call := w.next()
				if hurried := strings.Contains(call.query, "timeout=0"); hurried != (i == 0) {
					t.Errorf("poll %d: hurried is %v; the first should be, and the second would be a loop", i, hurried)
				}
				call.answer(http.StatusOK, c.header, c.body)
				if r := await(t, replies, "the answer"); r.body != c.body || !slices.Equal(r.header["Content-Encoding"], c.header["Content-Encoding"]) {
					t.Errorf("got %q %v, want %q as it came", r.body, r.header, c.body)
				}
			}
		})
	}
}

// A homeserver that gzips although it was asked not to is understood.
func TestAGzippedSyncIsEdited(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, _ = zip.Write([]byte(`{"next_batch":"s2"}`))
	_ = zip.Close()
	replies := w.sync(t.Context(), aliceToken, "since=s1&timeout=0")
	call := w.next()
	if got := call.header.Get("Accept-Encoding"); got != "identity" {
		t.Errorf("the homeserver was asked for the encoding %q", got)
	}
	call.answer(http.StatusOK, http.Header{"Content-Encoding": {"gzip"}, "Etag": {`"old"`}}, zipped.String())
	r := await(t, replies, "the answer")
	wantChanged(t, r.body, bob)
	if r.header.Get("Content-Encoding") != "" || r.header.Get("Etag") != "" {
		t.Errorf("the edited answer still has the headers of the old bytes: %v", r.header)
	}
}
