package store_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

// refusal opens a database that must be refused, and returns the sentence.
func refusal(t *testing.T, u *url.URL) (sentence string, unreachable bool) {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: u, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		_ = s.Close()
		t.Fatal("it was opened")
	}
	t.Log(err)
	_, unreachable = errors.AsType[*store.UnreachableError](err)
	for _, secret := range []string{storetest.Password, url.QueryEscape(storetest.Password), url.PathEscape(storetest.Password), "not the password"} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("the error shows the password: %v", err)
		}
	}
	return err.Error(), unreachable
}

func with(u *url.URL, change func(*url.URL, url.Values)) *url.URL {
	changed := *u
	query := changed.Query()
	change(&changed, query)
	changed.RawQuery = query.Encode()
	return &changed
}

// Each of these is what an administrator meets on a bad day; the error must say what to do, and never the password.
func TestPostgresDatabasesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	p := storetest.StartPostgres(t, storetest.Options{TCP: true})
	database := func(statements ...string) *url.URL {
		u := p.NewDatabase(t)
		if err := p.Exec(t.Context(), u.Path[1:], statements...); err != nil {
			t.Fatal(err)
		}
		return u
	}
	used := database()
	if err := instance(t, store.Config{URL: used, Log: slog.New(slog.DiscardHandler)}).Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Exec(t.Context(), used.Path[1:], `INSERT INTO freshen_version (version_id, is_applied) VALUES (9999, true)`); err != nil {
		t.Fatal(err)
	}
	readOnly := database()
	if err := p.Exec(t.Context(), storetest.Superuser, `ALTER DATABASE `+readOnly.Path[1:]+` SET default_transaction_read_only = on`,
		`CREATE ROLE guest LOGIN`, `CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0`); err != nil {
		t.Fatal(err)
	}
	tcp := p.TCPURL(storetest.Superuser)
	for name, c := range map[string]struct {
		u           *url.URL
		says        string
		unreachable bool
	}{
		"Synapse's":           {u: database(`CREATE TABLE applied_schema_deltas (a int)`, `CREATE TABLE users (a int)`), says: "Synapse's tables"},
		"another program's":   {u: database(`CREATE TABLE users (a int)`), says: `another program's tables, such as "users"`},
		"of a newer version":  {u: used, says: "newer freshen"},
		"read-only":           {u: readOnly, says: "default_transaction_read_only"},
		"of another encoding": {u: p.URL("latin"), says: "must have UTF8"},
		"where nothing may be created": {
			u:    with(database(), func(u *url.URL, _ url.Values) { u.User = url.User("guest") }),
			says: `the user "guest" may not make or use tables`,
		},
		"not there": {u: with(tcp, func(u *url.URL, _ url.Values) { u.Path = "/absent" }), says: `"absent" at 127.0.0.1`},
		"of a user who is not there": {
			u:    with(tcp, func(u *url.URL, _ url.Values) { u.User = url.UserPassword("nobody", storetest.Password) }),
			says: `the password of the user "nobody"`, // Postgres does not tell them apart
		},
		"with a wrong password": {
			u:    with(tcp, func(u *url.URL, _ url.Values) { u.User = url.UserPassword(storetest.Superuser, "not the password") }),
			says: `the password of the user "postgres"`,
		},
		"with a password in the query that is wrong": {
			u: with(tcp, func(u *url.URL, q url.Values) {
				u.User = url.User(storetest.Superuser)
				q.Set("password", "not the password")
			}),
			says: `the password of the user "postgres"`,
		},
		"whose server speaks no TLS": {u: with(tcp, func(_ *url.URL, q url.Values) { q.Set("sslmode", "require") }), says: "does not speak TLS"},
		"whose URL is odd":           {u: with(tcp, func(_ *url.URL, q url.Values) { q.Set("sslmode", "perhaps") }), says: "sslmode"},
		"whose server is not there": {
			u: with(tcp, func(u *url.URL, _ url.Values) { u.Host = closedPort(t) }), says: "is Postgres running", unreachable: true,
		},
		"whose server never answers": {
			u:    with(tcp, func(u *url.URL, q url.Values) { u.Host = silentPort(t); q.Set("connect_timeout", "1") }),
			says: "is Postgres running", unreachable: true,
		},
		"of Postgres 9.6": {u: olderVersion(t, tcp), says: "freshen needs Postgres 13 or newer"},
	} {
		t.Run(name, func(t *testing.T) {
			says, unreachable := refusal(t, c.u)
			if !strings.Contains(says, c.says) || unreachable != c.unreachable {
				t.Errorf("worth another try: %v; the error is: %s", unreachable, says)
			}
		})
	}
	t.Run("a standby", func(t *testing.T) {
		if err := errors.Join(p.Stop(), p.Write("standby.signal", nil), p.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
		if says, unreachable := refusal(t, p.URL(storetest.Superuser)); !strings.Contains(says, "standby") || !unreachable {
			t.Errorf("worth another try: %v; the error is: %s", unreachable, says)
		}
		if err := p.Crash(); err != nil { // there is nothing to be dropped from it
			t.Fatal(err)
		}
	})
}

func TestPostgresThatDemandsTLS(t *testing.T) {
	t.Parallel()
	cert, key := certificate(t)
	p := storetest.StartPostgres(t, storetest.Options{
		TCP: true, HBA: "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n",
		Settings: map[string]string{"ssl": "on"}, Files: map[string][]byte{"server.crt": cert, "server.key": key},
	})
	mode := func(mode string) *url.URL {
		return with(p.TCPURL(storetest.Superuser), func(_ *url.URL, q url.Values) { q.Set("sslmode", mode) })
	}
	if says, _ := refusal(t, mode("disable")); !strings.Contains(says, "sslmode=require") {
		t.Errorf("without TLS the error is: %s", says)
	}
	if says, _ := refusal(t, mode("verify-full")); !strings.Contains(says, "sslrootcert") {
		t.Errorf("with an unknown root the error is: %s", says)
	}
	announce(t, instance(t, store.Config{URL: mode("require"), Log: slog.New(slog.DiscardHandler)}), "@bob:b.org")
}

func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// closedPort is an address where nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l := listener(t)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return l.Addr().String()
}

// silentPort is an address where connections are taken and nothing is ever said.
func silentPort(t *testing.T) string {
	t.Helper()
	return listener(t).Addr().String()
}

func listener(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// olderVersion is the server at u behind a link on which it calls itself Postgres 9.6.
func olderVersion(t *testing.T, u *url.URL) *url.URL {
	t.Helper()
	l := listener(t)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", u.Host)
			if err != nil {
				t.Error(err)
				_ = client.Close()
				return
			}
			wg.Go(func() { _, _ = io.Copy(server, client); _ = server.Close() })
			wg.Go(func() { callOlder(client, server); _ = client.Close() })
		}
	})
	return with(u, func(u *url.URL, _ url.Values) { u.Host = l.Addr().String() })
}

// callOlder copies until the end and changes the server's report of its version, which comes in one piece.
func callOlder(to io.Writer, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if i := bytes.Index(buf[:n], []byte("server_version\x00")); i >= 0 {
			copy(buf[i+len("server_version\x00"):n], "9.6")
		}
		if _, writing := to.Write(buf[:n]); writing != nil || err != nil {
			return
		}
	}
}
