package fedtest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"time"
)

// record is one TLS record that claims to be of size bytes.
func record(kind byte, size int, content string) string {
	return string([]byte{kind, 3, 3, byte(size >> 8), byte(size)}) + content
}

// Alert is a fatal TLS alert (RFC 8446 §6) in place of a handshake.
func Alert(description byte) Server {
	return SaysAndCloses(record(21, 2, "\x02"+string([]byte{description})))
}

// Warnings sends TLS alerts of the level "warning" for ever.
var Warnings = SaysForEver(record(21, 2, "\x01\x00"))

// HalfServerHello is a record that promises more than it holds.
var HalfServerHello = SaysAndCloses(record(22, 90, "\x02\x00\x00\x56\x03\x03half"))

// Oversized is a TLS record longer than one may be.
var Oversized = SaysForEver(record(22, 0xffff, "\x02\x00\x00\x56\x03\x03"))

// EndlessHandshake sends one handshake message of 16 MiB.
var EndlessHandshake = SaysForEver(record(22, 4, "\x02\xff\xff\xff"))

// EmptyRecords sends TLS records with nothing inside for ever.
var EmptyRecords = SaysForEver(record(22, 0, ""))

// HelloRequests asks again and again to begin the handshake (RFC 5246 §7.4.1.1).
var HelloRequests = SaysForEver(record(22, 4, "\x00\x00\x00\x00"))

// OldServerHello chooses TLS 1.1.
var OldServerHello = SaysAndCloses(record(22, 42, "\x02\x00\x00\x26\x03\x02"+string(make([]byte, 32))+"\x00\xc0\x2f\x00"))

// UnknownCipher chooses a cipher suite that nobody offered.
var UnknownCipher = SaysAndCloses(record(22, 42, "\x02\x00\x00\x26\x03\x03"+string(make([]byte, 32))+"\x00\xff\xff\x00"))

// Handshake is a server whose TLS configuration was changed, and which then answers well over HTTP/1.1.
func Handshake(change func(config *tls.Config, at Place)) Server {
	return func(raw net.Conn, at Place) {
		config := serverConfig(at.Cert, "http/1.1")
		change(config, at)
		serveHTTP1(raw, config, List(emptyList))
	}
}

// Certified is a server with another certificate than it should have.
func Certified(cert func(at Place) tls.Certificate) Server {
	return Handshake(func(config *tls.Config, at Place) { config.Certificates = []tls.Certificate{cert(at)} })
}

// Versions is a server that speaks TLS versions from least to most alone.
func Versions(least, most uint16) Server {
	return Handshake(func(config *tls.Config, _ Place) { config.MinVersion, config.MaxVersion = least, most })
}

// Chooses is a server that chooses proto in the handshake (ALPN, RFC 7301), and then speaks bytes whatever that means.
func Chooses(proto, bytes string) Server {
	return func(raw net.Conn, at Place) {
		conn := tls.Server(raw, serverConfig(at.Cert, proto))
		if conn.HandshakeContext(context.Background()) != nil {
			return
		}
		_, _ = io.WriteString(conn, bytes)
		untilGone(conn)
	}
}

// Early sends bytes right after the handshake, before anything was asked, and closes when something is.
func Early(bytes string) Server {
	return func(raw net.Conn, at Place) {
		conn := tls.Server(raw, serverConfig(at.Cert, "http/1.1"))
		if conn.HandshakeContext(context.Background()) != nil {
			return
		}
		_, _ = io.WriteString(conn, bytes)
		_, _ = conn.Read(make([]byte, 16<<10))
		_ = conn.Close()
	}
}

// DripHandshake sends its part of the handshake byte by byte, with a pause before each.
func DripHandshake(pause time.Duration) Server {
	return func(raw net.Conn, at Place) {
		serveHTTP1(&drippingConn{Conn: raw, pause: pause}, serverConfig(at.Cert, "http/1.1"), List(emptyList))
	}
}

// BreaksRecord ends a good handshake and goes on with bytes that no key encrypted.
func BreaksRecord(raw net.Conn, at Place) {
	conn := tls.Server(raw, serverConfig(at.Cert, "http/1.1"))
	if conn.HandshakeContext(context.Background()) != nil {
		return
	}
	_, _ = io.WriteString(raw, record(23, 64, string(make([]byte, 64))))
	untilGone(raw)
}

func serverConfig(cert tls.Certificate, protos ...string) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos, MinVersion: tls.VersionTLS12}
}

// drippingConn writes one byte at a time.
type drippingConn struct {
	net.Conn
	pause time.Duration
}

func (c *drippingConn) Write(data []byte) (int, error) {
	drop := time.NewTicker(c.pause)
	defer drop.Stop()
	for i := range data {
		<-drop.C
		if _, err := c.Conn.Write(data[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(data), nil
}

// SelfSigned is a certificate for host that nobody vouches for.
func SelfSigned(at Place) tls.Certificate {
	own := &CA{tb: at.CA.tb, key: newECKey(at.CA.tb)}
	own.cert = &x509.Certificate{}
	return own.issue(own.key, func(c *x509.Certificate) { *own.cert = *c }, at.Host)
}

// Between is a certificate that is valid from and until some time from now.
func Between(from, until time.Duration) func(Place) tls.Certificate {
	return func(at Place) tls.Certificate {
		return at.CA.IssueFor(time.Now().Add(from), time.Now().Add(until), at.Host)
	}
}

// Altered is a certificate that was changed before it was signed. names stand in for the host's.
func Altered(change func(*x509.Certificate), names ...string) func(Place) tls.Certificate {
	return func(at Place) tls.Certificate {
		if names == nil {
			names = []string{at.Host}
		}
		return at.CA.issue(newECKey(at.CA.tb), change, names...)
	}
}

// Without is a certificate of an intermediate authority that is not sent along.
func Without(at Place) tls.Certificate { return at.CA.intermediate(true).Issue(at.Host) }

// ByLeaf is a certificate that was signed with the key of a certificate that is no authority's.
func ByLeaf(at Place) tls.Certificate {
	signer := at.CA.intermediate(false)
	cert := signer.Issue(at.Host)
	cert.Certificate = append(cert.Certificate, signer.cert.Raw)
	return cert
}

// LongChain is a good certificate with others behind it, in all at least size bytes.
func LongChain(size int) func(Place) tls.Certificate {
	return func(at Place) tls.Certificate {
		cert := at.Cert
		cert.Certificate = [][]byte{cert.Certificate[0]}
		for sum := 0; sum < size; sum += len(cert.Certificate[0]) {
			cert.Certificate = append(cert.Certificate, cert.Certificate[0])
		}
		return cert
	}
}

// RSA is a certificate with an RSA key of bits.
func RSA(bits int) func(Place) tls.Certificate {
	return func(at Place) tls.Certificate {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			at.CA.tb.Error(err)
			return at.Cert
		}
		return at.CA.issue(key, nil, at.Host)
	}
}

// Ed25519 is a certificate with an Ed25519 key.
func Ed25519(at Place) tls.Certificate {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		at.CA.tb.Error(err)
	}
	return at.CA.issue(key, nil, at.Host)
}

// OtherKey is a good certificate shown by a server that has not its key.
func OtherKey(at Place) tls.Certificate {
	cert := at.Cert
	cert.Leaf = nil
	cert.PrivateKey = impostor{key: newECKey(at.CA.tb), claims: &at.CA.key.PublicKey}
	if leaf, err := x509.ParseCertificate(cert.Certificate[0]); err == nil {
		cert.PrivateKey = impostor{key: newECKey(at.CA.tb), claims: leaf.PublicKey}
	}
	return cert
}

// GiantRSA is a certificate with an RSA key of 16,384 bits, costly to compute with.
func GiantRSA(at Place) tls.Certificate {
	modulus := new(big.Int).SetBit(big.NewInt(1), 16_383, 1)
	return at.CA.issue(impostor{key: newECKey(at.CA.tb), claims: &rsa.PublicKey{N: modulus, E: 65537}}, nil, at.Host)
}

// P224 is a certificate with a key on a curve that TLS 1.3 does not know.
func P224(at Place) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		at.CA.tb.Error(err)
		return at.Cert
	}
	return at.CA.issue(key, nil, at.Host)
}

// impostor claims a public key and signs with another.
type impostor struct {
	key    *ecdsa.PrivateKey
	claims crypto.PublicKey
}

func (i impostor) Public() crypto.PublicKey { return i.claims }

func (i impostor) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return i.key.Sign(random, digest, opts)
}

// Stranger is another authority, which nobody trusts.
func (ca *CA) Stranger() *CA { return NewCA(ca.tb) }
