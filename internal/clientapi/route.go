package clientapi

import (
	"net/http"
	"strings"
)

// route is one of freshen's own: what stands between prefix and suffix is the user ID, percent-encoded or not.
type route struct{ method, prefix, suffix string }

var routes = []route{
	{http.MethodPost, "/_matrix/client/v3/user/", "/devices/refresh"},
	{http.MethodPost, "/_matrix/client/r0/user/", "/devices/refresh"},
	{http.MethodPost, "/_matrix/client/unstable/org.matrix.msc2638/user/", "/devices/refresh"},
	// As the proposal's own text spells it.
	{http.MethodGet, "/_matrix/unstable/org.matrix.msc2638/user/", "/devices"},
}

// standingRoute is freshen's own, of a whole path.
var standingRoute = route{http.MethodPost, "/_matrix/client/unstable/org.matrix.msc2638/standing", ""}

// match finds the route of an escaped path, and the user ID as it stands there.
//
// Clients do not agree on what they encode, so a localpart may hold a bare "/". A server name cannot: a "/" after the
// colon belongs to another route (…/user/@a:example.org/account_data/x/devices/refresh), which is the homeserver's.
func match(escapedPath string) (found route, escapedID string, ok bool) {
	if escapedPath == standingRoute.prefix {
		return standingRoute, "", true
	}
	for _, r := range routes {
		rest, ok := strings.CutPrefix(escapedPath, r.prefix)
		if !ok {
			continue
		}
		escapedID, ok := strings.CutSuffix(rest, r.suffix)
		if !ok || strings.Contains(afterColon(escapedID), "/") {
			continue
		}
		return r, escapedID, true
	}
	return route{}, "", false
}

func afterColon(escapedID string) string {
	for i := range len(escapedID) {
		if escapedID[i] == ':' {
			return escapedID[i+1:]
		}
		if rest := escapedID[i:]; len(rest) >= 3 && strings.EqualFold(rest[:3], "%3a") {
			return rest[3:]
		}
	}
	return ""
}
