// Package retry pays what is owed: it says when a failed refresh is tried again, and tries it.
//
// Two state machines, one row each. A destination:
//
//	           failure it is to blame for: wait first·2ⁿ (most: 6 h), ±25 %, or what it asked for
//	┌────────┐ ─────────────────────────────────────────────▶ ┌─────────────┐ ──┐ the wait is over: one probe;
//	│  fine  │                                                 │ backing off │   │ it fails: wait longer
//	└────────┘ ◀───────────────────────────────────────────── └─────────────┘ ◀─┘
//	           any answer about a user: what waited for it is due now
//
// A debt, one per target:
//
//	         a client was told                    claimed under a lease
//	(none) ─────────────────▶ ┌──────┐ ───────────────────────────────▶ ┌─────────┐
//	   ▲                      │ owed │                                   │ running │
//	   │                      └──────┘ ◀─────────────────────────────── └─────────┘
//	   │                         │      destination failed: due when it is; user failed: wait 1 h·2ⁿ (most: 24 h);
//	   │                         │      lease over (crash): due at once; asked again meanwhile (gen): due at once
//	   └─────────────────────────┘
//	     ends: see below
//
// What happens, and what it does:
//
//	event                      the destination             the debt
//	the destination fails      backs off; what is older    stays due
//	                           than give_up_after: ends
//	the user fails             is fine                     waits; ends (given up) if asked for too long ago
//	a success                  is fine                     ends (paid), if not asked for since the fetch began; else due
//	a client is told again     as it was                   gen+1, lives anew; a new one waits as its failure wants
//	the configuration denies   forgotten                   ends (denied)
//	nobody shares a room       as it was                   ends (nobody shares)
//	not tried (we stop, or     as it was                   stays due
//	another instance is at it)
//
// [Policy.Failure] and [Policy.Begins] are the first two and the fourth, pure; what only counts gen on and what pays is a
// statement, in store.AskAgain and store.Keep; the rest only drops.
//
// A failure while the destination (or the user) is backing off already, as a person's own request may bring about,
// neither shortens nor lengthens the wait: pressing a button often is no reason to be served less, or more. A user's own
// wait outlasts a success of their server: else a thousand users whom it does not know would be asked for at each.
//
// A destination that has just come back is spared: at most four retries at once, and no more of its rate than leaves
// half of the burst to people (limit.Rate.TakeSpare); store.Claim takes both.
//
// Nobody shares a room any more where each of those who were promised something is known to have shared one once, and
// now says, through their homeserver, that they do not. Who is not online, and who never did, keeps the debt.
//
// The wall clock may be set. Waits are then at most as long as [Policy.Longest], counted anew; claims end as if they
// were made now; retries that run come to their end first, so that none is made twice. A clock that is set forth by
// more than give_up_after ends what is owed to destinations that fail at the next try, but never without a try.
package retry
