package homeserver_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"

	"maunium.net/go/mautrix/id"
)

const alice, bob = id.UserID("@alice:a.example"), id.UserID("@bob:b.example")

// Without its rooms nobody but the requester hears of a fresh list.
func TestRoomsAndMembers(t *testing.T) {
	server, client := setup(t)
	server.AddUser("alice", alice, "D")
	odd := id.RoomID("!a/b?c#d%2F:a.example")
	server.SetRooms(map[id.RoomID][]id.UserID{
		odd:                {bob, alice, "@\u00fc:b.example", "@:b.example", "nobody"},
		"!other:b.example": {bob},
		"!x:a.example":     {alice},
	})
	rooms, err := client.JoinedRooms(t.Context(), bearer("alice"))
	if want := []id.RoomID{odd, "!x:a.example"}; err != nil || !slices.Equal(rooms, want) {
		t.Errorf("rooms are %q, %v", rooms, err)
	}
	members, err := client.JoinedMembers(t.Context(), bearer("alice"), odd)
	if want := []id.UserID{alice, bob}; err != nil || !slices.Equal(members, want) {
		t.Errorf("members are %q, %v, want those that cannot harm a client", members, err)
	}
	if n := server.Calls(hstest.PathJoinedMembers(odd)); n != 1 {
		t.Errorf("the room's path was asked %d times", n)
	}
	_, err = client.JoinedMembers(t.Context(), bearer("alice"), "!other:b.example")
	if refusal, ok := errors.AsType[*homeserver.AnswerError](err); !ok || refusal.Status != http.StatusForbidden {
		t.Errorf("a room of others: %v", err)
	}
	for _, bad := range []id.RoomID{"", "!", "..", "#alias:a.example"} {
		if _, err := client.JoinedMembers(t.Context(), bearer("alice"), bad); err == nil {
			t.Errorf("%q was taken for a room", bad)
		}
	}
}

// The client-server API may be published below a path of its own.
func TestBaseWithPath(t *testing.T) {
	server := hstest.New(t)
	server.HandleFunc("/hs"+hstest.PathWhoAmI, func(w http.ResponseWriter, _ *http.Request) {
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"user_id": alice})
	})
	for _, path := range []string{"/hs", "/hs/"} {
		base := server.URL()
		base.Path = path
		client := homeserver.New(base, nil)
		if who, err := client.WhoAmI(t.Context(), bearer("t")); err != nil || who.UserID != alice {
			t.Errorf("below %s: %+v, %v", path, who, err)
		}
		client.CloseIdleConnections()
	}
}

// A homeserver that knows which rooms two users share saves a walk over all rooms; each has it in its own place.
func TestMutualRooms(t *testing.T) {
	for name, which := range map[string]hstest.Mutual{"stable": hstest.MutualStable, "unstable": hstest.MutualUnstable} {
		t.Run(name, func(t *testing.T) {
			server, client := setup(t)
			server.AddUser("alice", alice, "D")
			server.SetMutual(which, 2)
			rooms := map[id.RoomID][]id.UserID{"!only-bob:x": {bob}, "!only-alice:x": {alice}}
			var want []id.RoomID
			for i := range 5 {
				room := id.RoomID(fmt.Sprintf("!%d:x", i))
				rooms[room] = []id.UserID{alice, bob}
				want = append(want, room)
			}
			server.SetRooms(rooms)
			for range 2 {
				got, err := client.MutualRooms(t.Context(), bearer("alice"), bob)
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			}
			if which == hstest.MutualUnstable && server.Calls(hstest.PathMutualRooms) != 1 {
				t.Errorf("the route that is not there was asked %d times", server.Calls(hstest.PathMutualRooms))
			}
			_, err := client.MutualRooms(t.Context(), bearer("alice"), alice)
			if refusal, ok := errors.AsType[*homeserver.AnswerError](err); !ok || refusal.Status != http.StatusForbidden {
				t.Errorf("with oneself: %v", err)
			}
		})
	}
}

// On Dendrite each refresh would otherwise cost two useless requests; after an upgrade the route must be found.
func TestMutualRoomsUnrecognized(t *testing.T) {
	for name, answer := range map[string]*http.Response{
		"Matrix":  respond(http.StatusNotFound, `{"errcode":"M_UNRECOGNIZED"}`),
		"old":     respond(http.StatusBadRequest, `{"errcode":"M_UNRECOGNIZED"}`),
		"routers": respond(http.StatusNotFound, "404 page not found"),
	} {
		t.Run(name, func(t *testing.T) {
			body, err := io.ReadAll(answer.Body)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				client := homeserver.New(loopback, inMemory(func(*http.Request) (*http.Response, error) {
					asked++
					return respond(answer.StatusCode, string(body)), nil
				}))
				for range 3 {
					if _, err := client.MutualRooms(t.Context(), bearer("t"), bob); !errors.Is(err, homeserver.ErrUnrecognized) {
						t.Errorf("got %v", err)
					}
				}
				if asked != 2 {
					t.Errorf("asked %d times", asked)
				}
				time.Sleep(10 * time.Minute)
				if _, err := client.MutualRooms(t.Context(), bearer("t"), bob); err == nil || asked != 4 {
					t.Errorf("after ten minutes asked %d times: %v", asked, err)
				}
			})
		})
	}
}

// A homeserver that is down for a moment must not count as one without the route.
func TestMutualRoomsFailureIsNotRemembered(t *testing.T) {
	server, client := setup(t)
	server.AddUser("alice", alice, "D")
	server.SetMutual(hstest.MutualStable, 10)
	server.SetRoom("!1:x", alice, bob)
	server.HandleFunc(hstest.PathMutualRooms, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	_, err := client.MutualRooms(t.Context(), bearer("alice"), bob)
	if _, ok := errors.AsType[*homeserver.DownError](err); !ok {
		t.Errorf("got %v", err)
	}
	server.Handle(hstest.PathMutualRooms, nil)
	if rooms, err := client.MutualRooms(t.Context(), bearer("alice"), bob); err != nil || len(rooms) != 1 {
		t.Errorf("afterwards: %q, %v", rooms, err)
	}
}

// user_id would name both whom to act for and whom to look up: the homeserver would answer about the wrong user.
func TestMutualRoomsOfAPuppet(t *testing.T) {
	server, client := setup(t)
	server.SetMutual(hstest.MutualStable, 10)
	server.AddAppservice("as", "@bot:a.example", "@x:a.example")
	cred := query(url.Values{"access_token": {"as"}, "user_id": {"@x:a.example"}}.Encode())
	if _, err := client.MutualRooms(t.Context(), cred, bob); !errors.Is(err, homeserver.ErrUnrecognized) {
		t.Errorf("got %v", err)
	}
	if server.Calls(hstest.PathMutualRooms) != 0 {
		t.Error("it was asked all the same")
	}
}

// A homeserver whose pages never end must not keep us for ever.
func TestMutualRoomsPagesAreBounded(t *testing.T) {
	server, client := setup(t)
	pages := 0
	server.HandleFunc(hstest.PathMutualRooms, func(w http.ResponseWriter, _ *http.Request) {
		pages++
		hstest.WriteJSON(w, http.StatusOK, map[string]any{"joined": []string{"!1:x"}, "next_batch": strconv.Itoa(pages)})
	})
	_, err := client.MutualRooms(t.Context(), bearer("t"), bob)
	if _, ok := errors.AsType[*homeserver.DownError](err); !ok || pages > 100 {
		t.Errorf("%d pages, then %v", pages, err)
	}
}
