package page_test

import (
	"fmt"
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
	o.awaitText("#news", "Bob: The devices are up to date now")
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
	hs.set(func() {
		if len(hs.signedOut) != 1 {
			t.Errorf("signed out were %q", hs.signedOut)
		}
	})
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
	if title != "Refresh a contact’s devices" {
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
	called := func(name string) *person { return newPerson("@"+name+":b.example", name).crossSigns() }
	swapped := called("swapped").has("A", "", true)
	swapped.devices["B"] = swapped.devices["A"]
	delete(swapped.devices, "A")
	forged := called("forged").has("A", "", true)
	forged.selfSigning.(map[string]any)["signatures"] = map[string]any{}
	stolen, mallory := called("stolen").has("A", "", true), called("mallory")
	stolen.master, stolen.selfSigning = mallory.master, mallory.selfSigning
	want := map[string]string{
		"signed":   "✓Signed by its owner",
		"unsigned": "!Not signed by its owner",
		"tampered": "!Its keys do not hold: clients ignore it",
		"swapped":  "!Its keys do not hold: clients ignore it", // under another device's ID
		"keyless":  "–Cannot be signed: its owner has no cross-signing keys",
		"forged":   "!Not signed by its owner", // but by a key that the owner's master key has not signed
		"stolen":   "–Cannot be signed: its owner has no cross-signing keys",
	}
	for _, p := range []*person{
		called("signed").has("A", "", true), called("unsigned").has("A", "", false), called("tampered").has("A", "", true).tampered("A"),
		swapped, newPerson("@keyless:b.example", "keyless").has("A", "", false), forged, stolen,
	} {
		hs.adds(p)
	}
	o := signedIn(t, hs)
	o.must(o.Eval(o.ctx, `document.querySelectorAll("details").forEach((d) => { d.open = true; })`, nil))
	o.await(fmt.Sprintf(`document.querySelectorAll(".verdict").length === %d`, len(want)))
	var got map[string]string
	o.must(o.Eval(o.ctx, `Object.fromEntries([...document.querySelectorAll(".person")].map((p) => [p.querySelector(".name").textContent, p.querySelector(".verdict").textContent]))`, &got))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	key := public(swapped.key("A"))
	if shown := strings.Join(o.text(".fingerprint"), " "); !strings.Contains(strings.ReplaceAll(shown, " ", ""), public(called("signed").key("A"))) || strings.Contains(shown, key) {
		t.Errorf("the fingerprints are %s", shown)
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
