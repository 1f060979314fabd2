// Package testbed builds and runs the real world around freshen on one machine: two Dendrite homeservers that federate
// over TLS on loopback addresses, a federation link between them that can lose things, and freshen itself as a process.
// The demo and the end-to-end tests stand on it. It is no part of the product.
//
// Names are as in the story that it is used to tell: A is Alice's homeserver, with freshen before it; B is Bob's.
//
//	clients of A ──▶ freshen ──▶ A ◀── link ◀──federation── B ◀── clients of B
//	                    └───────────────federation─────────▶
package testbed
