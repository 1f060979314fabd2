package testbed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
)

// Ports are chosen below the range that operating systems take for outgoing connections: a program that is stopped and
// started again must find its port free.
const (
	firstPort = 20_000
	lastPort  = 32_000
	portTries = 200
)

// Loopback addresses of the two homeservers. Where a system has only 127.0.0.1 (macOS), both share that one: their
// ports tell them apart.
var (
	addressA  = netip.MustParseAddr("127.0.0.2")
	addressB  = netip.MustParseAddr("127.0.0.3")
	localhost = netip.MustParseAddr("127.0.0.1")
)

// usable returns ip if this machine can listen on it, else 127.0.0.1.
func usable(ctx context.Context, ip netip.Addr) netip.Addr {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(ip, 0).String())
	if err != nil {
		return localhost
	}
	_ = listener.Close()
	return ip
}

// listenFree listens on a free port of ip.
func listenFree(ctx context.Context, ip netip.Addr) (net.Listener, error) {
	var last error
	for range portTries {
		port := uint16(firstPort + rand.IntN(lastPort-firstPort))
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", netip.AddrPortFrom(ip, port).String())
		if err == nil {
			return listener, nil
		}
		last = err
	}
	return nil, fmt.Errorf("no free port on %s: %w", ip, last)
}

// freePort finds a port of ip that is free now, for a program that will listen on it.
func freePort(ctx context.Context, ip netip.Addr) (netip.AddrPort, error) {
	listener, err := listenFree(ctx, ip)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer listener.Close()
	return netip.ParseAddrPort(listener.Addr().String())
}

// FreePort finds a port of 127.0.0.1 that is free now, for a program that a test will have listen on it, and returns the
// address with it.
func FreePort(ctx context.Context) (string, error) {
	port, err := freePort(ctx, localhost)
	return port.String(), err
}
