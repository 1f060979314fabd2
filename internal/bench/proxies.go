package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// rolePlain is what a Go programmer would write first: httputil.ReverseProxy with pooled buffers.
const rolePlain = "plain"

// What people put in front of a homeserver today, as their Debian packages come: one worker, no log, connections to the
// homeserver kept, and a long poll is waited for.
const (
	nginxConfig = `
daemon off;
master_process off;
pid %[1]s/nginx.pid;
error_log %[1]s/nginx.log;
worker_rlimit_nofile %[4]d;
events { worker_connections %[4]d; }
http {
	access_log off;
	keepalive_requests 100000000;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	upstream homeserver {
		server %[2]s;
		keepalive 512;
		keepalive_requests 100000000;
	}
	server {
		listen %[3]s backlog=4096;
		location / {
			proxy_pass http://homeserver;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_read_timeout 600s;
		}
	}
}
`
	caddyConfig = `
{
	admin off
	auto_https off
	log {
		level ERROR
	}
}
:%[5]s {
	bind 127.0.0.1
	reverse_proxy %[2]s {
		transport http {
			keepalive_idle_conns_per_host 512
		}
	}
}
`
)

// The names of the proxies.
const (
	direct  = "direct"
	ours    = "freshen"
	nginx   = "nginx"
	caddy   = "Caddy"
	plainGo = "plain Go"
)

// proxy is one that stands before the homeserver; direct is none.
type proxy struct {
	name string
	*process
}

// startProxies starts each other proxy that there is on this machine. One that is missing gets a row that says so.
func (b *bench) startProxies(upstream *process) (proxies []proxy, err error) {
	for _, r := range []struct {
		name  string
		start func(*process) (*process, error)
	}{{nginx, b.startNginx}, {caddy, b.startCaddy}, {plainGo, b.startPlain}} {
		p, err := r.start(upstream)
		if errors.Is(err, exec.ErrNotFound) {
			b.out.add(row{name: "beside " + r.name + ": not measured, for there is none on this machine"})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
		proxies = append(proxies, proxy{r.name, p})
	}
	return proxies, nil
}

func (b *bench) startNginx(upstream *process) (*process, error) {
	return b.startProgram("nginx", nginxConfig, upstream, func(file string) []string { return []string{"-p", filepath.Dir(file), "-c", file} })
}

func (b *bench) startCaddy(upstream *process) (*process, error) {
	return b.startProgram("caddy", caddyConfig, upstream, func(file string) []string {
		return []string{"run", "--adapter", "caddyfile", "--config", file}
	})
}

func (b *bench) startPlain(upstream *process) (*process, error) {
	return b.start(rolePlain, upstream.addr)
}

// startProgram starts another's program on a port that was free a moment ago, and waits until it answers.
func (b *bench) startProgram(name, config string, upstream *process, args func(file string) []string) (*process, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath("/usr/sbin/" + name) // is on the path of root alone
	}
	if err != nil {
		return nil, err
	}
	var listening net.ListenConfig
	free, err := listening.Listen(b.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := free.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if err := free.Close(); err != nil {
		return nil, err
	}
	files, err := openFiles()
	if err != nil {
		return nil, err
	}
	dir := b.TempDir()
	file := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, dir, upstream.addr, addr, files, port), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, path, args(file)...)
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	cmd.Dir = dir
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	b.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		<-ended
	})
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if _, err := once(b.ctx, request{addr, "/_matrix/client/v3/bench/1", token("alice")}); err == nil {
			return &process{addr: addr, pid: cmd.Process.Pid}, nil
		}
		select {
		case <-ended:
			return nil, fmt.Errorf("it does not start: %s", said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil, errors.New("it does not answer")
}

// series is what the rounds measured of one.
type series struct {
	loads []loaded
	cpu   time.Duration // of the proxy, a request
}

// inTurns loads each of them in turn, a round after the other, and has another begin each round.
func (b *bench) inTurns(proxies []proxy, path, token string, connections int) (map[string]*series, error) {
	all := map[string]*series{}
	spent, requests := map[string]time.Duration{}, map[string]int{}
	whole := int64(0) // direct is the first
	for round := range rounds {
		for turn := range proxies {
			p := proxies[(round+turn)%len(proxies)]
			before, err := p.cpuTime()
			if err != nil {
				return nil, err
			}
			l, err := load(b.ctx, request{p.addr, path, token}, connections, aRound)
			if err != nil {
				return nil, fmt.Errorf("%s through %s: %w", path, p.name, err)
			}
			after, err := p.cpuTime()
			if err != nil {
				return nil, err
			}
			if all[p.name] == nil {
				all[p.name] = &series{}
			}
			if each := l.bytes / int64(max(l.requests, 1)); whole == 0 {
				whole = each
			} else if each < whole {
				return nil, fmt.Errorf("%s through %s: an answer has %d bytes, not %d", path, p.name, each, whole)
			}
			all[p.name].loads = append(all[p.name].loads, l)
			spent[p.name] += after - before
			requests[p.name] += l.requests + connections
		}
	}
	for name, s := range all {
		s.cpu = spent[name] / time.Duration(requests[name])
	}
	return all, nil
}

// each is one figure of every round.
func (s *series) each(f func(loaded) float64) []float64 {
	values := make([]float64, len(s.loads))
	for i, l := range s.loads {
		values[i] = f(l)
	}
	return values
}

// at is the median over the rounds of one quantile of the latency.
func (s *series) at(q float64) time.Duration {
	return time.Duration(median(s.each(func(l loaded) float64 { return float64(quantile(l.each, q)) })))
}

// beside adds a row for ours and each of the others that was measured: f is of what a second is full of. targets are how
// many times another's figure ours is to be at the least.
func (b *bench) beside(name string, all map[string]*series, f func(loaded) float64, targets map[string]float64) {
	mine := all[ours].each(f)
	for _, other := range []string{direct, nginx, caddy, plainGo} {
		if all[other] == nil {
			continue
		}
		theirs := all[other].each(f)
		ratio := median(ratios(mine, theirs))
		r := row{name: name + ", beside " + other, direct: fmt.Sprintf("%.0f", median(theirs)), freshen: fmt.Sprintf("%.0f", median(mine)), ratio: times(ratio)}
		if least, ok := targets[other]; ok {
			r.target, r.met = fmt.Sprintf("≥ %.2g×", least), ratio >= least
		}
		b.out.add(r)
	}
}

// cpuBeside adds a row for the CPU time of a request, of ours and of each other proxy.
func (b *bench) cpuBeside(name string, all map[string]*series, format func(time.Duration) string) {
	for _, other := range []string{nginx, caddy, plainGo} {
		if all[other] != nil {
			b.out.add(row{
				name: name + ": CPU each, beside " + other, direct: format(all[other].cpu), freshen: format(all[ours].cpu),
				ratio: times(float64(all[ours].cpu) / float64(all[other].cpu)),
			})
		}
	}
}

// addedBeside adds rows for what a quantile of the latency is above the direct one's.
func (b *bench) addedBeside(name string, all map[string]*series) {
	for _, q := range []float64{0.5, 0.99} {
		none := all[direct].at(q)
		for _, other := range []string{nginx, caddy, plainGo} {
			if all[other] != nil {
				b.out.add(row{
					name:   fmt.Sprintf("%s: p%.0f added to %s, beside %s", name, 100*q, ms(none), other),
					direct: signed(all[other].at(q) - none), freshen: signed(all[ours].at(q) - none),
				})
			}
		}
	}
}

// servePlain prints its address and passes everything on to upstream until stop ends.
func servePlain(ctx context.Context, upstream string, stop io.Reader, out io.Writer) error {
	target := &url.URL{Scheme: "http", Host: upstream}
	return serveUntil(ctx, stop, out, nil, func(string) http.Handler {
		return &httputil.ReverseProxy{
			ErrorLog:   log.New(io.Discard, "", 0),
			Rewrite:    func(r *httputil.ProxyRequest) { r.SetURL(target); r.SetXForwarded() },
			Transport:  &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true},
			BufferPool: new(plainBuffers),
		}
	})
}

// plainBuffers are of the size that httputil takes by itself.
type plainBuffers struct{ pool sync.Pool }

func (p *plainBuffers) Get() []byte {
	if buf, ok := p.pool.Get().(*[32 << 10]byte); ok {
		return buf[:]
	}
	return make([]byte, 32<<10)
}

func (p *plainBuffers) Put(buf []byte) { p.pool.Put((*[32 << 10]byte)(buf)) }

// openFiles is how many files, and so connections, one process may have open.
func openFiles() (int, error) {
	limits, err := os.Open("/proc/self/limits")
	if err != nil {
		return 0, err
	}
	defer limits.Close()
	for lines := bufio.NewScanner(limits); lines.Scan(); {
		var soft, hard int
		if n, _ := fmt.Sscanf(lines.Text(), "Max open files %d %d", &soft, &hard); n == 2 {
			return hard, nil
		}
	}
	return 0, errors.New("/proc/self/limits does not say how many files may be open")
}
