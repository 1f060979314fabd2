package storetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// process is a child that runs.
type process struct {
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // once ended
}

// startProcess starts a child that writes to a log. The child dies with the thread that started it, so that nothing is
// left of a test that is killed: that thread waits for it and does nothing else.
func startProcess(cmd *exec.Cmd, logFile string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	p := &process{cmd: cmd, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.ended)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.ended
}

// Pause stops the server and all that serve its connections in the middle of what they do (SIGSTOP), as a machine that
// hangs does: connections stay open, and nothing comes.
func (p *Postgres) Pause() error { return p.signalAll(syscall.SIGSTOP) }

// Resume lets it go on after Pause.
func (p *Postgres) Resume() error { return p.signalAll(syscall.SIGCONT) }

func (p *Postgres) signalAll(signal syscall.Signal) error {
	if p.running == nil {
		return nil
	}
	main := p.running.cmd.Process.Pid
	if err := syscall.Kill(main, signal); err != nil {
		return fmt.Errorf("the server: %w", err)
	}
	// Stopped first, it makes no more of them.
	children, err := childrenOf(main)
	if err != nil {
		return err
	}
	var errs []error
	for _, child := range children {
		if err := syscall.Kill(child, signal); !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
