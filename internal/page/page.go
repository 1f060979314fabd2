// Package page is the button for people whose client has none: one document, in which a user signs in, sees the people in
// their encrypted rooms, and has a contact's device list refreshed. docs/page.md says what it does and what it may do.
//
// The document is put together from the files in assets when the program starts. Its script and style stand in it, and the
// Content-Security-Policy allows those two alone, by their hashes.
package page

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Path is where the page is. It is also there without the slash at the end.
const Path = "/_matrix/client/unstable/org.matrix.msc2638/"

//go:embed assets
var assets embed.FS

// scripts are the files of the script, in their order.
var scripts = []string{"text.js", "matrix.js", "keys.js", "people.js", "rows.js", "entrance.js", "main.js"}

// document is the page and the headers that it comes with.
type document struct {
	body   []byte
	policy string
}

// served is put together once. What could fail is in the program and tried by its tests.
var served = assemble()

// Match says whether the request is for the page.
func Match(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return path == Path || path == strings.TrimSuffix(Path, "/")
}

// Handler serves the page. It needs nothing of what freshen has: the button is there while the database is away.
func Handler() http.Handler { return http.HandlerFunc(serve) }

func serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", served.policy)
	h.Set("X-Frame-Options", "DENY") // for browsers that do not know frame-ancestors
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer") // the address may hold a login token for a moment
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-store") // nor does the browser put it aside with what it shows
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "This page can be read only.", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(served.body)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(served.body) // an error means that the reader has gone
	}
}

// placeholder is where the document takes the style, the script or a string.
var placeholder = regexp.MustCompile(`\{\{(\w+)\}\}`)

func assemble() document {
	style := strings.TrimSpace(asset("style.css"))
	strs := table()
	script := wholeScript(strs)
	body := placeholder.ReplaceAllStringFunc(asset("page.html"), func(found string) string {
		switch name := found[2 : len(found)-2]; name {
		case "style":
			return style
		case "script":
			return script
		default:
			var text string
			if json.Unmarshal(strs[name], &text) != nil {
				panic("page.html wants a string that there is not: " + name)
			}
			return html.EscapeString(text)
		}
	})
	return document{body: []byte(body), policy: policy(script, style)}
}

// policy allows the script and the style of the document, and requests to its own origin. A page that takes a password is
// not shown inside of any other.
func policy(script, style string) string {
	return strings.Join([]string{
		"default-src 'none'",
		"script-src '" + hash(script) + "'",
		"style-src '" + hash(style) + "'",
		"connect-src 'self'",
		"img-src data:", // its icon
		"base-uri 'none'",
		"form-action 'none'", // the script signs in; no form may send a password anywhere
		"frame-ancestors 'none'",
		"require-trusted-types-for 'script'",
		"trusted-types 'none'",
	}, "; ")
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// wholeScript is the files of the script in one scope, with the table of strings before them.
func wholeScript(strs map[string]json.RawMessage) string {
	encoded, err := json.Marshal(strs) // which writes "<" as an escape: no string can end the script
	if err != nil {
		panic(fmt.Sprintf("strings.json: %v", err))
	}
	var b strings.Builder
	b.WriteString("\"use strict\";\n(() => {\nconst strings = ")
	b.Write(encoded)
	b.WriteString(";\n")
	for _, name := range scripts {
		b.WriteString("\n")
		b.WriteString(asset(name))
	}
	b.WriteString("})();")
	return b.String()
}

// table is all that the page says, by name: strings, and objects of the forms of one.
func table() map[string]json.RawMessage {
	var strs map[string]json.RawMessage
	if err := json.Unmarshal([]byte(asset("strings.json")), &strs); err != nil {
		panic(fmt.Sprintf("strings.json: %v", err))
	}
	return strs
}

func asset(name string) string {
	data, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(fmt.Sprintf("the page lacks a file: %v", err))
	}
	return string(data)
}
