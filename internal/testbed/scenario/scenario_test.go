//go:build goolm

package scenario

import (
	"net/http"
	"strings"
	"testing"

	"freshen/internal/testbed"
	"freshen/internal/testbed/client"
)

// A failure means that the story would pass with an answer that does not tell a user what happened.
func TestFailureMustSayEverything(t *testing.T) {
	const good = `{"errcode":"M_UNKNOWN","error":"127.0.0.3:1 refused the connection. Next try in 2 s.",` +
		`"org.matrix.msc2638.failure":{"destination":"127.0.0.3:1","reason":"connect","retry_after_ms":2000}}`
	s := &story{world: &testbed.World{B: &testbed.Homeserver{ServerName: "127.0.0.3:1"}}}
	check := func(status int, body string) error {
		_, err := s.checkFailure(&client.Answer{Status: status, Body: []byte(body)})
		return err
	}
	if err := check(http.StatusBadGateway, good); err != nil {
		t.Errorf("a good answer is refused: %v", err)
	}
	if check(http.StatusServiceUnavailable, good) == nil {
		t.Error("another status passes")
	}
	for _, c := range [][2]string{
		{"M_UNKNOWN", "M_FORBIDDEN"},
		{`"error":"127.0.0.3:1 refused`, `"error":"It refused`},
		{"refused the connection", "failed"},
		{"Next try in 2 s.", ""},
		{`"destination":"127.0.0.3:1"`, `"destination":"127.0.0.2:1"`},
		{`"connect"`, `"timeout"`},
		{":2000", ":0"},
		{"{", ""},
	} {
		if check(http.StatusBadGateway, strings.Replace(good, c[0], c[1], 1)) == nil {
			t.Errorf("an answer with %q in place of %q passes", c[1], c[0])
		}
	}
}
