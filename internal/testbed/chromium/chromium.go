// Package chromium starts a headless Chromium for tests and gives them tabs. Nothing that it opens reaches beyond
// 127.0.0.1.
package chromium

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/chromedp/chromedp"
)

// endWithin is how long the browser may take to end by itself.
const endWithin = 5 * time.Second

// Find returns the path of a Chromium or Chrome, or an error that says what to install.
func Find() (string, error) {
	for _, name := range []string{
		"chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
	} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("there is no Chromium: apt-get install chromium")
}

// Browser is a running Chromium. Close it.
type Browser struct {
	// Context is that of its first tab, as chromedp wants it.
	Context context.Context
	cancel  func()
}

// Start starts a headless Chromium, whose profile is the folder dir. trusted are hashes of the public keys of certificates
// that hold although no known authority signed them, as Chromium's flag --ignore-certificate-errors-spki-list takes them.
// ctx bounds the start, not the browser's life.
func Start(ctx context.Context, dir string, trusted []string) (*Browser, error) {
	path, err := Find()
	if err != nil {
		return nil, err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(dir),
		chromedp.Flag("ignore-certificate-errors-spki-list", strings.Join(trusted, ",")),
		// Tests send nothing beyond loopback addresses, and neither does the browser by itself.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"), chromedp.Flag("disable-component-update", true))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium's sandbox does not work for root
	}
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.WithoutCancel(ctx), options...)
	tab, cancelTab := chromedp.NewContext(allocator)
	b := &Browser{Context: tab, cancel: func() { cancelTab(); cancelAllocator() }}
	// The first action starts the browser, whose life would end with a context that has a deadline.
	stop := context.AfterFunc(ctx, b.cancel)
	err = chromedp.Do(tab)
	stop()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s does not start: %w", path, err), b.Close())
	}
	return b, nil
}

// Close ends the browser, and returns when it has ended.
func (b *Browser) Close() error {
	ending, cancel := context.WithTimeout(b.Context, endWithin)
	defer cancel()
	err := chromedp.Cancel(ending)
	b.cancel()
	return err
}

// Until is the context of the first tab, which ends with ctx as well.
func (b *Browser) Until(ctx context.Context) (context.Context, context.CancelFunc) {
	return until(ctx, b.Context)
}

// until is a tab's context, which ends with ctx as well.
func until(ctx, tab context.Context) (context.Context, context.CancelFunc) {
	both, cancel := context.WithCancel(tab)
	stop := context.AfterFunc(ctx, cancel)
	return both, func() { stop(); cancel() }
}
