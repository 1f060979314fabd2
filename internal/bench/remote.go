package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

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
	ctx, cancel := untilEOF(ctx, stop)
	defer cancel()
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	body := fedtest.NewPerson(bobAt(listener.Addr().String())).List(5, 1)
	protos := []string{"http/1.1"}
	if *h2 {
		protos = []string{"h2", "http/1.1"}
	}
	server := &http.Server{
		ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: protos, MinVersion: tls.VersionTLS12},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		}),
	}
	if _, err := fmt.Fprintln(out, listener.Addr()); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
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
