//go:build unix

package soak

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"freshen/internal/homeserver/hstest"
)

const (
	pathSync     = "/_matrix/client/v3/sync"
	pathKeys     = "/_matrix/client/v3/keys/query"
	pathVersions = "/_matrix/client/versions"
	// stranger is whom the homeserver itself announces now and then; nobody asks for them.
	stranger = "@stranger:elsewhere.example"
)

// homeserver is the one that freshen stands in front of. It answers each /sync with a number.
type homeserver struct {
	*hstest.Server

	mu       sync.Mutex
	random   *rand.Rand
	answered int            // how many /sync, which numbers them
	waiting  map[string]int // long polls, by the token of who waits
}

func newHomeserver(t *testing.T, random *rand.Rand) *homeserver {
	h := &homeserver{Server: hstest.New(t), random: random, waiting: map[string]int{}}
	h.SetMutual(hstest.MutualStable, 100)
	h.HandleFunc(pathSync, h.sync)
	h.HandleFunc(pathKeys, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"device_keys": map[string]any{}, "failures": map[string]any{}})
	})
	h.HandleFunc(pathVersions, func(w http.ResponseWriter, _ *http.Request) {
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"versions": []string{"v1.11"}, "unstable_features": map[string]bool{}})
	})
	t.Cleanup(h.CutConnections)
	return h
}

// sync waits like a homeserver that has news now and then. A token may stand still while nothing happens, as Dendrite's
// does, or move, as Synapse's may.
func (h *homeserver) sync(w http.ResponseWriter, r *http.Request) {
	if _, _, ok := h.Whose(r); !ok {
		hstest.WriteError(w, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown access token")
		return
	}
	query := r.URL.Query()
	since := query.Get("since")
	timeout, _ := strconv.Atoi(query.Get("timeout"))
	wait := time.Duration(timeout) * time.Millisecond
	h.mu.Lock()
	news := h.random.IntN(6) == 0 && wait <= pollFor // who waits for longer waits for what freshen brings
	if news {
		wait = time.Duration(h.random.Float64() * float64(wait))
	}
	moves := since == "" || news || h.random.IntN(2) == 0
	own, large := h.random.IntN(3) == 0, h.random.IntN(20) == 0
	h.mu.Unlock()
	if since != "" && wait > 0 && !h.wait(r, wait) {
		return
	}
	h.mu.Lock()
	number := h.answered
	h.answered++
	h.mu.Unlock()
	next := since
	if moves {
		next = "s" + strconv.Itoa(number)
	}
	var body strings.Builder
	fmt.Fprintf(&body, `{"next_batch":%q,"number":%d,"device_one_time_keys_count":{"signed_curve25519":50}`, next, number)
	if own && since != "" {
		fmt.Fprintf(&body, `,"device_lists":{"changed":[%q],"left":[]}`, stranger)
	}
	if large {
		fmt.Fprintf(&body, `,"rooms":{"join":{"!large:example.org":{"timeline":{"events":[{"content":{"body":%q}}]}}}}`, strings.Repeat("x", 300<<10))
	}
	body.WriteString("}")
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, body.String()) // the client may have gone
}

// wait lets a long poll wait; false if it was abandoned.
func (h *homeserver) wait(r *http.Request, d time.Duration) bool {
	token := r.Header.Get("Authorization")
	count := func(n int) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.waiting[token] += n
	}
	count(1)
	defer count(-1)
	return wait(r.Context(), d)
}

// polls is how many long polls with that token are waiting.
func (h *homeserver) polls(token string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting["Bearer "+token]
}

// gave says whether there has been an answer of that number.
func (h *homeserver) gave(number int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return number >= 0 && number < h.answered
}
