//go:build unix

package soak

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/homeserver/hstest"
)

const (
	pathSliding   = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
	pathSlidingV4 = "/_matrix/client/v4/sync"
	pathChanges   = "/_matrix/client/v3/keys/changes"
	pathLogout    = "/_matrix/client/v3/logout"
	// hugeSince is the token that slow readers come with, and huge the size of what they are answered.
	hugeSince = "huge"
	huge      = 16 << 20
)

// crowdServer is the homeserver of a crowd. It has both kinds of sync, and two kinds of tokens: those of a device that
// begin with "d" count its own news, as an idle homeserver's do, so that two answers may end in the same one; all others
// are given once.
type crowdServer struct {
	*hstest.Server

	mu     sync.Mutex
	random *rand.Rand
	given  int
	last   map[id.DeviceID]int // the highest "d" token of a device
}

func newCrowdServer(s *hstest.Server, random *rand.Rand) *crowdServer {
	h := &crowdServer{Server: s, random: random, last: map[id.DeviceID]int{}}
	h.HandleFunc(pathSync, func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		timeout, _ := strconv.Atoi(query.Get("timeout"))
		h.sync(w, r, query.Get("since"), timeout, `{"next_batch":%q,"device_one_time_keys_count":{}%s%s}`)
	})
	sliding := func(w http.ResponseWriter, r *http.Request) {
		var asked struct {
			Pos     string `json:"pos"`
			Timeout int    `json:"timeout"`
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(body, &asked) != nil {
			hstest.WriteError(w, http.StatusBadRequest, "M_NOT_JSON", "that is no JSON")
			return
		}
		if query := r.URL.Query(); r.URL.Path == pathSliding {
			asked.Pos = query.Get("pos")
			asked.Timeout, _ = strconv.Atoi(query.Get("timeout"))
		}
		h.sync(w, r, asked.Pos, asked.Timeout, `{"pos":%q,"lists":{}%[3]s,"extensions":{"e2ee":{"device_one_time_keys_count":{}%[2]s}}}`)
	}
	h.HandleFunc(pathSliding, sliding)
	h.HandleFunc(pathSlidingV4, sliding)
	h.HandleFunc(pathChanges, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"changed":null,"left":null}`)
	})
	h.HandleFunc(pathLogout, func(w http.ResponseWriter, r *http.Request) {
		h.RemoveUser(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		_, _ = io.WriteString(w, `{}`)
	})
	return h
}

// sync answers as format says, with the token, a device_lists of the homeserver's own and something large now and then.
func (h *crowdServer) sync(w http.ResponseWriter, r *http.Request, since string, timeout int, format string) {
	_, device, ok := h.Whose(r)
	if !ok {
		hstest.WriteError(w, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown access token")
		return
	}
	if since == hugeSince {
		writeHuge(w)
		return
	}
	most := time.Duration(timeout) * time.Millisecond
	h.mu.Lock()
	news := h.random.IntN(4) == 0
	pause := most
	if news {
		pause = time.Duration(h.random.Float64() * float64(most))
	}
	moves := since == "" || news || h.random.IntN(2) == 0
	own, large := since != "" && h.random.IntN(3) == 0, h.random.IntN(20) == 0
	h.mu.Unlock()
	if since != "" && !wait(r.Context(), pause) {
		return
	}
	next := since
	if moves {
		next = h.next(device, since)
	}
	lists, more := "", ""
	if own {
		lists = fmt.Sprintf(`,"device_lists":{"changed":[%q],"left":[]}`, stranger)
	}
	if large {
		more = fmt.Sprintf(`,"rooms":{"!large:example.org":{"text":%q}}`, strings.Repeat("x", 100<<10))
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = fmt.Fprintf(w, format, next, lists, more) // the client may have gone
}

// next is the token after since.
func (h *crowdServer) next(device id.DeviceID, since string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !counts(device) {
		h.given++
		return "s" + strconv.Itoa(h.given)
	}
	if since == "" {
		return "d" + strconv.Itoa(h.last[device])
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(since, "d"))
	h.last[device] = max(h.last[device], n+1)
	return "d" + strconv.Itoa(n+1)
}

// counts says whether the tokens of a device count its own news.
func counts(device id.DeviceID) bool { return strings.HasSuffix(string(device), "D") }

func writeHuge(w http.ResponseWriter) {
	part := strings.Repeat("x", 64<<10)
	_, _ = io.WriteString(w, `{"next_batch":"huge","rooms":{"text":"`)
	for range huge / len(part) {
		if _, err := io.WriteString(w, part); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, `"}}`)
}
