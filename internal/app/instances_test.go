package app_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"freshen/internal/config"
	"freshen/internal/store/storetest"
)

func onPostgres(u *url.URL) func(*config.Config) {
	return func(c *config.Config) { c.Database = config.Database{URL: u} }
}

// another starts a second freshen beside the first, on the same database and for the same homeserver.
func (w *world) another() *world {
	w.t.Helper()
	other := *w
	other.app = nil
	w.t.Cleanup(other.stop)
	other.start()
	return &other
}

// A load balancer sends a client's poll here and its refresh there, and must be free to.
func TestTwoInstances(t *testing.T) {
	w := running(t, onPostgres(storetest.Shared(t).NewDatabase(t)), func(c *config.Config) {
		c.Cache.Success, c.Cache.Failure = time.Minute, time.Minute
	})
	other := w.another()
	r := w.remote()
	bob := r.has("bob", "D")

	call, replies := other.waiting(aliceToken, "s1")
	w.refreshed(aliceToken, bob)
	wantChanged(t, other.woken(call, replies, `{"next_batch":"s2"}`), bob)

	asked := r.asked.Load()
	other.refreshed(carolToken, bob)
	if n := r.asked.Load() - asked; n != 0 {
		t.Errorf("what one instance had just fetched, the other asked for %d times more", n)
	}
	w.homeserverSays(http.StatusOK, fmt.Sprintf(`{"device_keys":{%q:{}}}`, bob))
	if got := devicesIn(t, other.query(aliceToken, ask(bob)), bob); got["D"] == nil {
		t.Errorf("the list that one instance keeps is not served by the other: %v", got)
	}

	// What is owed by one is paid by either, and told to whoever polls where.
	dave := r.has("dave", "D")
	r.down()
	if got := w.refresh(aliceToken, dave); got.status != http.StatusBadGateway {
		t.Fatalf("%d %s", got.status, got.body)
	}
	r.up()
	call, replies = other.waiting(aliceToken, "s3")
	w.refreshed(carolToken, r.has("erin", "D")) // the server answers again, so all that is owed for it is due
	wantChanged(t, other.woken(call, replies, `{"next_batch":"s4"}`), dave)
}
