package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// fileLock keeps a second freshen away from an SQLite file, in this process or another, for as long as it is held. It
// ends with the process, however that ends. It does not keep other programs away, such as one that makes a backup.
//
// It is on a file of its own beside the database: on the BSDs and macOS a lock of this kind on the database itself would
// lock SQLite out as well. That file stays where it is when the lock ends, since removing it would take it from
// somebody who is about to lock it.
type fileLock struct{ file *os.File }

// errLocked is what tryLock returns where somebody else has the lock.
var errLocked = errors.New("somebody else has the lock")

// lockDatabase locks the database at path, which need not exist.
func lockDatabase(path string) (*fileLock, error) {
	name := realPath(path) + "-lock"
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, cannotOpen(path, err)
	}
	switch err := tryLock(file); {
	case errors.Is(err, errLocked):
		err = fmt.Errorf("database: %s is in use by another freshen%s; an SQLite file is for one alone: stop that one first, or name another file",
			path, holder(file))
		return nil, errors.Join(err, file.Close())
	case err != nil:
		return nil, errors.Join(fmt.Errorf("database: %s cannot be locked: %w", name, err), file.Close())
	}
	// For the sentence above alone, so a disk that is full is no reason to stop here.
	_ = file.Truncate(0)
	_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return &fileLock{file}, nil
}

// realPath is where the links at path lead, beside which SQLite keeps its other files; path itself if nothing is there yet.
func realPath(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// holder names the process that has the lock, if it could write its name down.
func holder(file *os.File) string {
	text, err := io.ReadAll(io.LimitReader(file, 20))
	if err != nil {
		return ""
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}

func (l *fileLock) release() error { return l.file.Close() }
