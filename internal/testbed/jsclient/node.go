package jsclient

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

const (
	// maxAnswerBytes bounds one line that Node.js writes.
	maxAnswerBytes = 1 << 20
	// endWithin is how long a program may take to end by itself.
	endWithin = 5 * time.Second
	// headroom is left between the end of a command's own wait and that of the test's, so that the command can say what it
	// waited for.
	headroom = time.Second
)

func untilShortlyBefore(deadline time.Time) time.Duration {
	return max(time.Until(deadline)-headroom, 0)
}

// Node starts Node.js in a folder below parent, where its log stays. progress (may be nil) is told what is installed.
func Node(ctx context.Context, parent string, progress io.Writer) (*Host, error) {
	dir, err := prepare(ctx, parent, progress)
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "node.log"))
	if err != nil {
		return nil, fmt.Errorf("the log of Node.js cannot be written: %w", err)
	}
	defer log.Close() // the child has a handle of its own
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(dir, "node_modules", ".bin", "node"), "node.mjs")
	cmd.Dir, cmd.Stderr = dir, log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("no way to Node.js: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("no way from Node.js: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("Node.js cannot be started: %w", err) //nolint:staticcheck // a name
	}
	n := &node{cmd: cmd, stdin: stdin, log: log.Name(), done: make(chan struct{}), waiting: map[int]chan []byte{}}
	go n.read(stdout)
	return &Host{engine: n}, nil
}

// node is a running Node.js. It ends by itself when its stdin does, and so with the test at the latest.
type node struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	exit error         // valid when done is closed

	mu      sync.Mutex
	stdin   io.WriteCloser
	last    int                 // ID of the last command
	waiting map[int]chan []byte // who waits for the answer to a command, by its ID
}

// read hands answers to those who wait for them, until the process ends.
func (n *node) read(stdout io.Reader) {
	defer close(n.done)
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, maxAnswerBytes)
	for lines.Scan() {
		var answer struct {
			ID int `json:"id"`
		}
		if json.Unmarshal(lines.Bytes(), &answer) != nil {
			continue // not from us; the log has the rest of the story
		}
		n.mu.Lock()
		waiting := n.waiting[answer.ID]
		delete(n.waiting, answer.ID)
		n.mu.Unlock()
		if waiting != nil {
			waiting <- append([]byte(nil), lines.Bytes()...)
		}
	}
	n.exit = errors.Join(lines.Err(), n.cmd.Wait())
}

func (n *node) do(ctx context.Context, command map[string]any) ([]byte, error) {
	answer := make(chan []byte, 1)
	if err := n.send(command, answer); err != nil {
		return nil, err
	}
	select {
	case data := <-answer:
		return data, nil
	case <-n.done:
		return nil, fmt.Errorf("Node.js has ended, %w; its log is %s", errors.Join(errors.New("without an answer"), n.exit), n.log) //nolint:staticcheck // a name
	case <-ctx.Done():
		return nil, fmt.Errorf("%w; the log of Node.js is %s", ctx.Err(), n.log)
	}
}

func (n *node) send(command map[string]any, answer chan []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last++
	command["id"] = n.last
	line, err := json.Marshal(command)
	if err != nil {
		return fmt.Errorf("a command: %w", err)
	}
	n.waiting[n.last] = answer
	if _, err := n.stdin.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("Node.js takes no commands any more: %w; its log is %s", err, n.log) //nolint:staticcheck // a name
	}
	return nil
}

func (n *node) close() error {
	n.mu.Lock()
	err := n.stdin.Close()
	n.mu.Unlock()
	late := time.NewTimer(endWithin)
	defer late.Stop()
	select {
	case <-n.done:
	case <-late.C:
		_ = n.cmd.Process.Kill() // fails only if it has ended
		<-n.done
	}
	return errors.Join(err, n.exit)
}
