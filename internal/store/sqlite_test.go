package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen/internal/store"
)

func tryOpen(ctx context.Context, path string) error {
	s, err := store.Open(ctx, store.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = s.Close()
	}
	return err
}

// says checks that a sentence for the administrator holds all that they need, and that it is or is not worth waiting.
func says(t *testing.T, err error, mayPass bool, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("there is no error")
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
	if _, ok := errors.AsType[*store.UnreachableError](err); ok != mayPass {
		t.Errorf("%q: that it may pass by itself is %v, want %v", err, ok, mayPass)
	}
}

// An administrator moves the database away and back while freshen runs: a new, empty one in its place would take with it
// what the old one's -wal file holds.
func TestAFileThatIsMovedAwayIsNotMadeAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freshen.db")
	s := open(t, path)
	owe(t, s, "@b:b.org", "@a:a.org", start, time.Minute)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, use := range everything(s) {
		for range 5 {
			wg.Go(func() { _ = use(t.Context()) }) // reads may succeed, by connections that are open
		}
	}
	wg.Wait()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("there is a file in the database's place (%v)", err)
	}
	says(t, s.Ready(t.Context()), false, path, "was removed", "put it back")
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	for name, use := range everything(s) {
		for range 10 { // on each connection
			if err := use(t.Context()); err != nil {
				t.Errorf("%s, after the database was put back: %v", name, err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, path)
	defer again.Close()
	if n, err := again.Debts(t.Context()); err != nil || n != 1 {
		t.Errorf("%d debts are left (%v), want the one that was promised", n, err)
	}
}

// Two freshens with one file would each believe that nobody else pays its debts.
func TestASecondFreshenIsKeptOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freshen.db")
	s := open(t, path)
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		says(t, tryOpen(t.Context(), name), false, name, "another freshen", fmt.Sprintf("process %d", os.Getpid()))
	}
	// The one that was kept out took nothing from the first.
	owe(t, s, "@b:b.org", "@a:a.org", start, time.Minute)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tryOpen(t.Context(), link); err != nil {
		t.Errorf("the first has gone, and yet: %v", err)
	}
}

// A process that was killed leaves no lock that somebody would have to remove.
func TestAKilledFreshenLeavesNoLock(t *testing.T) {
	path := os.Getenv("FRESHEN_TEST_HOLD")
	if path != "" {
		open(t, path)
		_, _ = fmt.Fprintln(os.Stdout, "held")
		<-t.Context().Done()
		return
	}
	path = filepath.Join(t.TempDir(), "freshen.db")
	holder := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAKilledFreshenLeavesNoLock$")
	holder.Env = append(os.Environ(), "FRESHEN_TEST_HOLD="+path)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "held\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	says(t, tryOpen(t.Context(), path), false, path, "another freshen", "process "+strconv.Itoa(holder.Process.Pid))
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if err := tryOpen(t.Context(), path); err != nil {
		t.Errorf("the other process was killed, and yet: %v", err)
	}
}

// Closing in two places, as an error on the way of stopping may bring about, must not end in a panic.
func TestCloseTwice(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "freshen.db"))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := s.MarkShared(t.Context(), "@b:b.org"); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a change after that: %v", err)
	}
}

// record makes a promise and returns whether it was made.
func record(t *testing.T, s *store.Store, target id.UserID) error {
	t.Helper()
	_, err := s.AskAgain(t.Context(), target, []id.UserID{"@a:a.org"}, start, time.Time{}, begins)
	return err
}

// SQLite writes on into a file that somebody has removed, and what was promised would be gone with the process.
func TestNothingIsPromisedIntoAFileThatIsGone(t *testing.T) {
	for name, c := range map[string]struct {
		spoil, mend func(path string) error
		want        string
	}{
		"removed": {
			func(path string) error { return os.Rename(path, path+".away") },
			func(path string) error { return os.Rename(path+".away", path) }, "removed",
		},
		"replaced": {
			func(path string) error {
				return errors.Join(os.Rename(path, path+".away"), os.WriteFile(path, nil, 0o600))
			},
			func(path string) error { return os.Rename(path+".away", path) }, "replaced",
		},
		"the log of changes removed": {
			func(path string) error { return os.Rename(path+"-wal", path+".away") },
			func(path string) error { return os.Rename(path+".away", path+"-wal") }, "removed",
		},
		"the folder moved": {
			func(path string) error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+".away") },
			func(path string) error { return os.Rename(filepath.Dir(path)+".away", filepath.Dir(path)) }, "removed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "data")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(folder, "freshen.db")
			s := open(t, path)
			defer s.Close()
			if err := record(t, s, "@before:b.org"); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(path); err != nil {
				t.Fatal(err)
			}
			says(t, record(t, s, "@gone:b.org"), false, path, c.want, "restart freshen")
			if s.Ready(t.Context()) == nil {
				t.Error("it says that it is ready")
			}
			if err := c.mend(path); err != nil {
				t.Fatal(err)
			}
			if err := record(t, s, "@after:b.org"); err != nil {
				t.Errorf("the file is there again, and yet: %v", err)
			}
			if n, err := s.Debts(t.Context()); n != 2 || err != nil {
				t.Errorf("%d debts, %v; want the two that were promised", n, err)
			}
		})
	}
}

// A damaged file must be told as that, and never be written over.
func TestADamagedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "freshen.db")
	s := open(t, path)
	for i := range 300 {
		if err := record(t, s, id.UserID(fmt.Sprintf("@u%d:host%d.org", i, i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := store.CheckFile(t.Context(), path); err != nil {
		t.Errorf("a file that is whole: %v", err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	for name, flip := range map[string]struct {
		from, to int
		want     string
	}{
		"its first page":         {0, 100, "cannot be used as an SQLite database"},
		"the middle":             {len(whole) / 2 / page * page, len(whole)/2/page*page + 64, "damaged"},
		"all but the first page": {page, len(whole), "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			broken := append([]byte(nil), whole...)
			for i := flip.from; i < flip.to; i++ {
				broken[i] ^= 0xff
			}
			path := filepath.Join(t.TempDir(), "freshen.db")
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			says(t, store.CheckFile(t.Context(), path), false, path, flip.want)
			if now, err := os.ReadFile(path); err != nil || string(now) != string(broken) {
				t.Errorf("the look at it has changed the file (%v)", err)
			}
			if flip.to == len(whole) {
				says(t, tryOpen(t.Context(), path), false, path, flip.want)
			}
		})
	}
}

// Whoever checks the configuration of a freshen that runs, or has not run yet, must not be in its way.
func TestCheckFileLeavesNothingBehind(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "freshen.db")
	names := func() (names []string) {
		t.Helper()
		entries, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			names = append(names, entry.Name())
		}
		return names
	}
	check := func(when string) {
		t.Helper()
		before := names()
		if err := store.CheckFile(t.Context(), path); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if after := names(); strings.Join(before, " ") != strings.Join(after, " ") {
			t.Errorf("%s: there was %v and is %v", when, before, after)
		}
	}
	check("before the first start")
	s := open(t, path)
	if err := record(t, s, "@b:b.org"); err != nil {
		t.Fatal(err)
	}
	check("while it runs")
	if err := record(t, s, "@c:b.org"); err != nil {
		t.Errorf("after the check: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	check("after it has run")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("an empty file")
}
