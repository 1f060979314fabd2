package listen_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"freshen/internal/listen"
)

// TestMain is the tests, or, with this variable set, a process to which sockets are passed.
func TestMain(m *testing.M) {
	if wanted := os.Getenv("LISTEN_TEST_WANTED"); wanted != "" {
		os.Exit(child(strings.Fields(wanted)))
	}
	goleak.VerifyTestMain(m)
}

// child listens as it is told, answers one connection at each address with the key's name, and says what went wrong.
func child(wanted []string) int {
	if pid := os.Getenv("LISTEN_PID"); pid == "self" {
		_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // as systemd does between fork and exec
	}
	var all []listen.Wanted
	for i, address := range wanted {
		all = append(all, listen.Wanted{Key: fmt.Sprint("key", i), Address: address})
	}
	listeners, err := listen.Open(context.Background(), all...)
	if err != nil {
		fmt.Fprint(os.Stdout, err)
		return 1
	}
	if left := os.Getenv("LISTEN_FDS") + os.Getenv("LISTEN_PID") + os.Getenv("LISTEN_FDNAMES"); left != "" {
		fmt.Fprint(os.Stdout, "the environment still has ", left)
		return 1
	}
	for i, listener := range listeners {
		conn, err := listener.Accept()
		if err != nil {
			fmt.Fprint(os.Stdout, err)
			return 1
		}
		fmt.Fprint(conn, all[i].Key)
		_ = conn.Close()
		_ = listener.Close()
	}
	return 0
}

// folder is one whose name is short enough for sockets in it.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "l") //nolint:usetesting // its names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func open(t *testing.T, address string) (net.Listener, error) {
	t.Helper()
	listeners, err := listen.Open(t.Context(), listen.Wanted{Key: "listen", Address: address})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = listeners[0].Close() })
	return listeners[0], nil
}

// A socket must be open to those whom its mode names and nobody else, whatever the umask, and gone at the end.
func TestUnixSocket(t *testing.T) {
	for suffix, want := range map[string]fs.FileMode{"": 0o660, "?mode=0666": 0o666, "?mode=600": 0o600} {
		path := filepath.Join(folder(t), "f.sock")
		listener, err := open(t, "unix:"+path+suffix)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode() != fs.ModeSocket|want {
			t.Errorf("%q: %v %v", suffix, info.Mode(), err)
		}
		base, dial, err := listen.Reach("unix:"+path+suffix, new(net.Dialer).DialContext)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = http.Serve(listener, http.NotFoundHandler()) }()
		client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
		response, err := client.Get(base + "/x")
		if err != nil || response.StatusCode != http.StatusNotFound {
			t.Fatalf("%v %v", response, err)
		}
		_ = response.Body.Close()
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
		if _, err := client.Get(base); !listen.Nobody(err) {
			t.Errorf("who asks now is told %v", err)
		}
	}
}

// What a dead process left must not keep freshen from starting; what is alive, or is no socket, must not be touched.
func TestWhatIsInTheWayOfASocket(t *testing.T) {
	dir := folder(t)
	stale := filepath.Join(dir, "stale")
	left, err := new(net.ListenConfig).Listen(t.Context(), "unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = left.Close()
	first, err := open(t, "unix:"+stale)
	if err != nil {
		t.Fatalf("a socket that is left over: %v", err)
	}
	if _, err := open(t, "unix:"+stale); err == nil || err.Error() != "listen: cannot listen on "+stale+": another program does; stop it, or name another path" {
		t.Errorf("a socket that is in use: %v", err)
	}
	if conn, err := new(net.Dialer).DialContext(t.Context(), "unix", stale); err != nil {
		t.Errorf("who listens there was disturbed: %v", err)
	} else {
		_ = conn.Close()
	}

	// An administrator moves it away and starts another, which the first one's end must not break.
	if err := os.Rename(stale, stale+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, "unix:"+stale); err != nil {
		t.Fatal(err)
	}
	_ = first.Close()
	if _, err := os.Lstat(stale); err != nil {
		t.Errorf("the second one's socket was removed by the first: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "link", "."} {
		path := filepath.Join(dir, name)
		if _, err := open(t, "unix:"+path); err == nil || !strings.Contains(err.Error(), "is there and is no socket, so it is left as it is") {
			t.Errorf("%s in the way: %v", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
	if data, err := os.ReadFile(file); string(data) != "precious" {
		t.Errorf("the file holds %q %v", data, err)
	}
	if _, err := open(t, "unix:"+dir+"/none/f.sock"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir+"/none") {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// Two that start in the same moment over a left-over socket: one gets it, and the other one's path is not pulled away.
func TestTwoWantOneSocket(t *testing.T) {
	for range 20 {
		path := filepath.Join(folder(t), "f.sock")
		left, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		left.(*net.UnixListener).SetUnlinkOnClose(false)
		_ = left.Close()
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			wg.Go(func() { _, errs[i] = open(t, "unix:"+path) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !strings.Contains(err.Error(), "another program does") {
				t.Error(err)
			}
		}
		if won != 1 {
			t.Fatalf("%d of them listen: %v", won, errs)
		}
	}
}

// A mistake in an address must be said in a way that mends it.
func TestMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"unix:run/f.sock":                   "by its whole path",
		"unix:":                             "by its whole path",
		"unix:/run/":                        "by its whole path",
		"unix:/f?mode=rw":                   "octal mode",
		"unix:/f?mode=1777":                 "octal mode",
		"unix:/" + strings.Repeat("x", 107): "at most 107 bytes",
		"fd:":                               "FileDescriptorName=",
		"fd:a:b":                            "FileDescriptorName=",
		"fd:" + strings.Repeat("x", 256):    "FileDescriptorName=",
		"systemd":                           "systemd passed no socket to this process (LISTEN_FDS)",
		"fd:x":                              "systemd passed no socket to this process (LISTEN_FDS)",
	} {
		if _, err := open(t, text); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "listen: ") {
			t.Errorf("%q gives %v", text, err)
		}
	}
	if _, _, err := listen.Reach("systemd", nil); !errors.Is(err, listen.ErrUnknown) {
		t.Errorf("a passed socket is reached with %v", err)
	}
}

// passing starts a process to which systemd would have passed these files, by these names.
func passing(t *testing.T, names string, files []*os.File, wanted ...string) (cmd *exec.Cmd, said *strings.Builder) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_TEST_WANTED="+strings.Join(wanted, " "),
		"LISTEN_PID=self", "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+names)
	cmd.ExtraFiles = files // from descriptor 3 on, as systemd's
	said = new(strings.Builder)
	cmd.Stdout = said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, said
}

func answer(t *testing.T, addr net.Addr) string {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Sockets that systemd holds are served by the process that they are passed to, by name or as the only one; and stay
// when it ends, for the next.
func TestPassedSockets(t *testing.T) {
	dir := folder(t)
	config := new(net.ListenConfig)
	public, err := config.Listen(t.Context(), "unix", filepath.Join(dir, "public.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer public.Close()
	admin, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	unixFile, err := public.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer unixFile.Close()
	tcpFile, err := admin.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer tcpFile.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	connection, other := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
	defer connection.Close()
	defer other.Close()

	for _, wanted := range [][]string{{"fd:web", "fd:ops"}, {"systemd", "fd:ops"}, {"fd:web", "systemd"}} {
		cmd, said := passing(t, "ops:web", []*os.File{tcpFile, unixFile}, wanted...)
		if got := answer(t, public.Addr()) + answer(t, admin.Addr()); got != "key0key1" {
			t.Errorf("%q: who answers is %q", wanted, got)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%q: %v %s", wanted, err, said)
		}
		if _, err := os.Lstat(public.Addr().String()); err != nil {
			t.Errorf("systemd's socket was removed: %v", err)
		}
	}

	both := []*os.File{tcpFile, unixFile}
	for name, c := range map[string]struct {
		names  string
		files  []*os.File
		wanted []string
		says   string
	}{
		"no such name":    {"ops:web", both, []string{"fd:wbe", "systemd"}, `key0: systemd passed no socket named "wbe", but "ops", "web"`},
		"which one":       {"ops:web", both, []string{"systemd"}, `key0: systemd passed several sockets, "ops", "web": say with fd:NAME`},
		"two of a name":   {"web:web", both, []string{"fd:web"}, `key0: systemd passed 2 sockets named "web"`},
		"nobody wants it": {"ops:web", both, []string{"fd:web"}, `systemd passed "ops", at which nobody would answer`},
		"none left":       {"ops", both[:1], []string{"fd:ops", "systemd"}, "key1: systemd passed no socket but those that are named elsewhere"},
		"none wanted":     {"ops", both[:1], []string{"127.0.0.1:0"}, `systemd passed "ops", at which nobody would answer`},
		"one connection":  {"web", []*os.File{connection}, []string{"systemd"}, `what systemd passed as "web" is no socket on which connections come in`},
	} {
		cmd, said := passing(t, c.names, c.files, c.wanted...)
		if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s: %v, and it says %s", name, err, said)
		}
	}
}
