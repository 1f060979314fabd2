package clientapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/clientapi"
)

const standingRoute = "/_matrix/client/unstable/org.matrix.msc2638/standing"

// The page must be able to say when a list was last fetched and when it is tried next, whatever its clock says.
func TestStanding(t *testing.T) {
	w := setup(t)
	w.standings = map[id.UserID]freshen.Standing{
		"@bob:b.example":  {Fetched: true, FetchedAgo: time.Minute, Owed: &freshen.Owed{Reason: freshen.ReasonTimeout, RetryAfter: 1500 * time.Microsecond}},
		"@eve:b.example":  {Owed: &freshen.Owed{Running: true}},
		"@zoe:b.example":  {Fetched: true},
		"@kurt:b.example": {Owed: &freshen.Owed{Reason: freshen.ReasonDNS}},
	}
	got := w.do(http.MethodPost, standingRoute, `{"users":["@bob:b.example","no user ID","@eve:b.example","@x\ny:b.example"]}`, asAlice)
	var body any
	if err := json.Unmarshal([]byte(got.body), &body); err != nil {
		t.Fatalf("%d %s: %v", got.status, got.body, err)
	}
	want := map[string]any{"users": map[string]any{
		"@bob:b.example":  map[string]any{"fetched_ago_ms": 60000.0, "owed": map[string]any{"reason": "timeout", "retry_after_ms": 2.0}},
		"@eve:b.example":  map[string]any{"owed": map[string]any{"running": true}},
		"@zoe:b.example":  map[string]any{"fetched_ago_ms": 0.0},
		"@kurt:b.example": map[string]any{"owed": map[string]any{"reason": "dns", "retry_after_ms": 0.0}},
	}}
	if diff := cmp.Diff(want, body); diff != "" || got.status != http.StatusOK {
		t.Errorf("%d (-want +got)\n%s", got.status, diff)
	}
	alice := freshen.Requester{UserID: "@alice:a.example", DeviceID: "PHONE"}
	if diff := cmp.Diff([]call{{alice, "@bob:b.example"}, {alice, "@eve:b.example"}}, w.calls(), cmp.AllowUnexported(call{})); diff != "" {
		t.Errorf("what the engine was asked (-want +got)\n%s", diff)
	}
}

// Nobody is told anything without a token, and nothing of what is too much or makes no sense costs a query.
func TestStandingRefusals(t *testing.T) {
	w := setup(t)
	users := func(n int) string {
		long := make([]string, n)
		for i := range long {
			long[i] = fmt.Sprintf("%q", fmt.Sprintf("@%s%d:b.example", strings.Repeat("x", 230), i))
		}
		return `{"users":[` + strings.Join(long, ",") + `]}`
	}
	for name, c := range map[string]struct {
		method, body string
		header       map[string]string
		status       int
		errcode      string
	}{
		"nobody":     {http.MethodPost, `{"users":[]}`, nil, 401, "M_MISSING_TOKEN"},
		"a stranger": {http.MethodPost, `{"users":[]}`, map[string]string{"Authorization": "Bearer x"}, 401, "M_UNKNOWN_TOKEN"},
		"a guest":    {http.MethodPost, `{"users":[]}`, map[string]string{"Authorization": "Bearer guest"}, 403, "M_GUEST_ACCESS_FORBIDDEN"},
		"GET":        {http.MethodGet, ``, asAlice, 405, "M_UNRECOGNIZED"},
		"preflight":  {http.MethodOptions, ``, nil, 204, ""},
		"no body":    {http.MethodPost, ``, asAlice, 400, "M_BAD_JSON"},
		"no list":    {http.MethodPost, `{"users":{}}`, asAlice, 400, "M_BAD_JSON"},
		"most":       {http.MethodPost, users(clientapi.MaxStandings), asAlice, 200, ""},
		"too many":   {http.MethodPost, users(clientapi.MaxStandings + 1), asAlice, 400, "M_INVALID_PARAM"},
		"too long":   {http.MethodPost, `{"users":["` + strings.Repeat("x", 200<<10) + `"]}`, asAlice, 413, "M_TOO_LARGE"},
	} {
		got := w.do(c.method, standingRoute, c.body, c.header)
		if got.status != c.status || got.errcode() != c.errcode {
			t.Errorf("%s: %d %s, want %d %s", name, got.status, got.body, c.status, c.errcode)
		}
	}
	w.unknown = &freshen.Error{Code: freshen.CodeDatabaseAway, Message: "Away."}
	if got := w.do(http.MethodPost, standingRoute, `{"users":["@bob:b.example"]}`, asAlice); got.status != 503 || got.errcode() != "M_UNKNOWN" {
		t.Errorf("without a database: %d %s", got.status, got.body)
	}
}
