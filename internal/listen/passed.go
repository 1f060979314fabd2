package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
)

// passed are the sockets that systemd opened for this process (sd_listen_fds(3)) and that are not taken yet.
type passed struct {
	files []*os.File
	// reserved are the names that somebody wants, which are not for who wants the only one.
	reserved []string
	none     bool // there were none from the start
}

// takePassed takes what the environment tells of, and takes it out of the environment.
func takePassed() *passed {
	files := activation.Files(true)
	return &passed{files: files, none: len(files) == 0}
}

func (p *passed) reserve(address Address) {
	if address.Network == Passed && address.Name != "" {
		p.reserved = append(p.reserved, address.Name)
	}
}

// take makes a listener of the socket of that name; of the only one that nobody reserved, if name is "".
func (p *passed) take(name string) (net.Listener, error) {
	if p.none {
		return nil, errors.New("systemd passed no socket to this process (LISTEN_FDS): " +
			"start freshen by its socket unit, systemctl start freshen.socket, or name an address")
	}
	var found []*os.File
	for _, file := range p.files {
		if file.Name() == name || name == "" && !slices.Contains(p.reserved, file.Name()) {
			found = append(found, file)
		}
	}
	switch {
	case len(found) == 0 && name == "":
		return nil, errors.New("systemd passed no socket but those that are named elsewhere with fd:NAME")
	case len(found) == 0:
		return nil, fmt.Errorf("systemd passed no socket named %q, but %s: FileDescriptorName= in the socket unit gives the name", name, quoted(p.names()))
	case len(found) > 1 && name == "":
		return nil, fmt.Errorf("systemd passed several sockets, %s: say with fd:NAME which one is meant", quoted(names(found)))
	case len(found) > 1:
		return nil, fmt.Errorf("systemd passed %d sockets named %q: give each a socket unit with a FileDescriptorName= of its own", len(found), name)
	}
	file := found[0]
	p.files = slices.DeleteFunc(p.files, func(f *os.File) bool { return f == file })
	defer file.Close() // the listener has a copy
	listener, err := net.FileListener(file)
	if err == nil && !accepts(file) {
		err = errors.Join(errors.New("it is one connection"), listener.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("what systemd passed as %q is no socket on which connections come in: the socket unit needs ListenStream= and Accept=no (%w)", file.Name(), err)
	}
	return listener, nil
}

// names are those of what is left.
func (p *passed) names() []string { return names(p.files) }

func names(files []*os.File) []string {
	all := make([]string, len(files))
	for i, file := range files {
		all[i] = file.Name()
	}
	return all
}

func quoted(names []string) string {
	if len(names) == 0 {
		return "nothing more"
	}
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = strconv.Quote(name)
	}
	return strings.Join(all, ", ")
}

func (p *passed) close() {
	for _, file := range p.files {
		_ = file.Close()
	}
}
