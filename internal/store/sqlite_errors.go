package store

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// regular refuses what is there and is no file.
func regular(path string) error {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return fmt.Errorf("database: %s is a directory; name a file", path)
	case err == nil && !info.Mode().IsRegular():
		return fmt.Errorf("database: %s is no regular file", path)
	}
	return nil
}

// openedFile is the database as it was when it was opened.
type openedFile struct {
	info os.FileInfo
	// wal is where SQLite keeps what is not in the file itself yet.
	wal string
}

// probeFile finds out what SQLite would only tell in a riddle, and creates the file so that others cannot read it.
func probeFile(path string) (o openedFile, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return o, cannotOpen(path, err)
	}
	defer f.Close()
	if o.info, err = f.Stat(); err != nil {
		return o, cannotOpen(path, err)
	}
	o.wal = realPath(path) + "-wal"
	return o, nil
}

// stillThere says whether the file at path is the one that was opened, with all that belongs to it. SQLite writes on into
// files that were removed, and what it has written there is gone with the process.
func (o openedFile) stillThere(path string) error {
	if err := o.same(path); err != nil {
		return err
	}
	if _, err := os.Stat(o.wal); err != nil {
		return removed(path, err)
	}
	return nil
}

// same says whether the file at path is the one that was opened.
func (o openedFile) same(path string) error {
	now, err := os.Stat(path)
	if err != nil {
		return removed(path, err)
	}
	if !os.SameFile(now, o.info) {
		return fmt.Errorf("%s was replaced while freshen was using it: restart freshen to have it use the file that is there now, or put the first one back", path)
	}
	return nil
}

func removed(path string, err error) error {
	return fmt.Errorf("%s was removed while freshen was using it: put it back, or restart freshen: %w", path, err)
}

// explain says more about an error of SQLite's, and whether it may pass by itself; of any other it only says that it is
// the database's.
func explain(path string, err error) error {
	known, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return fmt.Errorf("database: %w", err)
	}
	switch known.Code() & 0xff {
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return mayNotWrite(path, err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return &UnreachableError{fmt.Errorf("database: %s is locked by another program, such as one that makes a backup: %w", path, err)}
	case sqlite3.SQLITE_FULL:
		return full(path, err)
	case sqlite3.SQLITE_IOERR:
		return &UnreachableError{fmt.Errorf("database: %s cannot be read or written; is its disk full or broken? %w", path, err)}
	case sqlite3.SQLITE_CORRUPT:
		return damaged(path, err)
	case sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("database: %s cannot be used as an SQLite database: it is none, or its beginning is damaged: %w", path, err)
	}
	return fmt.Errorf("database: %s: %w", path, err)
}

// cannotOpen is explain for what the operating system says, too.
func cannotOpen(path string, err error) error {
	if _, ok := errors.AsType[*sqlite.Error](err); ok {
		return explain(path, err)
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return mayNotWrite(path, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("database: the folder of %s does not exist; create it and let the user that freshen runs as write to it", path)
	case errors.Is(err, syscall.EROFS):
		return &UnreachableError{fmt.Errorf("database: %s is on a file system that is mounted for reading only: %w", path, err)}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return full(path, err)
	case errors.Is(err, syscall.EIO):
		return &UnreachableError{fmt.Errorf("database: %s cannot be read or written, its disk reports an error: %w", path, err)}
	}
	return fmt.Errorf("database: %s: %w", path, err)
}

func mayNotWrite(path string, err error) error {
	return fmt.Errorf("database: %s cannot be opened for writing: let the user that freshen runs as write the file and its folder (there will be more files beside it): %w", path, err)
}

func full(path string, err error) error {
	return &UnreachableError{fmt.Errorf("database: %s cannot grow, its disk is full or its quota used up: %w", path, err)}
}

func damaged(path string, err error) error {
	return fmt.Errorf("database: %s is damaged: stop freshen, and restore a backup or move the file away to begin with a new one; it holds what is still owed and nothing that users wrote: %w", path, err)
}
