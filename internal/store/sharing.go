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
	name                   string // where it runs; see Config
	rate                   atomic.Pointer[limit.Rate]
	successFor, failureFor time.Duration
	asking                 asking

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
		s.leave()
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
	if err := s.exec(ctx, conn, `LISTEN freshen; LISTEN `+askChannel+`; LISTEN `+answerChannel); err != nil {
		return err
	}
	connected()
	s.sharing.asking.listening.Store(true)
	defer s.sharing.asking.listening.Store(false)
	var beat time.Time
	for news := true; ; {
		if news {
			if err := s.hear(ctx); err != nil {
				return err
			}
		}
		if time.Since(beat) >= hearEvery { // a connection that was cut does not say so
			if err := s.exec(ctx, conn, joinInstances, s.sharing.instance, s.sharing.name); err != nil {
				return err
			}
			beat = time.Now()
		}
		waiting, cancel := context.WithTimeout(ctx, hearEvery)
		notification, err := conn.WaitForNotification(waiting)
		cancel()
		switch {
		case err == nil:
			news, err = s.notified(ctx, conn, notification)
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			news, err = true, nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *Store) exec(ctx context.Context, conn *pgx.Conn, query string, args ...any) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	_, err := conn.Exec(ctx, query, args...)
	return err
}
