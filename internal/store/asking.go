package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// silentAfter is how long an instance may give no sign of life before its answer is not waited for.
	silentAfter = 4 * hearEvery
	// goneAfter is after how long it is taken for dead, and not for one that is cut off from the database and has clients.
	goneAfter = 15 * time.Minute
	// rememberFor is how long it is known when an instance went: longer than a token may have been under way that it gave.
	rememberFor = 48 * time.Hour
	// LongestMessage is what a question, or an answer, may have in bytes: Postgres takes less than 8000 in a notification.
	LongestMessage = 7800

	askChannel, answerChannel = "freshen_ask", "freshen_answer"
)

// Replies is what the other instances said.
type Replies struct {
	// Answers are, for each question, those that came.
	Answers [][]string
	// Silent says that an instance did not answer which may be running: it hangs, or is cut off from the database, or was
	// killed not long ago.
	Silent bool
	// Left is how long ago the last of those went that cannot answer any more; negative if none has of late.
	Left time.Duration
}

// asking is what an instance has asked others, and how it answers them.
type asking struct {
	listening atomic.Bool
	answer    atomic.Pointer[func(question string) string]

	mu   sync.Mutex
	last uint64
	open map[uint64]*asked
}

// asked are questions that wait for their answers.
type asked struct {
	answers [][]string
	missing int
	done    chan struct{}
}

// OnAsked sets what answers other instances' questions. f must not block; what it returns that is longer than
// [LongestMessage] is told as "".
func (s *Store) OnAsked(f func(question string) string) {
	if s.sharing != nil {
		s.sharing.asking.answer.Store(&f)
	}
}

// Ask puts questions to all other instances that share the database, and waits for their answers until ctx is done. Each is
// a line of text of at most [LongestMessage] bytes. After an error, others may know what was not told.
//
// Every instance that served clients before Ask was called is among those whom it asks, or in Silent or Left, unless it
// has never reached the database.
func (s *Store) Ask(ctx context.Context, questions []string) (Replies, error) {
	replies := Replies{Answers: make([][]string, len(questions)), Left: -1}
	if s.sharing == nil {
		return replies, nil
	}
	bounded, cancel := s.bounded(ctx)
	defer cancel()
	running, err := s.others(bounded, &replies)
	if err != nil || running == 0 {
		return replies, s.named(err)
	}
	ask := &s.sharing.asking
	if !ask.listening.Load() {
		replies.Silent = true
		return replies, nil
	}
	waiting := &asked{answers: replies.Answers, missing: running * len(questions), done: make(chan struct{})}
	number := ask.add(waiting)
	defer ask.remove(number)
	messages := make([]string, len(questions))
	for i, question := range questions {
		messages[i] = fmt.Sprintf("%s %d %d %s", s.sharing.instance, number, i, question)
	}
	if _, err := s.read.ExecContext(bounded, `SELECT pg_notify('`+askChannel+`', message) FROM unnest($1::text[]) AS message`, messages); err != nil {
		return replies, s.explain(err)
	}
	select {
	case <-waiting.done:
	case <-ctx.Done():
	}
	ask.mu.Lock()
	defer ask.mu.Unlock()
	replies.Silent = replies.Silent || waiting.missing > 0
	replies.Answers = slices.Clone(waiting.answers)
	return replies, nil
}

// others counts the instances that run, and tells of those that may have.
func (s *Store) others(ctx context.Context, into *Replies) (running int, err error) {
	_, err = queryAll(ctx, s.read, func(rows *sql.Rows) (struct{}, error) {
		var beat, left float64
		err := rows.Scan(&beat, &left)
		quiet, gone := time.Duration(beat*float64(time.Second)), time.Duration(left*float64(time.Second))
		if gone < 0 && quiet > goneAfter {
			gone = quiet - goneAfter
		}
		switch {
		case gone >= 0:
			if into.Left < 0 || gone < into.Left {
				into.Left = gone
			}
		case quiet > silentAfter:
			into.Silent = true
		default:
			running++
		}
		return struct{}{}, err
	}, `SELECT EXTRACT(EPOCH FROM clock_timestamp() - beat_at)::float8, CASE WHEN left_at IS NULL THEN -1 ELSE GREATEST(0, EXTRACT(EPOCH FROM clock_timestamp() - left_at)) END::float8
		FROM instances WHERE instance <> $1 AND beat_at > clock_timestamp() - $2 * interval '1 second'`, s.sharing.instance, rememberFor.Seconds())
	return running, err
}

func (a *asking) add(waiting *asked) (number uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == nil {
		a.open = map[uint64]*asked{}
	}
	a.last++
	a.open[a.last] = waiting
	return a.last
}

func (a *asking) remove(number uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, number)
}

// take adds an answer: the number of the questions, which of them, and the text.
func (a *asking) take(number, which, text string) {
	n, err1 := strconv.ParseUint(number, 10, 64)
	i, err2 := strconv.Atoi(which)
	a.mu.Lock()
	defer a.mu.Unlock()
	waiting := a.open[n]
	if err1 != nil || err2 != nil || waiting == nil || i < 0 || i >= len(waiting.answers) || waiting.missing == 0 {
		return
	}
	waiting.answers[i] = append(waiting.answers[i], text)
	if waiting.missing--; waiting.missing == 0 {
		close(waiting.done)
	}
}

// notified takes what came on the listening connection, and answers on it if it is a question. news says that something
// may have been committed.
func (s *Store) notified(ctx context.Context, conn *pgx.Conn, n *pgconn.Notification) (news bool, err error) {
	ask := &s.sharing.asking
	switch n.Channel {
	case askChannel:
		from, rest, _ := strings.Cut(n.Payload, " ")
		number, rest, _ := strings.Cut(rest, " ")
		which, question, _ := strings.Cut(rest, " ")
		if from == s.sharing.instance {
			return false, nil
		}
		text := ""
		if answer := ask.answer.Load(); answer != nil {
			if text = (*answer)(question); len(text) > LongestMessage {
				text = ""
			}
		}
		bounded, cancel := s.bounded(ctx)
		defer cancel()
		_, err := conn.Exec(bounded, `SELECT pg_notify('`+answerChannel+`', $1)`, strings.Join([]string{from, number, which, text}, " "))
		return false, err
	case answerChannel:
		to, rest, _ := strings.Cut(n.Payload, " ")
		number, rest, _ := strings.Cut(rest, " ")
		which, text, _ := strings.Cut(rest, " ")
		if to == s.sharing.instance {
			ask.take(number, which, text)
		}
		return false, nil
	}
	return true, nil
}

// join makes it known that this instance may be giving clients answers. It comes before the first of them.
func (s *Store) join(ctx context.Context) error {
	if _, err := s.read.ExecContext(ctx, `UPDATE instances SET left_at = clock_timestamp() WHERE name = $1 AND name <> '' AND left_at IS NULL`,
		s.sharing.name); err != nil {
		return err
	}
	_, err := s.read.ExecContext(ctx, joinInstances, s.sharing.instance, s.sharing.name)
	return err
}

// joinInstances is also the sign of life. It comes again if the row was taken for a dead instance's.
const joinInstances = `INSERT INTO instances (instance, name) VALUES ($1, $2)
	ON CONFLICT (instance) DO UPDATE SET beat_at = clock_timestamp(), left_at = NULL`

// leave is join's opposite. What an instance that has left gave its clients, nobody can ask any more.
func (s *Store) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	// If it fails, the others take it for one that is cut off, and repeat themselves rather than trust that it is not.
	_, _ = s.read.ExecContext(ctx, `UPDATE instances SET beat_at = clock_timestamp(), left_at = clock_timestamp() WHERE instance = $1`, s.sharing.instance)
}
