package app_test

import (
	"net/http"
	"strings"
	"testing"

	"freshen/internal/config"
	"freshen/internal/page"
)

const standingRoute = "/_matrix/client/unstable/org.matrix.msc2638/standing"

// A person whose client has no button must find the page, and read there how a contact's list stands.
func TestPageAndStanding(t *testing.T) {
	w := running(t)
	b := w.remote()
	bob := b.has("bob", "PHONE")
	if r := w.do(t.Context(), http.MethodGet, page.Path, "", nil); r.status != http.StatusOK || !strings.Contains(r.body, "<!doctype html>") {
		t.Errorf("the page: %d %.200s", r.status, r.body)
	}
	standing := func(token string) string {
		t.Helper()
		r := w.do(t.Context(), http.MethodPost, standingRoute, token, strings.NewReader(`{"users":["`+string(bob)+`"]}`))
		if r.status != http.StatusOK {
			t.Fatalf("standing: %d %s", r.status, r.body)
		}
		return r.body
	}
	if got := standing(aliceToken); got != `{"users":{}}` {
		t.Errorf("before anybody asked: %s", got)
	}
	b.down()
	if r := w.refresh(aliceToken, bob); r.status != http.StatusBadGateway {
		t.Fatalf("the refresh: %d %s", r.status, r.body)
	}
	if got := standing(aliceToken); !strings.Contains(got, `"owed":{"reason":"connect","retry_after_ms":`) {
		t.Errorf("while it is owed: %s", got)
	}
	if got := standing(carolToken); got != `{"users":{}}` {
		t.Errorf("Carol, who shares no room with Bob, is told %s", got)
	}
	b.up()
	w.refreshed(aliceToken, bob)
	w.hs.SetRoom("!r:example.org", carol, bob)
	if got := standing(carolToken); !strings.Contains(got, `"fetched_ago_ms":`) || strings.Contains(got, "owed") {
		t.Errorf("Carol, who shares a room with Bob, is told %s", got)
	}
	w.hs.SetRoom("!r:example.org")
}

// The button must be there while the database is away, and say so; an administrator who does not want it has none.
func TestPageWithoutDatabaseAndSwitchedOff(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.stop()
	unlock := locked(t, w)
	w.start()
	if r := w.do(t.Context(), http.MethodGet, page.Path, "", nil); r.status != http.StatusOK {
		t.Errorf("the page: %d %.200s", r.status, r.body)
	}
	r := w.do(t.Context(), http.MethodPost, standingRoute, aliceToken, strings.NewReader(`{"users":["@bob:b.org"]}`))
	if r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, awayMessage) {
		t.Errorf("standing: %d %s", r.status, r.body)
	}
	unlock()
	w.stop()

	off := running(t, func(c *config.Config) { c.Page = false })
	if r := off.do(t.Context(), http.MethodGet, page.Path, "", nil); r.status != http.StatusNotFound || strings.Contains(r.body, "<html") {
		t.Errorf("switched off, the page: %d %.200s", r.status, r.body)
	}
}
