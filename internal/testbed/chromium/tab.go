package chromium

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// Tab is a tab with cookies and storage of its own. Close it.
type Tab struct {
	tab    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	problems []string
}

// Tab opens a tab.
func (b *Browser) Tab(ctx context.Context) (*Tab, error) {
	tab, cancel := chromedp.NewContext(b.Context, chromedp.WithNewBrowserContext())
	t := &Tab{tab: tab, cancel: cancel}
	if err := chromedp.Listen(tab, t.hear); err != nil {
		cancel()
		return nil, fmt.Errorf("no tab: %w", err)
	}
	return t, t.Do(ctx, chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, log.Enable, cdp.Empty{})
		return err
	}))
}

// Close closes the tab, as a person does: the page hears of it.
func (t *Tab) Close() error {
	err := chromedp.Cancel(t.tab)
	t.cancel()
	return err
}

// hear notes what the page's script throws, and what the browser blocks.
func (t *Tab) hear(event any) {
	var problem string
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		problem = e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			problem += " " + e.ExceptionDetails.Exception.Description
		}
	case *log.EventEntryAdded:
		if e.Entry.Source == log.EntrySourceNetwork { // requests that fail are part of tests
			return
		}
		problem = e.Entry.Text
	default:
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems = append(t.problems, problem)
}

// Problems are what the page's script has thrown, and what the browser has blocked.
func (t *Tab) Problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.problems...)
}

// Do runs steps in the tab.
func (t *Tab) Do(ctx context.Context, steps ...chromedp.Action[chromedp.Void]) error {
	tab, cancel := until(ctx, t.tab)
	defer cancel()
	return chromedp.Do(tab, steps...)
}

// Open navigates, and returns when the page is loaded.
func (t *Tab) Open(ctx context.Context, url string) error {
	return t.Do(ctx, chromedp.Navigate(url))
}

// Eval evaluates a JavaScript expression in the page, awaits it if it is a promise, and stores what it comes to in result,
// unless that is nil. The page's Content-Security-Policy does not hold for it.
func (t *Tab) Eval(ctx context.Context, expression string, result any) error {
	tab, cancel := until(ctx, t.tab)
	defer cancel()
	data, err := chromedp.Run(tab, chromedp.Evaluate[string]("(async () => JSON.stringify((await ("+expression+")) ?? null))()", chromedp.EvalAwaitPromise))
	if err != nil {
		return fmt.Errorf("the page cannot tell %s: %w", expression, err)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal([]byte(data), result)
}

// Await returns as soon as a JavaScript expression is true in the page. The error says what the page showed instead.
func (t *Tab) Await(ctx context.Context, expression string) error {
	const wait = `new Promise((resolve) => {
		const look = () => { let is = false; try { is = Boolean(%s); } catch {} if (is) resolve(true); else setTimeout(look, 25); };
		look();
	})`
	for {
		err := t.Eval(ctx, fmt.Sprintf(wait, expression), nil)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || t.tab.Err() != nil {
			break
		}
		// The page was navigated away from in between.
	}
	var shown string
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
	defer cancel()
	if err := t.Eval(last, "document.body.innerText", &shown); err != nil {
		shown = err.Error()
	}
	return fmt.Errorf("the page never came to %s; it threw %q and shows:\n%s", expression, t.Problems(), shown)
}

// Keys presses keys one after the other, as a person does on whatever has the focus; see [kb] for those without a letter.
func (t *Tab) Keys(ctx context.Context, keys string) error { return t.Do(ctx, chromedp.KeyEvent(keys)) }

// TabTo presses the tabulator key until what has the focus is described by a part of its text, label or id; 100 times at
// the most.
func (t *Tab) TabTo(ctx context.Context, part string) error {
	const described = `(() => { const e = document.activeElement;
		if (e === document.body) return ""; // beyond the last
		const labelled = (e.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ");
		return [e.id, labelled || e.textContent, ...[...(e.labels ?? [])].map((l) => l.textContent)].join(" "); })()`
	var seen []string
	for range 100 {
		if err := t.Keys(ctx, kb.Tab); err != nil {
			return err
		}
		var now string
		if err := t.Eval(ctx, described, &now); err != nil {
			return err
		}
		if strings.Contains(now, part) {
			return nil
		}
		seen = append(seen, now)
	}
	return fmt.Errorf("the tabulator key never reaches %q, but %q", part, seen)
}

// Look is how a page is looked at.
type Look struct {
	Name          string
	Width, Height int64
	Dark          bool
}

// Looks are those that pages are tried in.
var Looks = []Look{
	{"360-light", 360, 740, false}, {"360-dark", 360, 740, true}, {"1280-light", 1280, 800, false}, {"1280-dark", 1280, 800, true},
}

// As has the page looked at in that way from now on.
func (t *Tab) As(ctx context.Context, look Look) error {
	scheme := "light"
	if look.Dark {
		scheme = "dark"
	}
	return t.Do(ctx, chromedp.EmulateViewport(look.Width, look.Height), chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}},
		})
		return err
	}))
}

// Screenshot writes what the window shows as a PNG.
func (t *Tab) Screenshot(ctx context.Context, file string) error {
	tab, cancel := until(ctx, t.tab)
	defer cancel()
	data, err := chromedp.Run(tab, chromedp.CaptureScreenshot())
	if err != nil {
		return err
	}
	if data, err = small(data); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

// Violations has axe-core, whose source is script, look at the page, and returns what is not accessible about it.
func (t *Tab) Violations(ctx context.Context, script string) ([]string, error) {
	if err := t.Eval(ctx, "("+`() => { if (!globalThis.axe) { `+script+"\n } })()", nil); err != nil {
		return nil, err
	}
	var found []string
	err := t.Eval(ctx, `axe.run(document, {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then((r) =>
		r.violations.map((v) => v.id + ": " + v.help + ": " + v.nodes.map((n) => n.html + " " + n.failureSummary).join("; ")))`, &found)
	return found, err
}
