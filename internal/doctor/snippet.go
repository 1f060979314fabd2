package doctor

import (
	"fmt"
	"strings"

	"freshen/internal/owed"
)

const nginxLines = `# nginx, in the server that clients come to, before other locations of /_matrix/:
location ~ ^/_matrix/(%s)$ {
    proxy_pass http://%s;             # without a path, so that user IDs stay escaped as they came
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
	lines := nginxLines
	if strings.Contains(strings.ToLower(d.server), "caddy") {
		lines = caddyLines
	}
	listen := strings.TrimPrefix(owed.BaseURL(d.Config.Config.Listen), "http://")
	return fmt.Sprintf(lines, strings.Join(routes, "|"), listen)
}
