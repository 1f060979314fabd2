package freshen

import "time"

// Standing is what a user may know of a contact's device list: when it was last fetched, and whether it is owed.
type Standing struct {
	// Fetched: the contact's own server has told the list, to anybody here, within 90 days, last FetchedAgo.
	Fetched    bool
	FetchedAgo time.Duration
	// Owed is what is still to come; nil if nothing is.
	Owed *Owed
}

// Owed says how a debt stands.
type Owed struct {
	// Reason is its last failure's; empty if it was not tried yet.
	Reason Reason
	// Running: it is being tried just now, and RetryAfter means nothing.
	Running bool
	// RetryAfter is when it is tried next, at the earliest.
	RetryAfter time.Duration
}
