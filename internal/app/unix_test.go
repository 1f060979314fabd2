package app_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"freshen/internal/config"
)

// onSocket has freshen listen on unix sockets.
func onSocket(t *testing.T) (edit func(*config.Config), path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "f") //nolint:usetesting // its names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path = filepath.Join(dir, "freshen.sock")
	return func(c *config.Config) { c.Listen, c.Admin.Listen = "unix:"+path, "unix:"+path+".admin" }, path
}

// Behind a unix socket the homeserver must still be told whose request it is, by what the reverse proxy says, on both ways
// that requests go; and the socket must be gone afterwards.
func TestForwardedHeadersOverAUnixSocket(t *testing.T) {
	edit, path := onSocket(t)
	w := newWorld(t, edit)
	seen := make(chan string, 1)
	w.hs.Handle("/_matrix/x", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header.Get("X-Forwarded-For") }))
	w.start()
	for _, method := range []string{http.MethodGet, http.MethodPut} {
		for _, sent := range [][]string{nil, {"192.0.2.1"}, {"192.0.2.1", "192.0.2.2"}} {
			request, err := http.NewRequestWithContext(t.Context(), method, w.url+"/_matrix/x", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			request.Header["X-Forwarded-For"] = sent
			response, err := w.client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			want := map[int]string{1: "192.0.2.1", 2: "192.0.2.1, 192.0.2.2"}[len(sent)]
			if got := await(t, seen, "the request"); got != want {
				t.Errorf("%s with %q: the homeserver sees %q", method, sent, got)
			}
		}
	}
	w.stop()
	for _, socket := range []string{path, path + ".admin"} {
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			t.Errorf("%s is left behind: %v", socket, err)
		}
	}
}

// All that polls are promised must hold over a unix socket: a wake reaches who waits, and who hangs up keeps nobody busy.
func TestPollsOverAUnixSocket(t *testing.T) {
	edit, _ := onSocket(t)
	w := running(t, edit)
	r := w.remote()
	bob := r.has("bob", "DEV1")

	ctx, hangUp := context.WithCancel(t.Context())
	left := w.sync(ctx, carolToken, "since=c1&timeout=30000")
	call := w.next()
	hangUp()
	await(t, call.gone, "the end of the poll that nobody waits for")
	if r := await(t, left, "the broken poll"); r.err == nil {
		t.Errorf("who hung up got %d", r.status)
	}

	call, replies := w.waiting(aliceToken, "s1")
	w.refreshed(aliceToken, bob)
	await(t, call.gone, "the end of the abandoned poll")
	again := w.next()
	if again.query != "since=s1&timeout=0" {
		t.Errorf("the homeserver got ?%s", again.query)
	}
	again.ok(`{"next_batch":"s2"}`)
	wantChanged(t, await(t, replies, "the woken answer").body, bob)
}
