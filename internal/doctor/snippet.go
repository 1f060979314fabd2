package doctor

import (
	"fmt"
	"strings"

	"freshen/internal/listen"
)

const nginxLines = `# nginx, in the server that clients come to, before other locations of /_matrix/:
location ~ ^/_matrix/(%s)$ {
    proxy_pass %s;             # without a path, so that user IDs stay escaped as they came
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_read_timeout 120s;                      # /sync is a long poll
    proxy_buffering off;
    client_max_body_size 100m;
}
`

const caddyLines = `# Caddy, in the site that clients come to, before other handlers of /_matrix/:
@freshen path_regexp ^/_matrix/(%s)$
handle @freshen {
    reverse_proxy %s
}
`

// snippet is the configuration of the reverse proxy that lets through what does not come to freshen.
func (d *doctor) snippet() string {
	if len(d.missing) == 0 {
		return ""
	}
	var routes []string
	for _, w := range d.missing {
		routes = append(routes, w.nginx)
	}
	to := proxied(d.Config.Config.Listen)
	if strings.Contains(strings.ToLower(d.server), "caddy") {
		return fmt.Sprintf(caddyLines, strings.Join(routes, "|"), to.caddy)
	}
	return fmt.Sprintf(nginxLines, strings.Join(routes, "|"), to.nginx)
}

// serviceSocket is where deploy/systemd/freshen.socket listens.
const serviceSocket = "unix:/run/freshen/freshen.sock"

// upstream is where a reverse proxy on this machine is to send requests: for people, and as nginx and Caddy write it.
type upstream struct{ where, nginx, caddy string }

// proxied tells how a reverse proxy writes an address to listen at. Of a socket of systemd's it is the one that freshen
// brings; an administrator who has another knows it.
func proxied(text string) upstream {
	address, err := listen.Parse(text)
	if err == nil && address.Network == listen.Passed {
		text = serviceSocket
		address, err = listen.Parse(text)
	}
	if err == nil && address.Network == listen.Unix {
		return upstream{where: text, nginx: "http://unix:" + address.Name, caddy: "unix/" + address.Name}
	}
	base, _, _ := listen.Reach(text, nil) // the configuration was checked
	return upstream{where: text, nginx: base, caddy: strings.TrimPrefix(base, "http://")}
}
