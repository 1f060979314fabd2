package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// A prompt must not show the token.
func TestRefreshPrompt(t *testing.T) {
	t.Parallel()
	server := site(t, http.StatusAccepted, "{}")
	outer, inner := terminal(t)
	cmd := command(t, t.TempDir(), "refresh", string(bob), "--url", server.URL)
	var stdout bytes.Buffer
	cmd.Stdin, cmd.Stderr, cmd.Stdout = inner, inner, &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	buffer := make([]byte, 1024)
	read := func(until string) {
		for !strings.Contains(shown.String(), until) {
			n, err := outer.Read(buffer)
			if err != nil {
				t.Fatalf("the terminal shows %q: %v", shown.String(), err)
			}
			shown.Write(buffer[:n])
		}
	}
	read("(not shown): ")
	for echoes(t, inner) {
		time.Sleep(time.Millisecond) // a person takes longer
	}
	if _, err := io.WriteString(outer, "SECRET\n"); err != nil {
		t.Fatal(err)
	}
	read("\n")
	if err := cmd.Wait(); err != nil || !strings.HasPrefix(stdout.String(), "The device list of ") {
		t.Errorf("%v: %s", err, stdout.String())
	}
	if strings.Contains(shown.String(), "SECRET") {
		t.Errorf("the terminal shows %q", shown.String())
	}
}

// terminal is a pseudo terminal: what a person sits at, and what the program has.
func terminal(t *testing.T) (outer, inner *os.File) {
	t.Helper()
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { outer.Close() })
	control := func(request uintptr, value *int32) {
		if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, outer.Fd(), request, uintptr(unsafe.Pointer(value))); errno != 0 {
			t.Fatal(errno)
		}
	}
	var unlock, number int32
	control(syscall.TIOCSPTLCK, &unlock)
	control(syscall.TIOCGPTN, &number)
	inner, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	return outer, inner
}

// echoes says whether the terminal shows what is typed.
func echoes(t *testing.T, terminal *os.File) bool {
	t.Helper()
	var state syscall.Termios
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, terminal.Fd(), syscall.TCGETS, uintptr(unsafe.Pointer(&state))); errno != 0 {
		t.Fatal(errno)
	}
	return state.Lflag&syscall.ECHO != 0
}
