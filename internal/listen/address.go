// Package listen makes listeners of what the configuration says: a TCP address, a unix socket, or a socket that systemd
// has opened and passes on. And it tells this machine's own commands how to reach them.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// The ways of writing an address that is not host:port.
const (
	unixPrefix = "unix:"
	fdPrefix   = "fd:"
	systemd    = "systemd"
	modeMark   = "?mode="
)

const (
	// defaultMode lets the owner and the group of a unix socket connect.
	defaultMode = 0o660
	// maxPath is the longest path that a unix socket can have, in bytes: Linux has room for 108 with the NUL behind it.
	maxPath = 107
	// maxName is how long systemd lets the name of a descriptor be.
	maxName = 255
)

// Network is what an address is one of.
type Network string

// The values of Network.
const (
	TCP    Network = "tcp"
	Unix   Network = "unix"
	Passed Network = "passed"
)

// Address is where to listen.
type Address struct {
	Network Network
	// Name is host:port, which is not checked here; the absolute path of a unix socket; or the name of a passed
	// socket, "" for the only one.
	Name string
	// Mode says who may connect to a unix socket.
	Mode fs.FileMode
}

// Parse reads an address: unix:/path, perhaps with ?mode=0666 behind it; systemd or fd:NAME; anything else is host:port.
// An error goes on from the key: "must name …".
func Parse(text string) (Address, error) {
	switch path, isUnix := strings.CutPrefix(text, unixPrefix); {
	case isUnix:
		return parseUnix(path)
	case text == systemd:
		return Address{Network: Passed}, nil
	case strings.HasPrefix(text, fdPrefix):
		name := text[len(fdPrefix):]
		if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			return Address{}, fmt.Errorf("must name a passed socket by its FileDescriptorName=, such as fd:public, is %q", text)
		}
		return Address{Network: Passed, Name: name}, nil
	}
	return Address{Network: TCP, Name: text}, nil
}

func parseUnix(path string) (Address, error) {
	address := Address{Network: Unix, Mode: defaultMode}
	path, mode, given := strings.Cut(path, modeMark)
	if given {
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err != nil || bits > 0o777 {
			return Address{}, fmt.Errorf("must have an octal mode such as 0660 behind %s, has %q", modeMark, mode)
		}
		address.Mode = fs.FileMode(bits)
	}
	switch {
	case !filepath.IsAbs(path) || strings.ContainsRune(path, 0) || strings.HasSuffix(path, "/"):
		return Address{}, fmt.Errorf("must name a socket by its whole path, such as unix:/run/freshen/freshen.sock, is %q", unixPrefix+path)
	case len(path) > maxPath:
		return Address{}, fmt.Errorf("must name a socket by a path of at most %d bytes, has %d", maxPath, len(path))
	}
	address.Name = filepath.Clean(path)
	return address, nil
}

// Same says whether two addresses cannot both be listened at. Port 0 is another one each time.
func (a Address) Same(b Address) bool {
	return a.Network == b.Network && a.Name == b.Name && (a.Network != TCP || !strings.HasSuffix(a.Name, ":0"))
}

// ErrUnknown says that an address cannot be reached from here, since only systemd knows where the socket is.
var ErrUnknown = errors.New("only systemd knows where that socket listens")

// Nobody says of an error to connect that nobody listens there.
func Nobody(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return errors.Is(err, syscall.ECONNREFUSED) || ok && op.Net == "unix" && errors.Is(err, fs.ErrNotExist)
}

// socketHost stands in URLs for what listens on a unix socket.
const socketHost = "localhost"

// Dial connects to a network's address, as [net.Dialer.DialContext] does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Reach says how this machine reaches what listens at an address: by which base URL, and with connections made by which
// dial. That leads a unix socket's way whatever the URL. The error is [ErrUnknown] for a passed socket.
func Reach(text string, by Dial) (base string, dial Dial, err error) {
	address, err := Parse(text)
	if err != nil {
		return "", nil, err
	}
	switch address.Network {
	case Passed:
		return "", nil, ErrUnknown
	case Unix:
		return "http://" + socketHost, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return by(ctx, "unix", address.Name)
		}, nil
	}
	return "http://" + reachable(address.Name), by, nil
}

// reachable is how this machine reaches a host:port on which something listens.
func reachable(hostPort string) string {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return hostPort
	}
	switch host {
	case "", "0.0.0.0":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}
