// Package retry pays what is owed: it says when a failed refresh is tried again, and tries it.
//
// Two state machines, one row each. A destination:
//
//	           failure it is to blame for: wait first·2ⁿ (most: 6 h), ±25 %, or what it asked for
//	┌────────┐ ─────────────────────────────────────────────▶ ┌─────────────┐ ──┐ the wait is over: one probe;
//	│  fine  │                                                 │ backing off │   │ it fails: wait longer
//	└────────┘ ◀───────────────────────────────────────────── └─────────────┘ ◀─┘
//	           any answer about a user: all of its debts are due now
//
// A debt, one per target:
//
//	         a client was told                    claimed under a lease
//	(none) ─────────────────▶ ┌──────┐ ───────────────────────────────▶ ┌─────────┐
//	   ▲                      │ owed │                                   │ running │
//	   │                      └──────┘ ◀─────────────────────────────── └─────────┘
//	   │                         │      destination failed: due when it is; user failed: wait 1 h·2ⁿ (most: 24 h);
//	   │                         │      lease over (crash): due at once; asked again meanwhile (gen): due at once
//	   └─────────────────────────┴──── paid by any success · given up 7 days after it was last asked for ·
//	                                   the configuration denies the destination
//
// A failure while the destination (or the user) is backing off already, as a person's own request may bring about,
// neither shortens nor lengthens the wait: pressing a button often is no reason to be served less, or more.
package retry
