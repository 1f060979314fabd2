package store

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// SQLSTATE codes, by their names in appendix A of Postgres's manual.
const (
	invalidPassword          = "28P01"
	invalidAuthorization     = "28000"
	invalidCatalogName       = "3D000"
	insufficientPrivilege    = "42501"
	undefinedObject          = "42704"
	readOnlySQLTransaction   = "25006"
	diskFull                 = "53100"
	lockNotAvailable         = "55P03"
	idleInTransactionTimeout = "25P03"
	insufficientResources    = "53"  // class
	operatorIntervention     = "57P" // class: shutting down, starting up
	undefinedTable           = "42P01"
)

// explain names the database and says what an administrator can do. No error of Postgres's or pgx's holds the password.
func (s server) explain(err error) error {
	known, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case errors.Is(err, ErrSuperseded), errors.Is(err, errNotNow):
		return err
	case !ok && errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("database: %s does not answer: %w", s.name(), err)
	case !ok:
		return fmt.Errorf("database: %s: %w", s.name(), err)
	case known.Code == readOnlySQLTransaction:
		return fmt.Errorf("%w: %w", s.readOnly("it takes no changes"), err)
	case known.Code == diskFull:
		return fmt.Errorf("database: %s cannot grow, its disk is full: %w", s.name(), err)
	case known.Code == lockNotAvailable:
		return fmt.Errorf("database: %s: another instance of freshen, or a person in psql, holds its lock for too long: %w", s.name(), err)
	case known.Code == idleInTransactionTimeout:
		return fmt.Errorf("database: %s: this process was stopped in the middle of a change, of which nothing is recorded: %w", s.name(), err)
	case known.Code == undefinedTable:
		return fmt.Errorf("database: %s has lost freshen's tables; was a backup restored while freshen was running? Restart freshen: %w", s.name(), err)
	}
	return fmt.Errorf("database: %s: %w", s.name(), err)
}

// cannotOpen is explain for [Open], where it matters besides whether trying again may help.
func (s server) cannotOpen(err error) error {
	known, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case !ok, known.Code == diskFull, known.Code == lockNotAvailable,
		strings.HasPrefix(known.Code, insufficientResources), strings.HasPrefix(known.Code, operatorIntervention):
		return &UnreachableError{s.explain(err)}
	case known.Code == insufficientPrivilege:
		return fmt.Errorf("database: the user %q may not make or use tables in %s: let it own the database (ALTER DATABASE %q OWNER TO %q), or mend its grants: %w",
			s.config.User, s.name(), s.config.Database, s.config.User, err)
	}
	return s.explain(err)
}

// cannotConnect is cannotOpen for the first connection.
func (s server) cannotConnect(err error) error {
	known, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return s.noAnswer(err)
	}
	switch known.Code {
	case invalidPassword:
		return fmt.Errorf("database: the password of the user %q is not the one that %s has: mend it in the URL, where characters other than letters and digits are written as %% and two hexadecimal digits",
			s.config.User, s.name())
	case invalidAuthorization:
		advice := "mend the user in the URL, or the server's pg_hba.conf"
		if s.config.TLSConfig == nil || strings.Contains(known.Message, "no encryption") {
			advice += "; if it demands TLS, add ?sslmode=require to the URL"
		}
		return fmt.Errorf("database: %s does not let in the user %q (%s): %s", s.name(), s.config.User, known.Message, advice)
	case invalidCatalogName:
		return fmt.Errorf("database: %s does not exist: %s", s.name(), s.howToCreate(s.config.Database))
	case undefinedObject:
		return fmt.Errorf("%w (%s)", s.tooOld("this one"), known.Message)
	}
	return s.cannotOpen(err)
}

func (s server) noAnswer(err error) error {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	if errors.As(err, &authority) || errors.As(err, &name) || errors.As(err, &invalid) {
		return fmt.Errorf("database: the certificate of %s is not one that the sslmode in the URL accepts; name its root certificate with sslrootcert, or mend the certificate: %w",
			s.name(), err)
	}
	if strings.Contains(err.Error(), "server refused TLS connection") {
		return fmt.Errorf("database: %s does not speak TLS, which sslmode in the URL (or PGSSLMODE) demands: set ssl = on in its postgresql.conf, or take sslmode out",
			s.name())
	}
	return &UnreachableError{fmt.Errorf("database: %s does not answer; is Postgres running, and does it listen there? %s",
		s.name(), strings.Join(strings.Fields(err.Error()), " "))}
}

// cut says that the connection was lost, and not that Postgres refused what was asked for over it or took too long.
func cut(err error) bool {
	if known, ok := errors.AsType[*pgconn.PgError](err); ok {
		return strings.HasPrefix(known.Code, operatorIntervention)
	}
	return !errors.Is(err, context.DeadlineExceeded)
}

// lost is cut for errors of any kind: of our own, and of connecting, which is not to be tried again at once.
func lost(err error) bool {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return !connecting && !errors.Is(err, errNotNow) && !errors.Is(err, ErrSuperseded) && !errors.Is(err, context.Canceled) && cut(err)
}

func (s server) readOnly(why string) error {
	return fmt.Errorf("database: %s may only be read (%s): name the primary, or let freshen write", s.name(), why)
}

func (s server) tooOld(version string) error {
	return fmt.Errorf("database: %s is Postgres %s; freshen needs Postgres %d or newer", s.name(), version, oldestPostgres)
}

// howToCreate is advice.
func (s server) howToCreate(name string) string {
	return fmt.Sprintf(`create it with CREATE DATABASE %q OWNER %q ENCODING 'UTF8' TEMPLATE template0, and name it in the URL`, name, s.config.User)
}

// cannotParse repeats of the URL nothing that may be a secret.
func cannotParse(u *url.URL, err error) error {
	why := err
	if cause := errors.Unwrap(err); cause != nil {
		why = cause
	}
	secrets := u.Query()["password"]
	secrets = append(secrets, u.Query()["sslpassword"]...)
	if password, ok := u.User.Password(); ok {
		secrets = append(secrets, password)
	}
	for _, secret := range secrets {
		if secret != "" && strings.Contains(why.Error(), secret) {
			return errors.New("database: the Postgres URL cannot be used; look at its port and its parameters")
		}
	}
	return fmt.Errorf("database: the Postgres URL cannot be used: %w", why)
}
