package homeserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"freshen"

	"maunium.net/go/mautrix/id"
)

const (
	// maxMutualPages bounds how far mutual_rooms is followed. Homeservers put hundreds of rooms on a page.
	maxMutualPages = 50
	// mutualRemembered is how long it is remembered which mutual_rooms route the homeserver has, or that it has none: an
	// upgrade brings it within that time.
	mutualRemembered = 10 * time.Minute
	maxRoomIDLength  = 255
)

// JoinedRooms lists the rooms that the caller is joined to, in the homeserver's order. What is no room ID is left out.
func (c *Client) JoinedRooms(ctx context.Context, cred Credentials) ([]id.RoomID, error) {
	q := question{
		asked:    "joined_rooms",
		path:     "/_matrix/client/v3/joined_rooms",
		timeout:  listTimeout,
		maxBytes: maxRoomsBytes,
	}
	var wire struct {
		Rooms []id.RoomID `json:"joined_rooms"`
	}
	if err := c.ask(ctx, cred, q, &wire); err != nil {
		return nil, err
	}
	return onlyRooms(wire.Rooms), nil
}

// JoinedMembers lists who is joined to a room that the caller is joined to, sorted. IDs that would harm a client are
// left out. Outside the room it is an [*AnswerError] with 403.
func (c *Client) JoinedMembers(ctx context.Context, cred Credentials, room id.RoomID) ([]id.UserID, error) {
	if !isRoom(room) {
		return nil, errors.New("the members of what is no room ID cannot be asked for")
	}
	q := question{
		asked:    "joined_members",
		path:     "/_matrix/client/v3/rooms/" + url.PathEscape(string(room)) + "/joined_members",
		timeout:  listTimeout,
		maxBytes: maxMembersBytes,
	}
	var wire struct {
		Joined map[id.UserID]struct{} `json:"joined"`
	}
	if err := c.ask(ctx, cred, q, &wire); err != nil {
		return nil, err
	}
	if wire.Joined == nil {
		return nil, &DownError{Asked: q.asked, Status: http.StatusOK, Err: errors.New("its answer has no members")}
	}
	maps.DeleteFunc(wire.Joined, func(user id.UserID, _ struct{}) bool {
		_, _, err := freshen.ParseUserID(string(user))
		return err != nil
	})
	return slices.Sorted(maps.Keys(wire.Joined)), nil
}

// mutualPath is one of the two routes. They name the parameters for paging differently.
type mutualPath struct{ path, from string }

var knownMutualPaths = []mutualPath{
	{"/_matrix/client/v1/mutual_rooms", "from"},
	{"/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", "batch_token"},
}

// mutualPaths remembers which of the routes are worth a try.
type mutualPaths struct {
	mu    sync.Mutex
	left  []mutualPath
	until time.Time
}

func (p *mutualPaths) current() []mutualPath {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.until) {
		return p.left
	}
	return knownMutualPaths
}

func (p *mutualPaths) remember(left []mutualPath) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left, p.until = left, time.Now().Add(mutualRemembered)
}

// MutualRooms lists the rooms that the caller shares with other (MSC2666), in the homeserver's order.
//
// It is [ErrUnrecognized] where the homeserver has no such route, and for an application service that acts for a user:
// the route takes other in user_id, the very parameter that says whom to act for. The homeserver may refuse
// ([*AnswerError]) other application services, and whoever asks about themselves.
func (c *Client) MutualRooms(ctx context.Context, cred Credentials, other id.UserID) ([]id.RoomID, error) {
	if cred.masquerades() {
		return nil, ErrUnrecognized
	}
	paths := c.paths.current()
	for i, path := range paths {
		rooms, err := c.mutualRooms(ctx, cred, other, path)
		if !isUnrecognized(err) {
			if i > 0 {
				c.paths.remember(paths[i:])
			}
			return rooms, err
		}
	}
	if len(paths) > 0 {
		c.paths.remember(nil)
	}
	return nil, ErrUnrecognized
}

// isUnrecognized takes a 404 or 405 without a Matrix error for the same as M_UNRECOGNIZED, as older routers answer.
func isUnrecognized(err error) bool {
	if errors.Is(err, ErrUnrecognized) {
		return true
	}
	down, ok := errors.AsType[*DownError](err)
	return ok && (down.Status == http.StatusNotFound || down.Status == http.StatusMethodNotAllowed)
}

func (c *Client) mutualRooms(ctx context.Context, cred Credentials, other id.UserID, path mutualPath) ([]id.RoomID, error) {
	q := question{
		asked:    "mutual_rooms",
		path:     path.path,
		query:    url.Values{"user_id": {string(other)}},
		timeout:  listTimeout,
		maxBytes: maxRoomsBytes,
	}
	var rooms []id.RoomID
	for range maxMutualPages {
		var page struct {
			Joined       []id.RoomID `json:"joined"`
			Next         string      `json:"next_batch"`
			NextUnstable string      `json:"next_batch_token"`
		}
		if err := c.ask(ctx, cred, q, &page); err != nil {
			return nil, err
		}
		rooms = append(rooms, onlyRooms(page.Joined)...)
		next := page.Next
		if next == "" {
			next = page.NextUnstable
		}
		if next == "" {
			return rooms, nil
		}
		q.query.Set(path.from, next)
	}
	return nil, &DownError{Asked: q.asked, Status: http.StatusOK, Err: fmt.Errorf("its answer has more than %d pages", maxMutualPages)}
}

func onlyRooms(rooms []id.RoomID) []id.RoomID {
	return slices.DeleteFunc(rooms, func(room id.RoomID) bool { return !isRoom(room) })
}

func isRoom(room id.RoomID) bool {
	return len(room) > 1 && len(room) <= maxRoomIDLength && room[0] == '!'
}
