// Package soak requires of freshen, as a process that is killed, stopped and paused at random moments, that it keeps its
// word: what a client was told will be retried is retried, and every announcement reaches the clients that it is for.
// And that a crowd of clients hears of each change, through two instances, and not again what it has acknowledged.
// It has tests only. make test runs them for less than a minute each, make soak for long.
//
// The world around freshen is scripted and in one process, so that everything that happens has a time by one clock:
//
//	devices, askers ──▶ freshen ──▶ a homeserver
//	                       └───────▶ remote servers that fail and recover
//
// What happens is written into a ledger; the checker reads it, and the database between two lives of freshen. The
// randomness is seeded (-seed): it makes the same choices again, though not at the same moments.
package soak
