package examples_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"maunium.net/go/mautrix"

	"freshen/docs/examples"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A failure means that authors of clients copy code that nothing has tried.
func TestGuideShowsTheCodeThatRuns(t *testing.T) {
	guide := read(t, "../client-guide.md")
	for language, file := range map[string]string{"js": "refresh.mjs", "go": "refresh.go"} {
		if block := "```" + language + "\n" + read(t, file) + "```\n"; !strings.Contains(guide, block) {
			t.Errorf("docs/client-guide.md does not show docs/examples/%s as it is", file)
		}
	}
}

// Each reason that a client may be given must have a sentence for its user, the same in the guide and in both examples.
func TestEveryReasonHasItsSentence(t *testing.T) {
	guide, inGo := read(t, "../client-guide.md"), read(t, "refresh.go")
	reasons := regexp.MustCompile(`(?m)^\tReason\w+ +Reason += "(\w+)"|^\tReason\w+ += "(\w+)"`).FindAllStringSubmatch(read(t, "../../error.go"), -1)
	if len(reasons) != 7 {
		t.Fatalf("error.go names %d reasons", len(reasons))
	}
	for _, match := range reasons {
		reason := match[1] + match[2]
		row := regexp.MustCompile("(?m)^\\| `" + reason + "` \\| [^|]+ \\| “([^”]+)” \\|").FindStringSubmatch(guide)
		if row == nil {
			t.Errorf("the guide has no row with a sentence for %q", reason)
			continue
		}
		for language, code := range map[string][2]string{
			"JavaScript": {examples.RefreshJS, fmt.Sprintf("%s: (server) => `%s`", reason, strings.ReplaceAll(row[1], "b.org", "${server}"))},
			"Go":         {inGo, fmt.Sprintf("%q: %q", reason, strings.ReplaceAll(row[1], "b.org", "%s"))},
		} {
			if !strings.Contains(code[0], code[1]) {
				t.Errorf("the example in %s does not say %q for %s", language, row[1], reason)
			}
		}
	}
}

// A failure means that the user of a client on mautrix-go reads nothing, or something wrong, or that the client asks again
// and again while freshen does that already.
func TestRefreshSaysWhatHappened(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		body, want string
	}{
		"it went well":         {202, `{}`, "The devices were asked for; what is new comes with the next sync."},
		"the server is down":   {502, failure("connect", 30_000), "b.org cannot be reached. Your homeserver goes on trying by itself."},
		"the server hangs":     {504, failure("timeout", 30_000), "b.org takes too long to answer. Your homeserver goes on trying by itself."},
		"the server is denied": {403, failure("denied", 0), "Your homeserver does not talk to b.org."},
		"a reason of tomorrow": {502, failure("eclipse", 0), "freshen's own words."},
		"too many requests":    {429, `{"errcode":"M_LIMIT_EXCEEDED","error":"Too many.","retry_after_ms":6000}`, "Too many."},
		"a proxy's own answer": {502, `<html>`, "Your homeserver cannot be reached."},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.Method+" "+r.URL.EscapedPath())
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			defer server.Close()
			client, err := mautrix.NewClient(server.URL, "@alice:a.org", "token")
			if err != nil {
				t.Fatal(err)
			}
			client.Client = server.Client()
			client.DefaultHTTPRetries = 3
			if got := examples.Refresh(t.Context(), client, "@bob/phone:b.org"); got != c.want {
				t.Errorf("the user reads %q, want %q", got, c.want)
			}
			if len(asked) != 1 || asked[0] != "POST /_matrix/client/v3/user/@bob%2Fphone:b.org/devices/refresh" {
				t.Errorf("it asked %v", asked)
			}
		})
	}
	nobody, err := mautrix.NewClient("http://127.0.0.1:1", "@alice:a.org", "token")
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Client.CloseIdleConnections()
	if got := examples.Refresh(t.Context(), nobody, "@bob:b.org"); got != "Your homeserver cannot be reached." {
		t.Errorf("without a homeserver the user reads %q", got)
	}
}

func failure(reason string, retryAfterMS int) string {
	next := ""
	if retryAfterMS > 0 {
		next = fmt.Sprintf(`,"retry_after_ms":%d`, retryAfterMS)
	}
	return fmt.Sprintf(`{"errcode":"M_UNKNOWN","error":"freshen's own words.","org.matrix.msc2638.failure":{"destination":"b.org","reason":%q%s}}`,
		reason, next)
}
