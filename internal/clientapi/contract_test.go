package clientapi_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"freshen"

	"github.com/google/go-cmp/cmp"
)

func remote(f freshen.Failure, retryAfter time.Duration) *freshen.Error {
	f.Destination = "b.example"
	return &freshen.Error{Code: freshen.CodeRemote, Message: "It failed.", Failure: &f, RetryAfter: retryAfter, Err: errors.New("internal: 10.0.0.1")}
}

// Every row of the contract that the engine decides: a client acts on these, byte by byte.
func TestEveryRowOfTheContract(t *testing.T) {
	const failure = "org.matrix.msc2638.failure"
	for name, test := range map[string]struct {
		err    error
		status int
		body   map[string]any
		header string // Retry-After
	}{
		"done": {nil, 202, map[string]any{}, ""},
		"limited": {
			&freshen.Error{Code: freshen.CodeLimited, Message: "Too many.", RetryAfter: 1200*time.Millisecond + 1},
			429, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "Too many.", "retry_after_ms": 1201.0}, "2",
		},
		"limited, whole second": {
			&freshen.Error{Code: freshen.CodeLimited, Message: "Too many.", RetryAfter: time.Second},
			429, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "Too many.", "retry_after_ms": 1000.0}, "1",
		},
		"limited, nothing known": {
			&freshen.Error{Code: freshen.CodeLimited, Message: "Too many."},
			429, map[string]any{"errcode": "M_LIMIT_EXCEEDED", "error": "Too many."}, "",
		},
		"forbidden": {
			&freshen.Error{Code: freshen.CodeForbidden, Message: "No."},
			403, map[string]any{"errcode": "M_FORBIDDEN", "error": "No."}, "",
		},
		"forbidden network": {
			&freshen.Error{Code: freshen.CodeForbidden, Message: "No.", Failure: &freshen.Failure{Destination: "b.example", Reason: freshen.ReasonDenied}},
			403, map[string]any{"errcode": "M_FORBIDDEN", "error": "No.", failure: map[string]any{"destination": "b.example", "reason": "denied"}}, "",
		},
		"denied": {
			remote(freshen.Failure{Reason: freshen.ReasonDenied}, 0),
			403, map[string]any{"errcode": "M_FORBIDDEN", "error": "It failed.", failure: map[string]any{"destination": "b.example", "reason": "denied"}}, "",
		},
		"no such user": {
			remote(freshen.Failure{Reason: freshen.ReasonHTTP, Status: 404, ErrCode: "M_NOT_FOUND", RemoteError: "who?"}, time.Hour),
			404, map[string]any{"errcode": "M_NOT_FOUND", "error": "It failed.", failure: map[string]any{
				"destination": "b.example", "reason": "http", "status": 404.0, "errcode": "M_NOT_FOUND", "error": "who?", "retry_after_ms": 3600000.0,
			}}, "",
		},
		"404 of a deprovisioned host": {
			remote(freshen.Failure{Reason: freshen.ReasonHTTP, Status: 404}, time.Minute),
			502, map[string]any{"errcode": "M_UNKNOWN", "error": "It failed.", failure: map[string]any{
				"destination": "b.example", "reason": "http", "status": 404.0, "retry_after_ms": 60000.0,
			}}, "",
		},
		"bad response": {
			remote(freshen.Failure{Reason: freshen.ReasonBadResponse, Status: 200}, 0),
			502, map[string]any{"errcode": "M_UNKNOWN", "error": "It failed.", failure: map[string]any{
				"destination": "b.example", "reason": "bad_response", "status": 200.0,
			}}, "",
		},
		"timeout": {
			remote(freshen.Failure{Reason: freshen.ReasonTimeout}, 30*time.Second),
			504, map[string]any{"errcode": "M_UNKNOWN", "error": "It failed.", failure: map[string]any{
				"destination": "b.example", "reason": "timeout", "retry_after_ms": 30000.0,
			}}, "",
		},
		"dns": {
			remote(freshen.Failure{Reason: freshen.ReasonDNS}, 0),
			502, map[string]any{"errcode": "M_UNKNOWN", "error": "It failed.", failure: map[string]any{"destination": "b.example", "reason": "dns"}}, "",
		},
		"connect": {
			remote(freshen.Failure{Reason: freshen.ReasonConnect}, 0),
			502, map[string]any{"errcode": "M_UNKNOWN", "error": "It failed.", failure: map[string]any{"destination": "b.example", "reason": "connect"}}, "",
		},
		"tls": {
			remote(freshen.Failure{Reason: freshen.ReasonTLS}, 0),
			502, map[string]any{"errcode": "M_UNKNOWN", "error": "It failed.", failure: map[string]any{"destination": "b.example", "reason": "tls"}}, "",
		},
		"homeserver down": {
			&freshen.Error{Code: freshen.CodeHomeserverDown, Message: "Down."},
			502, map[string]any{"errcode": "M_UNKNOWN", "error": "Down."}, "",
		},
		"database away": {
			&freshen.Error{Code: freshen.CodeDatabaseAway, Message: "Away.", Err: errors.New("postgres://u:secret@h")},
			503, map[string]any{"errcode": "M_UNKNOWN", "error": "Away."}, "",
		},
		"guest": {
			&freshen.Error{Code: freshen.CodeGuest, Message: "No guests."},
			403, map[string]any{"errcode": "M_GUEST_ACCESS_FORBIDDEN", "error": "No guests."}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := setup(t)
			w.fails(test.err)
			got := w.post(bobRoute)
			var body map[string]any
			if err := json.Unmarshal([]byte(got.body), &body); err != nil {
				t.Fatalf("%q: %v", got.body, err)
			}
			if diff := cmp.Diff(test.body, body); diff != "" || got.status != test.status {
				t.Errorf("status %d, want %d; body (-want +got):\n%s", got.status, test.status, diff)
			}
			if got.header.Get("Retry-After") != test.header {
				t.Errorf("Retry-After is %q, want %q", got.header.Get("Retry-After"), test.header)
			}
			if w.log.String() != "" {
				t.Errorf("returned and logged as well: %s", w.log)
			}
		})
	}
}

// A hostile server must not be able to log our user out, or to make the client do anything else.
func TestRemoteErrcodesThatMayPass(t *testing.T) {
	w := setup(t)
	for errcode, want := range map[string]string{
		"M_NOT_FOUND":         "M_NOT_FOUND",
		"M_FORBIDDEN":         "M_FORBIDDEN",
		"M_UNRECOGNIZED":      "M_UNRECOGNIZED",
		"M_UNKNOWN":           "M_UNKNOWN",
		"M_UNKNOWN_TOKEN":     "M_UNKNOWN",
		"M_MISSING_TOKEN":     "M_UNKNOWN",
		"M_USER_DEACTIVATED":  "M_UNKNOWN",
		"M_CONSENT_NOT_GIVEN": "M_UNKNOWN",
		"M_LIMIT_EXCEEDED":    "M_UNKNOWN",
		"m_not_found":         "M_UNKNOWN",
		"X":                   "M_UNKNOWN",
		"":                    "M_UNKNOWN",
	} {
		for _, status := range []int{301, 400, 401, 403, 404, 429, 500} {
			w.fails(remote(freshen.Failure{Reason: freshen.ReasonHTTP, Status: status, ErrCode: errcode}, time.Minute))
			got := w.post(bobRoute)
			wantStatus := http.StatusBadGateway
			if status == 404 && errcode == "M_NOT_FOUND" {
				wantStatus = http.StatusNotFound
			}
			if got.status != wantStatus || got.errcode() != want || got.header.Get("Retry-After") != "" {
				t.Errorf("%d %s became %d %s", status, errcode, got.status, got.body)
			}
		}
	}
}

// What nobody foresaw is told to the log with its cause and to the client without it.
func TestUnforeseenErrors(t *testing.T) {
	for name, err := range map[string]error{
		"plain":           errors.New("dial 10.0.0.1: secret"),
		"unknown code":    &freshen.Error{Code: "new", Message: "secret"},
		"remote, no how?": &freshen.Error{Code: "", Err: errors.New("secret")},
	} {
		w := setup(t)
		w.fails(err)
		got := w.post(bobRoute)
		if got.status != http.StatusInternalServerError || got.errcode() != "M_UNKNOWN" {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if !contains(w.log.String(), "secret") || contains(got.body, "secret") {
			t.Errorf("%s: answered %s, logged %s", name, got.body, w.log)
		}
	}
}
