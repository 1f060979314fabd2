// Package setup reads from a homeserver's own configuration what freshen needs to know of it, and writes a freshen.yaml.
//
// Nothing but what is named in [Found] is taken out of that file, and no error repeats any other part of it: it is full
// of secrets.
package setup

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"freshen"
	"freshen/internal/config"
)

// maxBytes bounds a homeserver's configuration file; commented ones have a tenth of that.
const maxBytes = 4 << 20

// Found is what a homeserver's configuration says.
type Found struct {
	// Kind is which homeserver it is: Synapse or Dendrite.
	Kind config.Kind
	// Files are those that were read, the one that was named first.
	Files []string
	// ServerName is a valid one.
	ServerName string
	// URL is its client-server API, as this machine reaches it.
	URL string
	// SigningKey is the path of its key, absolute; the file is there.
	SigningKey string
	// Postgres is the host of its database, without user, password and port; empty if it has none there.
	Postgres string
	// Ports are those that it listens on.
	Ports []int
	// Notes are sentences about what the administrator has to see to.
	Notes []string
}

// Read reads the configuration of a Synapse or a Dendrite. Its errors are sentences that say what to do.
func Read(path string) (*Found, error) {
	root, err := readYAML(path)
	if err != nil {
		return nil, err
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f := &Found{Files: []string{path}}
	switch {
	case root.text("worker_app") != "":
		return nil, fmt.Errorf("%s is the configuration of a Synapse worker: name that of the main process, homeserver.yaml", path)
	case root.at("global").text("server_name") != "" || root.at("global").text("private_key") != "":
		err = f.dendrite(root, path)
	case root.text("server_name") != "" || root.has("listeners") || root.has("signing_key_path"):
		err = f.synapse(root, path)
	default:
		return nil, fmt.Errorf("%s is the configuration of neither Synapse (server_name and listeners) nor Dendrite (global.server_name): for another homeserver write freshen.yaml by hand, three keys are enough", path)
	}
	if err != nil {
		return nil, err
	}
	if !freshen.ValidServerName(f.ServerName) {
		return nil, fmt.Errorf("%s: server_name is missing or is no server name such as example.org", path)
	}
	return f, nil
}

// value is a part of the file; the zero value is one that is absent.
type value struct{ node *yaml.Node }

func readYAML(path string) (value, error) {
	file, err := os.Open(path)
	if err != nil {
		return value{}, fmt.Errorf("the homeserver's configuration cannot be read: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	switch {
	case err != nil:
		return value{}, fmt.Errorf("the homeserver's configuration cannot be read: %w", err)
	case len(data) > maxBytes:
		return value{}, fmt.Errorf("%s is larger than 4 MiB, which no homeserver's configuration is", path)
	}
	var document yaml.Node
	if err := yaml.Load(data, &document); err != nil {
		// The library's own words may repeat what stands there.
		if failure, ok := errors.AsType[*yaml.LoadError](err); ok && failure.Mark.Line > 0 {
			return value{}, fmt.Errorf("%s:%d: cannot be parsed as YAML", path, failure.Mark.Line)
		}
		return value{}, fmt.Errorf("%s cannot be parsed as YAML", path)
	}
	if len(document.Content) == 0 || resolved(document.Content[0]).Kind != yaml.MappingNode {
		return value{}, fmt.Errorf("%s is no YAML mapping of keys to values, as the configuration of a homeserver is", path)
	}
	return value{resolved(document.Content[0])}, nil
}

func resolved(node *yaml.Node) *yaml.Node {
	if node != nil && node.Kind == yaml.AliasNode && node.Alias != nil {
		return node.Alias
	}
	return node
}

// at is the member of a mapping, the last one of that name.
func (v value) at(key string) (member value) {
	if v.node == nil || v.node.Kind != yaml.MappingNode {
		return value{}
	}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		if v.node.Content[i].Value == key {
			member = value{resolved(v.node.Content[i+1])}
		}
	}
	return member
}

func (v value) has(key string) bool { return v.at(key).node != nil }

// text is a member that is a single value, else "".
func (v value) text(key string) string { return v.at(key).scalar() }

func (v value) scalar() string {
	if v.node == nil || v.node.Kind != yaml.ScalarNode || v.node.ShortTag() == "!!null" {
		return ""
	}
	return strings.TrimSpace(v.node.Value)
}

// items are the elements of a list.
func (v value) items() (items []value) {
	if v.node == nil || v.node.Kind != yaml.SequenceNode {
		return nil
	}
	for _, node := range v.node.Content {
		items = append(items, value{resolved(node)})
	}
	return items
}

// texts are the elements of a list that are single values, or the one value that stands in place of a list.
func (v value) texts() (texts []string) {
	if one := v.scalar(); one != "" {
		return []string{one}
	}
	for _, item := range v.items() {
		if text := item.scalar(); text != "" {
			texts = append(texts, text)
		}
	}
	return texts
}

// key finds the file of the signing key. Relative paths are relative to where the homeserver is started, which nobody
// knows; mostly that is where its configuration stands, or here.
func (f *Found) key(name, path, file string) error {
	if strings.ContainsRune(file, 0) {
		return fmt.Errorf("%s: %s is no path", path, name)
	}
	tried := []string{file}
	if !filepath.IsAbs(file) {
		here, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		tried = slices.Compact([]string{filepath.Join(filepath.Dir(path), file), here})
	}
	for _, candidate := range tried {
		if _, err := os.Stat(candidate); err == nil {
			f.SigningKey = candidate
			return nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the homeserver's signing key cannot be opened (%s in %s): %w", name, path, err)
		}
	}
	return fmt.Errorf("the homeserver's signing key is not there: %s in %s leads to %s; if the homeserver runs in a container or on another machine, copy the key here and write freshen.yaml by hand",
		name, path, strings.Join(tried, " or "))
}

// reachable is how this machine reaches a listener that is bound to one of these addresses.
func reachable(addresses []string, port int) string {
	host := ""
	for _, address := range addresses {
		switch address {
		case "127.0.0.1", "0.0.0.0", "", "localhost":
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		case "::", "::1":
			host = "::1"
		default:
			if host == "" {
				host = address
			}
		}
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}
