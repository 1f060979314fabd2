package announce

import (
	"context"
	"slices"
	"sync"
	"time"

	"freshen"
)

// maxUnseen is how many answers are remembered by their token of which it is not known whose they were.
const maxUnseen = 1024

// toldUnseen is of how many of them other instances are told the token, in the answer to each question about a device.
const toldUnseen = 4

// Unseen is an answer to a sync that has begun before it was known whose it is. Nothing was told by it: what it lacked, its
// client may still have to hear. Before its end, nobody can come with its token.
type Unseen struct {
	a     *Announcer
	began time.Time

	// Guarded by unseens.mu.
	who     *freshen.Requester
	nobodys bool // it will never be known
	ended   bool
	settled bool
	awaited bool  // it is counted in unseens.awaited
	token   token // 0 if it is not known
}

// unseens are the latest that have ended and of which it is not known, or never will be, whose they are.
type unseens struct {
	mu   sync.Mutex
	all  []*Unseen
	lost time.Time // when the last began that is not among them any more
	// awaited counts those whose it is still being found out, by token.
	awaited map[token]int
	news    chan struct{} // closed once that is known of one of them; nil if nobody waits for that
}

// Unseen records that such an answer begins.
func (a *Announcer) Unseen() *Unseen { return &Unseen{a: a, began: a.now()} }

// Whose says whose answer it is.
func (u *Unseen) Whose(who freshen.Requester) { u.learn(func() { u.who = &who }) }

// Nobodys says that it will never be known whose answer it is, so that nothing waits for that.
func (u *Unseen) Nobodys() { u.learn(func() { u.nobodys = true }) }

// Ended says that the answer has gone out whole, before its client can tell that it has. One that breaks does not end.
// nextBatch is its token; "" if that is not known.
func (u *Unseen) Ended(nextBatch string) {
	u.learn(func() {
		u.ended = true
		if nextBatch != "" {
			u.token = tokenOf(nextBatch)
		}
	})
}

func (u *Unseen) learn(news func()) {
	all := &u.a.unseen
	all.mu.Lock()
	news()
	who, theirs := u.who, u.ended && u.who != nil && !u.settled
	u.settled = u.settled || theirs
	switch {
	case !u.ended, u.who != nil:
	case !slices.Contains(all.all, u):
		if len(all.all) == maxUnseen {
			all.lost = later(all.lost, all.all[0].began)
			all.found(all.all[0])
			all.all = slices.Delete(all.all, 0, 1)
		}
		all.all = append(all.all, u)
		if all.awaited == nil {
			all.awaited = map[token]int{}
		}
		all.awaited[u.token]++
		u.awaited = true
	}
	if u.nobodys {
		all.found(u)
	}
	all.mu.Unlock()
	if !theirs {
		return
	}
	d := u.a.device(*who)
	d.mu.Lock()
	d.answers.add(answer{at: u.began, latest: u.began, token: u.token})
	d.mu.Unlock()
	all.mu.Lock()
	all.all = slices.DeleteFunc(all.all, func(other *Unseen) bool { return other == u })
	all.found(u)
	all.mu.Unlock()
}

// found says that nothing more will be found out about one of them.
func (u *unseens) found(one *Unseen) {
	if !one.awaited {
		return
	}
	one.awaited = false
	if u.awaited[one.token]--; u.awaited[one.token] == 0 {
		delete(u.awaited, one.token)
	}
	if u.news != nil {
		close(u.news)
		u.news = nil
	}
}

// pending says whether it is still being found out whose an answer was that may have ended in one of these tokens.
func (a *Announcer) pending(tokens ...token) bool {
	a.unseen.mu.Lock()
	defer a.unseen.mu.Unlock()
	return a.unseen.pending(tokens)
}

func (u *unseens) pending(tokens []token) bool {
	return len(tokens) > 0 && u.awaited[0] > 0 || slices.ContainsFunc(tokens, func(t token) bool { return u.awaited[t] > 0 })
}

// await returns once it is known, of every answer that may have ended in one of these tokens, whose it was or that it will not be;
// or when ctx is done.
func (a *Announcer) await(ctx context.Context, tokens []token) {
	all := &a.unseen
	for ctx.Err() == nil {
		all.mu.Lock()
		if !all.pending(tokens) {
			all.mu.Unlock()
			return
		}
		if all.news == nil {
			all.news = make(chan struct{})
		}
		news := all.news
		all.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
}

// addUnnoticed adds the answers that were given to nobody knows whom: the latest with their tokens, of the others until when.
func (a *Announcer) addUnnoticed(to *answers) {
	all := &a.unseen
	all.mu.Lock()
	defer all.mu.Unlock()
	to.horizon = later(to.horizon, all.lost)
	for i, u := range all.all {
		if u.token == 0 || len(all.all)-i > toldUnseen {
			to.horizon = later(to.horizon, u.began)
			continue
		}
		to.given = append(to.given, answer{at: u.began, latest: u.began, token: u.token})
	}
}

// unnoticed is up to when answers were given to nobody knows whom that may have ended in t.
func (a *Announcer) unnoticed(t token) time.Time {
	all := &a.unseen
	all.mu.Lock()
	defer all.mu.Unlock()
	last := all.lost
	for _, u := range all.all {
		if u.token == 0 || u.token == t {
			last = later(last, u.began)
		}
	}
	return last
}
