package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation"
)

const (
	// clockOff and clockWrong are how far a clock may be off before it is told, and before it is a failure.
	clockOff   = 10 * time.Second
	clockWrong = time.Minute
	// nobody is a user whom no server has, to be asked about.
	nobody = "freshen.doctor"
)

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
	if strings.Contains(err.Error(), "certificate") {
		return err.Error() + " (clients refuse the site as well: renew or mend its certificate)"
	}
	return err.Error()
}

// ways asks the public site as clients do, and finds out by probes which of it leads through freshen.
func (d *doctor) ways(ctx context.Context, base string) {
	for i, w := range everyWay() {
		w.ask.base = base
		a, err := d.ask(ctx, w.ask)
		if err != nil {
			d.say(w.check, Failed, fmt.Sprintf("%s cannot be asked for %s: %s.", base, w.what, certificate(err)),
				"Look whether the reverse proxy runs and its certificate is good. If the site has another base URL: freshen doctor --url https://…")
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
	case !a.arrived && d.running:
		d.missing = append(d.missing, w)
		d.say(w.check, Failed, fmt.Sprintf("%s does not come to freshen: something else answered, with %d.", capital(w.what), a.status),
			"Send it to "+listen+" in the reverse proxy; the lines that are missing are below.")
	case !a.arrived:
		d.say(w.check, Failed, fmt.Sprintf("%s does not come to freshen, which does not run: %d.", capital(w.what), a.status), "Start freshen, and ask again.")
	case !sameEscapes(a.path, w.ask.path):
		d.say(w.check, Failed, fmt.Sprintf("The reverse proxy changes paths on the way: %s was sent, and %s arrived. User IDs and signatures get lost by that.", w.ask.path, shown(a.path)),
			"nginx: proxy_pass "+proxied(d.Config.Config.Listen).nginx+"; without a slash or path behind the port, and no rewrite. Apache: nocanon, and AllowEncodedSlashes NoDecode.")
	case w.check == "versions" && !advertised(a):
		d.say(w.check, Failed, fmt.Sprintf("%s comes to freshen, but the answer (%d) does not say that the site can refresh device lists.", capital(w.what), a.status),
			"The homeserver does not answer freshen well, or something before freshen keeps old answers: let it cache nothing below /_matrix/.")
	case w.check == "refresh" && (a.status/100 != 2 || a.header.Get("Access-Control-Allow-Origin") != "*"):
		d.say(w.check, Failed, fmt.Sprintf("Clients in browsers may not ask for %s: the preflight gives %d, and Access-Control-Allow-Origin %s.", w.what, a.status, shown(a.header.Get("Access-Control-Allow-Origin"))),
			"Let the reverse proxy leave OPTIONS requests and the Access-Control headers to freshen.")
	case a.status == http.StatusBadGateway || a.status == http.StatusServiceUnavailable || a.status == http.StatusGatewayTimeout:
		d.say(w.check, Failed, fmt.Sprintf("%s comes to freshen, but it cannot reach the homeserver: %d.", capital(w.what), a.status), "See homeserver, above.")
	default:
		d.say(w.check, OK, capital(w.what)+" comes to freshen.", "")
	}
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

// federation looks whether other servers can reach the site, by asking it as one of them would, and whether the one that
// was named answers what freshen signs.
func (d *doctor) federation(ctx context.Context) {
	cfg := d.Config.Config
	client, err := federation.New(federation.Config{
		ServerName: cfg.Homeserver.Name, Key: d.Key, Roots: d.Roots, AllowNetworks: cfg.Federation.AllowNetworks,
		UserAgent: fmt.Sprintf("freshen/%s (device lists for %s)", d.Version, cfg.Homeserver.Name),
	})
	if err != nil {
		d.say("federation in", Failed, sentence(err.Error()), "")
		return
	}
	defer client.Close()
	fetch := func(server string) *freshen.Failure {
		ctx, cancel := context.WithTimeout(ctx, cfg.Federation.Timeout)
		defer cancel()
		_, err := client.FetchDeviceList(ctx, id.NewUserID(nobody, server))
		failure, _ := errors.AsType[*freshen.Failure](err)
		return failure
	}
	name := cfg.Homeserver.Name
	switch f := fetch(name); {
	case f == nil, f.Reason == freshen.ReasonHTTP, f.Reason == freshen.ReasonBadResponse:
		d.say("federation in", OK, "Other servers can reach "+name+".", "")
	case f.Reason == freshen.ReasonDenied:
		d.say("federation in", Warning, "Seen from here, "+name+" is in a private network, so it could not be tried whether other servers reach it.", "Try it from elsewhere, with a federation tester.")
	default:
		d.say("federation in", Failed, "Other servers cannot reach "+name+", and then they cannot check what freshen signs. "+f.Sentence,
			"Open the federation port (8448, or what https://"+name+"/.well-known/matrix/server or the SRV record names) to the homeserver, with a good certificate.")
	}
	if d.Server != "" {
		d.fetchOut(ctx, fetch)
	}
}

func (d *doctor) fetchOut(ctx context.Context, fetch func(string) *freshen.Failure) {
	// For its clock; whatever it answers.
	_, _ = d.ask(ctx, question{method: http.MethodGet, base: "https://" + d.Server, path: "/.well-known/matrix/server"})
	switch f := fetch(d.Server); {
	case f == nil, f.Blames() == freshen.BlameUser && f.Reason == freshen.ReasonHTTP:
		d.say("federation out", OK, d.Server+" answers what freshen signs.", "")
	case f.Status == http.StatusUnauthorized:
		d.say("federation out", Failed, d.Server+" does not accept what freshen signs. "+f.Sentence,
			"Either the signing key or the server name is not the homeserver's (see above), or "+d.Server+" cannot fetch the key from "+d.Config.Config.Homeserver.Name+".")
	case f.Reason == freshen.ReasonDenied:
		d.say("federation out", Failed, d.Server+" may not be asked. "+f.Sentence, "If it is meant to be, name its network in federation.allow_networks.")
	default:
		d.say("federation out", Failed, d.Server+" did not answer. "+f.Sentence, "Try another server, to find out which side it is. freshen needs to get out to ports 443 and 8448.")
	}
}

// clock compares ours to those of all who answered.
func (d *doctor) clock() {
	var worst dated
	others := false
	for _, one := range d.dates {
		if one.off.Abs() > worst.off.Abs() || worst.who == "" {
			worst = one
		}
		others = others || !one.self
	}
	if worst.who == "" {
		d.say("clock", Warning, "Nobody answered whose clock could be compared.", "")
		return
	}
	direction := "behind"
	if worst.off < 0 {
		direction = "ahead of"
	}
	text := fmt.Sprintf("This machine's clock is %s %s that of %s.", worst.off.Abs(), direction, worst.who)
	const fix = "Set the clock by NTP, here or there."
	switch {
	case worst.off.Abs() > clockWrong:
		d.say("clock", Failed, text, fix)
	case worst.off.Abs() > clockOff:
		d.say("clock", Warning, text, fix)
	case others:
		d.say("clock", OK, "This machine's clock agrees with that of "+d.Server+".", "")
	default:
		d.say("clock", OK, "This machine's clock agrees with those of the site; --server compares it to another one's.", "")
	}
}
