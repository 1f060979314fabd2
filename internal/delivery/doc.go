// Package delivery brings our homeserver to fetch and announce device lists itself, for sites that do not put freshen
// before /sync. docs/delivery.md tells administrators of it.
//
// Each list that was fetched for somebody is a row of the table deliveries before they are told that all is well, so that a
// crash loses none:
//
//	         Mark: durable, before the promise
//	nothing ──────────────────────────────────▶ owed ──▶ tried: one of each server at a time
//	   ▲                                          ▲        │
//	   │   the homeserver has the list            │        ├─ it is away: again in some seconds, with nothing counted
//	   ├──────────────────────────────────────────┼────────┤
//	   │                                          └────────┼─ it did not fetch: 30 s, doubling to an hour, until given up
//	   │   pruned, or too many                             │
//	   └──────────────────────────────── a hole ◀──────────┘  it never announces such a list: shown, and tried no more
//
// A new fetch of the same user begins anew, from wherever it stands. What is tried without success is told in the log, once
// for each reason, and by freshen owed.
package delivery
