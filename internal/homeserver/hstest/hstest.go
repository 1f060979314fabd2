// Package hstest is a small scripted homeserver over real HTTP for tests: it knows users by their tokens, the rooms they
// are in, and counts what it is asked. Any other route, such as /sync, is the test's own handler.
package hstest

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Paths of the routes that a [Server] answers by itself, for [Server.Calls] and [Server.Handle].
const (
	PathWhoAmI              = "/_matrix/client/v3/account/whoami"
	PathJoinedRooms         = "/_matrix/client/v3/joined_rooms"
	PathMutualRooms         = "/_matrix/client/v1/mutual_rooms"
	PathMutualRoomsUnstable = "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms"
)

// PathJoinedMembers is the path of a room's /joined_members.
func PathJoinedMembers(room id.RoomID) string {
	return "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/joined_members"
}

// Mutual says which of the mutual_rooms routes a [Server] has.
type Mutual int

const (
	MutualNone     Mutual = iota // neither, like Dendrite
	MutualStable                 // v1 only
	MutualUnstable               // the unstable one only
)

// Server is a scripted homeserver on a loopback port, closed at the end of the test. Its methods are safe for
// concurrent use, also while requests run.
type Server struct {
	http *httptest.Server
	base *url.URL

	mu         sync.Mutex
	users      map[string]account
	rooms      map[id.RoomID][]id.UserID
	mutual     Mutual
	pageSize   int
	handlers   map[string]http.Handler
	calls      map[string]int
	recordings []Recording
}

type account struct {
	userID   id.UserID
	deviceID id.DeviceID
	guest    bool
	mayBe    []id.UserID
}

// Recording is one request as it arrived.
type Recording struct {
	Method, Path, RawQuery string
	Header                 http.Header
	// Body is the first 64 KiB of it.
	Body []byte
}

// New starts a homeserver without users, rooms or mutual_rooms.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		users:    map[string]account{},
		rooms:    map[id.RoomID][]id.UserID{},
		pageSize: 1000,
		handlers: map[string]http.Handler{},
		calls:    map[string]int{},
	}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.http.Close)
	base, err := url.Parse(s.http.URL)
	if err != nil {
		t.Fatalf("the test server's own URL: %v", err)
	}
	s.base = base
	return s
}

// URL is where the homeserver listens; a copy, so that the caller may change it.
func (s *Server) URL() *url.URL {
	clone := *s.base
	return &clone
}

// Close takes the homeserver down before the test ends: connections are refused from then on. Requests that are being
// answered are waited for.
func (s *Server) Close() { s.http.Close() }

// CutConnections breaks every open connection, as a crash does; new ones are taken.
func (s *Server) CutConnections() { s.http.CloseClientConnections() }

// AddUser lets token stand for a user on a device. An empty device is left out of whoami.
func (s *Server) AddUser(token string, user id.UserID, device id.DeviceID) {
	s.add(token, account{userID: user, deviceID: device})
}

// AddGuest is [Server.AddUser] for a guest.
func (s *Server) AddGuest(token string, user id.UserID, device id.DeviceID) {
	s.add(token, account{userID: user, deviceID: device, guest: true})
}

// AddAppservice lets token stand for sender, without a device, or for any of mayBe by the user_id and device_id
// parameters.
func (s *Server) AddAppservice(token string, sender id.UserID, mayBe ...id.UserID) {
	s.add(token, account{userID: sender, mayBe: append(mayBe, sender)})
}

// RemoveUser logs the token out.
func (s *Server) RemoveUser(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.users, token)
}

func (s *Server) add(token string, a account) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[token] = a
}

// SetRoom sets who is joined to a room; nobody removes it. joined_rooms, joined_members and mutual_rooms follow.
func (s *Server) SetRoom(room id.RoomID, members ...id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(members) == 0 {
		delete(s.rooms, room)
		return
	}
	s.rooms[room] = slices.Clone(members)
}

// SetRooms replaces all rooms and their members.
func (s *Server) SetRooms(rooms map[id.RoomID][]id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rooms = maps.Clone(rooms)
	if s.rooms == nil {
		s.rooms = map[id.RoomID][]id.UserID{}
	}
}

// SetMutual says which mutual_rooms route there is, and how many rooms it puts on one page.
func (s *Server) SetMutual(which Mutual, pageSize int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mutual, s.pageSize = which, max(pageSize, 1)
}

// Handle answers an escaped path by the test's own handler, before the routes that the server has by itself. A nil
// handler removes it.
func (s *Server) Handle(escapedPath string, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h == nil {
		delete(s.handlers, escapedPath)
		return
	}
	s.handlers[escapedPath] = h
}

// HandleFunc is [Server.Handle] for a function.
func (s *Server) HandleFunc(escapedPath string, h http.HandlerFunc) { s.Handle(escapedPath, h) }

// Calls is how many requests have come for an escaped path.
func (s *Server) Calls(escapedPath string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[escapedPath]
}

// Recorded lists the requests that came for an escaped path, oldest first.
func (s *Server) Recorded(escapedPath string) []Recording {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Recording
	for _, r := range s.recordings {
		if r.Path == escapedPath {
			found = append(found, r)
		}
	}
	return found
}

// Whose returns the user that a request's credentials stand for, for the test's own handlers.
func (s *Server) Whose(r *http.Request) (user id.UserID, device id.DeviceID, ok bool) {
	a, ok := s.authenticate(r)
	return a.userID, a.deviceID, ok
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath()
	body, err := io.ReadAll(io.LimitReader(r.Body, 64<<10))
	if err != nil {
		return
	}
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), r.Body))
	s.mu.Lock()
	s.calls[path]++
	s.recordings = append(s.recordings, Recording{r.Method, path, r.URL.RawQuery, r.Header.Clone(), body})
	custom := s.handlers[path]
	s.mu.Unlock()
	if custom != nil {
		custom.ServeHTTP(w, r)
		return
	}
	s.standard(w, r, path)
}

func (s *Server) standard(w http.ResponseWriter, r *http.Request, path string) {
	answer := s.route(path)
	if answer == nil {
		WriteError(w, http.StatusNotFound, "M_UNRECOGNIZED", "Unrecognized request")
		return
	}
	if r.Method != http.MethodGet {
		WriteError(w, http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "Unrecognized request")
		return
	}
	a, ok := s.authenticate(r)
	if !ok {
		if tokenOf(r) == "" {
			WriteError(w, http.StatusUnauthorized, "M_MISSING_TOKEN", "Missing access token")
			return
		}
		WriteError(w, http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "Unknown access token")
		return
	}
	answer(w, r, a)
}

type answerFunc func(http.ResponseWriter, *http.Request, account)

func (s *Server) route(path string) answerFunc {
	s.mu.Lock()
	mutual := s.mutual
	s.mu.Unlock()
	switch {
	case path == PathWhoAmI:
		return whoAmI
	case path == PathJoinedRooms:
		return s.joinedRooms
	case path == PathMutualRooms && mutual == MutualStable, path == PathMutualRoomsUnstable && mutual == MutualUnstable:
		return s.mutualRooms
	}
	rest, ok := strings.CutPrefix(path, "/_matrix/client/v3/rooms/")
	if !ok {
		return nil
	}
	escaped, ok := strings.CutSuffix(rest, "/joined_members")
	room, err := url.PathUnescape(escaped)
	if !ok || err != nil {
		return nil
	}
	return func(w http.ResponseWriter, _ *http.Request, a account) { s.joinedMembers(w, id.RoomID(room), a) }
}

func whoAmI(w http.ResponseWriter, _ *http.Request, a account) {
	answer := map[string]any{"user_id": a.userID, "is_guest": a.guest}
	if a.deviceID != "" {
		answer["device_id"] = a.deviceID
	}
	WriteJSON(w, http.StatusOK, answer)
}

func (s *Server) joinedRooms(w http.ResponseWriter, _ *http.Request, a account) {
	WriteJSON(w, http.StatusOK, map[string]any{"joined_rooms": s.roomsOf(a.userID)})
}

func (s *Server) joinedMembers(w http.ResponseWriter, room id.RoomID, a account) {
	s.mu.Lock()
	members := slices.Clone(s.rooms[room])
	s.mu.Unlock()
	if !slices.Contains(members, a.userID) {
		WriteError(w, http.StatusForbidden, "M_FORBIDDEN", "You are not in that room")
		return
	}
	joined := make(map[id.UserID]any, len(members))
	for _, m := range members {
		joined[m] = map[string]any{"display_name": nil, "avatar_url": nil}
	}
	WriteJSON(w, http.StatusOK, map[string]any{"joined": joined})
}

// mutualRooms pages by an index into the sorted rooms. The two routes name the page parameters differently.
func (s *Server) mutualRooms(w http.ResponseWriter, r *http.Request, a account) {
	query := r.URL.Query()
	from, next := "from", "next_batch"
	if r.URL.EscapedPath() == PathMutualRoomsUnstable {
		from, next = "batch_token", "next_batch_token"
	}
	other := id.UserID(query.Get("user_id"))
	if other == a.userID {
		WriteError(w, http.StatusForbidden, "M_FORBIDDEN", "You cannot ask for rooms shared with yourself")
		return
	}
	theirs := s.roomsOf(other)
	both := slices.DeleteFunc(s.roomsOf(a.userID), func(room id.RoomID) bool { return !slices.Contains(theirs, room) })
	start, err := strconv.Atoi(query.Get(from))
	if query.Get(from) != "" && (err != nil || start < 0) {
		WriteError(w, http.StatusBadRequest, "M_INVALID_PARAM", "No such page")
		return
	}
	s.mu.Lock()
	size := s.pageSize
	s.mu.Unlock()
	start = min(start, len(both))
	end := min(start+size, len(both))
	answer := map[string]any{"joined": both[start:end]}
	if end < len(both) {
		answer[next] = strconv.Itoa(end)
	}
	WriteJSON(w, http.StatusOK, answer)
}

func (s *Server) roomsOf(user id.UserID) []id.RoomID {
	s.mu.Lock()
	defer s.mu.Unlock()
	rooms := []id.RoomID{}
	for _, room := range slices.Sorted(maps.Keys(s.rooms)) {
		if slices.Contains(s.rooms[room], user) {
			rooms = append(rooms, room)
		}
	}
	return rooms
}

// authenticate knows a token in either place, and masquerading by user_id and device_id for appservices.
func (s *Server) authenticate(r *http.Request) (account, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.users[tokenOf(r)]
	if !ok || a.mayBe == nil {
		return a, ok
	}
	query := r.URL.Query()
	if as := id.UserID(query.Get("user_id")); as != "" {
		if !slices.Contains(a.mayBe, as) {
			return account{}, false
		}
		a.userID = as
	}
	for _, name := range []string{"device_id", "org.matrix.msc3202.device_id"} {
		if device := query.Get(name); device != "" {
			a.deviceID = id.DeviceID(device)
		}
	}
	return a, true
}

func tokenOf(r *http.Request) string {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		return token
	}
	return r.URL.Query().Get("access_token")
}

// WriteJSON answers with v as JSON.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
}

// WriteError answers with a Matrix error.
func WriteError(w http.ResponseWriter, status int, errcode, message string) {
	WriteJSON(w, status, map[string]string{"errcode": errcode, "error": message})
}
