package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"

	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
)

const roleRemote = "remote"

// serveRemote plays another user's server: it answers every request at once with a list of 5 devices whose signatures
// all hold, that of @bob of its address, over HTTP/1.1 or HTTP/2.
func serveRemote(ctx context.Context, args []string, stop io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet(roleRemote, flag.ContinueOnError)
	certFile := flags.String("cert", "", "its certificate")
	keyFile := flags.String("key", "", "its certificate's key")
	h2 := flags.Bool("h2", false, "offer HTTP/2")
	if err := flags.Parse(args); err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(*certFile, *keyFile)
	if err != nil {
		return err
	}
	protos := []string{"http/1.1"}
	if *h2 {
		protos = []string{"h2", "http/1.1"}
	}
	secure := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos, MinVersion: tls.VersionTLS12}
	return serveUntil(ctx, stop, out, secure, func(addr string) http.Handler {
		body := fedtest.NewPerson(bobAt(addr)).List(5, 1)
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		})
	})
}

func bobAt(server string) id.UserID { return id.UserID("@bob:" + server) }

// startRemote starts another user's server with a certificate of ca.
func (b *bench) startRemote(ca *fedtest.CA, args ...string) (*process, error) {
	dir := b.TempDir()
	cert := ca.Issue("127.0.0.1")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		keyFile:  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			return nil, err
		}
	}
	return b.start(append([]string{roleRemote, "-cert", certFile, "-key", keyFile}, args...)...)
}
