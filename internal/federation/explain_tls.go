package federation

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"freshen"
)

// noVersion is said of a server that speaks older versions of TLS alone.
const noVersion = "speaks no TLS that freshen accepts (1.2 or newer)"

// handshakeError is the failure of a TLS handshake for name.
type handshakeError struct {
	name string
	err  error
}

func (e *handshakeError) Error() string { return e.err.Error() }

func (e *handshakeError) Unwrap() error { return e.err }

// explainTLS says why the handshake failed.
func explainTLS(place string, err error, now time.Time) clause {
	server := func(text string) clause {
		return clause{freshen.ReasonTLS, place, place + " " + text, "which " + text}
	}
	certificate := func(text string) clause {
		return clause{freshen.ReasonTLS, place, "the certificate of " + place + " " + text, "whose certificate " + text}
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired && invalid.Cert != nil {
		if now.Before(invalid.Cert.NotBefore) {
			return certificate("is not valid before " + humanDate(invalid.Cert.NotBefore))
		}
		return certificate("expired on " + humanDate(invalid.Cert.NotAfter))
	}
	if mismatch, ok := errors.AsType[x509.HostnameError](err); ok {
		return certificate("is not for " + clean(mismatch.Host, maxRemoteError))
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return certificate("is signed by an authority that is not trusted here; federation.ca_file can name further ones")
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return certificate("cannot be trusted")
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return server("does not speak TLS")
	}
	failed, ok := errors.AsType[*handshakeError](err)
	if ok && strings.HasPrefix(failed.Error(), "tls: server selected unsupported protocol version") {
		return server(noVersion)
	}
	if alert, sent := alertOf(err); sent && ok {
		return server(explainAlert(alert, failed.name))
	}
	if isBroken(err) {
		return server("broke the connection during the TLS handshake")
	}
	return server("offers no TLS that freshen can use")
}

// The alerts of which more can be said than their name (RFC 8446 §6.2).
const (
	alertHandshakeFailure    = 40
	alertAccessDenied        = 49
	alertProtocolVersion     = 70
	alertUnrecognizedName    = 112
	alertCertificateRequired = 116
)

// alertOf finds the alert that the other end sent.
func alertOf(err error) (tls.AlertError, bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0, false
	}
	// crypto/tls has a type of its own for it, which reads the same.
	for code := range 256 {
		if alert := tls.AlertError(code); alert.Error() == op.Err.Error() {
			return alert, true
		}
	}
	return 0, false
}

// explainAlert says what the server of name meant by its alert.
func explainAlert(alert tls.AlertError, name string) string {
	const refused = "refused the TLS handshake: "
	switch alert {
	case alertProtocolVersion:
		return noVersion
	case alertHandshakeFailure:
		return refused + "no cipher or certificate suits both sides, or it wants a client certificate (handshake_failure)"
	case alertUnrecognizedName:
		return refused + fmt.Sprintf("it has no certificate for the name %s (unrecognized_name)", clean(name, maxRemoteError))
	case alertAccessDenied:
		return refused + "it does not let this server in (access_denied)"
	case alertCertificateRequired:
		return refused + "it wants a client certificate, which federation does not use (certificate_required)"
	}
	return refused + strings.TrimPrefix(alert.Error(), "tls: ") + " is all that it says"
}
