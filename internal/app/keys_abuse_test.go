package app_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"freshen/internal/store/storetest"
)

// fresh is a life whose list is kept and fresh.
func fresh(t *testing.T) *life {
	t.Helper()
	l := live(t)
	l.refreshed(aliceToken, l.bob)
	return l
}

// A client that asks for all whom it knows gets the kept list among them, in one piece, and no server is asked for anything.
func TestAQueryFor10000Users(t *testing.T) {
	l := fresh(t)
	asked, said := new(strings.Builder), new(strings.Builder)
	for i := range 10_000 {
		fmt.Fprintf(asked, `"@u%d:c.example":[],`, i)
		fmt.Fprintf(said, `"@u%d:c.example":{"D":{"n":%d}},`, i, i)
	}
	l.homeserverSays(http.StatusOK, fmt.Sprintf(`{"device_keys":{%s%q:{}},"failures":{}}`, said, l.bob))
	l.asks(0, func() {
		got := l.query(aliceToken, fmt.Sprintf(`{"device_keys":{%s%q:[]}}`, asked, l.bob))
		if devicesIn(t, got, l.bob)["NEW"] == nil || !strings.Contains(got.body, said.String()) {
			t.Errorf("the answer of %d bytes lacks Bob's device or has changed others' entries", len(got.body))
		}
	})
}

// Many lists in doubt at once, after an upgrade of a busy site for example, leave room at their server for people.
func TestManyListsInDoubtAtOnce(t *testing.T) {
	l := live(t)
	l.cfg.Limits.PerDestination.Every, l.cfg.Limits.PerDestination.Burst = time.Hour, 100
	l.restart(0)
	users, changed := new(strings.Builder), new(strings.Builder)
	for i := range 80 {
		user := l.r.has(fmt.Sprintf("u%d", i), "NEW")
		l.refreshed(aliceToken, user)
		fmt.Fprintf(users, `%q:[],`, user)
		fmt.Fprintf(changed, `%q,`, user)
	}
	l.exchange(carolToken, "since=s4&timeout=0", fmt.Sprintf(`{"next_batch":"s5","device_lists":{"changed":[%s]}}`, strings.TrimSuffix(changed.String(), ",")))
	l.homeserverSays(http.StatusOK, `{"device_keys":{}}`)
	// 20 are left of the burst, fewer than half.
	l.asks(0, func() {
		if got := l.query(aliceToken, `{"device_keys":{`+strings.TrimSuffix(users.String(), ",")+`}}`); got.body != `{"device_keys":{}}` {
			t.Errorf("lists in doubt were served: %.300s", got.body)
		}
	})
	l.asks(1, func() { l.refreshed(aliceToken, l.bob) })
}

func zipped(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, s); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What cannot be understood, or is too much, is between the client and its homeserver, byte for byte; also while the list is
// in doubt and its server hangs.
func TestOddQueriesAndAnswersPass(t *testing.T) {
	l := fresh(t)
	good := stale(l.bob)
	long := strings.Replace(good, `{"device_keys"`, `{"padding":"`+strings.Repeat("x", 32<<20)+`","device_keys"`, 1)
	deep := func(n int, inside string) string { return strings.Repeat(`{"a":`, n) + inside + strings.Repeat("}", n) }
	for _, c := range []struct {
		name, request, answer string
		status                int
		header                http.Header
	}{
		{name: "a compressed request", request: zipped(t, ask(l.bob)), answer: good, status: 200, header: http.Header{"Content-Encoding": {"gzip"}}},
		{name: "a request that is too deep", request: fmt.Sprintf(`{"x":%s,"device_keys":{%q:[]}}`, deep(20_000, "1"), l.bob), answer: good, status: 200},
		{name: "a deep request of no use", request: deep(100_000, "1"), answer: `{"errcode":"M_NOT_JSON"}`, status: 400},
		{name: "devices that are nested", request: fmt.Sprintf(`{"device_keys":{%q:%s}}`, l.bob, strings.Repeat("[", 5000)+strings.Repeat("]", 5000)), answer: good, status: 200},
		{name: "a huge request", request: ask(l.bob) + strings.Repeat(" ", 8<<20), answer: good, status: 200},
		{name: "an answer that breaks off as JSON", request: ask(l.bob), answer: good[:len(good)-2], status: 200},
		{name: "an answer that is too deep", request: ask(l.bob), answer: deep(20_000, good), status: 200},
		{name: "an answer that is too long", request: ask(l.bob), answer: long, status: 200},
		{name: "an empty answer", request: ask(l.bob), answer: "", status: 200},
		{name: "limited", request: ask(l.bob), answer: `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":5}`, status: 429},
		{name: "logged out", request: ask(l.bob), answer: `{"errcode":"M_UNKNOWN_TOKEN","soft_logout":true}`, status: 401},
		{name: "a gateway's page", request: ask(l.bob), answer: "<html>", status: 502},
	} {
		t.Run(c.name, func(t *testing.T) {
			arrived := make(chan string, 1)
			l.hs.HandleFunc(keysQuery, func(rw http.ResponseWriter, rq *http.Request) {
				body, err := io.ReadAll(rq.Body)
				if err != nil {
					t.Error(err)
				}
				arrived <- string(body)
				rw.WriteHeader(c.status)
				_, _ = io.WriteString(rw, c.answer)
			})
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.url+keysQuery, strings.NewReader(c.request))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Authorization", "Bearer "+aliceToken)
			if c.header != nil {
				request.Header["Content-Encoding"] = c.header["Content-Encoding"]
			}
			response, err := l.client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			got, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			if await(t, arrived, "the request at the homeserver") != c.request {
				t.Error("the homeserver got another request")
			}
			if response.StatusCode != c.status || string(got) != c.answer {
				t.Errorf("the client got %d and %d bytes, want %d and %d bytes: %.200q", response.StatusCode, len(got), c.status, len(c.answer), got)
			}
		})
	}
	l.homeserverSays(http.StatusOK, good)
	l.shows("after all that", "NEW")
}

// An answer that the homeserver compresses although it was asked not to is edited all the same, and sent plain.
func TestACompressedAnswerIsEdited(t *testing.T) {
	l := fresh(t)
	body := zipped(t, stale(l.bob))
	l.hs.HandleFunc(keysQuery, func(rw http.ResponseWriter, rq *http.Request) {
		if rq.Header.Get("Accept-Encoding") != "identity" {
			t.Errorf("the homeserver was asked for %q", rq.Header.Get("Accept-Encoding"))
		}
		rw.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(rw, body)
	})
	l.shows("from a compressed answer", "NEW")
	// Half of one passes as it came, broken.
	l.hs.HandleFunc(keysQuery, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(rw, body[:len(body)/2])
	})
	if got := l.do(t.Context(), http.MethodPost, keysQuery, aliceToken, strings.NewReader(ask(l.bob))); got.err == nil && got.status == http.StatusOK {
		t.Errorf("half an answer became a whole one: %s", got.body)
	}
}

// A client that hangs up while its query has a list fetched again cancels its own request, and nothing else: not the fetch
// that others wait for, and neither does it count as having heard, nor does the list as healed.
func TestAClientHangsUpDuringTheRefetch(t *testing.T) {
	w := newWorld(t, later)
	l := &life{world: w, clock: new(steppedClock)}
	l.r = l.remote()
	l.bob = l.r.has("bob", "NEW")
	l.hs.SetRoom("!r:x", alice, carol, l.bob)
	l.begin()
	l.introduce(aliceToken, alice)
	l.refreshed(aliceToken, l.bob)
	l.announced()
	asked, answers := l.r.holds()
	gone := make(chan struct{})
	l.hs.HandleFunc(keysQuery, func(_ http.ResponseWriter, rq *http.Request) {
		<-rq.Context().Done()
		close(gone)
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan reply, 1)
	go func() { done <- l.do(ctx, http.MethodPost, keysQuery, aliceToken, strings.NewReader(ask(l.bob))) }()
	await(t, asked, "the fetch")
	cancel()
	if got := await(t, done, "the end of the request"); got.err == nil {
		t.Fatalf("%d %s", got.status, got.body)
	}
	await(t, gone, "cancelling the request to the homeserver")
	wantChanged(t, l.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), l.bob)
	close(answers)
	l.r.up()
	l.homeserverSays(http.StatusOK, stale(l.bob))
	l.eventually("the list that was being fetched", func() bool {
		return devicesIn(t, l.query(aliceToken, ask(l.bob)), l.bob)["NEW"] != nil
	})
}

// A query for named devices says nothing of others: the client is still to be told.
func TestAQueryForNamedDevicesAcknowledgesNothing(t *testing.T) {
	w := running(t)
	r := w.remote()
	bob := r.has("bob", "NEW")
	w.introduce(aliceToken, alice)
	w.homeserverSays(http.StatusOK, stale(bob))
	w.refreshed(aliceToken, bob)
	if got := devicesIn(t, w.query(aliceToken, ask(bob, "NEW")), bob); len(got) != 1 {
		t.Fatalf("the devices are %v", got)
	}
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`), bob)
	w.query(aliceToken, ask(bob))
	wantChanged(t, w.exchange(aliceToken, "since=a&timeout=0", `{"next_batch":"b"}`))
}

// A client that is told because of what it asked would ask for ever. Nothing that a query sets off may be announced to
// it: not a list that is fetched again and says the same, nor one that cannot be fetched.
func TestAQueryAnnouncesNothing(t *testing.T) {
	l := fresh(t)
	l.query(aliceToken, ask(l.bob))
	l.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2"}`)
	l.exchange(aliceToken, "since=s2&timeout=0", `{"next_batch":"s3"}`)
	quiet := func(when string) {
		t.Helper()
		for range 3 {
			l.query(aliceToken, ask(l.bob))
			if got := l.exchange(aliceToken, "since=s3&timeout=0", `{"next_batch":"s3"}`); got != `{"next_batch":"s3"}` {
				t.Errorf("%s the client is told %s", when, got)
			}
		}
	}
	quiet("With a fresh list")
	l.announced()
	l.asks(1, func() { quiet("With a list that is fetched again") })
	l.announced()
	l.r.down()
	quiet("With a list that cannot be fetched again")
}

// A Postgres that hangs must not hold up each key query that names somebody whose list is kept.
func TestAHangingDatabaseHoldsUpOneKeyQuery(t *testing.T) {
	server := storetest.StartPostgres(t, storetest.Options{})
	l := live(t, over(t, server))
	l.refreshed(aliceToken, l.bob)
	l.shows("with the database there", "NEW")
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range 8 {
		l.shows("while the database hangs", "OLD")
	}
	if took := time.Since(began); took > 14*time.Second {
		t.Errorf("eight key queries took %v: each is held up by 2 s", took)
	}
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	l.clock.seconds.Add(11)
	l.eventually("serving the list again", func() bool {
		return devicesIn(t, l.query(aliceToken, ask(l.bob)), l.bob)["NEW"] != nil
	})
}
