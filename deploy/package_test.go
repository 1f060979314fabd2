package deploy_test

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"freshen/internal/testbed"
	"freshen/internal/testbed/testbedtest"
)

const (
	packageVersion = "v1.2.3"
	epoch          = "1770120000"
)

// build runs the script from a source tree and returns the folder with what it made.
func build(tree, folder string) error {
	cmd := exec.CommandContext(context.Background(), filepath.Join(tree, "deploy", "package", "build.sh"), runtime.GOARCH, folder)
	cmd.Env = append(os.Environ(), "VERSION="+packageVersion, "SOURCE_DATE_EPOCH="+epoch, "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// built makes the package once for all tests.
var built = sync.OnceValues(func() (folder string, err error) {
	folder = filepath.Join(filepath.Dir(binary), "packages")
	return folder, build("..", folder)
})

// packages are the Debian package and the archive.
func packages(t *testing.T) (deb, archive string) {
	t.Helper()
	if runtime.GOOS != "linux" {
		testbedtest.Require(t, "Linux", errors.New("packages are built there"))
	}
	folder, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, "freshen_1.2.3_"+runtime.GOARCH+".deb"), filepath.Join(folder, "freshen-"+packageVersion+"-linux-"+runtime.GOARCH+".tar.gz")
}

// Whoever builds it again, elsewhere and later, must get the same bytes: only so can it be checked that a package is what
// its source says.
func TestPackagesAreReproducible(t *testing.T) {
	t.Parallel()
	deb, archive := packages(t)
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "elsewhere")
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, root)
		into := filepath.Join(copied, name)
		switch {
		case err != nil:
			return err
		case name == "/.git" || name == "/.cache" || name == "/bin": // files, links or folders
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case entry.IsDir():
			return os.MkdirAll(into, 0o700)
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(into, data, info.Mode()&0o700)
	})
	if err != nil {
		t.Fatal(err)
	}
	again := t.TempDir()
	if err := build(copied, again); err != nil {
		t.Fatal(err)
	}
	for _, first := range []string{deb, archive} {
		one, other := read(t, first), read(t, filepath.Join(again, filepath.Base(first)))
		if one != other {
			t.Errorf("%s: two builds differ, of %d and %d bytes", filepath.Base(first), len(one), len(other))
		}
	}
}

// machine is a folder that dpkg takes for a machine.
type machine struct{ root string }

func newMachine(t *testing.T) machine {
	t.Helper()
	if os.Getuid() != 0 {
		testbedtest.Require(t, "root, as dpkg does", errors.New("run it as root"))
	}
	testbedtest.Program(t, "dpkg", "dpkg")
	m := machine{root: t.TempDir()}
	for _, folder := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "etc", "usr/share", "usr/bin", "usr/lib", "var/lib", "tmp"} {
		if err := os.MkdirAll(filepath.Join(m.root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, m.path("var/lib/dpkg/status"), "")
	for _, folder := range []string{"usr/share", "usr/bin", "usr/lib"} {
		write(t, m.path(folder+"/others"), "") // dpkg removes what it finds empty
	}
	return m
}

// dpkg runs it for the machine. The maintainers' scripts run with DPKG_ROOT, and so touch nothing outside. Images for
// containers have dpkg leave documentation out; here it is wanted.
func (m machine) dpkg(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), "dpkg", append([]string{"--root=" + m.root, "--force-script-chrootless", "--path-include=/usr/*"}, args...)...))
}

// files are all but dpkg's own.
func (m machine) files(t *testing.T) (all []string) {
	t.Helper()
	err := filepath.WalkDir(m.root, func(path string, _ fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, m.root)
		if strings.HasPrefix(name, "/var/lib/dpkg") || strings.HasPrefix(name, "/var/log") {
			return err
		}
		all = append(all, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (m machine) path(name string) string { return filepath.Join(m.root, name) }

// command runs a program of the machine's in it, where there is nothing else: no libraries, no shell.
func (m machine) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: m.root}
	cmd.Dir, cmd.Env = "/", []string{}
	return cmd
}

// From nothing to a freshen that serves and back to nothing, as an administrator goes: no step may surprise, an
// installation may start nothing and a removal lose nothing.
func TestPackageIsInstalledAndPurged(t *testing.T) {
	t.Parallel()
	deb, _ := packages(t)
	m := newMachine(t)
	before := m.files(t)

	if said := m.dpkg(t, "--install", deb); !strings.Contains(said, "freshen init --service") {
		t.Errorf("the installation says %s", said)
	}
	if got := run(t, m.command(t, "/usr/bin/freshen", "version")); !strings.HasPrefix(got, "freshen "+packageVersion+" ") {
		t.Errorf("the version is %s", got)
	}
	for _, name := range []string{
		"/usr/share/man/man1/freshen.1.gz", "/usr/share/man/man5/freshen.yaml.5.gz", "/usr/share/bash-completion/completions/freshen",
		"/usr/share/doc/freshen/copyright", "/usr/share/doc/freshen/docs/operations.md", "/usr/share/freshen/grafana/freshen.json",
		"/usr/share/freshen/prometheus/freshen.rules.yml", "/usr/share/freshen/nginx/freshen.conf", "/usr/lib/systemd/system/freshen.socket",
	} {
		if info, err := os.Stat(m.path(name)); err != nil || info.Size() == 0 || info.Mode() != 0o644 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if _, err := os.Lstat(m.path("/etc/freshen/freshen.yaml")); !os.IsNotExist(err) {
		t.Errorf("there is a configuration that nobody wrote: %v", err)
	}
	if copyright := read(t, m.path("/usr/share/doc/freshen/copyright")); !strings.Contains(copyright, "modernc.org/sqlite v") || !strings.Contains(copyright, "Mozilla Public License Version 2.0") {
		t.Error("the terms of what freshen is made of are not there")
	}

	// What the installation told to do, and what that tells.
	if err := os.MkdirAll(m.path("/etc/matrix-synapse"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, m.path("/etc/matrix-synapse/signing.key"), key)
	write(t, m.path("/etc/matrix-synapse/homeserver.yaml"), `server_name: example.org
signing_key_path: /etc/matrix-synapse/signing.key
listeners: [{port: 8008, type: http, resources: [{names: [client]}]}]
`)
	said := run(t, m.command(t, "/usr/bin/freshen", "init", "--service", "--output", "/etc/freshen/freshen.yaml", "/etc/matrix-synapse/homeserver.yaml"))
	if !strings.Contains(said, "ln -s /etc/matrix-synapse/signing.key /etc/freshen/signing_key") {
		t.Errorf("init says %s", said)
	}
	if info, err := os.Stat(m.path("/etc/freshen/freshen.yaml")); err != nil || info.Mode() != 0o644 {
		t.Errorf("the service cannot read its configuration: %v %v", info, err)
	}
	if err := os.Symlink("/etc/matrix-synapse/signing.key", m.path("/etc/freshen/signing_key")); err != nil {
		t.Fatal(err)
	}
	m.serve(t)

	// An upgrade or a removal is no reason to forget what users were promised, or what an administrator wrote.
	m.dpkg(t, "--install", deb)
	m.dpkg(t, "--remove", "freshen")
	for name, want := range map[string]bool{"/etc/freshen/freshen.yaml": true, "/etc/default/freshen": true, "/var/lib/freshen/freshen.db": true, "/usr/bin/freshen": false} {
		if _, err := os.Lstat(m.path(name)); (err == nil) != want {
			t.Errorf("after the removal %s is there: %t", name, err == nil)
		}
	}
	m.dpkg(t, "--purge", "freshen")
	if read(t, m.path("/etc/matrix-synapse/signing.key")) != key {
		t.Error("the homeserver's key is gone")
	}
	if err := os.RemoveAll(m.path("/etc/matrix-synapse")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, m.files(t)); diff != "" {
		t.Errorf("something is left behind (-before +after):\n%s", diff)
	}
}

// A key that somebody copied into our folder is not ours to delete.
func TestPurgeLeavesAKey(t *testing.T) {
	t.Parallel()
	deb, _ := packages(t)
	m := newMachine(t)
	m.dpkg(t, "--install", deb)
	write(t, m.path("/etc/freshen/signing_key"), key)
	if said := m.dpkg(t, "--purge", "freshen"); !strings.Contains(said, "/etc/freshen is not empty and stays") {
		t.Errorf("the purge says %s", said)
	}
	if read(t, m.path("/etc/freshen/signing_key")) != key {
		t.Error("the key is gone")
	}
}

// serve starts what the unit starts, as systemd does it, and waits until freshen says that it is ready.
func (m machine) serve(t *testing.T) {
	t.Helper()
	unit := read(t, m.path("/usr/lib/systemd/system/freshen.service"))
	credentials := m.path("/credentials")
	if err := os.Mkdir(credentials, 0o755); err != nil {
		t.Fatal(err)
	}
	name, source, _ := strings.Cut(setting(t, unit, "LoadCredential"), ":")
	target, err := os.Readlink(m.path(source))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(credentials, name), read(t, m.path(target)))
	cmd := m.command(t, strings.Fields(setting(t, unit, "ExecStart"))...)
	port, err := testbed.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	admin, err := testbed.FreePort(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = []string{"CREDENTIALS_DIRECTORY=/credentials", "FRESHEN_LISTEN=" + port, "FRESHEN_ADMIN_LISTEN=" + admin}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serves := func() bool {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", admin)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	for end := time.Now().Add(patience); !serves(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			_ = cmd.Process.Kill()
			t.Fatalf("it does not serve: %s", &log)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, &log)
	}
	if err := os.RemoveAll(credentials); err != nil {
		t.Fatal(err)
	}
}

// setting is the value of the one line of a unit with that key.
func setting(t *testing.T, unit, name string) string {
	t.Helper()
	var values []string
	for line := range strings.Lines(unit) {
		if value, ok := strings.CutPrefix(line, name+"="); ok {
			values = append(values, strings.TrimSpace(value))
		}
	}
	if len(values) != 1 {
		t.Fatalf("%s stands %d times in the unit", name, len(values))
	}
	return values[0]
}

// static says of a program that it needs no other file to run.
func static(t *testing.T, path string) {
	t.Helper()
	file, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	libraries, err := file.ImportedLibraries()
	if err != nil || len(libraries) > 0 || slices.ContainsFunc(file.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Errorf("%s is linked against %q (%v)", path, libraries, err)
	}
}
