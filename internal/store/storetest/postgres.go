// Package storetest starts real Postgres servers for tests and benches: the system's initdb and postgres, in a temporary
// directory, as an unprivileged user.
package storetest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// Superuser is the role that owns everything.
	Superuser = "postgres"
	// Password is that role's; it is asked for over TCP alone.
	Password = "a%secret/of:tests@"

	// readyWithin bounds initdb, and each start and stop; a busy machine takes seconds.
	readyWithin = time.Minute
	// unprivileged is the user ("nobody") that Postgres runs as where we are root, as which it refuses to run.
	unprivileged = 65534
	socketPort   = 5432 // only names the socket's file
)

// ErrMissing is what Start returns where the machine has no Postgres.
var ErrMissing = errors.New("there is no Postgres on this machine (initdb and postgres, on the PATH or in /usr/lib/postgresql): apt-get install postgresql")

// Options say what a server is like. The zero value is the fastest: what it holds is lost if the machine crashes, though
// not if Postgres does.
type Options struct {
	// Durable keeps fsync and the other settings of a server that is to survive a power cut.
	Durable bool
	// TCP listens on a free port of 127.0.0.1 as well, and asks for a password there.
	TCP bool
	// Settings are further settings of postgresql.conf.
	Settings map[string]string
	// HBA takes the place of pg_hba.conf.
	HBA string
	// Files are further files in its data directory, such as server.key.
	Files map[string][]byte
	// Dir is where its data lie; empty for a new directory below that for temporary files, which Close removes.
	Dir string
}

// Postgres is one server. Its methods may not be called at the same time.
type Postgres struct {
	options Options
	bin     string
	dir     string
	port    int
	ours    bool // dir is ours to remove
	running *process
	names   atomic.Int64
}

// Start makes a new server and starts it. Close ends it.
func Start(ctx context.Context, options Options) (_ *Postgres, err error) {
	p := &Postgres{options: options, dir: options.Dir, port: socketPort, ours: options.Dir == ""}
	if p.bin, err = findPrograms(); err != nil {
		return nil, err
	}
	if p.ours {
		// A short path: a socket's has 107 bytes at most.
		if p.dir, err = os.MkdirTemp("", "freshen-pg-"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if os.Getuid() == 0 {
		if err := os.Chown(p.dir, unprivileged, unprivileged); err != nil {
			return nil, err
		}
	}
	if err := p.initialise(ctx); err != nil {
		return nil, err
	}
	return p, p.Start(ctx)
}

func findPrograms() (dir string, err error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		if _, err := exec.LookPath("postgres"); err == nil {
			// Debian's link leads to where the other programs and libraries are found.
			if path, err = filepath.EvalSymlinks(path); err == nil {
				return filepath.Dir(path), nil
			}
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		return "", errors.Join(ErrMissing, err)
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })), nil
}

func (p *Postgres) data() string    { return filepath.Join(p.dir, "data") }
func (p *Postgres) logFile() string { return filepath.Join(p.dir, "log") }

func (p *Postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), filepath.Join(p.bin, name), args...) // ends by a signal of its own
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = attributes()
	return cmd
}

func (p *Postgres) initialise(ctx context.Context) error {
	// initdb stores the password; the file may be read by it alone, and is gone with the directory.
	secret := filepath.Join(p.dir, "password")
	if err := p.write(secret, []byte(Password)); err != nil {
		return err
	}
	cmd := p.command("initdb", "-D", p.data(), "-U", Superuser, "--pwfile", secret, "--auth", "scram-sha-256",
		"--encoding", "UTF8", "--locale", "C", "--no-sync")
	if err := p.run(ctx, cmd); err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	hba := p.options.HBA
	if hba == "" {
		hba = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal replication all trust\n"
	}
	if err := p.Write("pg_hba.conf", []byte(hba)); err != nil {
		return err
	}
	for name, content := range p.options.Files {
		if err := p.Write(name, content); err != nil {
			return err
		}
	}
	return nil
}

// Write puts a file into its data directory, for the server alone to read. While it is stopped, "standby.signal" makes it
// a standby from its next start on.
func (p *Postgres) Write(name string, content []byte) error {
	return p.write(filepath.Join(p.data(), name), content)
}

func (p *Postgres) write(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	if os.Getuid() == 0 {
		return os.Chown(path, unprivileged, unprivileged)
	}
	return nil
}

// run runs a program to its end.
func (p *Postgres) run(ctx context.Context, cmd *exec.Cmd) error {
	child, err := startProcess(cmd, p.logFile())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	select {
	case <-child.ended:
	case <-ctx.Done():
		child.kill()
		return ctx.Err()
	}
	if child.err != nil {
		return fmt.Errorf("%w:\n%s", child.err, p.lastOfLog())
	}
	return nil
}

// Start starts the server again, after Stop or Crash, on the same socket and port.
func (p *Postgres) Start(ctx context.Context) error {
	if p.options.TCP && p.port == socketPort {
		var err error
		if p.port, err = freePort(ctx); err != nil {
			return err
		}
	}
	settings := map[string]string{
		"unix_socket_directories": p.dir, "port": strconv.Itoa(p.port), "listen_addresses": "", "max_connections": "300",
		"log_min_messages": "warning", "shared_buffers": "32MB",
	}
	if p.options.TCP {
		settings["listen_addresses"] = "127.0.0.1"
	}
	if !p.options.Durable {
		maps.Copy(settings, map[string]string{"fsync": "off", "full_page_writes": "off"})
	}
	maps.Copy(settings, p.options.Settings)
	args := []string{"-D", p.data()}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	child, err := startProcess(p.command("postgres", args...), p.logFile())
	if err != nil {
		return err
	}
	p.running = child
	return p.ready(ctx)
}

func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	l, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(port)
}

// ready waits until the server lets somebody in.
func (p *Postgres) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, p.URL(Superuser).String())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-p.running.ended:
			p.running = nil
			return fmt.Errorf("Postgres did not start:\n%s", p.lastOfLog())
		case <-ctx.Done():
			return fmt.Errorf("Postgres is not ready: %w\n%s", err, p.lastOfLog())
		case <-tick.C:
		}
	}
}

func (p *Postgres) lastOfLog() string {
	log, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	return string(log[max(0, len(log)-4000):])
}

// Stop ends the server in good order: it cuts its connections and writes down what it has in memory.
func (p *Postgres) Stop() error { return p.end(syscall.SIGINT) }

// Crash ends the server as its own crash would: committed is what is in its log.
func (p *Postgres) Crash() error { return p.end(syscall.SIGQUIT) }

func (p *Postgres) end(signal syscall.Signal) error {
	child := p.running
	if child == nil {
		return nil
	}
	p.running = nil
	if err := child.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(readyWithin)
	defer timer.Stop()
	select {
	case <-child.ended:
		return nil
	case <-timer.C:
		child.kill()
		return fmt.Errorf("Postgres did not stop within %s and was killed:\n%s", readyWithin, p.lastOfLog())
	}
}

// Close ends the server and removes its data.
func (p *Postgres) Close() error {
	err := errors.Join(p.Resume(), p.Crash())
	if p.ours {
		err = errors.Join(err, os.RemoveAll(p.dir))
	}
	return err
}

// URL reaches a database over the socket, where no password is asked for.
func (p *Postgres) URL(database string) *url.URL {
	query := url.Values{"host": {p.dir}, "port": {strconv.Itoa(p.port)}}
	return &url.URL{Scheme: "postgres", User: url.User(Superuser), Path: "/" + database, RawQuery: query.Encode()}
}

// TCPURL reaches a database over TCP, with [Options.TCP].
func (p *Postgres) TCPURL(database string) *url.URL {
	return &url.URL{
		Scheme: "postgres", User: url.UserPassword(Superuser, Password), Path: "/" + database,
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)),
	}
}

// Exec runs statements in a database, each by itself.
func (p *Postgres) Exec(ctx context.Context, database string, statements ...string) (err error) {
	conn, err := pgx.Connect(ctx, p.URL(database).String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			return fmt.Errorf("%s: %w", s, err)
		}
	}
	return nil
}

// CreateDatabase makes an empty database of a name that was not used before.
func (p *Postgres) CreateDatabase(ctx context.Context) (name string, err error) {
	name = fmt.Sprintf("freshen_%d_%s", p.names.Add(1), strings.ToLower(rand.Text()[:6]))
	return name, p.Exec(ctx, Superuser, "CREATE DATABASE "+name)
}

// DropDatabase removes it, and cuts whoever still uses it.
func (p *Postgres) DropDatabase(ctx context.Context, name string) error {
	return p.Exec(ctx, Superuser, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
}
