package page_test

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"freshen/internal/homeserver/hstest"
	"freshen/internal/page"
)

// answers is a refusal.
func answers(status int, body map[string]any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { hstest.WriteJSON(w, status, body) }
}

func breaks(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// Whatever a refresh is answered, a person must read what failed, in the words of the guide for client authors, and whether
// to do something.
func TestWhatAFailedRefreshSays(t *testing.T) {
	guide, err := os.ReadFile("../../docs/client-guide.md")
	if err != nil {
		t.Fatal(err)
	}
	hs := newHomeserver(t)
	hs.adds(bob())
	o := signedIn(t, hs)
	press := func(answer http.HandlerFunc, want string) {
		t.Helper()
		hs.set(func() { hs.refresh = answer })
		o.await(`!document.querySelector(".refresh").hasAttribute("aria-disabled")`)
		o.click(".refresh")
		o.await(`!document.querySelector(".refresh").classList.contains("busy")`)
		if got := o.text(".result"); len(got) != 1 || !regexp.MustCompile("^(?s:!"+want+")$").MatchString(got[0]) {
			t.Errorf("it says %q, should say %q", got, want)
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| [^|]+ \\| “([^”]+)” \\|").FindAllStringSubmatch(string(guide), -1)
	if len(rows) != 7 {
		t.Fatalf("the guide has sentences for %d reasons", len(rows))
	}
	for _, row := range rows {
		failure := map[string]any{"destination": "b.org", "reason": row[1]}
		want := regexp.QuoteMeta(row[2])
		if row[1] != "denied" {
			failure["retry_after_ms"] = 30_000
			hs.set(func() {
				hs.standings["@bob:b.example"] = map[string]any{"owed": map[string]any{"reason": row[1], "retry_after_ms": 30_000}}
			})
			want += ` Your homeserver goes on trying by itself, next at [0-9:]+( [AP]M)?\.`
		} else {
			hs.set(func() { delete(hs.standings, "@bob:b.example") })
		}
		press(answers(http.StatusBadGateway, map[string]any{"errcode": "M_UNKNOWN", "error": "As it was: " + row[1], "org.matrix.msc2638.failure": failure}), want)
		if got := o.text(".detail"); len(got) != 1 || got[0] != "In detail: As it was: "+row[1] {
			t.Errorf("the details are %q", got)
		}
	}
	press(answers(http.StatusBadGateway, map[string]any{
		"errcode": "M_UNKNOWN", "error": "The moon is down.", "org.matrix.msc2638.failure": map[string]any{"destination": "b.org", "reason": "moon"},
	}), "Your homeserver refuses this: The moon is down.")
	press(answers(http.StatusServiceUnavailable, map[string]any{"errcode": "M_UNKNOWN", "error": "freshen cannot reach its own database."}), `Your homeserver has a problem\.`)
	if got := o.text(".detail"); len(got) != 1 || !strings.Contains(got[0], "freshen cannot reach its own database.") {
		t.Errorf("that the database is away, it does not say: %q", got)
	}
	press(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>Bad gateway", http.StatusBadGateway)
	}, `Your homeserver has a problem\.`)
	press(breaks, `Your homeserver cannot be reached\. Are you online\?`)
	press(answers(http.StatusForbidden, map[string]any{"errcode": "M_FORBIDDEN", "error": "You share no room with this user."}),
		`Your homeserver refuses this: You share no room with this user\.`)
	press(answers(http.StatusForbidden, map[string]any{"errcode": "M_GUEST_ACCESS_FORBIDDEN", "error": "x"}), `Guests cannot refresh device lists\.`)
	press(answers(http.StatusTooManyRequests, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "x", "retry_after_ms": 700}),
		`Please wait a moment\. You can press again at .*\.`)
	var disabled string
	o.must(o.Eval(o.ctx, `document.querySelector(".refresh").getAttribute("aria-disabled")`, &disabled))
	asked := len(hs.sent(refreshBob))
	if disabled == "true" {
		o.click(".refresh")
		if again := len(hs.sent(refreshBob)); again != asked {
			t.Error("who is to wait asks again all the same")
		}
	}
	o.await(`!document.querySelector(".refresh").hasAttribute("aria-disabled")`)

	hs.set(func() { clear(hs.tokens) })
	hs.set(func() { hs.refresh = nil })
	o.click(".refresh")
	o.awaitText("#notice", "Your session has ended. Please sign in again.")
}

// A failure means that somebody cannot get in and is not told why.
func TestSigningInFails(t *testing.T) {
	hs := newHomeserver(t)
	hs.does(v3+"/login", breaks)
	o := open(t, hs)
	o.awaitText("#notice", "Your homeserver cannot be reached.")
	hs.does(v3+"/login", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) })
	o.click("#ask-again")
	o.awaitText("#notice", "Your homeserver has a problem.")
	hs.does(v3+"/login", nil)
	hs.set(func() { hs.flows = []any{map[string]any{"type": "org.example.retina"}} })
	o.click("#ask-again")
	o.awaitText("#notice", "Your homeserver offers no way of signing in that this page knows.")

	hs.set(func() { hs.flows = []any{map[string]any{"type": "m.login.password"}} })
	o.must(o.Open(o.ctx, hs.url+page.Path))
	o.signIn("wrong")
	o.awaitText("#notice", "The user name or the password is wrong.")
	var focus string
	o.must(o.Eval(o.ctx, "document.activeElement.id + document.activeElement.value", &focus))
	if focus != "password" {
		t.Errorf("the focus is on %q", focus)
	}
	for _, c := range []struct {
		answer http.HandlerFunc
		want   string
	}{
		{answers(http.StatusTooManyRequests, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 30_000}), "Too many attempts. You can try again at "},
		{answers(http.StatusTooManyRequests, map[string]any{"errcode": "M_LIMIT_EXCEEDED"}), "Too many attempts. Please wait a few minutes."},
		{answers(http.StatusForbidden, map[string]any{"errcode": "M_USER_DEACTIVATED", "error": "x"}), "This account has been deactivated."},
		{answers(http.StatusBadRequest, map[string]any{"errcode": "M_UNKNOWN", "error": "Use your chip <b>card</b>"}), "Your homeserver says: “Use your chip <b>card</b>”"},
		{answers(http.StatusBadGateway, map[string]any{"errcode": "M_UNKNOWN", "error": "The homeserver is down."}), "It says: “The homeserver is down.”"},
		{breaks, "Your homeserver cannot be reached."},
	} {
		hs.does(v3+"/login", c.answer)
		o.must(o.Eval(o.ctx, fmt.Sprintf(`document.getElementById("password").value = %q`, password), nil))
		o.click("#enter")
		o.awaitText("#notice", c.want)
	}
	o.requireAccessible("a failed sign-in")
	hs.does(v3+"/login", nil)
	o.signIn(password)
	o.awaitText("#summary", "There is nobody else in your encrypted rooms")
	o.requireAccessible("nobody")
}

// Single sign-on must come back here, leave no token in the address, and take none that was not asked for in this tab: else
// a link could sign somebody in as its author, who then sees whom they refresh.
func TestSingleSignOn(t *testing.T) {
	hs := newHomeserver(t)
	hs.adds(bob())
	hs.set(func() {
		hs.flows = []any{map[string]any{"type": "m.login.token"}, map[string]any{"type": "m.login.sso", "identity_providers": []any{
			map[string]any{"id": "oidc-a b", "name": "Our <club>"}, map[string]any{"id": "other", "name": "Another"},
		}}}
	})
	o := open(t, hs)
	o.awaitText("#sso button", "Continue with Our <club>")
	o.requireAccessible("single sign-on")
	o.click("#sso button")
	o.awaitText(".name", "Bob")
	var address string
	o.must(o.Eval(o.ctx, "location.href", &address))
	if address != hs.url+page.Path {
		t.Errorf("the address is %s", address)
	}
	if len(hs.sent(v3+"/login/sso/redirect/oidc-a%20b")) != 1 {
		t.Error("another provider was asked")
	}
	o.click("#leave")
	o.awaitText("#notice", "You are signed out")

	logins := len(hs.sent(v3 + "/login"))
	o.must(o.Open(o.ctx, hs.url+page.Path+"?state=x&loginToken=good"))
	o.awaitText("#notice", "That sign-in was not begun in this tab")
	o.await(`!document.getElementById("sso").hidden`)
	if bodies := hs.sent(v3 + "/login"); strings.Contains(strings.Join(bodies[logins:], ""), "good") {
		t.Error("a token that somebody else may have sent is used")
	}
	hs.does(v3+"/login/sso/redirect/other", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("redirectUrl")+"&loginToken=old", http.StatusFound)
	})
	o.click("#sso button:last-child")
	o.awaitText("#notice", "That sign-in is too old to be used.")
}

// What is owed must be seen, and that it was paid must be told without anybody doing anything.
func TestOwedAndPaid(t *testing.T) {
	hs := newHomeserver(t)
	hs.adds(bob())
	hs.adds(newPerson("@carol:b.example", "Carol").crossSigns())
	hs.set(func() {
		hs.standings["@carol:b.example"] = map[string]any{"owed": map[string]any{"reason": "connect", "retry_after_ms": 3_600_000}}
	})
	o := signedIn(t, hs)
	o.awaitText(".person:first-child .name", "Carol")
	o.awaitText(".person:first-child .result", "b.example cannot be reached. Your homeserver goes on trying by itself, next at ")
	hs.set(func() { hs.standings["@carol:b.example"] = map[string]any{"fetched_ago_ms": 1} })
	hs.news <- []string{"@nobody:b.example", "@carol:b.example"}
	o.awaitText(".person:first-child .result.good", "b.example has answered. The devices are up to date now, and your clients are told.")
	o.awaitText("#news", "Carol: b.example has answered.")
}

// A connection that is lost must be told, and what happened meanwhile must not be missed.
func TestSyncComesBack(t *testing.T) {
	hs := newHomeserver(t)
	hs.adds(bob())
	o := signedIn(t, hs)
	hs.does(v3+"/sync", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) })
	hs.news <- nil // ends the poll that waits
	o.awaitText("#connection", "The connection to your homeserver is lost. This page tries again by itself.")
	hs.adds(bob().has("LAPTOP", "Bob's laptop", false))
	hs.does(v3+"/sync", nil)
	hs.news <- []string{"@bob:b.example"}
	o.await(`document.getElementById("connection").hidden`)
	o.awaitText("summary", "2 devices")

	// The keys cannot be had just then.
	hs.does(v3+"/keys/query", breaks)
	hs.adds(bob())
	hs.news <- []string{"@bob:b.example"}
	o.awaitText("#connection", "The connection to your homeserver is lost.")
	hs.does(v3+"/keys/query", nil)
	o.awaitText("summary", "1 device")
}

// Somebody in large rooms must find a person, and the page must stay quick.
func TestManyPeople(t *testing.T) {
	hs := newHomeserver(t)
	for i := range 1000 {
		hs.adds(newPerson(fmt.Sprintf("@user%d:b%d.example", i, i%50), fmt.Sprintf("Person %d", i)).crossSigns())
	}
	o := signedIn(t, hs)
	o.awaitText("#summary", "1000 people")
	if n := len(o.text(".person")); n != 50 {
		t.Errorf("%d are shown at first", n)
	}
	o.click("#more")
	if n := len(o.text(".person")); n != 100 {
		t.Errorf("%d are shown then", n)
	}
	o.must(o.Eval(o.ctx, `(() => { const f = document.getElementById("find"); f.value = "PERSON 77"; f.dispatchEvent(new Event("input")); })()`, nil))
	o.awaitText("#summary", "11 people found")
	o.must(o.Eval(o.ctx, `(() => { const f = document.getElementById("find"); f.value = "@user999:"; f.dispatchEvent(new Event("input")); })()`, nil))
	o.awaitText("#summary", "1 person found")
	o.awaitText(".name", "Person 999")
	if most := len(hs.sent(page.Path + "standing")); most > 2 {
		t.Errorf("it asks %d times how lists stand", most)
	}
	if most := len(hs.sent(v3 + "/keys/query")); most > 10 {
		t.Errorf("it asks %d times for keys", most)
	}
}

// Without what freshen knows, or a room that cannot be looked at, the rest must be there all the same.
func TestPartsAreMissing(t *testing.T) {
	hs := newHomeserver(t)
	hs.adds(bob())
	hs.set(func() { hs.members["!broken:a.example"] = map[string]string{alice: "", "@x:y.example": ""} })
	hs.does(page.Path+"standing", answers(http.StatusServiceUnavailable, map[string]any{"errcode": "M_UNKNOWN", "error": "freshen cannot reach its own database."}))
	hs.does(v3+"/rooms/!broken%3Aa.example/joined_members", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "", http.StatusInternalServerError) })
	o := signedIn(t, hs)
	o.awaitText(".name", "Bob")
	o.awaitText("#trouble", "Your homeserver does not say when lists were last refreshed: freshen cannot reach its own database.")
	o.awaitText("#unseen-rooms", "1 of your rooms could not be looked at.")
	if got := strings.Join(o.text(".fact"), ""); strings.Contains(got, "Never") {
		t.Errorf("it says %q, which it does not know", got)
	}
	o.requireAccessible("parts are missing")
	hs.does(page.Path+"standing", nil)
	o.click(".person:last-child .refresh")
	o.await(`document.getElementById("trouble").hidden`)
	o.awaitText(".person:first-child .fact", "Never refreshed here")
	hs.does(v3+"/rooms/!broken%3Aa.example/joined_members", nil)
	hs.news <- nil
	o.awaitText("#summary", "2 people")
	o.await(`document.getElementById("unseen-rooms").hidden`)

	down := newHomeserver(t)
	down.does(v3+"/sync", breaks)
	o = open(t, down)
	o.signIn(password)
	o.awaitText("#trouble", "Your homeserver cannot be reached.")
	down.does(v3+"/sync", nil)
	o.click("#load-again")
	o.awaitText("#summary", "There is nobody else in your encrypted rooms")
}
