package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// TestMain is also what the processes run that a measurement starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains(roles, os.Args[1]) {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// A refresh wakes the poll of everybody who shares a room with the target, the first time, when freshen knows nobody's
// rooms, as well as later; otherwise people would wait for their poll's timeout, and send what a new device cannot read.
func TestWakesEverybody(t *testing.T) {
	t.Parallel()
	const users = 50
	w, err := newWorld(&bench{TB: t, ctx: t.Context()}, users)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		each, err := w.wake()
		if err != nil {
			t.Fatal(err)
		}
		if len(each) != users {
			t.Errorf("%d of %d polls were woken", len(each), users)
		}
	}
}

// What is measured must be what an administrator runs.
func TestFreshenIsMeasuredAsTheUnitStartsIt(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/systemd/freshen.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "\nEnvironment="+asTheUnit+"\n") {
		t.Errorf("the unit has no Environment=%s", asTheUnit)
	}
}
