package app_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// Many clients that poll, hang up, ask and are told at once: nobody misses a change, and nothing locks up.
func TestACrowdMissesNothing(t *testing.T) {
	w := newWorld(t)
	r := w.remote()
	const clients, targets = 12, 6
	var bobs []id.UserID
	for i := range targets {
		bobs = append(bobs, r.has(fmt.Sprintf("bob%d", i), "D"))
	}
	members := slices.Clone(bobs)
	for i := range clients {
		user := id.UserID(fmt.Sprintf("@local%d:example.org", i))
		w.hs.AddUser(fmt.Sprintf("local-token-%d", i), user, "DEVICE")
		members = append(members, user)
	}
	w.hs.SetRoom("!all:x", members...)
	// A homeserver whose token moves with each answer that waited, like one with other traffic.
	w.hs.HandleFunc("/_matrix/client/v3/sync", func(rw http.ResponseWriter, rq *http.Request) {
		since, _ := strconv.Atoi(rq.URL.Query().Get("since"))
		if rq.URL.Query().Get("timeout") != "0" {
			select {
			case <-rq.Context().Done():
				return
			case <-time.After(time.Duration(rand.IntN(200)) * time.Millisecond):
			}
		}
		_, _ = fmt.Fprintf(rw, `{"next_batch":"%d","device_lists":{"left":[]}}`, since+rand.IntN(2))
	})
	w.start()

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all sync.WaitGroup
	for i := range clients {
		token := fmt.Sprintf("local-token-%d", i)
		all.Go(func() {
			heard := map[string]bool{}
			since := "1"
			for len(heard) < targets && ctx.Err() == nil {
				one, hangUp := context.WithCancel(ctx)
				if rand.IntN(4) == 0 {
					time.AfterFunc(time.Duration(rand.IntN(50))*time.Millisecond, hangUp)
				}
				got := w.do(one, http.MethodGet, "/_matrix/client/v3/sync?timeout=30000&since="+since, token, nil)
				hangUp()
				if got.err != nil {
					continue // the answer is lost, and so is what it carried
				}
				for _, user := range changedIn(t, got.body) {
					heard[user] = true
				}
				since, _, _ = strings.Cut(strings.TrimPrefix(got.body, `{"next_batch":"`), `"`)
			}
			if len(heard) != targets {
				t.Errorf("client %d heard of %v alone", i, heard)
			}
		})
		all.Go(func() { w.refreshed(token, bobs[i%targets]) })
	}
	all.Wait()
}
