package testbed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
)

// EnvSynapseVersion names another version of Synapse than the pinned one to test against.
const EnvSynapseVersion = "SYNAPSE_VERSION"

var (
	synapsePin     = regexp.MustCompile(`(?m)^matrix-synapse==(\S+)`)
	synapseVersion = regexp.MustCompile(`^[0-9][0-9A-Za-z.]*$`)
	pythonVersion  = regexp.MustCompile(`^3\.[0-9]+$`)
)

// BuildSynapse returns the path of a Python that has Synapse, in a virtual environment that is made first where this
// machine has none of that version yet. That takes about a minute once, and needs Python 3 with venv and the Python
// package index; progress (may be nil) is told so. The version, and those of everything that it needs, are in
// internal/testbed/synapse/requirements.txt; SYNAPSE_VERSION names another, which gets the newest of what it needs.
// Programs that ask at the same time share one environment.
func BuildSynapse(ctx context.Context, progress io.Writer) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	python, minor, err := findPython(ctx)
	if err != nil {
		return "", err
	}
	plan, err := planSynapse(filepath.Join(root, "internal", "testbed", "synapse", "requirements.txt"), os.Getenv(EnvSynapseVersion))
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("synapse-%s-python%s-%s-%s", plan.key, minor, runtime.GOOS, runtime.GOARCH)
	dir, err := CachedFolder(ctx, name, "Synapse", progress, func(dir string) error {
		fmt.Fprintf(orDiscard(progress), "Installing Synapse %s. The first time this takes about a minute; afterwards it is at hand in the cache.\n", plan.version)
		return plan.install(ctx, python, dir, orDiscard(progress))
	})
	if err != nil {
		return "", fmt.Errorf("%s %s could not be installed (it needs Python 3 with venv, and the Python package index): %w", Synapse, plan.version, err)
	}
	return filepath.Join(dir, "bin", "python"), nil
}

// findPython returns the Python on the PATH and its version, "3.11".
func findPython(ctx context.Context) (path, minor string, err error) {
	path, err = exec.LookPath("python3")
	if err != nil {
		return "", "", errors.New("there is no python3 on the PATH, which Synapse needs: on Debian, apt-get install python3-venv")
	}
	const ask = `import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2])`
	out, err := exec.CommandContext(ctx, path, "-c", ask).CombinedOutput()
	minor = strings.TrimSpace(string(out))
	if err != nil || !pythonVersion.MatchString(minor) {
		return "", "", fmt.Errorf("%s cannot make virtual environments, which Synapse needs: on Debian, apt-get install python3-venv (it says %q)", path, minor)
	}
	return path, minor, nil
}

// synapsePlan is what to install: the file of pins, or a version of which only that is said.
type synapsePlan struct{ version, key, pins string }

// planSynapse reads the pins. wanted is another version, or empty.
func planSynapse(pins, wanted string) (synapsePlan, error) {
	data, err := os.ReadFile(pins)
	if err != nil {
		return synapsePlan{}, fmt.Errorf("the file that names Synapse's version cannot be read: %w", err)
	}
	match := synapsePin.FindSubmatch(data)
	if match == nil {
		return synapsePlan{}, fmt.Errorf("%s has no line matrix-synapse==…", pins)
	}
	if wanted == "" || wanted == string(match[1]) {
		sum := sha256.Sum256(data)
		return synapsePlan{version: string(match[1]), key: string(match[1]) + "-" + hex.EncodeToString(sum[:4]), pins: pins}, nil
	}
	if !synapseVersion.MatchString(wanted) {
		return synapsePlan{}, fmt.Errorf("%s must be a version such as 1.98.0, is %q", EnvSynapseVersion, wanted)
	}
	return synapsePlan{version: wanted, key: wanted}, nil
}

// packages are pip's arguments. Pins are complete, so that nothing that is not pinned slips in.
func (p synapsePlan) packages() []string {
	if p.pins != "" {
		return []string{"--no-deps", "-r", p.pins}
	}
	return []string{"matrix-synapse==" + p.version, "psycopg2-binary"}
}

// install makes the environment in an empty folder, which may be moved afterwards: of a virtual environment only the
// scripts, which nobody runs, may not. It fails unless Synapse can be imported.
func (p synapsePlan) install(ctx context.Context, python, dir string, progress io.Writer) error {
	own := filepath.Join(dir, "bin", "python")
	pip := append([]string{"-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--prefer-binary"}, p.packages()...)
	output := &pipOutput{}
	stop := sayAlive(progress, func() string { return fmt.Sprintf("%d packages", output.packages.Load()) })
	defer stop()
	for _, step := range [][]string{
		{python, "-m", "venv", dir},
		append([]string{own}, pip...),
		{own, "-m", "pip", "--disable-pip-version-check", "check"},
		{own, "-c", "import synapse.app.homeserver, psycopg2"},
	} {
		output.rest.Reset()
		cmd := exec.CommandContext(ctx, step[0], step[1:]...)
		cmd.Stdout, cmd.Stderr = output, output
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(step[1:], " "), err, lastBytes(output.rest.Bytes()))
		}
	}
	return nil
}

// pipOutput counts the packages that pip collects and keeps everything for the error.
type pipOutput struct {
	packages atomic.Int64
	rest     bytes.Buffer
}

func (o *pipOutput) Write(p []byte) (int, error) {
	o.packages.Add(int64(bytes.Count(p, []byte("Collecting "))))
	return o.rest.Write(p)
}

func lastBytes(output []byte) []byte {
	return bytes.TrimSpace(output[max(0, len(output)-tailBytes):])
}
