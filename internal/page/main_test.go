package page_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp/kb"
	"go.uber.org/goleak"

	"freshen/internal/page"
	"freshen/internal/testbed/chromium"
	"freshen/internal/testbed/jsclient"
	"freshen/internal/testbed/testbedtest"
)

// patience is how long a test waits for what should happen at once.
const patience = 2 * time.Minute

// shared is the browser of all tests.
var shared struct {
	once    sync.Once
	browser *chromium.Browser
	err     error
}

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(runner(func() int {
		dir, err := os.MkdirTemp("", "freshen-page-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		profile = filepath.Join(dir, "profile")
		code := m.Run()
		if shared.browser != nil {
			if err := shared.browser.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = max(code, 1)
			}
		}
		_ = os.RemoveAll(dir)
		return code
	}))
}

var profile string

type runner func() int

func (r runner) Run() int { return r() }

// tab is one in which the page is open.
type tab struct {
	*chromium.Tab
	t   *testing.T
	ctx context.Context
	hs  *homeserver
}

// open opens the page in a tab of its own.
func open(t *testing.T, hs *homeserver) *tab {
	t.Helper()
	_, err := chromium.Find()
	testbedtest.Require(t, "a browser", err)
	ctx := testbedtest.Context(t, patience)
	shared.once.Do(func() { shared.browser, shared.err = chromium.Start(ctx, profile, nil) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	opened, err := shared.browser.Tab(ctx)
	if err != nil {
		t.Fatal(err)
	}
	o := &tab{opened, t, ctx, hs}
	t.Cleanup(func() {
		for _, problem := range o.Problems() {
			t.Errorf("in the page: %s", problem)
		}
		_ = o.Close() // some tests have
	})
	o.must(o.Open(ctx, hs.url+page.Path))
	return o
}

// signedIn opens the page and signs in.
func signedIn(t *testing.T, hs *homeserver) *tab {
	t.Helper()
	o := open(t, hs)
	o.signIn(password)
	o.await(`!document.getElementById("summary").hidden`)
	return o
}

func (o *tab) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func (o *tab) await(expression string) {
	o.t.Helper()
	o.must(o.Await(o.ctx, expression))
}

// awaitText waits until an element's text has a part.
func (o *tab) awaitText(selector, part string) {
	o.t.Helper()
	o.await("[...document.querySelectorAll(" + strconv.Quote(selector) + ")].some((e) => e.checkVisibility() && e.textContent.includes(" + strconv.Quote(part) + "))")
}

// text is the text of all that the selector finds and that is visible.
func (o *tab) text(selector string) (all []string) {
	o.t.Helper()
	o.must(o.Eval(o.ctx, "[...document.querySelectorAll("+strconv.Quote(selector)+")].filter((e) => e.checkVisibility()).map((e) => e.textContent)", &all))
	return all
}

func (o *tab) click(selector string) {
	o.t.Helper()
	o.must(o.Eval(o.ctx, "document.querySelector("+strconv.Quote(selector)+").click()", nil))
}

func (o *tab) signIn(word string) {
	o.t.Helper()
	o.await(`!document.getElementById("password-form").hidden`)
	o.must(o.Eval(o.ctx, `document.getElementById("user").focus()`, nil))
	o.must(o.Keys(o.ctx, "alice"+kb.Tab+word+kb.Enter))
}

// axe is the source of axe-core.
var axe = sync.OnceValues(func() (string, error) {
	modules, err := jsclient.Install(context.Background(), os.Stderr)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(filepath.Join(modules, "node_modules", "axe-core", "axe.min.js"))
	return string(data), err
})

// requireAccessible has axe-core look at the page as it stands, small and dark or in these ways, and requires that nothing
// reaches beyond the window.
func (o *tab) requireAccessible(state string, looks ...chromium.Look) {
	o.t.Helper()
	script, err := axe()
	testbedtest.Require(o.t, "axe-core", err)
	if len(looks) == 0 {
		looks = chromium.Looks[1:2]
	}
	for _, look := range looks {
		o.must(o.As(o.ctx, look))
		found, err := o.Violations(o.ctx, script)
		o.must(err)
		for _, violation := range found {
			o.t.Errorf("%s, %s: %s", state, look.Name, violation)
		}
		var beyond int64
		o.must(o.Eval(o.ctx, "document.documentElement.scrollWidth", &beyond))
		if beyond > look.Width {
			o.t.Errorf("%s, %s: the page is %d wide", state, look.Name, beyond)
		}
	}
}
