package store

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"freshen/internal/limit"
)

const (
	// hearEvery is how often it is looked for what other instances have committed, besides when they say so.
	hearEvery = 3 * time.Second
	// listenAgain is the wait before a connection that was lost is made again; it doubles up to hearEvery.
	listenAgain = 100 * time.Millisecond
)

// Shared says whether other instances may use the database as well.
func (s *Store) Shared() bool { return s.sharing != nil }

// sharing is what an instance does because there may be others.
type sharing struct {
	instance               string // names it in fetches
	rate                   atomic.Pointer[limit.Rate]
	successFor, failureFor time.Duration

	listener *pgx.ConnConfig
	later    chan struct{}
	stop     func() // and wait
}

// hearLater has what is new read again soon.
func (s *Store) hearLater() {
	if s.sharing == nil {
		return
	}
	select {
	case s.sharing.later <- struct{}{}:
	default:
	}
}

// start listens for other instances until stop.
func (sh *sharing) start(s *Store) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.listen(ctx)
	}()
	sh.stop = func() {
		cancel()
		<-done
	}
}

// listen hears other instances as soon as they have committed, or, while its connection is lost, every few seconds. It
// looks after each connection is made, since nobody tells it what was committed while there was none.
func (s *Store) listen(ctx context.Context) {
	wait := listenAgain
	away := false
	for ctx.Err() == nil {
		err := s.listenOnce(ctx, func() {
			if away {
				s.log.Info("other instances are heard at once again")
			}
			away, wait = false, listenAgain
		})
		if ctx.Err() != nil {
			return
		}
		if !away {
			s.log.Warn("lost the connection on which other instances are heard; until it is back, clients hear from them seconds later", "err", s.explain(err))
		}
		away = true
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-s.sharing.later:
		case <-ctx.Done():
		}
		timer.Stop()
		wait = min(2*wait, hearEvery)
		_ = s.hear(ctx) // the listener's connection may be all that is lost
	}
}

// listenOnce returns when the connection is lost.
func (s *Store) listenOnce(ctx context.Context, connected func()) (err error) {
	conn, err := pgx.ConnectConfig(ctx, s.sharing.listener)
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if err := s.ask(ctx, conn, `LISTEN freshen`); err != nil {
		return err
	}
	connected()
	for {
		if err := s.hear(ctx); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, hearEvery)
		_, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
		case ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded):
			return err
		default: // a connection that was cut does not say so
			if err := s.ask(ctx, conn, `SELECT 1`); err != nil {
				return err
			}
		}
	}
}

func (s *Store) ask(ctx context.Context, conn *pgx.Conn, query string) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	_, err := conn.Exec(ctx, query)
	return err
}
