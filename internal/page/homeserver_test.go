package page_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"freshen/internal/homeserver/hstest"
	"freshen/internal/page"
)

const (
	alice    = "@alice:a.example"
	password = "correct horse"
	v3       = "/_matrix/client/v3"
)

// homeserver is a scripted one with freshen before it, as the page sees them: one origin.
type homeserver struct {
	url string

	mu sync.Mutex
	// flows are what GET /login offers, members the display names in the encrypted rooms, by room and user.
	flows   []any
	members map[string]map[string]string
	keys    map[string]*person
	// standings are told by /standing, and refresh answers the button; nil for 202.
	standings map[string]any
	refresh   http.HandlerFunc
	// instead answers a path in place of the script.
	instead map[string]http.HandlerFunc

	synced    int
	news      chan []string // whom the next /sync names
	tokens    map[string]bool
	signedOut []string
	bodies    map[string][]string // of the requests, by path
}

// newHomeserver offers a password and an encrypted room with Alice in it.
func newHomeserver(t *testing.T) *homeserver {
	t.Helper()
	h := &homeserver{
		flows:   []any{map[string]any{"type": "m.login.password"}},
		members: map[string]map[string]string{"!r:a.example": {alice: "Alice"}},
		keys:    map[string]*person{}, standings: map[string]any{}, instead: map[string]http.HandlerFunc{},
		news: make(chan []string, 10), tokens: map[string]bool{}, bodies: map[string][]string{},
	}
	server := httptest.NewServer(h)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	h.url = server.URL
	return h
}

// set changes the script.
func (h *homeserver) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

// does answers a path in another way from now on; nil ends that.
func (h *homeserver) does(path string, answer http.HandlerFunc) {
	h.set(func() { h.instead[path] = answer })
}

// adds lets somebody join the encrypted room.
func (h *homeserver) adds(p *person) {
	h.set(func() {
		h.members["!r:a.example"][p.id] = p.displayName
		h.keys[p.id] = p
	})
}

// sent are the bodies of the requests to a path.
func (h *homeserver) sent(path string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.bodies[path])
}

func (h *homeserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if page.Match(r) {
		page.Handler().ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path := r.URL.EscapedPath()
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	h.mu.Lock()
	h.bodies[path] = append(h.bodies[path], string(body))
	instead, known := h.instead[path], h.tokens[token]
	h.mu.Unlock()
	switch {
	case instead != nil:
		instead(w, r)
	case path == v3+"/login":
		h.login(w, r, body)
	case strings.HasPrefix(path, v3+"/login/sso/redirect"):
		back := r.URL.Query().Get("redirectUrl")
		http.Redirect(w, r, back+"&loginToken=good", http.StatusFound)
	case !known:
		hstest.WriteError(w, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown token")
	default:
		h.authenticated(w, r, path, token, body)
	}
}

func (h *homeserver) login(w http.ResponseWriter, r *http.Request, body []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Method == http.MethodGet {
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"flows": h.flows})
		return
	}
	var asked struct{ Type, Password, Token string }
	if json.Unmarshal(body, &asked) != nil || (asked.Password != password && asked.Token != "good") {
		hstest.WriteError(w, http.StatusForbidden, "M_FORBIDDEN", "Invalid username or password")
		return
	}
	token := fmt.Sprintf("token-%d", len(h.tokens))
	h.tokens[token] = true
	hstest.WriteJSON(w, http.StatusOK, map[string]any{"user_id": alice, "access_token": token, "device_id": "PAGE"})
}

func (h *homeserver) authenticated(w http.ResponseWriter, r *http.Request, path, token string, body []byte) {
	room, isRoom := strings.CutPrefix(path, v3+"/rooms/")
	switch {
	case path == v3+"/logout":
		h.set(func() {
			delete(h.tokens, token)
			h.signedOut = append(h.signedOut, token)
		})
		hstest.WriteJSON(w, http.StatusOK, struct{}{})
	case path == v3+"/sync":
		h.sync(w, r)
	case isRoom:
		name, err := url.PathUnescape(strings.TrimSuffix(room, "/joined_members"))
		if err != nil {
			panic(err)
		}
		joined := map[string]any{}
		h.mu.Lock()
		for user, display := range h.members[name] {
			joined[user] = map[string]any{"display_name": display}
		}
		h.mu.Unlock()
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"joined": joined})
	case path == v3+"/keys/query":
		h.keysQuery(w, body)
	case path == page.Path+"standing":
		h.mu.Lock()
		users := maps.Clone(h.standings)
		h.mu.Unlock()
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"users": users})
	case strings.HasSuffix(path, "/devices/refresh"):
		h.mu.Lock()
		refresh := h.refresh
		h.mu.Unlock()
		if refresh == nil {
			refresh = func(w http.ResponseWriter, _ *http.Request) { hstest.WriteJSON(w, http.StatusAccepted, struct{}{}) }
		}
		refresh(w, r)
	default:
		hstest.WriteError(w, http.StatusNotFound, "M_UNRECOGNIZED", "The page should not ask for "+path)
	}
}

// sync tells of the rooms at first, and later waits for news.
func (h *homeserver) sync(w http.ResponseWriter, r *http.Request) {
	answer := map[string]any{}
	h.set(func() {
		h.synced++
		answer["next_batch"] = fmt.Sprint("s", h.synced)
	})
	if r.URL.Query().Get("since") == "" {
		rooms := map[string]any{"!plain:a.example": map[string]any{}}
		h.mu.Lock()
		for room := range h.members {
			event := map[string]any{"type": "m.room.encryption", "state_key": "", "content": map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}}
			rooms[room] = map[string]any{"state": map[string]any{"events": []any{event}}}
		}
		h.mu.Unlock()
		answer["rooms"] = map[string]any{"join": rooms}
		hstest.WriteJSON(w, http.StatusOK, answer)
		return
	}
	if r.URL.Query().Get("timeout") != "0" {
		select {
		case changed := <-h.news:
			answer["device_lists"] = map[string]any{"changed": changed}
		case <-r.Context().Done():
			return
		}
	}
	hstest.WriteJSON(w, http.StatusOK, answer)
}

func (h *homeserver) keysQuery(w http.ResponseWriter, body []byte) {
	var asked struct {
		DeviceKeys map[string][]string `json:"device_keys"`
	}
	if json.Unmarshal(body, &asked) != nil {
		hstest.WriteError(w, http.StatusBadRequest, "M_BAD_JSON", "No keys are asked for")
		return
	}
	devices, masters, selfSigning := map[string]any{}, map[string]any{}, map[string]any{}
	h.mu.Lock()
	defer h.mu.Unlock()
	for user := range asked.DeviceKeys {
		p := h.keys[user]
		if p == nil {
			continue
		}
		devices[user] = maps.Clone(p.devices)
		if p.master != nil {
			masters[user], selfSigning[user] = p.master, p.selfSigning
		}
	}
	hstest.WriteJSON(w, http.StatusOK, map[string]any{"device_keys": devices, "master_keys": masters, "self_signing_keys": selfSigning, "failures": struct{}{}})
}
