// Command bench measures freshen and prints a table: what passes through it beside the same requests sent straight to
// the same upstream, in turns within one run; /sync answers of 20 MB; wakes; and refreshes. docs/performance.md says how
// to read it.
//
// What is measured under load runs in three processes, as on a site: this one sends the requests, and the program
// started again plays the homeserver and freshen itself, wired by package app. For wakes and refreshes this one plays the
// homeserver and the other server as well, so that one clock sees the end of the other server's answer and the end of the client's.
package main
