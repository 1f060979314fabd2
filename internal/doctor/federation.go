package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/federation"
)

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
	d.fetchIn(cfg.Homeserver.Name, fetch)
	if d.Server != "" {
		d.fetchOut(ctx, fetch)
	}
}

// fetchIn asks the site itself, by its server name, as others would.
func (d *doctor) fetchIn(name string, fetch func(string) *freshen.Failure) {
	if d.misnamed == "server name" {
		d.say("federation in", Warning, "Whether other servers can reach the site was not tried, since "+name+" is not its server name.", "See server name, above, and ask again.")
		return
	}
	switch f := fetch(name); {
	case f == nil, f.Reason == freshen.ReasonHTTP, f.Reason == freshen.ReasonBadResponse:
		d.say("federation in", OK, "Other servers can reach "+name+".", "")
	case f.Reason == freshen.ReasonDenied:
		d.say("federation in", Warning, "Seen from here, "+name+" is in a private network, so it could not be tried whether other servers reach it.", "Try it from elsewhere, with a federation tester.")
	case f.Reason == freshen.ReasonTLS:
		d.say("federation in", Failed, "Other servers cannot reach "+name+", and then they cannot check what freshen signs. "+f.Sentence,
			"Renew or mend the certificate at "+federationPort(name)+", and have whatever serves it read it again.")
	default:
		d.say("federation in", Failed, "Other servers cannot reach "+name+", and then they cannot check what freshen signs. "+f.Sentence,
			"Open "+federationPort(name)+" in the firewall, and have it lead to the homeserver's federation API (/_matrix/federation and /_matrix/key).")
	}
}

// federationPort says where other servers come to.
func federationPort(name string) string {
	switch parsed := id.ParseServerName(name); {
	case parsed.Port != 0:
		return fmt.Sprintf("the federation port (%d, as the server name says)", parsed.Port)
	case parsed.Type != id.ServerNameDNS:
		return "the federation port (8448)"
	}
	return "the federation port (8448, or what https://" + name + "/.well-known/matrix/server or the SRV record names)"
}

func (d *doctor) fetchOut(ctx context.Context, fetch func(string) *freshen.Failure) {
	// For its clock; whatever it answers.
	_, _ = d.ask(ctx, question{method: http.MethodGet, base: "https://" + d.Server, path: "/.well-known/matrix/server"})
	switch f := fetch(d.Server); {
	case f == nil, f.Blames() == freshen.BlameUser && f.Reason == freshen.ReasonHTTP:
		d.say("federation out", OK, d.Server+" answers what freshen signs.", "")
	case f.Status == http.StatusUnauthorized && d.misnamed != "":
		d.say("federation out", Warning, d.Server+" does not accept what freshen signs, as was to be expected.", "See "+d.misnamed+", above, and ask again.")
	case f.Status == http.StatusUnauthorized:
		d.say("federation out", Failed, d.Server+" does not accept what freshen signs. "+f.Sentence,
			d.Server+" must be able to fetch the key from "+d.Config.Config.Homeserver.Name+": see signing key and federation in, above. If both are ok, a proxy before "+d.Server+" may change paths: try another server.")
	case f.Reason == freshen.ReasonDenied:
		d.say("federation out", Failed, d.Server+" may not be asked. "+f.Sentence, "If it is meant to be, name its network in federation.allow_networks.")
	default:
		d.say("federation out", Failed, d.Server+" did not answer. "+f.Sentence, "Try another server, to find out which side it is. freshen needs to get out to ports 443 and 8448.")
	}
}
