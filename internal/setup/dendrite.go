package setup

import (
	"fmt"
	"net/url"
	"strings"

	"freshen/internal/config"
)

// dendriteURL is where Dendrite listens unless it is started with --http-bind-address: its configuration does not say.
const dendriteURL = "http://127.0.0.1:8008"

func (f *Found) dendrite(root value, path string) error {
	f.Kind = config.KindDendrite
	global := root.at("global")
	f.ServerName = global.text("server_name")
	f.URL, f.Ports = dendriteURL, []int{8008}
	f.Notes = append(f.Notes, "Where Dendrite listens does not stand in its configuration: "+dendriteURL+
		" is its default. If it is started with --http-bind-address, name that in homeserver.url.")
	file := global.text("private_key")
	if file == "" {
		return fmt.Errorf("%s has no global.private_key, the file of Dendrite's signing key", path)
	}
	if err := f.key("global.private_key", path, file); err != nil {
		return err
	}
	for _, database := range []value{global.at("database"), root.at("user_api").at("account_database"), root.at("room_server").at("database")} {
		if host, ok := postgresHost(database.text("connection_string")); ok {
			f.Postgres = host
			break
		}
	}
	return nil
}

// postgresHost is the host in a connection string, and nothing else of it.
func postgresHost(connection string) (host string, ok bool) {
	if !strings.HasPrefix(connection, "postgres://") && !strings.HasPrefix(connection, "postgresql://") {
		return "", false
	}
	u, err := url.Parse(connection)
	if err != nil || u.Hostname() == "" {
		return "127.0.0.1", true // a socket, or a password that is not escaped
	}
	return u.Hostname(), true
}
