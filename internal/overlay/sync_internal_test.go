package overlay

import (
	"io"
	"log/slog"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/announce"
	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"
	"freshen/internal/kept"
	"freshen/internal/rooms"
	"freshen/internal/store"
)

// A /sync that nothing is owed to is copied, not read as JSON: otherwise everybody's syncs would pay for a feature that
// few of them use. One that is owed something is edited.
func TestNothingOwedIsNotParsed(t *testing.T) {
	t.Parallel()
	const bob = id.UserID("@bob:remote.test")
	alice := homeserver.Identity{UserID: "@alice:hs.test", DeviceID: "DEVICE"}
	hs := hstest.New(t)
	client := homeserver.New(hs.URL(), nil)
	t.Cleanup(client.CloseIdleConnections)
	log := slog.New(slog.DiscardHandler)
	db, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "freshen.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	lists, err := kept.Load(t.Context(), db, log, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	known := rooms.New(client, "hs.test", time.Now, nil)
	p := New(Config{Homeserver: hs.URL(), Who: client, Log: log, Now: time.Now})
	idle, err := announce.Open(t.Context(), db, known, log, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	p.Learn(Knowledge{Announcer: idle, Lists: lists, Rooms: known})
	t.Cleanup(p.Close)

	edited := func(poll *announce.Poll) bool {
		t.Helper()
		body := io.NopCloser(strings.NewReader(`{"next_batch":"s2"}`))
		resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Length": {"19"}}, Body: body, ContentLength: 19}
		x := &syncExchange{p: p, ctx: t.Context(), since: "s1", who: &alice, poll: poll}
		if err := x.edit(resp); err != nil {
			t.Fatal(err)
		}
		return resp.Body != body || resp.ContentLength != 19 || resp.Header.Get("Content-Length") != "19"
	}

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer token")
	cred := homeserver.CredentialsOf(request)
	owedNothing := idle.Begin(freshen.Requester{UserID: alice.UserID, DeviceID: alice.DeviceID}, cred, "s1", func() {})
	t.Cleanup(owedNothing.End)
	if edited(owedNothing) {
		t.Error("with no list kept at all, the answer is not passed on as it came")
	}
	// Somebody's list is kept whom alice shares no room with.
	lists.Put([]store.KeptInfo{{UserID: bob, FetchedAt: time.Now()}})
	hs.AddUser("token", alice.UserID, alice.DeviceID)
	if !edited(owedNothing) {
		t.Error("while it is not known whether alice shares a room with bob, what the homeserver says of bob is not noticed")
	}
	if shares, err := known.Shares(t.Context(), alice.UserID, cred, bob); err != nil || shares {
		t.Fatalf("alice shares a room with bob: %v, %v", shares, err)
	}
	if edited(owedNothing) {
		t.Error("although alice shares no room with anybody whose list is kept, the answer is not passed on as it came")
	}

	if !edited(nil) {
		t.Error("of an answer that begins before its poll, the token is not noticed: then it makes other tokens count for less")
	}
	for _, header := range []http.Header{{"Etag": {`"x"`}}, {"Content-Encoding": {"gzip"}}} {
		resp := &http.Response{StatusCode: http.StatusOK, Header: header.Clone(), Body: io.NopCloser(strings.NewReader(`{"next_batch" :"s2"} `))}
		x := &syncExchange{p: p, ctx: t.Context(), since: "s1", who: &alice}
		if err := x.edit(resp); err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != `{"next_batch" :"s2"} ` || !maps.EqualFunc(resp.Header, header, slices.Equal) {
			t.Errorf("an answer that begins before its poll, with %v, passes with %v as %s (%v)", header, resp.Header, body, err)
		}
		_ = resp.Body.Close()
	}
	if poll := owedOne(t, db, known, alice, cred); !edited(poll) {
		t.Error("what alice is owed is not merged into the answer")
	}
}

// owedOne returns a poll of alice's that an announcement waits for.
func owedOne(t *testing.T, db *store.Store, known *rooms.Rooms, alice homeserver.Identity, cred homeserver.Credentials) *announce.Poll {
	t.Helper()
	if err := db.AnnounceTo(t.Context(), "@bob:remote.test", []id.UserID{alice.UserID}, time.Now()); err != nil {
		t.Fatal(err)
	}
	announcer, err := announce.Open(t.Context(), db, known, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	woken, done := make(chan struct{}), make(chan struct{})
	poll := announcer.Begin(freshen.Requester{UserID: alice.UserID, DeviceID: alice.DeviceID}, cred, "s1", func() { close(woken) })
	go func() {
		defer close(done)
		announcer.Run(t.Context())
	}()
	// The context is done before the clean-up, which waits for what Run saves at its end.
	t.Cleanup(func() { <-done })
	<-woken
	return poll
}
