// Package fedtest stands in for the rest of the world in tests of federation: a certificate authority, a name server, a
// network whose addresses lead to listeners on loopback, a homeserver that checks our signature, and servers that
// misbehave from a script. Nothing in it leaves loopback.
package fedtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority made for one test.
type CA struct {
	tb   testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCA makes an authority.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	key := newECKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "freshen test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{tb: tb, cert: cert, key: key}
}

// Pool holds the authority alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// File writes the authority's certificate as PEM and returns the path.
func (ca *CA) File() string {
	ca.tb.Helper()
	path := filepath.Join(ca.tb.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		ca.tb.Fatal(err)
	}
	return path
}

// Issue makes a certificate for DNS names and IP addresses that is valid now.
func (ca *CA) Issue(names ...string) tls.Certificate {
	ca.tb.Helper()
	return ca.IssueFor(time.Now().Add(-time.Hour), time.Now().Add(12*time.Hour), names...)
}

// IssueFor makes a certificate that is valid between two moments.
func (ca *CA) IssueFor(from, until time.Time, names ...string) tls.Certificate {
	ca.tb.Helper()
	return ca.issue(newECKey(ca.tb), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = from, until }, names...)
}

// issue makes a certificate of key's public key. change, if not nil, has the last word on what it says.
func (ca *CA) issue(key crypto.Signer, change func(*x509.Certificate), names ...string) tls.Certificate {
	ca.tb.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "freshen test server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.tb.Error(err) // not Fatal: servers issue in goroutines of their own
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// intermediate is what ca vouches for: an authority, or a certificate that may not sign others but has a key that can.
func (ca *CA) intermediate(authority bool) *CA {
	ca.tb.Helper()
	below := &CA{tb: ca.tb, key: newECKey(ca.tb)}
	made := ca.issue(below.key, func(c *x509.Certificate) {
		c.Subject = pkix.Name{CommonName: "freshen test intermediate"}
		if authority {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		}
	})
	cert, err := x509.ParseCertificate(made.Certificate[0])
	if err != nil {
		ca.tb.Error(err)
	}
	below.cert = cert
	return below
}

func newECKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}
