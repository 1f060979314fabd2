package homeserver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
)

// dendrite is what freshen uses of one: what it has stored, the admin call, and the key query that fetches as well.
type dendrite struct {
	token, file string

	mu     sync.Mutex
	stored string // as GET /user/devices tells it
	remote string // what a fetch brings; "" while Dendrite does not fetch
	status int    // of the admin call; 0 for 200
	blind  error  // in place of what is stored
	asked  []string
}

func (d *dendrite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	d.asked = append(d.asked, r.Method+" "+r.URL.EscapedPath())
	admin := r.URL.EscapedPath() == "/_dendrite/admin/refreshDevices/"+url.PathEscape(string(target))
	switch {
	case r.Header.Get("Authorization") != "Bearer "+d.token:
		w.WriteHeader(http.StatusUnauthorized)
	case admin && d.status != 0:
		w.WriteHeader(d.status)
	case admin && strings.Contains(d.stored, `"devices":[]`): // 200, and nothing is done
	case admin, r.URL.Path == "/_matrix/client/v3/keys/query" && string(body) == fmt.Sprintf(`{"device_keys":{%q:[]}}`, target):
		if d.remote != "" {
			d.stored = d.remote
		}
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	_, _ = io.WriteString(w, "{}")
}

func (d *dendrite) tells(_ context.Context, user id.UserID) (*freshen.DeviceList, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blind != nil {
		return nil, d.blind
	}
	return freshen.ParseDeviceList([]byte(d.stored), user)
}

func newDendrite(t *testing.T) (*dendrite, *homeserver.Dendrite) {
	t.Helper()
	d := &dendrite{token: "admin's", file: filepath.Join(t.TempDir(), "token")}
	server := httptest.NewServer(d)
	t.Cleanup(server.Close)
	base, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.file, []byte(d.token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := homeserver.NewDendrite(homeserver.DendriteConfig{
		URL: base, TokenFile: d.file, Stored: d.tells, Transport: homeserver.NewTransport(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, client
}

// told is a list with these devices, each as ID=key, and perhaps cross-signing keys, as Dendrite or another server tells it.
func told(devices, master string) string {
	var parts []string
	for text := range strings.FieldsSeq(devices) {
		device, key, _ := strings.Cut(text, "=")
		parts = append(parts, fmt.Sprintf(`{"device_id":%q,"keys":{"user_id":%q,"device_id":%q,"algorithms":[],"keys":{"ed25519:%s":%q},"signatures":{}}}`,
			device, target, device, device, key))
	}
	signing := `null`
	if master != "" {
		signing = fmt.Sprintf(`{"user_id":%q,"usage":["master"],"keys":{"ed25519:%s":%q}}`, target, master, master)
	}
	return fmt.Sprintf(`{"user_id":%q,"stream_id":1,"devices":[%s],"master_key":%s,"self_signing_key":null}`, target, strings.Join(parts, ","), signing)
}

func parsed(t *testing.T, text string) *freshen.DeviceList {
	t.Helper()
	list, err := freshen.ParseDeviceList([]byte(text), target)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A failure means that Dendrite's 200 is taken for done where nothing was, that what it tells its clients is called a hole,
// or that a hole is not found.
func TestDendriteDelivers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, remote, want string
		hole                 homeserver.Hole
		calls                int
	}{
		"a new device":               {told("A=1", ""), told("A=1 B=2", ""), told("A=1 B=2", ""), homeserver.HoleNone, 1},
		"a new key":                  {told("A=1", ""), told("A=9", ""), told("A=9=", ""), homeserver.HoleNone, 1},
		"the same":                   {told("A=1", "M"), told("A=1", "M"), told("A=1", "M"), homeserver.HoleNone, 1},
		"one gone, one new":          {told("A=1 B=2", ""), told("B=2 C=3", ""), told("B=2 C=3", ""), homeserver.HoleNone, 1},
		"one gone, identity reset":   {told("A=1 B=2", "M"), told("B=2", "N"), told("B=2", "N"), homeserver.HoleNone, 1},
		"one gone":                   {told("A=1 B=2", ""), told("B=2", ""), told("B=2", ""), homeserver.HoleDevicesGone, 1},
		"all gone":                   {told("A=1 B=2", ""), told("", ""), told("", ""), homeserver.HoleNoDevices, 1},
		"none, as before":            {told("", ""), told("", ""), told("", ""), homeserver.HoleNone, 1},
		"it stores nobody's devices": {told("", ""), told("A=1", ""), told("A=1", ""), homeserver.HoleNone, 2},
		"it stores and gets none":    {told("", ""), "", told("A=1", ""), homeserver.HoleNotFetched, 2},
		"it did not fetch":           {told("A=1", ""), "", told("A=1 B=2", ""), homeserver.HoleNotFetched, 1},
		"it kept what is gone":       {told("A=1 B=2", ""), "", told("A=1", ""), homeserver.HoleNotFetched, 1},
		"it kept an old key":         {told("A=1", ""), "", told("A=9", ""), homeserver.HoleNotFetched, 1},
		"it kept an old identity":    {told("A=1", "M"), "", told("A=1", "N"), homeserver.HoleNotFetched, 1},
		"identity gone":              {told("A=1", "M"), told("A=1 B=2", "M"), told("A=1 B=2", ""), homeserver.HoleKeysGone, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, client := newDendrite(t)
			d.stored, d.remote = c.before, c.remote
			if err := client.Mark(t.Context(), target); err != nil {
				t.Fatal(err)
			}
			outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: parsed(t, c.want)})
			if outcome.Hole != c.hole || (outcome.Sentence == "") != (c.hole == homeserver.HoleNone) {
				t.Errorf("%+v, want %q", outcome, c.hole)
			}
			if len(d.asked) != c.calls || d.asked[0] != "POST /_dendrite/admin/refreshDevices/@bob:b.org" {
				t.Errorf("Dendrite was asked %q", d.asked)
			}
		})
	}
}

// A failure means that what freshen left out of a list, and Dendrite took, is asked for again for days.
func TestDendriteMayHaveMore(t *testing.T) {
	t.Parallel()
	d, client := newDendrite(t)
	d.stored, d.remote = told("A=1", ""), told("A=1 ODD=2 B=3", "")
	list := parsed(t, told("A=1 B=3", ""))
	if outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: list, Loose: true}); outcome.Hole != homeserver.HoleNone {
		t.Errorf("%+v", outcome)
	}
}

// A failure means that a Dendrite which is away, or refuses freshen, is taken for one that does not fetch one list, or the
// other way round: then all wait for one, or one for hours after all is well.
func TestDendriteRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*dendrite)
		hole   homeserver.Hole
		says   string
	}{
		"the token is nobody's":      {func(d *dendrite) { d.token = "another's" }, homeserver.HoleAway, "401: homeserver.dendrite.admin_token_file must hold"},
		"the token is no admin's":    {func(d *dendrite) { d.status = http.StatusForbidden }, homeserver.HoleAway, "403: homeserver.dendrite.admin_token_file must hold"},
		"it has no admin API":        {func(d *dendrite) { d.status = http.StatusNotFound }, homeserver.HoleAway, "Dendrite's own listener"},
		"its database is in trouble": {func(d *dendrite) { d.status = http.StatusInternalServerError }, homeserver.HoleNotFetched, "HTTP status 500"},
		"it does not answer": {func(d *dendrite) {
			d.blind = &homeserver.DownError{Asked: "a device list", Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}
		}, homeserver.HoleAway, "connection refused"},
		"it answers too late": {func(d *dendrite) {
			d.blind = &homeserver.DownError{Asked: "a device list", Err: context.DeadlineExceeded}
		}, homeserver.HoleNotFetched, "deadline"},
		"it does not tell what it has": {func(d *dendrite) { d.blind = errors.New("404") }, homeserver.HoleNone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, client := newDendrite(t)
			d.stored, d.remote = told("A=1", ""), told("A=1 B=2", "")
			c.change(d)
			outcome := client.Deliver(t.Context(), homeserver.Delivery{Target: target, List: parsed(t, d.remote)})
			if outcome.Hole != c.hole || !strings.Contains(outcome.Sentence, c.says) || strings.Contains(outcome.Sentence, "admin's") {
				t.Errorf("%+v, want %q", outcome, c.hole)
			}
		})
	}
}

// A failure means that a new token counts after a restart only, or that a file which holds none is used.
func TestDendriteToken(t *testing.T) {
	t.Parallel()
	d, client := newDendrite(t)
	d.stored, d.remote, d.token = told("A=1", ""), told("A=1 B=2", ""), "new"
	todo := homeserver.Delivery{Target: target, List: parsed(t, d.remote)}
	if outcome := client.Deliver(t.Context(), todo); outcome.Hole != homeserver.HoleAway {
		t.Errorf("with the old token: %+v", outcome)
	}
	if err := os.WriteFile(d.file, []byte("new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if outcome := client.Deliver(t.Context(), todo); outcome.Hole != homeserver.HoleNone {
		t.Errorf("with the new token: %+v", outcome)
	}
	file := filepath.Join(t.TempDir(), "token")
	for text, good := range map[string]bool{"new": true, "new\n": true, "": false, " \n": false, "two words": false, strings.Repeat("x", 5000): false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if token, err := homeserver.ReadToken(file); (err == nil) != good || good && token != "new" {
			t.Errorf("%.20q gives %q, %v", text, token, err)
		}
	}
	if _, err := homeserver.NewDendrite(homeserver.DendriteConfig{TokenFile: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}
