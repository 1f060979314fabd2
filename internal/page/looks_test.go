package page_test

import (
	"flag"
	"net/http"
	"path/filepath"
	"testing"

	"freshen/internal/homeserver/hstest"
	"freshen/internal/testbed/chromium"
)

var screenshots = flag.String("screenshots", "", "write pictures of the page into this folder")

// The page must be usable by everybody: axe-core finds no fault with it in any state, small and large, light and dark. With
// -screenshots docs/images this makes the pictures of the documentation.
func TestLooks(t *testing.T) {
	hs := newHomeserver(t)
	hs.set(func() { hs.flows = append(hs.flows, map[string]any{"type": "m.login.sso"}) })
	hs.adds(bob())
	hs.adds(newPerson("@carol:c.example", "Carol Danvers").crossSigns().has("C1", "Carol's phone", true))
	hs.adds(newPerson("@dave:a.example", "Dave").crossSigns().has("D1", "Dave's desk", true))
	hs.adds(newPerson("@erin:e.example", "Erin").crossSigns().has("E1", "Erin's laptop", true))
	hs.adds(newPerson("@frank:f.example", "").has("F1", "Element on Android", false))
	hs.set(func() {
		hs.standings["@carol:c.example"] = map[string]any{"owed": map[string]any{"reason": "connect", "retry_after_ms": 1_200_000}}
		hs.standings["@erin:e.example"] = map[string]any{"fetched_ago_ms": 3_600_000}
	})
	o := open(t, hs)
	o.await(`!document.getElementById("password-form").hidden`)
	o.requireAccessible("signed out", chromium.Looks...)
	o.picture("sign-in")
	o.signIn(password)
	o.await(`!document.getElementById("summary").hidden`)
	o.requireAccessible("signed in", chromium.Looks...)

	hs.adds(bob().crossSigns().has("PHONE", "Bob's phone", true).has("LAPTOP", "Bob's laptop", true))
	hs.set(func() {
		hs.refresh = func(w http.ResponseWriter, _ *http.Request) {
			hs.set(func() { hs.standings["@bob:b.example"] = map[string]any{"fetched_ago_ms": 0} })
			hstest.WriteJSON(w, http.StatusAccepted, struct{}{})
			hs.news <- []string{"@bob:b.example"}
		}
	})
	o.must(o.Eval(o.ctx, `[...document.querySelectorAll(".person")].find((p) => p.textContent.includes("Bob")).querySelector("button").click()`, nil))
	o.awaitText(".result.good", "The devices are up to date now")
	o.awaitText(".device", "Bob's laptop")
	o.requireAccessible("refreshed", chromium.Looks...)
	o.picture("people")
	o.must(o.Eval(o.ctx, `document.querySelector(".result.good").scrollIntoView({block: "center"})`, nil))
	o.pictureHere("devices")

	busy := make(chan struct{})
	defer close(busy)
	hs.set(func() {
		hs.refresh = func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-busy:
			case <-r.Context().Done():
			}
		}
	})
	o.click(".person:nth-child(3) .refresh")
	o.awaitText(".refresh", "Refreshing…")
	o.requireAccessible("while it asks", chromium.Looks...)
}

// picture keeps what the window shows, if that is wanted.
func (o *tab) picture(name string) {
	o.t.Helper()
	if *screenshots == "" {
		return
	}
	o.must(o.Eval(o.ctx, `document.activeElement.blur(), scrollTo(0, 0)`, nil))
	o.pictureHere(name)
}

func (o *tab) pictureHere(name string) {
	o.t.Helper()
	if *screenshots == "" {
		return
	}
	for _, look := range chromium.Looks {
		o.must(o.As(o.ctx, look))
		o.must(o.Screenshot(o.ctx, filepath.Join(*screenshots, name+"-"+look.Name+".png")))
	}
}
