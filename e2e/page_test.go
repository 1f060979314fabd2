//go:build goolm

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/chromedp/kb"

	"freshen/internal/page"
	"freshen/internal/testbed"
	"freshen/internal/testbed/chromium"
	"freshen/internal/testbed/client"
	"freshen/internal/testbed/jsclient"
	"freshen/internal/testbed/scenario"
	"freshen/internal/testbed/testbedtest"
)

// TestPage is the way of a person whose client has no button, before real homeservers and with the keyboard alone. A failure
// means that they cannot help themselves, or that the page leaves a session behind.
func TestPage(t *testing.T) {
	t.Parallel()
	_, err := chromium.Find()
	testbedtest.Require(t, "a browser", err)
	p := &pageStory{world: testbedtest.Own(t, testbed.Options{Freshen: true, ManyRefreshes: true}), ctx: testbedtest.Context(t, 2*patience)}
	p.meet(t)
	p.open(t)
	p.signIn(t)
	p.refresh(t)
	p.beOwed(t)
	p.signOut(t)
}

// pageStory is that of one Alice on A, who has a client and the page, and of Bob and Mallory on B.
type pageStory struct {
	world           *testbed.World
	ctx             context.Context
	alice, bob, eve *client.Client
	witness         *witness
	*chromium.Tab
}

// hostile is the name of somebody who means harm.
const hostile = `<img src=x onerror="document.title='pwned'">` + "\u202egnp"

func (p *pageStory) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v\nThe end of freshen's log:\n%s", err, p.world.Freshen.LogTail())
	}
}

// meet makes the people, who share an encrypted room.
func (p *pageStory) meet(t *testing.T) {
	register := func(url, role, device string) *client.Client {
		c, err := client.Register(p.ctx, client.Account{
			URL: url, Localpart: fmt.Sprint(role, people.Add(1)), Password: scenario.Password, DeviceName: device,
		})
		p.must(t, err)
		t.Cleanup(c.Close)
		return c
	}
	p.alice = register(p.world.Freshen.URL, "alice", "Alice's phone")
	p.bob = register(p.world.B.URL, "bob", "Bob's phone")
	p.eve = register(p.world.B.URL, "mallory", hostile)
	p.alice.StartSync(p.ctx)
	room, err := p.alice.CreateEncryptedRoom(p.ctx, p.bob.UserID(), p.eve.UserID())
	p.must(t, err)
	for c, name := range map[*client.Client]string{p.bob: "Bob", p.eve: hostile} {
		path := []string{"_matrix", "client", "v3", "profile", c.UserID().String(), "displayname"}
		_, err := c.Do(p.ctx, http.MethodPut, path, map[string]string{"displayname": name})
		p.must(t, err)
		p.must(t, c.Join(p.ctx, room, p.world.A.ServerName))
		p.must(t, p.alice.AwaitMember(p.ctx, room, c.UserID()))
	}
	_, err = p.alice.Send(p.ctx, room, "Hello")
	p.must(t, err)
}

// open opens the page in a browser.
func (p *pageStory) open(t *testing.T) {
	browser, err := chromium.Start(p.ctx, filepath.Join(t.TempDir(), "profile"), nil)
	p.must(t, err)
	t.Cleanup(func() {
		if err := browser.Close(); err != nil {
			t.Error(err)
		}
	})
	p.witness = newWitness(t, p.world.Freshen.URL)
	p.Tab, err = browser.Tab(p.ctx)
	p.must(t, err)
	t.Cleanup(func() {
		for _, problem := range p.Problems() {
			t.Errorf("in the page: %s", problem)
		}
	})
	p.must(t, p.Open(p.ctx, p.witness.url+page.Path))
}

// seen waits until the page shows a part of a text.
func (p *pageStory) seen(t *testing.T, selector, part string) {
	t.Helper()
	p.must(t, p.Await(p.ctx, "[...document.querySelectorAll("+strconv.Quote(selector)+
		")].some((e) => e.checkVisibility() && e.textContent.includes("+strconv.Quote(part)+"))"))
}

func (p *pageStory) signIn(t *testing.T) {
	p.must(t, p.Await(p.ctx, `!document.getElementById("password-form").hidden`))
	p.must(t, p.TabTo(p.ctx, "User name"))
	localpart, _, err := p.alice.UserID().Parse()
	p.must(t, err)
	p.must(t, p.Keys(p.ctx, localpart+kb.Tab+"not this one"+kb.Enter))
	p.seen(t, "#notice", "The user name or the password is wrong.")
	p.must(t, p.Keys(p.ctx, scenario.Password+kb.Enter)) // the password has the focus
	p.seen(t, ".name", "Bob")
	p.seen(t, ".name", `<img src=x onerror="document.title='pwned'"> gnp`)
	p.seen(t, ".fact", "No cross-signing keys")
	p.seen(t, ".fact", "Never refreshed here")
	p.seen(t, "summary", "1 device")
	p.requireAccessible(t, "on real homeservers")
	if names := p.devicesOfAlice(t); !slices.Contains(names, "Device refresh page (freshen)") {
		t.Errorf("Alice's sessions are called %q: nobody knows what the page's is", names)
	}
}

// refresh has Bob get a laptop and cross-signing, of which A never hears, until Alice presses the button.
func (p *pageStory) refresh(t *testing.T) {
	p.world.Link.LoseDeviceLists(true)
	localpart, _, err := p.bob.UserID().Parse()
	p.must(t, err)
	laptop, err := client.Login(p.ctx, client.Account{URL: p.world.B.URL, Localpart: localpart, Password: scenario.Password, DeviceName: "Bob's laptop"})
	p.must(t, err)
	t.Cleanup(laptop.Close)
	p.must(t, laptop.SetUpCrossSigning(p.ctx))
	p.must(t, p.world.Link.AwaitLost(p.ctx, 2, func(edu testbed.LostEDU) bool {
		return edu.Type == "m.signing_key_update" && edu.UserID == string(p.bob.UserID())
	}))
	p.world.Link.LoseDeviceLists(false)

	from, err := p.alice.AwaitWaiting(p.ctx)
	p.must(t, err)
	p.must(t, p.TabTo(p.ctx, "Refresh Bob"))
	p.must(t, p.Keys(p.ctx, kb.Enter))
	p.seen(t, ".result.good", "The devices are up to date now, and your clients are told. 1 device is new.")
	p.seen(t, ".device", "Bob's laptop")
	p.seen(t, ".verdict", "Signed by its owner")
	p.seen(t, ".verdict", "Not signed by its owner") // the phone
	p.seen(t, "#news", "Bob: The devices are up to date now")
	p.seen(t, ".fact", "Last refreshed ")
	_, err = p.alice.AwaitChanged(p.ctx, from, p.bob.UserID())
	p.must(t, err)
	_, err = p.alice.AwaitWaiting(p.ctx) // when her client syncs again, it has the keys
	p.must(t, err)
	known, err := p.alice.Known(p.ctx, p.bob.UserID())
	p.must(t, err)
	if !known[laptop.DeviceID()] {
		t.Errorf("Alice's own client knows of Bob's devices %v: nothing is mended for her", known)
	}

	// The devices of somebody else, by keyboard.
	p.must(t, p.TabTo(p.ctx, "1 device"))
	p.must(t, p.Keys(p.ctx, kb.Enter))
	p.seen(t, ".device-name", `<img src=x onerror="document.title='pwned'"> gnp`)
	var title string
	p.must(t, p.Eval(p.ctx, "document.title", &title))
	if title != "Refresh a contact’s devices" {
		t.Errorf("a name ran as a script: %q", title)
	}
}

// beOwed has B go away and come back.
func (p *pageStory) beOwed(t *testing.T) {
	p.must(t, p.world.B.Stop(p.ctx))
	p.must(t, p.TabTo(p.ctx, "Refresh Bob"))
	p.must(t, p.Keys(p.ctx, " "))
	p.seen(t, ".result.bad", p.world.B.ServerName+" cannot be reached. Your homeserver goes on trying by itself, next at ")
	p.seen(t, ".fact", "Waiting for "+p.world.B.ServerName)
	p.requireAccessible(t, "while something is owed")
	p.must(t, p.world.B.Start(p.ctx))
	p.seen(t, ".result.good", p.world.B.ServerName+" has answered. The devices are up to date now, and your clients are told.")
}

func (p *pageStory) signOut(t *testing.T) {
	token := p.witness.last()
	alice := newCaller(t, p.world.A.URL, token)
	if a := alice.do(t, p.ctx, http.MethodGet, "/_matrix/client/v3/account/whoami", nil); a.status != http.StatusOK {
		t.Fatalf("the page's token is no good before it is signed out: %s", a)
	}
	p.must(t, p.TabTo(p.ctx, "Sign out"))
	p.must(t, p.Keys(p.ctx, kb.Enter))
	p.seen(t, "#notice", "You are signed out, and the session of this page is gone.")
	requireError(t, alice.do(t, p.ctx, http.MethodGet, "/_matrix/client/v3/account/whoami", nil), http.StatusUnauthorized, "M_UNKNOWN_TOKEN")

	// Once more, and closed this time.
	p.must(t, p.TabTo(p.ctx, "User name"))
	localpart, _, err := p.alice.UserID().Parse()
	p.must(t, err)
	p.must(t, p.Keys(p.ctx, localpart+kb.Tab+scenario.Password+kb.Enter))
	p.seen(t, ".name", "Bob")
	again := alice.as(p.witness.last())
	p.must(t, p.Close())
	select {
	case <-p.witness.signedOut:
	case <-p.ctx.Done():
		t.Fatal("a page that is closed does not sign out")
	}
	requireError(t, again.do(t, p.ctx, http.MethodGet, "/_matrix/client/v3/account/whoami", nil), http.StatusUnauthorized, "M_UNKNOWN_TOKEN")
	if names := p.devicesOfAlice(t); !slices.Equal(names, []string{"Alice's phone"}) {
		t.Errorf("Alice's sessions are called %q: the page has left one behind", names)
	}
}

func (p *pageStory) devicesOfAlice(t *testing.T) (names []string) {
	t.Helper()
	answer, err := p.alice.Do(p.ctx, http.MethodGet, []string{"_matrix", "client", "v3", "devices"}, nil)
	p.must(t, err)
	var body struct {
		Devices []struct {
			Name string `json:"display_name"`
		} `json:"devices"`
	}
	p.must(t, json.Unmarshal(answer.Body, &body))
	for _, device := range body.Devices {
		names = append(names, device.Name)
	}
	return names
}

func (p *pageStory) requireAccessible(t *testing.T, state string) {
	t.Helper()
	modules, err := jsclient.Install(p.ctx, os.Stderr)
	testbedtest.Require(t, "axe-core", err)
	script, err := os.ReadFile(filepath.Join(modules, "node_modules", "axe-core", "axe.min.js"))
	p.must(t, err)
	found, err := p.Violations(p.ctx, string(script))
	p.must(t, err)
	for _, violation := range found {
		t.Errorf("%s: %s", state, violation)
	}
}

// witness stands between the page and freshen, and knows the page's token.
type witness struct {
	url       string
	signedOut chan struct{} // a /logout of a token was answered, the second one

	mu      sync.Mutex
	token   string
	logouts int
}

func newWitness(t *testing.T, target string) *witness {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	backend := &http.Transport{MaxIdleConnsPerHost: 8}
	w := &witness{signedOut: make(chan struct{})}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, Transport: backend, ErrorLog: quiet}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
			w.mu.Lock()
			w.token = token
			w.mu.Unlock()
		}
		proxy.ServeHTTP(rw, r)
		if strings.HasSuffix(r.URL.Path, "/logout") {
			w.mu.Lock()
			if w.logouts++; w.logouts == 2 {
				close(w.signedOut)
			}
			w.mu.Unlock()
		}
	}))
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		backend.CloseIdleConnections()
	})
	w.url = server.URL
	return w
}

func (w *witness) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.token
}
