package store

import (
	"context"
	"crypto/rand"
	"embed"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/postgres/*.sql
var postgresMigrations embed.FS

const (
	// oldestPostgres is the oldest major version that freshen is for.
	oldestPostgres = 13
	// connectWithin bounds one try to connect, unless the URL has connect_timeout.
	connectWithin = 3 * time.Second
	// answersWithin bounds one question.
	answersWithin = 5 * time.Second
	// readers bounds the connections besides the writer's and the listener's.
	readers = 10
	// versionTable is goose's, and tells a database of freshen's from others.
	versionTable = "freshen_version"
	// batchLock is the key of the advisory lock under which batches are written: "freshen1". No other program has a
	// database in common with freshen.
	batchLock = 0x6672657368656e31
)

var postgresDialect = dialect{
	shared: true,
	begin:  fmt.Sprintf(`BEGIN; SELECT pg_advisory_xact_lock(%d)`, batchLock),
	notify: `NOTIFY freshen; `,
	skip:   ` FOR UPDATE SKIP LOCKED`,

	standing: selectStanding(` FOR UPDATE`),

	claimDebts:        claimDebts(oneOfPostgres),
	claimDestinations: claimDestinations(oneOfPostgres),

	standings: selectStandings(oneOfPostgres),

	batchWithin: 10 * time.Second, // longer than lock_timeout below
}

func oneOfPostgres(placeholder string) string {
	return `= ANY(ARRAY(SELECT jsonb_array_elements_text(` + placeholder + `::jsonb)))`
}

// sessionSettings hold for every connection, unless the URL says otherwise. An instance that hangs or is cut off in a
// transaction holds the others up only until Postgres ends its session; nobody was told anything of it.
var sessionSettings = map[string]string{
	"application_name":                    "freshen",
	"idle_in_transaction_session_timeout": "2000",  // who waits behind two of its transactions still gets an answer within answersWithin
	"lock_timeout":                        "8000",  // longer than another instance can be idle
	"statement_timeout":                   "30000", // of one whose client is gone
	"synchronous_commit":                  "on",
	"tcp_user_timeout":                    "10000",
	"tcp_keepalives_idle":                 "5",
	"tcp_keepalives_interval":             "2",
	"tcp_keepalives_count":                "3",
}

// CheckPostgres looks at a Postgres database as [Open] would, but makes and changes nothing.
func CheckPostgres(ctx context.Context, database *url.URL) error {
	config, err := connConfig(database)
	if err != nil {
		return err
	}
	return server{config}.check(ctx)
}

// connConfig is how each connection is made.
func connConfig(database *url.URL) (*pgx.ConnConfig, error) {
	config, err := pgx.ParseConfig(database.String())
	if err != nil {
		return nil, cannotParse(database, err)
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectWithin
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	config.DialFunc = dialer.DialContext
	for key, value := range sessionSettings {
		if _, given := config.RuntimeParams[key]; !given {
			config.RuntimeParams[key] = value
		}
	}
	return config, nil
}

func (s *Store) openPostgres(ctx context.Context, cfg Config) error {
	config, err := connConfig(cfg.URL)
	if err != nil {
		return err
	}
	server := server{config}
	s.dialect = postgresDialect
	s.explain = server.explain
	if err := server.check(ctx); err != nil {
		return err
	}
	if err := server.migrate(ctx); err != nil {
		return err
	}
	s.write = stdlib.OpenDB(*config)
	s.write.SetMaxOpenConns(1)
	s.read = stdlib.OpenDB(*config)
	s.read.SetMaxOpenConns(readers)
	s.read.SetMaxIdleConns(readers)
	s.read.SetConnMaxIdleTime(5 * time.Minute)
	if err := s.startHearing(ctx); err != nil {
		return server.cannotOpen(err)
	}
	listener := config.Copy()
	listener.RuntimeParams["application_name"] += " (listens)"
	s.sharing = &sharing{
		instance: rand.Text(), name: cfg.Name, successFor: cfg.SuccessFor, failureFor: cfg.FailureFor,
		listener: listener, later: make(chan struct{}, 1),
	}
	s.sharing.rate.Store(&cfg.PerDestination)
	if err := s.join(ctx); err != nil {
		s.sharing = nil
		return server.cannotOpen(err)
	}
	s.sharing.start(s)
	return nil
}

// server is a Postgres database that is being opened.
type server struct{ config *pgx.ConnConfig }

// name is how errors call the database.
func (s server) name() string {
	address := net.JoinHostPort(s.config.Host, strconv.Itoa(int(s.config.Port)))
	if strings.HasPrefix(s.config.Host, "/") {
		address = s.config.Host // a socket
	}
	return fmt.Sprintf("the Postgres database %q at %s", s.config.Database, address)
}

// check refuses what is no database of freshen's, or cannot be used as one.
func (s server) check(ctx context.Context) (err error) {
	conn, err := pgx.ConnectConfig(ctx, s.config.Copy())
	if err != nil {
		return s.cannotConnect(err)
	}
	defer func() { _ = conn.Close(ctx) }()
	version := conn.PgConn().ParameterStatus("server_version")
	if major, err := strconv.Atoi(leadingDigits(version)); err != nil || major < oldestPostgres {
		return s.tooOld(version)
	}
	var standby bool
	var readOnly, encoding string
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), current_setting('transaction_read_only'), current_setting('server_encoding')`).
		Scan(&standby, &readOnly, &encoding)
	switch {
	case err != nil:
		return s.cannotOpen(err)
	case standby:
		return &UnreachableError{s.readOnly("it is a standby")}
	case readOnly == "on":
		return s.readOnly("default_transaction_read_only is on for it or for the user " + strconv.Quote(s.config.User))
	case encoding != "UTF8":
		return fmt.Errorf("database: %s has the encoding %s and must have UTF8: %s", s.name(), encoding, s.howToCreate("freshen"))
	}
	rows, err := conn.Query(ctx, `SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
		WHERE relkind IN ('r', 'p') AND nspname NOT IN ('pg_catalog', 'information_schema') AND pg_table_is_visible(pg_class.oid)`)
	if err != nil {
		return s.cannotOpen(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return s.cannotOpen(err)
	}
	return s.checkOwner(tables)
}

// checkOwner refuses a database that another program uses: its tables and ours would be in each other's way, and a restored
// backup of one would undo the other.
func (s server) checkOwner(tables []string) error {
	switch {
	case slices.Contains(tables, "applied_schema_deltas") || slices.Contains(tables, "device_lists_remote_cache"):
		return fmt.Errorf("database: %s holds Synapse's tables; freshen must have a database of its own: %s", s.name(), s.howToCreate("freshen"))
	case len(tables) > 0 && !slices.Contains(tables, versionTable):
		return fmt.Errorf("database: %s holds another program's tables, such as %q; freshen must have a database of its own: %s",
			s.name(), slices.Min(tables), s.howToCreate("freshen"))
	}
	return nil
}

// migrate brings the tables up to date. Of instances that start together, one does it and the others wait.
func (s server) migrate(ctx context.Context) (err error) {
	config := s.config.Copy()
	for _, limit := range []string{"lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"} {
		config.RuntimeParams[limit] = "0" // it takes what it takes
	}
	db := stdlib.OpenDB(*config)
	defer func() {
		if closing := db.Close(); err == nil && closing != nil {
			err = s.cannotOpen(closing)
		}
	}()
	files, err := fs.Sub(postgresMigrations, "migrations/postgres")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300))
	if err != nil {
		return err
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files,
		goose.WithTableName(versionTable), goose.WithSessionLocker(locker), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return s.cannotOpen(err)
	}
	current, err := provider.GetDBVersion(ctx)
	if err != nil {
		return s.cannotOpen(err)
	}
	if err := notNewer(provider, current, s.name()); err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return s.cannotOpen(err)
	}
	return nil
}

func leadingDigits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}
