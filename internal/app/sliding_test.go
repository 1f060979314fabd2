package app_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

const (
	slidingPath   = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
	slidingPathV4 = "/_matrix/client/v4/sync"
)

// slidingScript is the homeserver's sliding sync: each request waits for the test to answer it.
type slidingScript struct{ calls chan *slidingCall }

type slidingCall struct {
	syncCall
	body string
}

func (s slidingScript) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	answers := make(chan func(http.ResponseWriter), 1)
	s.calls <- &slidingCall{syncCall{r.URL.RawQuery, r.Header.Clone(), r.Context().Done(), answers}, string(body)}
	select {
	case answer := <-answers:
		answer(w)
	case <-r.Context().Done():
	}
}

// slider is one of the two routes.
type slider struct {
	*world
	path   string
	script slidingScript
}

func sliding(t *testing.T, test func(t *testing.T, s *slider)) {
	t.Helper()
	for _, path := range []string{slidingPath, slidingPathV4} {
		t.Run(path, func(t *testing.T) {
			s := &slider{world: newWorld(t), path: path, script: slidingScript{make(chan *slidingCall, 100)}}
			s.hs.Handle(path, s.script)
			s.start()
			test(t, s)
		})
	}
}

// asks is a request as this route has it; extensions is a JSON object. The spaces are there to be kept.
func (s *slider) asks(conn, pos string, timeout int, extensions string) (query, body string) {
	if s.path == slidingPathV4 {
		return "", fmt.Sprintf(`{ "conn_id":%q, "pos":%q,"timeout": %d ,"lists":{"all":{"ranges":[[0,20]]}},"extensions": %s}`, conn, pos, timeout, extensions)
	}
	return fmt.Sprintf("pos=%s&timeout=%d", pos, timeout), fmt.Sprintf(`{ "conn_id":%q, "lists":{"all":{"ranges":[[0,20]]}},"extensions": %s}`, conn, extensions)
}

func (s *slider) post(ctx context.Context, query, body string) <-chan reply {
	replies := make(chan reply, 1)
	go func() {
		replies <- s.do(ctx, http.MethodPost, s.path+"?"+query, aliceToken, strings.NewReader(body))
	}()
	return replies
}

func (s *slider) nextSliding() *slidingCall {
	s.t.Helper()
	return await(s.t, s.script.calls, "a sliding sync at the homeserver")
}

// exchange is one whole request that the homeserver answers with answer.
func (s *slider) exchange(conn, pos, extensions, answer string) string {
	s.t.Helper()
	replies := s.post(s.t.Context(), first(s.asks(conn, pos, 0, extensions)), second(s.asks(conn, pos, 0, extensions)))
	s.nextSliding().ok(answer)
	r := await(s.t, replies, "the answer of sliding sync")
	if r.err != nil || r.status != http.StatusOK {
		s.t.Fatalf("sliding sync: %d %s %v", r.status, r.body, r.err)
	}
	return r.body
}

func first(a, _ string) string  { return a }
func second(_, b string) string { return b }

const e2ee = `{"e2ee":{"enabled":true}}`

func slidingChanged(t *testing.T, body string) []string {
	t.Helper()
	var sync struct {
		Extensions struct {
			E2EE struct {
				DeviceLists struct {
					Changed []string `json:"changed"`
				} `json:"device_lists"`
			} `json:"e2ee"`
		} `json:"extensions"`
	}
	if err := json.Unmarshal([]byte(body), &sync); err != nil {
		t.Fatalf("the answer %q is no JSON any more: %v", body, err)
	}
	return sync.Extensions.E2EE.DeviceLists.Changed
}

func wantSliding(t *testing.T, body string, want ...id.UserID) {
	t.Helper()
	got := slidingChanged(t, body)
	if len(got) != len(want) {
		t.Fatalf("device_lists.changed is %q, want %q", got, want)
	}
	for _, user := range want {
		if !slices.Contains(got, string(user)) {
			t.Fatalf("device_lists.changed is %q, want %q", got, want)
		}
	}
}

// Element X syncs this way: a poll that waits is answered at once, by the homeserver's own answer to the very same
// request, and hears of the change until it has moved on.
func TestAWaitingSlidingSyncIsWoken(t *testing.T) {
	sliding(t, func(t *testing.T, s *slider) {
		bob := s.remote().has("bob", "DEV1")
		query, body := s.asks("encryption", "p1", 30000, e2ee)
		replies := s.post(t.Context(), query, body)
		call := s.nextSliding()
		if call.query != query || call.body != body {
			t.Errorf("the homeserver got ?%s %s, want it byte for byte: ?%s %s", call.query, call.body, query, body)
		}
		s.refreshed(aliceToken, bob)
		await(t, call.gone, "the end of the abandoned poll")
		again := s.nextSliding()
		wantQuery := strings.Replace(query, "timeout=30000", "timeout=0", 1)
		wantBody := strings.Replace(body, `"timeout": 30000 `, `"timeout": 0 `, 1)
		if again.query != wantQuery || again.body != wantBody {
			t.Errorf("asked again with ?%s %s, want ?%s %s", again.query, again.body, wantQuery, wantBody)
		}
		const answer = `{"pos":"p2","lists":{},"rooms":{},"extensions":{"e2ee":{"device_one_time_keys_count":{"signed_curve25519":50}},"to_device":{"next_batch":"7"}}}`
		want := fmt.Sprintf(`{"pos":"p2","lists":{},"rooms":{},"extensions":{"e2ee":{"device_one_time_keys_count":{"signed_curve25519":50},"device_lists":{"changed":[%q]}},"to_device":{"next_batch":"7"}}}`, bob)
		again.ok(answer)
		if r := await(t, replies, "the woken answer"); r.body != want {
			t.Errorf("the woken answer is %s, want %s", r.body, want)
		}
		// The answer may have been lost: the same pos gets it again. p2 proves that it arrived.
		wantSliding(t, s.exchange("encryption", "p1", e2ee, answer), bob)
		wantSliding(t, s.exchange("encryption", "p2", e2ee, `{"pos":"p3"}`))
	})
}

// A connection that did not ask for e2ee has no use for device lists, and must not be hurried for them; the other
// connection of the same device hears.
func TestAConnectionWithoutE2EEIsLeftAlone(t *testing.T) {
	sliding(t, func(t *testing.T, s *slider) {
		bob := s.remote().has("bob", "DEV1")
		s.introduce(aliceToken, alice)
		const answer = `{"pos":"r2","rooms":{}}`
		for _, extensions := range []string{`{}`, `{"e2ee":{"enabled":false}}`, `{"to_device":{"enabled":true}}`} {
			query, body := s.asks("room-list", "r1", 30000, extensions)
			replies := s.post(t.Context(), query, body)
			call := s.nextSliding()
			s.refreshed(aliceToken, bob)
			s.settle()
			select {
			case <-call.gone:
				t.Errorf("with the extensions %s the poll was hurried for nothing", extensions)
			default:
			}
			call.ok(answer)
			if r := await(t, replies, "the answer"); r.body != answer {
				t.Errorf("with the extensions %s the answer became %s", extensions, r.body)
			}
		}
		wantSliding(t, s.exchange("encryption", "e1", e2ee, `{"pos":"e2"}`), bob)
	})
}

// The Conduit family goes on with e2ee on a connection that asked for it once; Synapse does not. An answer that is none
// of the extension must not get one.
func TestStickyE2EEIsLearntFromTheHomeserver(t *testing.T) {
	sliding(t, func(t *testing.T, s *slider) {
		bob := s.remote().has("bob", "DEV1")
		s.introduce(aliceToken, alice)
		wantSliding(t, s.exchange("c", "p1", e2ee, `{"pos":"p2"}`))
		s.refreshed(aliceToken, bob)
		wantSliding(t, s.exchange("c", "p2", `{}`, `{"pos":"p3"}`))
		const sticky = `{"pos":"p4","extensions":{"e2ee":{"device_unused_fallback_key_types":[]}}}`
		if got := s.exchange("c", "p3", `{}`, sticky); got != sticky {
			t.Errorf("before it was known that e2ee is sticky: %s", got)
		}
		wantSliding(t, s.exchange("other", "o1", `{}`, `{"pos":"o2"}`))
		wantSliding(t, s.exchange("c", "", `{}`, `{"pos":"n1"}`)) // the connection begins anew, without e2ee
		wantSliding(t, s.exchange("c", "n1", `{}`, `{"pos":"n2"}`))
		wantSliding(t, s.exchange("d", "d0", e2ee, `{"pos":"d1"}`), bob)
		s.refreshed(aliceToken, bob)
		wantSliding(t, s.exchange("d", "d1", `{}`, `{"pos":"d2"}`), bob)
		wantSliding(t, s.exchange("d", "d2", `{"e2ee":{"enabled":false}}`, `{"pos":"d3"}`))
	})
}

// Without a pos the client holds everybody's list for stale anyway, and the answer acknowledges nothing.
func TestAFirstSlidingSyncCarriesNothing(t *testing.T) {
	sliding(t, func(t *testing.T, s *slider) {
		bob := s.remote().has("bob", "DEV1")
		s.introduce(aliceToken, alice)
		s.refreshed(aliceToken, bob)
		const answer = `{"pos":"p3","extensions":{"e2ee":{}}}`
		if got := s.exchange("c", "", e2ee, answer); got != answer {
			t.Errorf("the first answer became %s", got)
		}
		wantSliding(t, s.exchange("c", "p2", e2ee, answer), bob)
	})
}

// What freshen does not understand is the homeserver's to judge, byte for byte.
func TestOddSlidingRequestsPass(t *testing.T) {
	for name, body := range map[string]string{
		"empty":         "",
		"no JSON":       "\x00\xff{{{",
		"half":          `{"extensions":{"e2ee":`,
		"other types":   `{"extensions":[],"conn_id":7}`,
		"a list":        `[{"extensions":{"e2ee":{"enabled":true}}}]`,
		"over a MiB":    `{"extensions":{"e2ee":{"enabled":true}},"x":"` + strings.Repeat("x", 1<<20) + `"}`,
		"two of a kind": `{"extensions":{"e2ee":{"enabled":true}},"extensions":{"e2ee":{"enabled":true}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			sliding(t, func(t *testing.T, s *slider) {
				replies := s.post(t.Context(), "pos=p1&timeout=0", body)
				call := s.nextSliding()
				if call.body != body {
					t.Errorf("the homeserver got %d bytes, not the %d of the client", len(call.body), len(body))
				}
				call.answer(http.StatusBadRequest, nil, `{"errcode":"M_NOT_JSON"}`)
				if r := await(t, replies, "the refusal"); r.status != http.StatusBadRequest || r.body != `{"errcode":"M_NOT_JSON"}` {
					t.Errorf("got %d %s %v", r.status, r.body, r.err)
				}
			})
		})
	}
}

// A client that was away asks who has changed meanwhile: what it is owed belongs to the answer, whichever name the route
// has and whatever the homeserver writes for an empty list.
func TestKeysChanges(t *testing.T) {
	w := newWorld(t)
	answer := `{"changed":null,"left":null}`
	changes := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if got := r.URL.RawQuery; got != "from=s1&to=s9" && got != "from=s2&to=s9" {
			t.Errorf("the homeserver got ?%s", got)
		}
		_, _ = io.WriteString(rw, answer)
	})
	paths := []string{"/_matrix/client/v3/keys/changes", "/_matrix/client/r0/keys/changes", "/_matrix/client/unstable/keys/changes"}
	for _, path := range paths {
		w.hs.Handle(path, changes)
	}
	w.start()
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	ask := func(path, from string) string {
		t.Helper()
		r := w.do(t.Context(), http.MethodGet, path+"?from="+from+"&to=s9", aliceToken, nil)
		if r.err != nil || r.status != http.StatusOK {
			t.Fatalf("%s: %d %s %v", path, r.status, r.body, r.err)
		}
		return r.body
	}
	for _, path := range paths {
		if got, want := ask(path, "s1"), fmt.Sprintf(`{"changed":[%q],"left":null}`, bob); got != want {
			t.Errorf("%s: got %s, want %s", path, got, want)
		}
	}
	answer = `{"changed":["@dora:y"],"left":[]}`
	if got, want := ask(paths[0], "s1"), fmt.Sprintf(`{"changed":["@dora:y",%q],"left":[]}`, bob); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// It was no /sync: that one carries it still. Once the device has reached the token of that, it is no news any more.
	wantChanged(t, w.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2"}`), bob)
	if got := ask(paths[0], "s2"); got != answer {
		t.Errorf("after it was acknowledged: %s", got)
	}
}

// A body that the client compressed is not looked into.
func TestACompressedSlidingRequestPasses(t *testing.T) {
	sliding(t, func(t *testing.T, s *slider) {
		request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, s.url+s.path+"?pos=p1&timeout=0", bytes.NewReader([]byte("\x1f\x8b\x08\x00")))
		request.RequestURI = ""
		request.Header.Set("Authorization", "Bearer "+aliceToken)
		request.Header.Set("Content-Encoding", "gzip")
		done := make(chan error, 1)
		go func() {
			response, err := s.client.Do(request)
			if err == nil {
				err = response.Body.Close()
			}
			done <- err
		}()
		call := s.nextSliding()
		if call.body != "\x1f\x8b\x08\x00" || call.header.Get("Content-Encoding") != "gzip" {
			t.Errorf("the homeserver got %q %v", call.body, call.header)
		}
		call.ok(`{"pos":"p2"}`)
		if err := await(t, done, "the answer"); err != nil {
			t.Error(err)
		}
	})
}
