package announce

import (
	"slices"
	"sync"
	"time"

	"freshen"
)

// maxUnseen is how many answers are remembered by their token of which it is not known whose they were.
const maxUnseen = 64

// Unseen is an answer to a sync that has begun before it was known whose it is. Nothing was told by it: what it lacked, its
// client may still have to hear. Before its end, nobody can come with its token.
type Unseen struct {
	a     *Announcer
	began time.Time

	// Guarded by unseens.mu.
	who     *freshen.Requester
	ended   bool
	settled bool
	token   token // 0 if it is not known
}

// unseens are the latest that have ended and of which it is not known, or never will be, whose they are.
type unseens struct {
	mu   sync.Mutex
	all  []*Unseen
	lost time.Time // when the last began that is not among them any more
}

// Unseen records that such an answer begins.
func (a *Announcer) Unseen() *Unseen { return &Unseen{a: a, began: a.now()} }

// Whose says whose answer it is.
func (u *Unseen) Whose(who freshen.Requester) { u.learn(func() { u.who = &who }) }

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
			all.all = slices.Delete(all.all, 0, 1)
		}
		all.all = append(all.all, u)
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
	all.mu.Unlock()
}

// unnoticed is up to when answers were given to nobody knows whom that may have ended in t; or in any token if t is 0.
func (a *Announcer) unnoticed(t token) time.Time {
	all := &a.unseen
	all.mu.Lock()
	defer all.mu.Unlock()
	last := all.lost
	for _, u := range all.all {
		if t == 0 || u.token == 0 || u.token == t {
			last = later(last, u.began)
		}
	}
	return last
}
