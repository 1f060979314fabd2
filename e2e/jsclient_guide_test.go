//go:build goolm

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/testbed/jsclient"
	"freshen/internal/testbed/scenario"
	"freshen/internal/testbed/testbedtest"
)

// What the guide's JavaScript tells users, beside the success that the whole story has. A failure means that a client
// whose author copied it says nothing, or something wrong. That in Go has tests beside it.
func TestGuideInJavaScript(t *testing.T) {
	t.Parallel()
	world, ctx := shared.World(t), testbedtest.Context(t, patience)
	host := startNode(t, t)
	register := func(url, role string) *jsclient.Client {
		t.Helper()
		c, err := host.Register(ctx, jsclient.Account{
			URL: url, Localpart: fmt.Sprintf("%s%d", role, people.Add(1)), Password: scenario.Password, DeviceName: role,
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	alice, bob := register(world.Freshen.URL, "alice"), register(world.B.URL, "bob")
	for _, c := range []struct {
		name string
		as   *jsclient.Client
		user id.UserID
		want string
	}{
		{"a list without news", alice, bob.UserID(), "The devices were up to date already."},
		{"a server that is down", alice, "@bob:127.0.0.1:1", "127.0.0.1:1 cannot be reached. Your homeserver goes on trying by itself."},
		{"a server that is refused", alice, "@bob:10.0.0.1:8448", "Your homeserver does not talk to 10.0.0.1:8448."},
		{"a homeserver without freshen", bob, alice.UserID(), "Your homeserver cannot do this."},
	} {
		sentence, err := c.as.Refresh(ctx, c.user, 300*time.Millisecond)
		if err != nil || sentence != c.want {
			t.Errorf("%s: the user reads %q, want %q (%v)", c.name, sentence, c.want, err)
		}
	}
	// What has no reason of its own is told in freshen's words.
	if sentence, err := alice.Refresh(ctx, "bob", 0); err != nil || !strings.Contains(sentence, "user ID") {
		t.Errorf("what is no user ID: the user reads %q (%v)", sentence, err)
	}
}
