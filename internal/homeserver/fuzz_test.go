package homeserver_test

import (
	"errors"
	"net/http"
	"testing"

	"freshen"
	"freshen/internal/homeserver"
)

// Whatever stands where the homeserver should be, what comes out is an identity, rooms and members that harm no client,
// or an error of a known kind.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		`{"user_id":"@alice:a.example","device_id":"D","is_guest":true}`, `{"user_id":"@:x"}`, `null`, `[]`, `<html>`, ``,
		`{"joined_rooms":["!a:b","",null,"x"]}`, `{"joined":{"@a:b":{},"@\u0000:b":null}}`, `{"joined":["!a:b"],"next_batch":"1"}`,
		`{"joined":["!a:b"],"next_batch_token":""}`, `{"errcode":"M_UNRECOGNIZED"}`, `{"errcode":"M_UNKNOWN_TOKEN","soft_logout":true}`, `{"errcode":7}`,
	} {
		f.Add(http.StatusOK, seed)
		f.Add(http.StatusUnauthorized, seed)
		f.Add(http.StatusNotFound, seed)
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		client := homeserver.New(loopback, inMemory(func(*http.Request) (*http.Response, error) { return respond(status, body), nil }))
		check := func(what string, err error) {
			_, down := errors.AsType[*homeserver.DownError](err)
			_, refused := errors.AsType[*homeserver.AnswerError](err)
			if err != nil && !down && !refused && !errors.Is(err, homeserver.ErrUnrecognized) {
				t.Errorf("%s: an error of no known kind: %v", what, err)
			}
			if err == nil && status != http.StatusOK {
				t.Errorf("%s: took status %d for an answer", what, status)
			}
		}
		who, err := client.WhoAmI(t.Context(), bearer("t"))
		check("whoami", err)
		if _, _, invalid := freshen.ParseUserID(string(who.UserID)); err == nil && invalid != nil {
			t.Errorf("whoami names %q", who.UserID)
		}
		members, err := client.JoinedMembers(t.Context(), bearer("t"), "!a:b")
		check("joined_members", err)
		for _, member := range members {
			if _, _, invalid := freshen.ParseUserID(string(member)); invalid != nil {
				t.Errorf("%q is a member", member)
			}
		}
		rooms, err := client.JoinedRooms(t.Context(), bearer("t"))
		check("joined_rooms", err)
		mutual, err := client.MutualRooms(t.Context(), bearer("t"), bob)
		check("mutual_rooms", err)
		for _, room := range append(rooms, mutual...) {
			if room == "" || room[0] != '!' {
				t.Errorf("%q is a room", room)
			}
		}
	})
}
