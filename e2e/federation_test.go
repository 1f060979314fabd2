//go:build goolm

package e2e

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation"
	"freshen/internal/federation/fedtest"
	"freshen/internal/testbed"
)

// asking returns a client that asks as the server of that name, with that key.
func asking(t *testing.T, world *testbed.World, origin string, key *federation.SigningKey) *federation.Client {
	t.Helper()
	roots, err := federation.LoadRoots(world.CA.File)
	if err != nil {
		t.Fatal(err)
	}
	client, err := federation.New(federation.Config{
		ServerName: origin, Key: key, Roots: roots, AllowNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func keyOf(t *testing.T, d *testbed.Homeserver) *federation.SigningKey {
	t.Helper()
	key, _, err := federation.ReadSigningKey(d.SigningKeyFile)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// bothWays are the two homeservers, each asking the other.
func bothWays(world *testbed.World) [][2]*testbed.Homeserver {
	return [][2]*testbed.Homeserver{{world.A, world.B}, {world.B, world.A}}
}

// A failure means that users whose ID holds one of these characters cannot be refreshed: a homeserver computes the
// signature over other bytes than we do, or understands another user.
func TestSignaturesOverUnusualUserIDs(t *testing.T) {
	world, _, _, _ := setup(t)
	for _, way := range bothWays(world) {
		from, to := way[0], way[1]
		t.Run("from "+from.Name+" to "+to.Name, func(t *testing.T) {
			ctx := turn(t)
			client := asking(t, world, from.ServerName, keyOf(t, from))
			for _, localpart := range []string{
				"plain", "a/b", "/", "//", "a/../b", ".", "..", "a%b", "a%2Fb", "%", "%25", "a+b", "a=b", "=2f", "Capitals", "a?b=c", "?", "a#b", "#",
				"a&b;c", "a@b", "~user", "<script>", `"quoted"`, `back\slash`, "a|b", "[x]", "{x}", "^", "`", "'", "(a)", "a,b", "a*b", "a!b", "$a",
				strings.Repeat("/+%", 60),
			} {
				user := id.UserID("@" + localpart + ":" + to.ServerName)
				list, err := client.FetchDeviceList(ctx, user)
				if err != nil {
					t.Errorf("%s: %v", user, err)
				} else if list.UserID != user {
					t.Errorf("%s: the list is that of %s", user, list.UserID)
				}
			}
		})
	}
}

// A failure means that an administrator whose freshen has another key than their homeserver publishes, or another server
// name, is not told so, or that other servers' users are blamed for it.
func TestWrongSigningKeys(t *testing.T) {
	world, _, _, _ := setup(t)
	for _, way := range bothWays(world) {
		from, to := way[0], way[1]
		right := keyOf(t, from)
		_, version, _ := strings.Cut(string(right.ID()), ":")
		seed := bytes.Repeat([]byte{7}, 32)
		for _, c := range []struct {
			name, origin string
			key          *federation.SigningKey
		}{
			{"another key under the right key ID", from.ServerName, federation.NewSigningKey(fedtest.KeyFromSeed(version, seed))},
			{"a key that is not published", from.ServerName, federation.NewSigningKey(fedtest.KeyFromSeed("unpublished", seed))},
			{"the right key for another server", to.ServerName, right},
			{"the right key for a server that nobody knows", "127.0.0.1:1", right},
		} {
			t.Run("from "+from.Name+" to "+to.Name+", "+c.name, func(t *testing.T) {
				ctx := turn(t)
				requireUnaccepted(t, ctx, asking(t, world, c.origin, c.key), id.UserID("@bob:"+to.ServerName))
				if _, err := asking(t, world, from.ServerName, right).FetchDeviceList(ctx, id.UserID("@bob:"+to.ServerName)); err != nil {
					t.Errorf("after it, the right key is not accepted either: %v", err)
				}
			})
		}
	}
}

func requireUnaccepted(t *testing.T, ctx context.Context, client *federation.Client, user id.UserID) {
	t.Helper()
	list, err := client.FetchDeviceList(ctx, user)
	var failure *freshen.Failure
	if !errors.As(err, &failure) {
		t.Fatalf("the list came all the same: %v, %v", list, err)
	}
	if failure.Reason != freshen.ReasonHTTP || failure.Status != http.StatusUnauthorized || failure.Blames() != freshen.BlameDestination ||
		!strings.Contains(failure.Sentence, "does not accept our signature") || !strings.Contains(failure.Sentence, "published") {
		t.Errorf("the failure is %s, status %d: %q", failure.Reason, failure.Status, failure.Sentence)
	}
}
