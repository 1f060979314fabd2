package testbed

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const pinsFile = "synapse/requirements.txt"

// A failure means that tomorrow's packages get into today's tests, and break them.
func TestEverythingOfSynapseIsPinned(t *testing.T) {
	data, err := os.ReadFile(pinsFile)
	if err != nil {
		t.Fatal(err)
	}
	pin := regexp.MustCompile(`^[a-z0-9-]+==[0-9][0-9a-z.]*$`)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' && !pin.MatchString(line) {
			t.Errorf("%q is no exact version", line)
		}
	}
}

// A failure means that another version is tested than the one that was asked for, or that a change of the pins is not
// installed.
func TestWhichSynapse(t *testing.T) {
	pinned, err := planSynapse(pinsFile, "")
	if err != nil {
		t.Fatal(err)
	}
	if same, err := planSynapse(pinsFile, pinned.version); err != nil || same != pinned {
		t.Errorf("the pinned version by its name is %+v, %v", same, err)
	}
	if args := strings.Join(pinned.packages(), " "); args != "--no-deps -r "+pinsFile {
		t.Errorf("the pins are installed with %s", args)
	}
	other, err := planSynapse(pinsFile, "1.163.2")
	if err != nil || other.key == pinned.key || !strings.HasPrefix(strings.Join(other.packages(), " "), "matrix-synapse==1.163.2 ") {
		t.Errorf("another version is %+v, %v", other, err)
	}
	for _, wrong := range []string{"latest", "../1.98.0", "1.98.0 evil", "-r x"} {
		if _, err := planSynapse(pinsFile, wrong); err == nil {
			t.Errorf("SYNAPSE_VERSION=%q passes", wrong)
		}
	}
	changed := filepath.Join(t.TempDir(), "requirements.txt")
	if err := os.WriteFile(changed, []byte("matrix-synapse=="+pinned.version+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if plan, err := planSynapse(changed, ""); err != nil || plan.key == pinned.key {
		t.Errorf("other pins have the same key: %+v, %v", plan, err)
	}
}

// A failure means that somebody without Python is not told what to install, or that a half-made environment is left and
// taken for a whole one.
func TestNoPython(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, _, err := findPython(t.Context()); err == nil || !strings.Contains(err.Error(), "apt-get install python3-venv") {
		t.Errorf("without python3 the error is %v", err)
	}
	broken := filepath.Join(dir, "python3")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho No module named ensurepip >&2\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := findPython(t.Context()); err == nil || !strings.Contains(err.Error(), "No module named ensurepip") ||
		!strings.Contains(err.Error(), "apt-get install python3-venv") {
		t.Errorf("without venv the error is %v", err)
	}
	cache := filepath.Join(dir, "cache")
	if err := os.Mkdir(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	err := synapsePlan{version: "1"}.install(t.Context(), broken, filepath.Join(cache, "synapse"), orDiscard(nil))
	if err == nil || !strings.Contains(err.Error(), "ensurepip") {
		t.Errorf("the error of a failed installation is %v", err)
	}
	if left, _ := os.ReadDir(cache); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
