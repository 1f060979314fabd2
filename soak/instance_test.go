//go:build unix

package soak

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"freshen/internal/testbed"
)

const (
	// fetchTimeout is federation.timeout: far more than a remote server takes to answer when it is well, so that an
	// answer that was served was also received.
	fetchTimeout = 3 * time.Second
	// leaseAtLeast is what a fetch's lease has left, at the least, when the remote server is reached: it is
	// federation.timeout and ten seconds from the fetch's begin.
	leaseAtLeast = 10 * time.Second
)

// instance is one freshen, which may live several times. Its address and its database stay the same.
type instance struct {
	w        *world
	name     string
	listen   string // host:port
	database string // the configuration's key

	life    string // of the running or last process
	n       int
	process *testbed.Process
	down    *disturbance // since the process was sent a signal, until it is ready again; nil while it is
}

// URL is where its clients connect to.
func (i *instance) URL() string { return "http://" + i.listen }

func (i *instance) file(name string) string { return filepath.Join(i.w.dir, i.name+"."+name) }

// start begins a new life. Its signing key has an ID of its own, by which the remote servers know who asks them.
func (i *instance) start() {
	i.w.t.Helper()
	i.n++
	i.life = fmt.Sprintf("%sx%d", i.name, i.n)
	i.w.lives.born(i.life)
	if i.down == nil {
		i.down = i.w.ledger.disturb(disturbance{what: "the start of " + i.name, at: i.name, life: "none"})
	}
	i.w.write(i.file("key"), fmt.Sprintf("ed25519 %s %s\n", i.life, base64.RawStdEncoding.EncodeToString(make([]byte, 32))))
	type section = map[string]any
	config := section{
		"listen":     i.listen,
		"homeserver": section{"name": ours, "url": i.w.hs.URL().String(), "signing_key": i.file("key")},
		"database":   i.database,
		"federation": section{"ca_file": i.w.caFile, "allow_networks": []string{"127.0.0.0/8"}, "timeout": fetchTimeout.String()},
		"cache":      section{"success": "50ms", "failure": "300ms"},
		"retry":      section{"first": "20ms", "most": "400ms"},
		"admin":      section{"listen": "127.0.0.1:0"},
	}
	limits := section{"every": "1ms", "burst": 10_000}
	config["limits"] = section{"per_user": limits, "per_destination": maps.Clone(limits)}
	data, err := yaml.Marshal(config)
	if err != nil {
		i.w.t.Fatal(err)
	}
	i.w.write(i.file("yaml"), string(data))
	i.process, err = testbed.StartProcess(i.w.t.Context(), i.name, i.file("log"), i.w.binary, []string{"serve", "--config", i.file("yaml")}, nil)
	if err != nil {
		i.w.t.Fatal(err)
	}
}

// ready returns when it serves. A freshen that does not start again after a crash is what these tests look for.
func (i *instance) ready() {
	i.w.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	err := i.process.AwaitReady(i.w.t.Context(), client, i.URL()+pathVersions, func(status int, body []byte) bool {
		var versions struct {
			Unstable map[string]bool `json:"unstable_features"`
		}
		return status == http.StatusOK && json.Unmarshal(body, &versions) == nil && versions.Unstable["org.matrix.msc2638"]
	})
	if err != nil {
		i.w.t.Fatal(err)
	}
	i.w.ledger.over(i.down)
	i.down = nil
}

// end is how a process is ended.
type end string

const (
	killed     end = "kill -9"
	stopped    end = "SIGTERM"
	impatient  end = "SIGTERM, then kill -9"
	killedHard     = 50 * time.Millisecond // after SIGTERM, at the most
)

// end ends the process and says in which disturbance.
func (i *instance) end(how end, between time.Duration) *disturbance {
	i.w.t.Helper()
	d := i.w.ledger.disturb(disturbance{what: fmt.Sprintf("%s of %s", how, i.life), at: i.name, life: i.life})
	starting := i.down != nil
	if starting {
		i.w.ledger.over(i.down)
	}
	i.down = d
	switch how {
	case killed:
		i.w.lives.ends(i.life)
		i.process.Kill()
	case impatient:
		if err := i.process.Signal(syscall.SIGTERM); err != nil {
			i.w.t.Error(err)
		}
		wait(i.w.t.Context(), between)
		i.w.lives.ends(i.life)
		i.process.Kill()
	case stopped:
		if err := i.process.Stop(i.w.t.Context()); err != nil {
			i.w.t.Error(err)
		} else if err := i.process.Exit(); err != nil && !starting { // at first it takes no notice of signals yet
			i.w.t.Errorf("%s ended on SIGTERM with %v, want exit status 0", i.life, err)
		}
		i.w.lives.ends(i.life)
	}
	i.w.ledger.gone(d)
	return d
}

// lives knows which process is alive. Its methods are safe for concurrent use.
type lives struct {
	mu     sync.Mutex
	all    map[string]bool // alive?
	paused map[string][]time.Time
}

func newLives() *lives { return &lives{all: map[string]bool{}, paused: map[string][]time.Time{}} }

func (l *lives) born(life string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[life] = true
}

// ends is called right before a process gets what ends it: from then on nothing is required of it.
func (l *lives) ends(life string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[life] = false
}

func (l *lives) pauses(life string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused[life] = append(l.paused[life], time.Now())
}

func (l *lives) known(life string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, known := l.all[life]
	return known
}

// excuse says whether a request that was open may be made again by another at that moment: its process had ended, or
// was paused for longer than its lease.
func (l *lives) excuse(open *fetch, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.all[open.by] {
		return true
	}
	for _, pause := range l.paused[open.by] {
		if !pause.After(at) && at.Sub(open.arrived) >= leaseAtLeast {
			return true
		}
	}
	return false
}

// reserve keeps a port of 127.0.0.1 for a program that listens on it, also while it does not: a socket that is bound and
// does not listen refuses connections, and lets another listen.
func reserve(t *testing.T) string {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatalf("no socket: %v", err)
	}
	syscall.CloseOnExec(socket)
	t.Cleanup(func() { _ = syscall.Close(socket) })
	if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatalf("no port can be reserved: %v", err)
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatalf("no port can be reserved: %v", err)
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatalf("the reserved port cannot be told: %v", err)
	}
	return fmt.Sprintf("127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port)
}

func (w *world) write(path, text string) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}
