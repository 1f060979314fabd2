package federation_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"time"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// The ways in which sentences tell of a handshake that went wrong.
const (
	noHandshake = "did not finish the TLS handshake within "
	noTLS       = "offers no TLS that freshen can use"
	oldTLS      = "speaks no TLS that freshen accepts (1.2 or newer)"
)

// hostileTCP are servers with which no TLS begins.
var hostileTCP = []row{
	{"accepts and is silent", fedtest.Silent, timesOut(noHandshake)},
	{"one byte, then silence", fedtest.Says("\x16"), timesOut(noHandshake)},
	{"half a record header, then silence", fedtest.Says("\x16\x03\x03"), timesOut(noHandshake)},
	{"resets at once", fedtest.ResetAtOnce, shakes("broke the connection during the TLS handshake").otherwise(connects("could not be connected to"))},
	{"resets after a byte", fedtest.Reset, shakes("broke the connection during the TLS handshake")},
	{"closes at once", fedtest.CloseAtOnce, shakes("broke the connection during the TLS handshake")},
	{"closes its half", fedtest.HalfClose, shakes("broke the connection during the TLS handshake")},
	{"one byte, then closes", fedtest.SaysAndCloses("\x16"), shakes("broke the connection during the TLS handshake")},
	{"plain HTTP", fedtest.SaysAndCloses("HTTP/1.1 400 Bad Request\r\n\r\n"), shakes("does not speak TLS")},
	{"plain HTTP unasked", fedtest.Says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), shakes("does not speak TLS")},
	{"SSH", fedtest.Says("SSH-2.0-OpenSSH_9.9\r\n"), shakes("does not speak TLS")},
	{"SMTP", fedtest.Says("220 mail.example.org ESMTP\r\n"), shakes("does not speak TLS")},
	{"zeros for ever", fedtest.SaysForEver(strings.Repeat("\x00", 16<<10)), shakes("does not speak TLS").allocates(8)},
	{"noise for ever", fedtest.SaysForEver(strings.Repeat("\xff\x00\xa5\x5a", 4<<10)), shakes("does not speak TLS").allocates(8)},
}

// hostileTLS are servers whose handshake is none, or is not followed by what was agreed.
var hostileTLS = []row{
	{"alert: handshake failure", fedtest.Alert(40), shakes("(handshake_failure)")},
	{"alert: internal error", fedtest.Alert(80), shakes("refused the TLS handshake: internal error is all that it says")},
	{"alert: unrecognized name", fedtest.Alert(112), shakes("refused the TLS handshake: it has no certificate for the name 127.1.")},
	{"alert: access denied", fedtest.Alert(49), shakes("it does not let this server in (access_denied)")},
	{"alert: close notify", fedtest.Alert(0), shakes("broke the connection during the TLS handshake")},
	{"alert of no known kind", fedtest.Alert(255), shakes("refused the TLS handshake: alert(255) is all that it says")},
	{"warnings for ever", fedtest.Warnings, shakes("broke the connection during the TLS handshake")},
	{"half a ServerHello", fedtest.HalfServerHello, shakes("broke the connection during the TLS handshake")},
	{"oversized record", fedtest.Oversized, shakes("does not speak TLS")},
	{"endless handshake message", fedtest.EndlessHandshake, shakes(noTLS)},
	{"empty records for ever", fedtest.EmptyRecords, shakes(noTLS)},
	{"HelloRequest for ever", fedtest.HelloRequests, shakes(noTLS)},
	{"ServerHello of TLS 1.1", fedtest.OldServerHello, shakes(oldTLS)},
	{"cipher suite nobody offered", fedtest.UnknownCipher, shakes(noTLS)},
	{"TLS 1.0 alone", fedtest.Versions(tls.VersionTLS10, tls.VersionTLS10), shakes(oldTLS)},
	{"TLS 1.1 alone", fedtest.Versions(tls.VersionTLS10, tls.VersionTLS11), shakes(oldTLS)},
	{"TLS 1.2 alone, which is well", fedtest.Versions(tls.VersionTLS12, tls.VersionTLS12), lists(0)},
	{"TLS 1.3 alone, which is well", fedtest.Versions(tls.VersionTLS13, tls.VersionTLS13), lists(0)},
	{"wants a certificate of ours", fedtest.Handshake(func(c *tls.Config, _ fedtest.Place) { c.ClientAuth = tls.RequireAnyClientCert }), shakes("it wants a client certificate, which federation does not use").otherwise(connects("broke the connection before it answered"))},
	{"wants one over TLS 1.2", fedtest.Handshake(func(c *tls.Config, _ fedtest.Place) {
		c.ClientAuth, c.MaxVersion = tls.RequireAnyClientCert, tls.VersionTLS12
	}), shakes("or it wants a client certificate (handshake_failure)")},
	{"asks for one and does not mind", fedtest.Handshake(func(c *tls.Config, _ fedtest.Place) { c.ClientAuth = tls.RequestClientCert }), lists(0)},
	{"drips its handshake", fedtest.DripHandshake(50 * time.Millisecond), timesOut(noHandshake)},
	{"bytes that no key encrypted", fedtest.BreaksRecord, connects("")},
	{"chooses a protocol nobody offered", fedtest.Chooses("spdy/3", ""), shakes("no application protocol is all that it says")},
	{"chooses HTTP/2, speaks HTTP/1.1", fedtest.Chooses("h2", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), connects("")},
	{"chooses HTTP/2, speaks nothing", fedtest.Chooses("h2", ""), timesOut("within ")},
	{"chooses HTTP/2, speaks noise", fedtest.Chooses("h2", strings.Repeat("\xff\x00\xa5\x5a", 4<<10)), connects("")},
	{"chooses HTTP/1.1, speaks HTTP/2", fedtest.Chooses("http/1.1", "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x04\x01\x00\x00\x00\x00\r\n\r\n"), connects("")},
	{"answers before it was asked", fedtest.Early("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), connects("").otherwise(answers(404, freshen.BlameDestination, "404"))},
}

// hostileCertificates are servers that show a certificate which is not theirs to show. They stand at DNS names.
var hostileCertificates = []row{
	{"self-signed", fedtest.Certified(fedtest.SelfSigned), shakes("federation.ca_file")},
	{"unknown authority", fedtest.Certified(func(at fedtest.Place) tls.Certificate { return at.CA.Stranger().Issue(at.Host) }), shakes("federation.ca_file")},
	{"expired", fedtest.Certified(fedtest.Between(-48*time.Hour, -24*time.Hour)), shakes("expired on " + human(-24*time.Hour))},
	{"not yet valid", fedtest.Certified(fedtest.Between(24*time.Hour, 48*time.Hour)), shakes("is not valid before " + human(24*time.Hour))},
	{"valid from the end to the beginning", fedtest.Certified(fedtest.Between(time.Hour, -time.Hour)), shakes("")},
	{"another name", fedtest.Certified(fedtest.Altered(nil, "other.test")), shakes("is not for row")},
	{"the name's parent", fedtest.Certified(fedtest.Altered(nil, "test")), shakes("is not for row")},
	{"a wildcard for everything", fedtest.Certified(fedtest.Altered(nil, "*")), shakes("is not for row")},
	{"a wildcard for our label, which is well", fedtest.Certified(fedtest.Altered(nil, "*.test")), lists(0)},
	{"an address where a name is needed", fedtest.Certified(fedtest.Altered(nil, "127.1.0.1")), shakes("is not for row")},
	{"no name", fedtest.Certified(fedtest.Altered(func(c *x509.Certificate) { c.DNSNames = nil })), shakes("")},
	{"the name in its subject alone", fedtest.Certified(fedtest.Altered(func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = c.DNSNames[0], nil })), shakes("")},
	{"10,000 names", fedtest.Certified(fedtest.Altered(func(c *x509.Certificate) { c.DNSNames = strings.Split(strings.Repeat("a.test,", 10_000)+"b.test", ",") })), shakes("is not for row").allocates(16)},
	{"for clients", fedtest.Certified(fedtest.Altered(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })), shakes("cannot be trusted")},
	{"its intermediate is missing", fedtest.Certified(fedtest.Without), shakes("federation.ca_file")},
	{"signed by a certificate that is no authority's", fedtest.Certified(fedtest.ByLeaf), shakes("The certificate of ")},
	{"somebody else's", fedtest.Certified(fedtest.OtherKey), shakes(noTLS)},
	{"RSA with 1,024 bits, for which an authority vouches", fedtest.Certified(fedtest.RSA(1024)), lists(0)},
	{"RSA with 16,384 bits", fedtest.Certified(fedtest.GiantRSA), shakes(noTLS)},
	{"P-224", fedtest.Certified(fedtest.P224), shakes("(handshake_failure)")},
	{"Ed25519, which is well", fedtest.Certified(fedtest.Ed25519), lists(0)},
	{"a chain of 100 KiB, which is well", fedtest.Certified(fedtest.LongChain(100 << 10)), lists(0)},
	{"a chain of 1 MiB", fedtest.Certified(fedtest.LongChain(1 << 20)), shakes(noTLS).allocates(24)},
}

// human is the day that is some time from now, as sentences have it.
func human(fromNow time.Duration) string {
	return time.Now().Add(fromNow).UTC().Format("2 January 2006")
}
