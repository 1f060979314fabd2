package probe_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"freshen/internal/probe"
)

var at = time.Unix(1_700_000_000, 0)

// through sends a question through freshen as it stands with that key and clock, and returns the answer and what came out
// behind it.
func through(key probe.Key, now time.Time, asked ...string) (answer string, passed []string) {
	handler := probe.Handler(key, func() time.Time { return now }, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		passed = r.Header.Values(probe.Header)
	}))
	r := httptest.NewRequest(http.MethodGet, "/a%2Fb/%40c?d=e", http.NoBody)
	for _, ask := range asked {
		r.Header.Add(probe.Header, ask)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w.Header().Get(probe.Header), passed
}

func TestAnAnswerProvesTheWay(t *testing.T) {
	t.Parallel()
	key := probe.Key{1}
	ask := key.Ask(at)
	answer, passed := through(key, at.Add(9*time.Minute), ask)
	if path, ok := key.Arrived(ask, http.MethodGet, answer); !ok || path != "/a%2Fb/%40c" {
		t.Errorf("arrived as %q, %t", path, ok)
	}
	if len(passed) != 0 {
		t.Error("the question went on to the homeserver, whose echo could be taken for an answer")
	}
	for name, forged := range map[string]string{
		"nothing": "", "the question": ask, "the question with a path": ask + " /a%2Fb/%40c",
		"another path": strings.Replace(answer, "%2F", "/", 1), "cut": answer[1:], "more": answer + "x",
	} {
		if path, ok := key.Arrived(ask, http.MethodGet, forged); ok {
			t.Errorf("%s is taken for an answer: %q", name, path)
		}
	}
	if _, ok := key.Arrived(ask, http.MethodPost, answer); ok {
		t.Error("the answer to a GET is taken for that to a POST")
	}
	if _, ok := key.Arrived(key.Ask(at), http.MethodGet, answer); ok {
		t.Error("the answer to another question is taken for this one's")
	}
}

// Strangers must see a header that is passed on like any other.
func TestStrangersLearnNothing(t *testing.T) {
	t.Parallel()
	key, other := probe.Key{1}, probe.Key{2}
	ask := key.Ask(at)
	for name, asked := range map[string][]string{
		"another key": {other.Ask(at)}, "old": {key.Ask(at.Add(-11 * time.Minute))}, "of the future": {key.Ask(at.Add(11 * time.Minute))},
		"changed": {"A" + ask[1:]}, "short": {ask[1:]}, "long": {ask + "A"}, "no base64": {strings.Repeat("!", len(ask))},
		"empty": {""}, "twice": {ask, ask},
	} {
		if ask[0] == 'A' && name == "changed" {
			asked = []string{"B" + ask[1:]}
		}
		answer, passed := through(key, at, asked...)
		if answer != "" || len(passed) != len(asked) {
			t.Errorf("%s: answered with %q, and %d of %d passed on", name, answer, len(passed), len(asked))
		}
	}
	if answer, passed := through(key, at); answer != "" || len(passed) != 0 {
		t.Errorf("unasked: %q", answer)
	}
}
