//go:build goolm

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func output(t *testing.T, cmd *exec.Cmd) (stdout string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); errs.Len() > 0 {
		t.Logf("%s: %s", cmd, errs.String())
	}
	return out.String(), err
}

// A real Dendrite before which freshen runs as it should must be found to be well in every respect: an administrator who
// reads of a failure that is none trusts no other.
func TestDoctorOfARealSite(t *testing.T) {
	t.Parallel()
	world := shared.World(t)
	stdout, err := output(t, world.Freshen.Command(t.Context(), "doctor", "--json", "--url", world.Freshen.URL, "--server", world.B.ServerName))
	var report struct {
		Lines []struct{ Check, Status, Text, Fix string }
	}
	if decodeErr := json.Unmarshal([]byte(stdout), &report); decodeErr != nil {
		t.Fatalf("doctor: %v %v\n%s", err, decodeErr, stdout)
	}
	checks := map[string]bool{}
	for _, line := range report.Lines {
		checks[line.Check] = true
		if line.Status != "ok" {
			t.Errorf("%s: %s. %s %s", line.Check, line.Status, line.Text, line.Fix)
		}
	}
	for _, check := range []string{"signing key", "server name", "tokens", "versions", "refresh", "sync", "keys", "federation in", "federation out", "clock"} {
		if !checks[check] {
			t.Errorf("%s was not looked at", check)
		}
	}
	if err != nil {
		t.Errorf("doctor: %v", err)
	}
}

// What init makes of a real Dendrite's configuration must pass freshen check, and name that Dendrite.
func TestInitFromARealDendrite(t *testing.T) {
	t.Parallel()
	world := shared.World(t)
	file := filepath.Join(t.TempDir(), "freshen.yaml")
	program := world.Freshen.Command(t.Context()).Path
	config := filepath.Join(filepath.Dir(world.A.SigningKeyFile), "config.yaml")
	if stdout, err := output(t, exec.CommandContext(t.Context(), program, "init", config, "--output", file)); err != nil {
		t.Fatalf("init: %v\n%s", err, stdout)
	}
	stdout, err := output(t, exec.CommandContext(t.Context(), program, "check", "--config", file))
	if err != nil || !strings.Contains(stdout, world.A.ServerName+" at http://") || !strings.Contains(stdout, world.A.SigningKeyFile) {
		t.Errorf("check: %v\n%s", err, stdout)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
