package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"freshen/internal/app"
	"freshen/internal/config"
	"freshen/internal/federation/fedtest"
)

// process is this program, started again to play a part.
type process struct {
	addr string
	pid  int
	stop io.Closer
	cmd  *exec.Cmd
}

// asTheUnit is what deploy/systemd/freshen.service has freshen run with.
const asTheUnit = "GODEBUG=adaptivestackstart=0"

func (b *bench) start(args ...string) (*process, error) { return b.startWith(nil, args...) }

// startWith waits for the address that the process prints. It ends with the part that is measured. env is added to the
// environment.
func (b *bench) startWith(env []string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, self, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, stop: in, cmd: cmd}
	b.Cleanup(func() {
		_ = p.stop.Close()
		if err := p.cmd.Wait(); err != nil && b.ctx.Err() == nil {
			b.Errorf("the process that played %s: %v", args[0], err)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("%s did not start: %w", args[0], err)
	}
	p.addr = strings.TrimSpace(line)
	return p, nil
}

// startUpstream starts the homeserver.
func (b *bench) startUpstream() (*process, error) { return b.start(roleUpstream) }

// startFreshen starts freshen in front of the homeserver at this address, on the database at path, with more arguments.
func (b *bench) startFreshen(part, homeserver, path string, more ...string) (*process, error) {
	args := append([]string{roleFreshen, "-homeserver", "http://" + homeserver, "-database", path}, more...)
	if b.profile != "" {
		args = append(args, "-cpu", filepath.Join(b.profile, part+".cpu.pprof"), "-heap", filepath.Join(b.profile, part+".heap.pprof"))
	}
	return b.startWith([]string{asTheUnit}, args...)
}

func serveFreshen(ctx context.Context, args []string, stop io.Reader, out io.Writer) (err error) {
	flags := flag.NewFlagSet(roleFreshen, flag.ContinueOnError)
	homeserver := flags.String("homeserver", "", "its URL")
	database := flags.String("database", "", "the SQLite file; the signing key is beside it")
	postgres := flags.String("postgres", "", "the URL of a database in place of the file")
	caFile := flags.String("ca", "", "the CA of other users' servers, on loopback addresses")
	cpu := flags.String("cpu", "", "where to write a CPU profile")
	heap := flags.String("heap", "", "where to write a profile of all allocations")
	if err := flags.Parse(args); err != nil {
		return err
	}
	base, err := url.Parse(*homeserver)
	if err != nil {
		return err
	}
	ctx, cancel := untilEOF(ctx, stop)
	defer cancel()
	cfg, err := configure(base, *database)
	if err != nil {
		return err
	}
	if *postgres != "" {
		if cfg.Database.URL, err = url.Parse(*postgres); err != nil {
			return err
		}
		cfg.Database.Path = ""
	}
	if *caFile != "" {
		cfg.Federation.CAFile = *caFile
		cfg.Federation.AllowNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	}
	a, err := app.Open(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	if *cpu != "" {
		end, err := profileTo(*cpu, *heap)
		if err != nil {
			return err
		}
		defer end()
	}
	if _, err := fmt.Fprintln(out, a.Addr()); err != nil {
		return err
	}
	return a.Run(ctx)
}

func profileTo(cpu, heap string) (end func(), err error) {
	file, err := os.Create(cpu)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		file.Close()
		if file, err := os.Create(heap); err == nil {
			_ = pprof.Lookup("allocs").WriteTo(file, 0)
			file.Close()
		}
	}, nil
}

// configure is a site's configuration on ports that the system chooses, with a signing key made for it beside the
// database, and limits that no measurement reaches.
func configure(homeserver *url.URL, database string) (*config.Config, error) {
	cfg := config.Default()
	cfg.Listen, cfg.Admin.Listen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Database.Path = database
	cfg.Homeserver = config.Homeserver{Name: serverName, URL: homeserver, SigningKey: database + ".key", Kind: config.KindGeneric}
	cfg.Limits.PerUser = config.Rate{Every: time.Microsecond, Burst: 1_000_000}
	cfg.Limits.PerDestination = cfg.Limits.PerUser
	cfg.Cache = config.Cache{Success: time.Nanosecond, Failure: time.Nanosecond}
	if _, err := os.Stat(cfg.Homeserver.SigningKey); err == nil {
		return cfg, nil
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return nil, err
	}
	key := fedtest.KeyFromSeed("bench", seed)
	return cfg, os.WriteFile(cfg.Homeserver.SigningKey, []byte(key.SynapseString()+"\n"), 0o600)
}

// cpuTime is what the process has used so far, to 10 ms.
func (p *process) cpuTime() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name, in parentheses.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// memory reads a line of /proc/pid/status in bytes: VmRSS is resident now, VmHWM was the most.
func (p *process) memory(name string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("the process has no %s", name)
}

// forgetPeak makes what is resident now the peak.
func (p *process) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.pid), []byte("5"), 0)
}
