package jsclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"freshen/internal/testbed/chromium"
)

// page is all that a browser is given; its script is the clients' code in one piece.
const page = `<!doctype html><meta charset="utf-8"><title>A client</title><script type="module" src="client.js"></script>`

// Browser starts a headless Chromium with a profile below parent, and opens in it a page that has the clients' code, from an
// origin of its own: whatever the clients ask for is another's, and subject to CORS. trusted are hashes of the public keys
// of certificates that hold although no known authority signed them, as Chromium's flag
// --ignore-certificate-errors-spki-list takes them. progress (may be nil) is told what is installed.
func Browser(ctx context.Context, parent string, trusted []string, progress io.Writer) (*Host, error) {
	dir, err := prepare(ctx, parent, progress)
	if err != nil {
		return nil, err
	}
	if err := bundle(ctx, dir); err != nil {
		return nil, err
	}
	b := &browser{}
	if b.origin, err = b.serve(ctx, filepath.Join(dir, "page")); err != nil {
		return nil, err
	}
	if b.chromium, err = chromium.Start(ctx, filepath.Join(dir, "profile"), trusted); err != nil {
		return nil, errors.Join(err, b.close())
	}
	if err := b.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("the page of the clients does not open: %w", err), b.close())
	}
	return &Host{engine: b}, nil
}

// bundle makes dir/page, with the clients' code for browsers in one file, and beside it the WebAssembly that it loads.
func bundle(ctx context.Context, dir string) error {
	modules := filepath.Join(dir, "node_modules")
	cmd := exec.CommandContext(ctx, filepath.Join(modules, ".bin", "node"), filepath.Join(modules, "esbuild", "bin", "esbuild"),
		"browser.mjs", "--bundle", "--format=esm", "--log-level=warning", "--outfile=page/client.js")
	cmd.Dir = dir
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("esbuild: %w\n%s", err, strings.TrimSpace(string(output)))
	}
	pkg := filepath.Join(dir, "page", "pkg")
	if err := os.Mkdir(pkg, 0o700); err != nil {
		return fmt.Errorf("no folder for the page: %w", err)
	}
	const wasm = "matrix_sdk_crypto_wasm_bg.wasm"
	if err := os.Symlink(filepath.Join(modules, "@matrix-org", "matrix-sdk-crypto-wasm", "pkg", wasm), filepath.Join(pkg, wasm)); err != nil {
		return fmt.Errorf("the WebAssembly cannot be linked: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "page", "index.html"), []byte(page), 0o600); err != nil {
		return fmt.Errorf("the page cannot be written: %w", err)
	}
	return nil
}

// browser is a running Chromium with one tab.
type browser struct {
	origin  string
	server  *http.Server
	stopped chan struct{} // closed when server has stopped

	mu       sync.Mutex // the tab is for one command at a time
	chromium *chromium.Browser
}

// serve serves dir on a loopback address and returns the origin.
func (b *browser) serve(ctx context.Context, dir string) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("the page cannot be served: %w", err)
	}
	b.server = &http.Server{Handler: http.FileServer(http.Dir(dir)), ReadHeaderTimeout: 10 * time.Second}
	b.stopped = make(chan struct{})
	go func() {
		defer close(b.stopped)
		_ = b.server.Serve(listener)
	}()
	return "http://" + listener.Addr().String(), nil
}

// open returns when the clients' code is loaded.
func (b *browser) open(ctx context.Context) error {
	tab, cancel := b.chromium.Until(ctx)
	defer cancel()
	if err := chromedp.Do(tab, chromedp.Navigate(b.origin)); err != nil {
		return err
	}
	_, err := chromedp.Run(tab, chromedp.Poll[bool]("!!window.freshenRun"))
	return err
}

func (b *browser) do(ctx context.Context, command map[string]any) ([]byte, error) {
	argument, err := json.Marshal(command)
	if err != nil {
		return nil, fmt.Errorf("a command: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	tab, cancel := b.chromium.Until(ctx)
	defer cancel()
	answer, err := chromedp.Run(tab, chromedp.Evaluate[string]("freshenRun("+string(argument)+")", func(p *runtime.EvaluateParams) {
		p.AwaitPromise = &[]bool{true}[0]
	}))
	return []byte(answer), err
}

func (b *browser) close() (err error) {
	if b.chromium != nil {
		err = b.chromium.Close()
	}
	_ = b.server.Close()
	<-b.stopped
	return err
}
