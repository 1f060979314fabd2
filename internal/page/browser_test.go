package page_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"freshen/internal/homeserver/hstest"
)

const refreshBob = "/_matrix/client/unstable/org.matrix.msc2638/user/%40bob%3Ab.example/devices/refresh"

func bob() *person { return newPerson("@bob:b.example", "Bob").has("PHONE", "Bob's phone", false) }

// The whole of what the page is for. A failure means that a person cannot find whose list is old, does not see what a refresh
// has brought, or is left with a session that nobody ends.
func TestSignInRefreshSignOut(t *testing.T) {
	hs := newHomeserver(t)
	hs.adds(bob())
	hs.adds(newPerson("@carol:c.example", "Carol").crossSigns().has("C1", "Carol's phone", true))
	hs.adds(newPerson("@dave:a.example", "Dave").has("D1", "", false))
	hs.adds(newPerson("@erin:e.example", "Erin").crossSigns().has("E1", "Erin's laptop", true))
	hs.set(func() {
		hs.standings = map[string]any{"@carol:c.example": map[string]any{"fetched_ago_ms": 60_000}, "@erin:e.example": map[string]any{"fetched_ago_ms": 5}}
	})
	o := signedIn(t, hs)
	if diff := cmp.Diff([]string{"Bob", "Carol", "Erin", "Dave"}, o.text(".name")); diff != "" {
		t.Errorf("those whose lists are most likely old do not come first (-want +got)\n%s", diff)
	}
	if got := o.text(".person:first-child .fact"); !slices.Contains(got, "No cross-signing keys") || !slices.Contains(got, "Never refreshed here") {
		t.Errorf("of Bob it says %q", got)
	}
	login := hs.sent(v3 + "/login")
	if last := login[len(login)-1]; !strings.Contains(last, `"initial_device_display_name":"Device refresh page (freshen)"`) {
		t.Errorf("it signs in with %s", last)
	}

	hs.adds(bob().crossSigns().has("PHONE", "Bob's phone", false).has("LAPTOP", "Bob's laptop", true))
	hs.set(func() {
		hs.refresh = func(w http.ResponseWriter, _ *http.Request) {
			hs.set(func() { hs.standings["@bob:b.example"] = map[string]any{"fetched_ago_ms": 0} })
			hstest.WriteJSON(w, http.StatusAccepted, struct{}{})
			hs.news <- []string{"@bob:b.example"}
		}
	})
	o.click(".person:first-child .refresh")
	o.awaitText(".person:first-child .result.good", "The devices are up to date now, and your clients are told. 1 device is new.")
	o.awaitText("#news", "Bob: ✓The devices are up to date now"[:3])
	o.awaitText(".person:first-child summary", "2 devices, 1 not signed by its owner")
	o.awaitText(".person:first-child .device", "Bob's laptop")
	if got := o.text(".person:first-child .verdict"); !slices.Equal(got, []string{"✓Signed by its owner", "!Not signed by its owner"}) {
		t.Errorf("of Bob's devices it says %q", got)
	}
	if got := o.text(".person:first-child .fact"); slices.Contains(got, "No cross-signing keys") || !strings.HasPrefix(strings.Join(got, ""), "Last refreshed ") {
		t.Errorf("of Bob it says %q afterwards", got)
	}
	if uploads := hs.sent(v3 + "/keys/upload"); len(uploads) != 0 {
		t.Error("it uploads keys: people would encrypt for a page that is closed")
	}

	o.click("#leave")
	o.awaitText("#notice", "You are signed out, and the session of this page is gone.")
	if len(hs.signedOut) != 1 {
		t.Errorf("signed out were %q", hs.signedOut)
	}
	if shown := o.text(".person"); len(shown) != 0 {
		t.Errorf("it still shows %q", shown)
	}
}

// A failure means that a stranger's name can run script, say something else than it is, or hide the button.
func TestHostileNames(t *testing.T) {
	hs := newHomeserver(t)
	const attack = `<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>`
	hostile := newPerson("@mallory:m.example", attack+"\u202e\u2066gnp.exe\u0000\n\n").has("D<b>1", attack+strings.Repeat("W", 5000), false)
	hs.adds(hostile)
	hs.adds(newPerson("@zalgo:m.example", strings.Repeat("Z"+strings.Repeat("\u0301", 50), 200)).has("D2", "\u202e"+strings.Repeat("\u0301", 500), false))
	hs.adds(newPerson("@"+strings.Repeat("long", 50)+":m.example", ""))
	hs.set(func() {
		hs.refresh = func(w http.ResponseWriter, _ *http.Request) {
			hstest.WriteJSON(w, http.StatusBadGateway, map[string]any{
				"errcode": "M_UNKNOWN", "error": attack + "\u202e" + strings.Repeat("x", 3000),
				"org.matrix.msc2638.failure": map[string]any{"destination": attack + "\u202em.example", "reason": "http", "retry_after_ms": 1000},
			})
		}
	})
	o := signedIn(t, hs)
	o.click(".person:nth-child(1) .refresh")
	o.click(".person:nth-child(2) .refresh")
	o.awaitText(".person:nth-child(1) .result", "answered with an error")
	o.awaitText(".person:nth-child(2) .result", "answered with an error")
	o.must(o.Eval(o.ctx, `document.querySelectorAll("details").forEach((d) => { d.open = true; })`, nil))
	o.awaitText(".device", "D<b>1")
	var bad []string
	o.must(o.Eval(o.ctx, `[...document.querySelectorAll("#list img, #list script, #list b")].map((e) => e.outerHTML)`, &bad))
	if len(bad) > 0 {
		t.Errorf("text became markup: %q", bad)
	}
	all := strings.Join(o.text("#list"), "")
	if strings.ContainsAny(all, "\u202e\u2066\u0000\n") {
		t.Error("what changes the direction of text, or is none, is shown")
	}
	if !strings.Contains(all, attack) {
		t.Errorf("a name with markup in it is not shown as it is: %s", all)
	}
	var title string
	o.must(o.Eval(o.ctx, "document.title", &title))
	if title != "Refresh a contact's devices" {
		t.Errorf("script of a name ran: %q", title)
	}
	o.requireAccessible("hostile names")
	var covered bool
	o.must(o.Eval(o.ctx, `[...document.querySelectorAll(".refresh")].some((b) => { b.scrollIntoView({block: "center"}); const r = b.getBoundingClientRect();
		return document.elementFromPoint(r.x + r.width / 2, r.y + r.height / 2) !== b || r.width < 44 || r.height < 44; })`, &covered))
	if covered {
		t.Error("a name covers the button")
	}
}

// What a device's signatures are worth must be told as it is: who trusts a device that its owner did not sign may be
// talking to somebody else's.
func TestSignatures(t *testing.T) {
	hs := newHomeserver(t)
	good := func() *person { return newPerson("@bob:b.example", "Bob").crossSigns() }
	swapped := good().has("A", "", true)
	swapped.devices["B"] = swapped.devices["A"]
	delete(swapped.devices, "A")
	noOwner := newPerson("@bob:b.example", "Bob").has("A", "", false)
	forged := good().has("A", "", true)
	forged.selfSigning.(map[string]any)["signatures"] = map[string]any{}
	mallory := newPerson("@mallory:m.example", "").crossSigns()
	stolen := good().has("A", "", true)
	stolen.master, stolen.selfSigning = mallory.master, mallory.selfSigning
	for name, c := range map[string]struct {
		person *person
		want   string
	}{
		"signed":                              {good().has("A", "", true), "✓Signed by its owner"},
		"not signed":                          {good().has("A", "", false), "!Not signed by its owner"},
		"changed after it was signed":         {good().has("A", "", true).tampered("A"), "!Its keys do not hold: clients ignore it"},
		"under another ID":                    {swapped, "!Its keys do not hold: clients ignore it"},
		"without an owner's keys":             {noOwner, "–Cannot be signed: its owner has no cross-signing keys"},
		"by a key that the owner did not own": {forged, "!Not signed by its owner"},
		"with another's owner keys":           {stolen, "–Cannot be signed: its owner has no cross-signing keys"},
	} {
		hs.adds(c.person)
		o := signedIn(t, hs)
		o.click("summary")
		o.awaitText(".verdict", "")
		if got := o.text(".verdict"); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		o.must(o.Close())
	}
}

// A failure means that a session stays behind for each time that somebody closes the page.
func TestClosingSignsOut(t *testing.T) {
	hs := newHomeserver(t)
	o := signedIn(t, hs)
	gone := make(chan string, 1)
	hs.does(v3+"/logout", func(w http.ResponseWriter, r *http.Request) {
		gone <- r.Header.Get("Authorization")
		hstest.WriteJSON(w, http.StatusOK, struct{}{})
	})
	var stored int
	o.must(o.Eval(o.ctx, "localStorage.length + sessionStorage.length + document.cookie.length", &stored))
	if stored != 0 {
		t.Error("it keeps something in the browser")
	}
	o.must(o.Close())
	select {
	case token := <-gone:
		if token != "Bearer token-0" {
			t.Errorf("%q was signed out", token)
		}
	case <-o.ctx.Done():
		t.Error("the session is not signed out")
	}
}
