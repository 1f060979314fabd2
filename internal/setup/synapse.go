package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"freshen/internal/config"
)

// synapse reads homeserver.yaml, and with it what stands in conf.d beside it, as Debian's package has Synapse do: there
// the server name has a file of its own. A key of a later file takes the place of an earlier one's.
func (f *Found) synapse(root value, path string) error {
	f.Kind = config.KindSynapse
	layers := []value{root}
	folder := filepath.Join(filepath.Dir(path), "conf.d")
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the folder that Synapse reads besides cannot be read: %w", err)
	}
	for _, entry := range entries { // by name, as Synapse reads them
		if entry.IsDir() || filepath.Ext(entry.Name()) != ".yaml" {
			continue
		}
		file := filepath.Join(folder, entry.Name())
		layer, err := readYAML(file)
		if err != nil {
			return err
		}
		layers, f.Files = append(layers, layer), append(f.Files, file)
	}
	last := func(key string) value {
		for _, layer := range slices.Backward(layers) {
			if v := layer.at(key); v.node != nil {
				return v
			}
		}
		return value{}
	}

	f.ServerName = last("server_name").scalar()
	if f.ServerName == "" {
		return fmt.Errorf("%s has no server_name, and neither has a file in %s", path, folder)
	}
	if err := f.synapseListener(last("listeners").items(), path); err != nil {
		return err
	}
	switch file := last("signing_key_path").scalar(); {
	case file != "":
		err = f.key("signing_key_path", path, file)
	case last("signing_key").scalar() != "":
		err = fmt.Errorf("%s holds the signing key itself (signing_key): put it into a file, mode 0600, and name that with signing_key_path in place of it, so that freshen can read it too", path)
	default:
		err = f.key("the default of signing_key_path", path, filepath.Join(filepath.Dir(path), f.ServerName+".signing.key"))
	}
	if err != nil {
		return err
	}
	if database := last("database"); database.text("name") == "psycopg2" {
		f.Postgres = database.at("args").text("host")
		if f.Postgres == "" {
			f.Postgres = "127.0.0.1"
		}
	}
	if workers := workersIn(last); workers > 0 {
		f.Notes = append(f.Notes, fmt.Sprintf("This Synapse has workers (%d). homeserver.url must lead to what spreads requests over them, not to the main process alone: "+
			"give the reverse proxy a further server for freshen, on a loopback port, with the routes to the workers as they are now, and name that.", workers))
	}
	return nil
}

// workersIn counts the processes besides the main one that the configuration names.
func workersIn(last func(string) value) int {
	names := map[string]bool{}
	if instances := last("instance_map"); instances.node != nil {
		for i := 0; i+1 < len(instances.node.Content); i += 2 {
			names[instances.node.Content[i].Value] = true
		}
	}
	for _, key := range []string{"pusher_instances", "federation_sender_instances"} {
		for _, name := range last(key).texts() {
			names[name] = true
		}
	}
	delete(names, "main")
	delete(names, "master")
	return len(names)
}

// synapseListener takes the listener that clients are served on: one without TLS on this machine, if there is one.
func (f *Found) synapseListener(listeners []value, path string) error {
	sockets, best := 0, 0
	for _, listener := range listeners {
		port, err := strconv.Atoi(listener.text("port"))
		if err == nil {
			f.Ports = append(f.Ports, port)
		}
		if !servesClients(listener) {
			continue
		}
		if listener.has("path") {
			sockets++
			continue
		}
		if err != nil || port < 1 || port > 65535 {
			return fmt.Errorf("%s: a listener for clients has no port from 1 to 65535", path)
		}
		addresses := append(listener.at("bind_addresses").texts(), listener.at("bind_address").texts()...)
		scheme, worth := "http", 2
		if tls := strings.ToLower(listener.text("tls")); tls == "true" || tls == "yes" || tls == "on" {
			scheme, worth = "https", 1
		}
		if worth > best {
			f.URL, best = scheme+"://"+reachable(addresses, port), worth
		}
	}
	switch {
	case best == 1:
		f.Notes = append(f.Notes, "Synapse serves clients with TLS alone, whose certificate will not be for "+f.URL+": "+
			"add a listener with tls: false on 127.0.0.1 for freshen, or name the certificate's host in homeserver.url.")
	case best > 0:
	case sockets > 0:
		return fmt.Errorf("%s: Synapse serves clients on a unix socket alone, which freshen cannot use: add a listener with a port, bind_addresses: ['127.0.0.1'], type: http, tls: false and resources [{names: [client]}]", path)
	default:
		return fmt.Errorf("%s has no listener of type http that serves clients (resources with the name client): is it the whole configuration?", path)
	}
	return nil
}

func servesClients(listener value) bool {
	if kind := listener.text("type"); kind != "" && kind != "http" {
		return false
	}
	for _, resource := range listener.at("resources").items() {
		if slices.Contains(resource.at("names").texts(), "client") {
			return true
		}
	}
	return false
}
