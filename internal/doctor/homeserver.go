package doctor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

const flag = "org.matrix.msc2638"

// homeserver looks whether homeserver.url leads to a homeserver, and to one that knows its users' tokens.
func (d *doctor) homeserver(ctx context.Context) {
	base := d.Config.Config.Homeserver.URL.String()
	const fix = "homeserver.url must be the homeserver's own client-server API, as this machine reaches it, such as http://127.0.0.1:8008 (its port stands in listeners of homeserver.yaml, or is Dendrite's --http-bind-address); and the homeserver must run."
	d.homeserverAway = true
	a, err := d.ask(ctx, question{method: http.MethodGet, base: base, path: "/_matrix/client/versions"})
	var said struct {
		Versions []string `json:"versions"`
	}
	switch {
	case err != nil:
		d.say("homeserver", Failed, fmt.Sprintf("The homeserver at %s does not answer: %v.", base, err), fix)
		return
	case a.arrived:
		d.say("homeserver", Failed, base+" leads back to freshen, so requests would go round and round.", fix)
		return
	case a.status != http.StatusOK || json.Unmarshal(a.body, &said) != nil || len(said.Versions) == 0:
		d.say("homeserver", Failed, fmt.Sprintf("What answers at %s is no homeserver's client-server API: /_matrix/client/versions gives %d.", base, a.status), fix)
		return
	}
	d.homeserverAway = false
	d.say("homeserver", OK, fmt.Sprintf("It answers at %s, up to %s.", base, said.Versions[len(said.Versions)-1]), "")

	a, err = d.ask(ctx, question{
		method: http.MethodGet, base: base, path: "/_matrix/client/v3/account/whoami",
		header: map[string]string{"Authorization": "Bearer freshen_doctor_" + rand.Text()},
	})
	var refused struct {
		ErrCode string `json:"errcode"`
	}
	switch {
	case err != nil:
		d.say("tokens", Failed, fmt.Sprintf("The homeserver does not say whose a token is: %v.", err), fix)
	case a.status != http.StatusUnauthorized || json.Unmarshal(a.body, &refused) != nil || refused.ErrCode == "":
		d.say("tokens", Failed, fmt.Sprintf("The homeserver answers whoami with %d for a token that nobody has; it must be 401 with M_UNKNOWN_TOKEN.", a.status),
			"Something between freshen and the homeserver answers in its place: name the homeserver itself in homeserver.url.")
	default:
		d.say("tokens", OK, "The homeserver refuses a token that nobody has.", "")
	}
}

// published is what GET /_matrix/key/v2/server answers.
type published struct {
	ServerName string `json:"server_name"`
	VerifyKeys map[string]struct {
		Key string `json:"key"`
	} `json:"verify_keys"`
	OldKeys map[string]json.RawMessage `json:"old_verify_keys"`
}

// signingKey compares the key in our file to the one that is published at base, if one is. The homeserver's client listener may
// not serve that; then the public server mostly does.
func (d *doctor) signingKey(ctx context.Context, base string) (compared bool) {
	a, err := d.ask(ctx, question{method: http.MethodGet, base: base, path: "/_matrix/key/v2/server"})
	var said published
	if err != nil || a.status != http.StatusOK || json.Unmarshal(a.body, &said) != nil || said.ServerName == "" {
		return false
	}
	d.compareKey(&said, base)
	return true
}

func (d *doctor) notCompared() {
	d.say("signing key", Warning, "Neither the homeserver's client listener nor the public URL serves /_matrix/key/v2/server, so the key in "+d.Config.Config.Homeserver.SigningKey+" could not be compared.",
		"Let the doctor fetch from another server: --server matrix.org shows whether it accepts the key.")
}

// compareKey goes by what was published at base.
func (d *doctor) compareKey(said *published, base string) {
	cfg := d.Config.Config.Homeserver
	ours := string(d.Key.ID())
	key, found := said.VerifyKeys[ours]
	_, old := said.OldKeys[ours]
	switch {
	case said.ServerName != cfg.Name:
		d.misnamed = "server name"
		d.say("server name", Failed, fmt.Sprintf("The homeserver at %s calls itself %s, and homeserver.name is %s.", base, shown(said.ServerName), cfg.Name),
			"Put the homeserver's server_name, the domain in its user IDs, into homeserver.name. If that is another homeserver than the one that freshen is for, homeserver.url is wrong.")
		return
	case old && !found:
		d.misnamed = "signing key"
		d.say("signing key", Failed, fmt.Sprintf("%s holds %s, which the homeserver uses no more.", cfg.SigningKey, ours), "Name the file of the key that it uses now in homeserver.signing_key.")
	case !found || key.Key != string(d.Key.Public()):
		d.misnamed = "signing key"
		d.say("signing key", Failed, fmt.Sprintf("%s holds %s, and the homeserver publishes another: %s. Other servers will refuse what freshen signs.",
			cfg.SigningKey, ours, shown(strings.Join(slices.Sorted(maps.Keys(said.VerifyKeys)), ", "))),
			"Name the homeserver's own key file in homeserver.signing_key: signing_key_path in homeserver.yaml, private_key in dendrite.yaml.")
	default:
		d.say("signing key", OK, fmt.Sprintf("%s holds %s, which the homeserver publishes.", cfg.SigningKey, ours), "")
	}
	d.say("server name", OK, "The homeserver is "+cfg.Name+".", "")
}

// shown bounds and quotes what somebody else says.
func shown(text string) string {
	const most = 200
	if len(text) > most {
		text = text[:most]
	}
	return fmt.Sprintf("%q", text)
}
