package store

// UnreachableError says that the database does not answer for now: its server is down or does not take connections yet,
// its disk is full or may not be written. Nothing is known to be wrong with the configuration, so it is worth trying
// again. Any other error of [Open] is for the administrator to mend.
type UnreachableError struct {
	// Err is a sentence for the administrator that names the database.
	Err error
}

func (e *UnreachableError) Error() string { return e.Err.Error() }

func (e *UnreachableError) Unwrap() error { return e.Err }
