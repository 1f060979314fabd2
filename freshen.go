// Package freshen is the domain of the program of that name: what it means to refresh a remote user's device list
// (MSC2638), told in the terms of the Matrix specification. It holds no I/O; the packages below internal/ adapt it to
// HTTP, SQL and the homeserver.
//
// One refresh in short: a local user (the [Requester]) names a target, whose server is the destination. The destination
// answers with a [DeviceList], which is kept and announced to the clients that need it, or there is a [Failure], which
// is told to the requester and owed from then on: a debt.
package freshen

import (
	"net/netip"
	"strings"

	"maunium.net/go/mautrix/id"
)

// MaxUserIDLength is the most bytes that a user ID has, sigil and server name included (Matrix v1.16, appendices,
// "User identifiers").
const MaxUserIDLength = 255

// Requester is who asks: a local user on one of their devices, as the homeserver's whoami names them. DeviceID is
// empty where the homeserver knows none (an appservice's token).
type Requester struct {
	UserID   id.UserID
	DeviceID id.DeviceID
}

// ParseUserID checks that s is a user ID that a server must accept, and splits off the server name.
//
// It takes historical IDs as the specification asks (any localpart of printable ASCII, so also "/", "=", "+" and
// capitals) and refuses what would hurt a client that reads it in device_lists.changed: an empty localpart, anything
// outside U+0021 to U+007E, more than 255 bytes, a server name that is none. The error's sentence does not repeat the
// ID, which is foreign text.
func ParseUserID(s string) (id.UserID, string, error) {
	invalid := func(why string) (id.UserID, string, error) {
		return "", "", &Error{Code: CodeInvalidUserID, Message: "The path names no user ID that can be refreshed: " + why + "."}
	}
	switch {
	case s == "":
		return invalid("it is empty")
	case len(s) > MaxUserIDLength:
		return invalid("it is longer than 255 bytes")
	case s[0] != '@':
		return invalid(`it does not begin with "@"`)
	}
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return invalid("it holds a character outside printable ASCII")
		}
	}
	localpart, server, found := strings.Cut(s[1:], ":")
	switch {
	case !found:
		return invalid(`it has no ":" and server name`)
	case localpart == "":
		return invalid("its localpart is empty")
	case !ValidServerName(server):
		return invalid("what follows the colon is no server name")
	}
	return id.UserID(s), server, nil
}

// ValidServerName says whether name is a server name in the grammar of the specification's appendices: a DNS name, an
// IPv4 literal or an IPv6 literal in brackets, each with an optional port from 1 to 65535.
func ValidServerName(name string) bool {
	parsed := id.ParseServerName(name)
	if parsed == nil || parsed.Port > 65535 {
		return false
	}
	if strings.HasPrefix(name, "[") {
		// The grammar itself takes anything made of the right characters. What is no address could never be asked.
		if addr, err := netip.ParseAddr(parsed.Host); err != nil || !addr.Is6() {
			return false
		}
	}
	if _, hasPort := splitPort(name); hasPort && parsed.Port == 0 {
		return false
	}
	return true
}

func splitPort(name string) (string, bool) {
	colon := strings.LastIndexByte(name, ':')
	if colon < 0 || strings.HasSuffix(name, "]") {
		return "", false
	}
	return name[colon+1:], true
}

// Destination is the server name in a user ID that [ParseUserID] has accepted; "" for anything else.
func Destination(user id.UserID) string {
	_, server, found := strings.Cut(string(user), ":")
	if !found {
		return ""
	}
	return server
}
