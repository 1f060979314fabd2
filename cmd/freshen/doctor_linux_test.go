package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"freshen/internal/doctor"
)

// A disk that the system has mounted for reading only, as it does with one that fails, keeps freshen running and refreshes
// refused. The doctor must say that it is the disk, and which.
func TestDoctorOfAReadOnlyDisk(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_RDONLY, "size=1m"); errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
		return // not for us; that the file may not be written, TestANewAdministrator tries as anybody
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(folder, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	c := newClinic(t, nil)
	path := filepath.Join(folder, "freshen.db")
	c.config("log: {format: json}", "database: "+path+"\nlog: {format: json}")
	c.start()
	report := c.finds("Mount that file system for writing", "database")
	for _, line := range report.Lines {
		if line.Check == "database" && !strings.Contains(line.Text, path) {
			t.Errorf("it does not say which: %+v", line)
		}
	}
}

// Who runs the doctor without another server to compare with must be told that two clocks differ, and not which is right.
func TestDoctorOfTwoClocks(t *testing.T) {
	t.Parallel()
	c := newClinic(t, nil)
	c.serve(&c.public, func(w http.ResponseWriter, r *http.Request) {
		c.proxyTo(later{w}, r, c.freshenURL.Load().(string))
	})
	c.start()
	stdout, stderr, status := finish(t, command(t, c.dir, "doctor", "--json", "--url", "https://"+c.name))
	var report doctor.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || status != 1 {
		t.Fatalf("doctor ends with %d (%v) and says:\n%s%s", status, err, stdout, stderr)
	}
	line := report.Lines[len(report.Lines)-1]
	if line.Check != "clock" || line.Status != doctor.Failed || !strings.Contains(line.Text, "behind that of "+c.name+", which is part of the site") ||
		!strings.Contains(line.Fix, "--server") {
		t.Errorf("%+v", line)
	}
}

// later answers with a clock that is an hour ahead.
type later struct{ http.ResponseWriter }

func (l later) WriteHeader(status int) {
	l.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	l.ResponseWriter.WriteHeader(status)
}
