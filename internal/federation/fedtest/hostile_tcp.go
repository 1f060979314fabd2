package fedtest

import (
	"io"
	"net"
)

// Silent accepts and says nothing until the other end leaves.
func Silent(conn net.Conn, _ Place) { untilGone(conn) }

// Reset breaks the connection off (RST) once the first byte has come.
func Reset(conn net.Conn, _ Place) {
	_, _ = io.ReadFull(conn, make([]byte, 1))
	reset(conn)
}

// ResetAtOnce breaks the connection off as soon as it stands.
func ResetAtOnce(conn net.Conn, _ Place) { reset(conn) }

// CloseAtOnce ends the connection in good order as soon as it stands.
func CloseAtOnce(net.Conn, Place) {}

// HalfClose says at once that it will send nothing, and goes on listening.
func HalfClose(conn net.Conn, _ Place) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.CloseWrite()
	}
	untilGone(conn)
}

// Says sends bytes without having read any, and then listens until the other end leaves.
func Says(bytes string) Server {
	return func(conn net.Conn, _ Place) {
		_, _ = io.WriteString(conn, bytes)
		untilGone(conn)
	}
}

// SaysAndCloses sends bytes once the first record of the other end has come, and then says that it is done.
func SaysAndCloses(bytes string) Server {
	return func(conn net.Conn, at Place) {
		_, _ = conn.Read(make([]byte, 16<<10))
		_, _ = io.WriteString(conn, bytes)
		HalfClose(conn, at)
	}
}

// SaysForEver sends bytes over and over until the other end leaves, at most 64 MiB.
func SaysForEver(bytes string) Server {
	return func(conn net.Conn, at Place) {
		for sent := 0; sent < 64<<20; sent += len(bytes) {
			if _, err := io.WriteString(conn, bytes); err != nil {
				return
			}
		}
		Silent(conn, at)
	}
}

// untilGone reads and forgets until the other end has left or the test ends.
func untilGone(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
