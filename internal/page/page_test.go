package page_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"freshen/internal/page"
)

func get(t *testing.T, method, path string) (*http.Response, string) {
	t.Helper()
	w := httptest.NewRecorder()
	page.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody))
	return w.Result(), w.Body.String()
}

// The policy must allow the page's own script and style and nothing else: with a wrong hash there is a page that does
// nothing, with a lax one a stranger's name might run.
func TestContentSecurityPolicy(t *testing.T) {
	response, body := get(t, http.MethodGet, page.Path)
	directives := map[string]string{}
	for directive := range strings.SplitSeq(response.Header.Get("Content-Security-Policy"), "; ") {
		name, value, _ := strings.Cut(directive, " ")
		directives[name] = value
	}
	for directive, tag := range map[string]string{"script-src": "script", "style-src": "style"} {
		inline := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllStringSubmatch(body, -1)
		if len(inline) != 1 {
			t.Fatalf("there are %d of <%s>", len(inline), tag)
		}
		sum := sha256.Sum256([]byte(inline[0][1]))
		if want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"; directives[directive] != want {
			t.Errorf("%s is %s, want %s", directive, directives[directive], want)
		}
	}
	for directive, want := range map[string]string{
		"default-src": "'none'", "connect-src": "'self'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
		"frame-ancestors": "'none'", "require-trusted-types-for": "'script'", "trusted-types": "'none'",
	} {
		if directives[directive] != want {
			t.Errorf("%s is %q, want %q", directive, directives[directive], want)
		}
	}
	if len(directives) != 10 {
		t.Errorf("there are others: %v", directives)
	}
	if found := regexp.MustCompile(`(?i)<[^>]+ (on\w+|style)=`).FindString(body); found != "" {
		t.Errorf("%s is not allowed by the policy", found)
	}
}

// A page on a homeserver's origin that takes a password must load nothing from elsewhere, be shown inside of nothing, and stay
// in no cache.
func TestHeadersAndContent(t *testing.T) {
	response, body := get(t, http.MethodGet, page.Path)
	for name, want := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
		"X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		"Access-Control-Allow-Origin": "",
	} {
		if got := response.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for _, url := range regexp.MustCompile(`(?:https?:)?//[a-zA-Z0-9][^\s"'<>)]*`).FindAllString(body, -1) {
		if url != "http://www.w3.org/2000/svg" { // a name, which nothing is fetched from
			t.Errorf("it names %s", url)
		}
	}
	if left := regexp.MustCompile(`\{\{\w+\}\}`).FindString(body); left != "" {
		t.Errorf("%s was not filled in", left)
	}
	if len(body) > 64<<10 {
		t.Errorf("it is %d bytes long", len(body))
	}
	head, none := get(t, http.MethodHead, page.Path)
	if head.StatusCode != http.StatusOK || none != "" || head.ContentLength != response.ContentLength {
		t.Errorf("HEAD: %d, %d bytes", head.StatusCode, len(none))
	}
	if refused, _ := get(t, http.MethodPost, page.Path); refused.StatusCode != http.StatusMethodNotAllowed || refused.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST: %d", refused.StatusCode)
	}
}

func TestMatch(t *testing.T) {
	for path, want := range map[string]bool{
		page.Path: true, strings.TrimSuffix(page.Path, "/"): true, page.Path + "?loginToken=x": true,
		page.Path + "standing": false, page.Path + "user/@a:b/devices/refresh": false, "/": false, "/_matrix/client/unstable/org.matrix.msc2638%2F": false,
	} {
		if got := page.Match(httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, http.NoBody)); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

// All that people read must stand in the one table, so that it can be translated, and all that stands there must be read.
func TestStrings(t *testing.T) {
	data, err := os.ReadFile("assets/strings.json")
	if err != nil {
		t.Fatal(err)
	}
	var table map[string]any
	if err := json.Unmarshal(data, &table); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	files, err := filepath.Glob("assets/*.js")
	if err != nil {
		t.Fatal(err)
	}
	word := regexp.MustCompile(`"([A-Za-z_]\w*)"|(?:^|[^.\w])strings\.(\w+)`)
	prose := regexp.MustCompile("[\"`][A-Z][a-z]+ [a-z]+[^\"`]*[\"`]")
	for _, file := range files {
		script, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code := regexp.MustCompile(`(?m)^\s*//.*$| // .*$`).ReplaceAllString(string(script), "")
		for _, match := range word.FindAllStringSubmatch(code, -1) {
			used[match[1]+match[2]] = true
		}
		for _, match := range regexp.MustCompile(`(?:\bsay\((?:make\([^)]*\)|[\w.]+|\$\("[^"]+"\)), |\bt\(|notice\("[^"]+", )"(\w+)"`).FindAllStringSubmatch(code, -1) {
			if table[match[1]] == nil {
				t.Errorf("%s says %q, which is not in the table", file, match[1])
			}
		}
		for _, sentence := range prose.FindAllString(code, -1) {
			t.Errorf("%s has a sentence of its own: %s", file, sentence)
		}
	}
	html, err := os.ReadFile("assets/page.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, match := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllSubmatch(html, -1) {
		used[string(match[1])] = true
	}
	if text := strings.TrimSpace(regexp.MustCompile(`(?s)<[^>]*>|\{\{\w+\}\}`).ReplaceAllString(string(html), "")); text != "" {
		t.Errorf("page.html has text of its own: %q", text)
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		// Verdicts on devices and reasons of failures are looked up by what they are called.
		if !used[name] && !strings.Contains("dns connect tls timeout http bad_response denied signed unsigned noOwnerKeys broken unchecked", name) {
			t.Errorf("nothing says %q", name)
		}
	}
}
