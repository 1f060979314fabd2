package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

const (
	// readyWithin bounds how long a started program may take until it answers. On a machine that is busy with other tests
	// Synapse takes a minute.
	readyWithin = 3 * time.Minute
	// stopWithin bounds how long a program may take after SIGTERM; freshen itself grants running requests 10 s.
	stopWithin = 15 * time.Second
	// tailBytes is how much of a log is shown when a program failed.
	tailBytes = 4 << 10
)

// Process is a running program with its output in a log file.
type Process struct {
	name    string // for people: "Dendrite A"
	logFile string
	cmd     *exec.Cmd
	done    chan struct{}
	exit    error // valid when done is closed
}

// StartProcess runs the program at path until it ends or is stopped; ctx bounds nothing but gives its values.
func StartProcess(ctx context.Context, name, logFile, path string, args, env []string) (*Process, error) {
	log, err := os.OpenFile(logFile, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the log of %s cannot be opened: %w", name, err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), path, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = childAttributes()
	p := &Process{name: name, logFile: logFile, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer log.Close() // the child has a handle of its own
		// Linux ends the child with the thread that started it (childAttributes), so this thread must live as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.exit = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s cannot be started: %w", name, err)
	}
	return p, nil
}

// Stop sends SIGTERM and waits for the end, and kills the program if that takes too long or ctx ends; then the error
// says so. A program that has ended already is no error.
func (p *Process) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopWithin)
	defer cancel()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s cannot be stopped: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.Kill()
		return p.failed("did not end on SIGTERM and was killed", ctx.Err())
	}
}

// Kill sends SIGKILL and waits for the end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.done
}

// AwaitReady asks url until check accepts the answer. It fails when the program ends, or after three minutes.
func (p *Process) AwaitReady(ctx context.Context, client *http.Client, url string, check func(status int, body []byte) bool) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		status, body, err := get(ctx, client, url)
		if err == nil && check(status, body) {
			return nil
		}
		select {
		case <-p.done:
			return p.failed("ended before it was ready", p.exit)
		case <-ctx.Done():
			return p.failed("was not ready in time", errors.Join(ctx.Err(), err))
		case <-tick.C:
		}
	}
}

// Signal sends any other signal. A program that has ended already is no error.
func (p *Process) Signal(signal os.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s cannot be sent %v: %w", p.name, signal, err)
	}
	return nil
}

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is how the program has ended, nil for exit status 0. It is valid once Done is closed.
func (p *Process) Exit() error { return p.exit }

// failed makes an error that shows the end of the program's log.
func (p *Process) failed(what string, cause error) error {
	return fmt.Errorf("%s %s: %w\nThe end of its log (%s):\n%s", p.name, what, cause, p.logFile, tail(p.logFile))
}

func tail(path string) []byte {
	file, err := os.Open(path)
	if err != nil {
		return []byte(err.Error())
	}
	defer file.Close()
	if info, err := file.Stat(); err == nil && info.Size() > tailBytes {
		_, _ = file.Seek(-tailBytes, io.SeekEnd)
	}
	data, err := io.ReadAll(io.LimitReader(file, tailBytes))
	if err != nil {
		return []byte(err.Error())
	}
	return bytes.TrimSpace(data)
}

func get(ctx context.Context, client *http.Client, url string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, err
}
