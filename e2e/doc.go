// Package e2e requires of freshen, as a process between real homeservers and real clients, what it promises its users.
// It has tests only; they must be built with -tags goolm.
package e2e
