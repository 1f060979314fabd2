package doctor

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"maunium.net/go/mautrix/id"
)

// nobody is a user whom no server has, to be asked about.
const nobody = "freshen.doctor"

// way is a route that must lead through freshen.
type way struct {
	check, what string
	// nginx is a regular expression for what follows /_matrix/.
	nginx string
	ask   question
}

// everyWay is what clients ask that freshen answers or edits. The user ID in it is none that anybody has, with what
// reverse proxies get wrong: an escaped slash.
func everyWay() []way {
	return []way{
		{
			"versions", "GET /versions", `client/versions`,
			question{method: http.MethodGet, path: "/_matrix/client/versions"},
		},
		{
			"refresh", "the refresh of a device list", `client/(r0|v3|unstable/org\.matrix\.msc2638)/user/.+/devices/refresh|unstable/org\.matrix\.msc2638/user/.+/devices`,
			question{
				method: http.MethodOptions, path: "/_matrix/client/v3/user/%40" + nobody + "%2F1%3Aexample.org/devices/refresh",
				header: map[string]string{"Origin": "https://client.example.org", "Access-Control-Request-Method": http.MethodPost, "Access-Control-Request-Headers": "authorization"},
			},
		},
		{
			"sync", "/sync", `client/(r0|v3)/sync`,
			question{method: http.MethodGet, path: "/_matrix/client/v3/sync", query: "timeout=0"},
		},
		{
			"sliding sync", "sliding sync", `client/(v4|unstable/org\.matrix\.simplified_msc3575)/sync`,
			question{method: http.MethodPost, path: "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", body: "{}"},
		},
		{
			"keys", "/keys/query", `client/(r0|v3|unstable)/keys/(query|changes)`,
			question{method: http.MethodPost, path: "/_matrix/client/v3/keys/query", body: `{"device_keys":{}}`},
		},
	}
}

// findPublic finds the base URL of the site as clients do.
func (d *doctor) findPublic(ctx context.Context) (base string) {
	if d.PublicURL != "" {
		return strings.TrimRight(d.PublicURL, "/")
	}
	if d.misnamed == "server name" {
		d.say("public URL", Warning, "Where clients find the site was not looked at, since "+d.Config.Config.Homeserver.Name+" is not its server name.", "See server name, above, and ask again.")
		return ""
	}
	host := id.ParseServerName(d.Config.Config.Homeserver.Name).Host
	a, err := d.ask(ctx, question{method: http.MethodGet, base: "https://" + host, path: "/.well-known/matrix/client", follow: true})
	const fix = "Serve the file, or name the base URL that clients use: freshen doctor --url https://…"
	var said struct {
		Homeserver struct {
			BaseURL string `json:"base_url"`
		} `json:"m.homeserver"`
	}
	switch {
	case err != nil:
		d.say("public URL", Failed, fmt.Sprintf("https://%s/.well-known/matrix/client, by which clients find the site, cannot be read: %s.", host, certificate(err)), fix)
		return ""
	case a.status == http.StatusNotFound:
		d.say("public URL", Warning, fmt.Sprintf("There is no https://%s/.well-known/matrix/client, so users must type the base URL. Going on with https://%[1]s.", host), fix)
		return "https://" + host
	case a.status != http.StatusOK || json.Unmarshal(a.body, &said) != nil || !isURL(said.Homeserver.BaseURL):
		d.say("public URL", Failed, fmt.Sprintf("https://%s/.well-known/matrix/client (%d) names no m.homeserver with a base_url.", host, a.status), fix)
		return ""
	}
	base = strings.TrimRight(said.Homeserver.BaseURL, "/")
	d.say("public URL", OK, "Clients find the site at "+shown(base)+".", "")
	return base
}

func isURL(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

// certificate adds to an error of TLS what it means.
func certificate(err error) string {
	if isCertificate(err) {
		return err.Error() + "; clients refuse the site as well"
	}
	return err.Error()
}

func isCertificate(err error) bool {
	_, ok := errors.AsType[*tls.CertificateVerificationError](err)
	return ok
}

// ways asks the public site as clients do, and finds out by probes which of it leads through freshen.
func (d *doctor) ways(ctx context.Context, base string) {
	for i, w := range everyWay() {
		w.ask.base = base
		a, err := d.ask(ctx, w.ask)
		if err != nil {
			fix := "Look whether the reverse proxy runs and listens there. If the site has another base URL: freshen doctor --url https://…"
			if isCertificate(err) {
				fix = "Renew or mend the certificate that the reverse proxy names (ssl_certificate in nginx), and have it read again: nginx -s reload. If the site has another base URL: freshen doctor --url https://…"
			}
			if i > 0 && d.homeserverAway && !isCertificate(err) {
				d.say(w.check, Warning, fmt.Sprintf("The answer to %s breaks off: %s.", w.what, err), "See homeserver, above.")
				continue
			}
			d.say(w.check, Failed, fmt.Sprintf("%s cannot be asked for %s: %s.", base, w.what, certificate(err)), fix)
			if i == 0 {
				return // the others would say the same
			}
			continue
		}
		if name := a.header.Get("Server"); name != "" {
			d.server = name
		}
		d.way(w, a)
	}
}

func (d *doctor) way(w way, a answer) {
	listen := proxied(d.Config.Config.Listen).where
	switch {
	case !a.arrived && d.running && unreachable(a):
		d.missing = append(d.missing, w)
		d.say(w.check, Failed, fmt.Sprintf("%s does not come to freshen: the reverse proxy could not reach what it sends it to, and answered %d.", capital(w.what), a.status),
			"Send it to "+listen+", where freshen listens (listen); the error log of the reverse proxy says where it went. The right lines are below.")
	case !a.arrived && d.running:
		d.missing = append(d.missing, w)
		d.say(w.check, Failed, fmt.Sprintf("%s does not come to freshen: something else answered, with %d.", capital(w.what), a.status),
			"Send it to "+listen+" in the reverse proxy; the lines that are missing are below.")
	case !a.arrived:
		d.say(w.check, Warning, fmt.Sprintf("Whether %s comes to freshen cannot be seen: it got %d.", w.what, a.status), "See freshen, above, and ask again.")
	case !sameEscapes(a.path, w.ask.path):
		d.say(w.check, Failed, fmt.Sprintf("The reverse proxy changes paths on the way: %s was sent, and %s arrived. A user ID with a slash in it means another one then.", w.ask.path, shown(a.path)),
			"nginx: proxy_pass "+proxied(d.Config.Config.Listen).nginx+"; without a slash, a path or a variable such as $uri behind it, and no rewrite. Apache: nocanon, and AllowEncodedSlashes NoDecode.")
	case d.homeserverAway && (unreachable(a) || w.check == "versions" && !advertised(a)):
		d.say(w.check, Warning, fmt.Sprintf("%s comes to freshen, which gets no good answer from the homeserver: %d.", capital(w.what), a.status), "See homeserver, above.")
	case unreachable(a):
		d.say(w.check, Failed, fmt.Sprintf("%s comes to freshen, which cannot reach the homeserver: %d.", capital(w.what), a.status),
			"The homeserver answers here, so the freshen that runs was started with another homeserver.url, or the homeserver is overloaded: restart freshen, and look at its log.")
	case w.check == "versions" && !advertised(a):
		d.say(w.check, Failed, fmt.Sprintf("%s comes to freshen, but the answer (%d) does not say that the site can refresh device lists.", capital(w.what), a.status),
			"Something before freshen keeps old answers (let it cache nothing below /_matrix/), or the homeserver answers freshen otherwise than the doctor.")
	case w.check == "refresh" && (a.status/100 != 2 || a.header.Get("Access-Control-Allow-Origin") != "*"):
		d.say(w.check, Failed, fmt.Sprintf("Clients in browsers may not ask for %s: the preflight gives %d, and Access-Control-Allow-Origin %s.", w.what, a.status, shown(a.header.Get("Access-Control-Allow-Origin"))),
			"Let the reverse proxy leave OPTIONS requests and the Access-Control headers to freshen.")
	default:
		d.say(w.check, OK, capital(w.what)+" comes to freshen.", "")
	}
}

// unreachable says whether a proxy has answered, this freshen included, that it could not reach what is behind it.
func unreachable(a answer) bool {
	return a.status == http.StatusBadGateway || a.status == http.StatusServiceUnavailable || a.status == http.StatusGatewayTimeout
}

func advertised(a answer) bool {
	var said struct {
		Unstable map[string]bool `json:"unstable_features"`
	}
	return a.status == http.StatusOK && json.Unmarshal(a.body, &said) == nil && said.Unstable[flag]
}

// sameEscapes says whether a path arrived as it was sent, but for characters that need not be escaped and were not.
func sameEscapes(arrived, sent string) bool {
	a, err := url.PathUnescape(arrived)
	b, _ := url.PathUnescape(sent)
	return err == nil && a == b && strings.Count(strings.ToUpper(arrived), "%2F") == strings.Count(strings.ToUpper(sent), "%2F")
}

func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }
