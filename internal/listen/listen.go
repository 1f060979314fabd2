package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
)

// Wanted is an address to listen at, and the key of the configuration that names it.
type Wanted struct {
	Key, Address string
}

// Open opens a listener for each, in the order wanted. Its errors are sentences that begin with the key. On an error none
// is left open. What systemd passed is taken once in the life of a process, and one that nobody wants is an error too:
// who connects to it would wait for ever.
func Open(ctx context.Context, wanted ...Wanted) (_ []net.Listener, err error) {
	passed := takePassed()
	listeners := make([]net.Listener, 0, len(wanted))
	defer func() {
		if err != nil {
			for _, listener := range listeners {
				_ = listener.Close()
			}
		}
		passed.close()
	}()
	addresses := make([]Address, len(wanted))
	for i, w := range wanted {
		if addresses[i], err = Parse(w.Address); err != nil {
			return nil, fmt.Errorf("%s: %w", w.Key, err)
		}
		passed.reserve(addresses[i])
	}
	for i, w := range wanted {
		listener, err := open(ctx, addresses[i], passed)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.Key, err)
		}
		listeners = append(listeners, listener)
	}
	if left := passed.names(); len(left) > 0 {
		return nil, fmt.Errorf("systemd passed %s, at which nobody would answer: "+
			"name each with listen or admin.listen (systemd for the only one, fd:NAME for one of several), or take it out of the socket unit", quoted(left))
	}
	return listeners, nil
}

func open(ctx context.Context, address Address, passed *passed) (net.Listener, error) {
	switch address.Network {
	case Passed:
		return passed.take(address.Name)
	case Unix:
		return openUnix(ctx, address)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address.Name)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s, is another program using it? %w", address.Name, err)
	}
	return listener, nil
}

// errNoSocket is what is said of a file that is in the way.
var errNoSocket = errors.New("is there and is no socket, so it is left as it is: remove it, or name another path")
