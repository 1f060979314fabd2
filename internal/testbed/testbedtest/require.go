package testbedtest

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// Require ends the test if err says that what it needs is missing: on a laptop it is skipped, where CI is set it fails.
func Require(t testing.TB, what string, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatalf("This test needs %s: %v", what, err)
	default:
		t.Skipf("Skipped for want of %s: %v", what, err)
	}
}

// Program returns the path of a program, which the Debian package of that name brings. It is required.
func Program(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + name) // is on the path of root alone
	}
	if err != nil {
		err = fmt.Errorf("apt-get install %s", debian)
	}
	Require(t, name, err)
	return path
}
