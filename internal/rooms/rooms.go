// Package rooms knows which local users share a room with which targets. It asks the homeserver with the tokens of
// those whom it is about, never on the path of a response, a few questions at a time, and remembers the answers for
// minutes.
package rooms

import (
	"context"
	"errors"
	"hash/maphash"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
)

const (
	// remember is how long an answer of the homeserver's counts.
	remember = 5 * time.Minute
	// askTimeout bounds the questions about one user.
	askTimeout = 30 * time.Second
	// atOnce is how many questions are with the homeserver at a time.
	atOnce = 4
	// maxLocals bounds how many local members of one room are remembered by name.
	maxLocals = 10_000
)

// Rooms answers who shares rooms with whom. Its methods are safe for concurrent use.
type Rooms struct {
	hs         *homeserver.Client
	serverName string
	now        func() time.Time
	onShared   func(target id.UserID)
	seed       maphash.Seed
	questions  chan struct{}

	pairs   *otter.Cache[pair, verdict]
	joined  *otter.Cache[id.UserID, joinedRooms]
	members *otter.Cache[id.RoomID, members]
}

type pair struct{ user, target id.UserID }

type verdict struct {
	shares bool
	at     time.Time
}

type joinedRooms struct {
	rooms []id.RoomID
	at    time.Time
}

// members is a room's joined members: hashes of all of them, sorted, which take 8 bytes each however many they are,
// and the names of the local ones.
type members struct {
	hashes []uint64
	locals []id.UserID
	at     time.Time
}

// New returns an empty memory of rooms. serverName is ours; now is the clock; onShared, if not nil, is told of each
// target with whom somebody turns out to share a room, and must not block.
func New(hs *homeserver.Client, serverName string, now func() time.Time, onShared func(target id.UserID)) *Rooms {
	if onShared == nil {
		onShared = func(id.UserID) {}
	}
	return &Rooms{
		hs: hs, serverName: serverName, now: now, onShared: onShared,
		seed:      maphash.MakeSeed(),
		questions: make(chan struct{}, atOnce),
		pairs:     otter.Must(&otter.Options[pair, verdict]{MaximumSize: 200_000}),
		joined:    otter.Must(&otter.Options[id.UserID, joinedRooms]{MaximumSize: 10_000}),
		members: otter.Must(&otter.Options[id.RoomID, members]{
			MaximumWeight: 64 << 20,
			Weigher: func(_ id.RoomID, m members) uint32 {
				return uint32(64 + 8*len(m.hashes) + 48*len(m.locals))
			},
		}),
	}
}

// Known says whether user shares a room with target, as far as it is known: it never asks.
func (r *Rooms) Known(user, target id.UserID) (shares, known bool) {
	return r.KnownSince(user, target, time.Time{})
}

// KnownSince is [Rooms.Known] for something that happened at since: a "no" from before that does not count, since the
// user may have joined the target's room in between. A "yes" does, for minutes.
func (r *Rooms) KnownSince(user, target id.UserID, since time.Time) (shares, known bool) {
	v, ok := r.pairs.GetIfPresent(pair{user, target})
	if !ok || !r.fresh(v.at) || (!v.shares && v.at.Before(since)) {
		return false, false
	}
	return v.shares, true
}

func (r *Rooms) fresh(at time.Time) bool { return r.now().Before(at.Add(remember)) }

// learn remembers an answer; at is when its question was put, or before.
func (r *Rooms) learn(user, target id.UserID, shares bool, at time.Time) {
	r.pairs.Set(pair{user, target}, verdict{shares: shares, at: at})
	if shares {
		r.onShared(target)
	}
}

// Shares says whether who shares a room with target. The homeserver is asked unless it has said yes within minutes: who
// has just joined the target's room is not to be told no from memory.
func (r *Rooms) Shares(ctx context.Context, who id.UserID, cred homeserver.Credentials, target id.UserID) (bool, error) {
	if shares, known := r.Known(who, target); known && shares {
		return true, nil
	}
	verdicts, err := r.resolve(ctx, who, cred, []id.UserID{target}, r.now())
	return verdicts[target], err
}

// Resolve asks the homeserver, as user, which of the targets they share a room with; then [Rooms.KnownSince] knows for
// what happened up to since. With an error, it knows of those targets that could be told about.
//
// A target who has joined one of the user's rooms within minutes may be missed where the homeserver has no mutual_rooms:
// the members of rooms are remembered, whoever asks.
func (r *Rooms) Resolve(ctx context.Context, user id.UserID, cred homeserver.Credentials, targets []id.UserID, since time.Time) error {
	_, err := r.resolve(ctx, user, cred, targets, since)
	return err
}

func (r *Rooms) resolve(ctx context.Context, user id.UserID, cred homeserver.Credentials, targets []id.UserID, since time.Time) (map[id.UserID]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	verdicts := make(map[id.UserID]bool, len(targets))
	decide := func(target id.UserID, shares bool, at time.Time) {
		verdicts[target] = shares
		r.learn(user, target, shares, at)
	}
	// One question per target is cheap for a few of them; for many, or where the homeserver cannot answer it, the
	// members of the user's rooms tell about all targets at once.
	left := targets
	var failed error
	if len(targets) <= atOnce {
		left, failed = r.resolveMutual(ctx, cred, targets, decide)
	}
	if len(left) == 0 {
		return verdicts, failed
	}
	shared, at, err := r.sharedRooms(ctx, user, cred, left, since)
	for _, target := range left {
		if shares := len(shared[target]) > 0; shares || err == nil {
			decide(target, shares, at)
		}
	}
	if err == nil {
		err = failed
	}
	return verdicts, err
}

// refused says that mutual_rooms is not to be had: the homeserver lacks it, or refuses it to this user (an appservice,
// say). The members of the user's rooms tell the same.
func refused(err error) bool {
	var answer *homeserver.AnswerError
	return errors.Is(err, homeserver.ErrUnrecognized) || (errors.As(err, &answer) && answer.Status != http.StatusTooManyRequests)
}

// resolveMutual asks about each target by itself, so that one whom the homeserver chokes on holds up no other. left are
// those whom it does not answer about in this way.
func (r *Rooms) resolveMutual(ctx context.Context, cred homeserver.Credentials, targets []id.UserID, decide func(id.UserID, bool, time.Time)) (left []id.UserID, failed error) {
	type answer struct {
		rooms []id.RoomID
		at    time.Time
		err   error
	}
	answers := make([]answer, len(targets))
	var wg sync.WaitGroup
	for i, target := range targets {
		wg.Go(func() {
			a := &answers[i]
			a.at = r.now()
			a.rooms, a.err = r.mutualRooms(ctx, cred, target)
		})
	}
	wg.Wait()
	for i, a := range answers {
		switch {
		case a.err == nil:
			decide(targets[i], len(a.rooms) > 0, a.at)
		case refused(a.err):
			left = append(left, targets[i])
		default:
			failed = a.err
		}
	}
	return left, failed
}

// Neighbours finds the local users who are in a room that user shares with target, which settles [Rooms.Known] for
// each of them. With an error, it names those found all the same.
func (r *Rooms) Neighbours(ctx context.Context, user id.UserID, cred homeserver.Credentials, target id.UserID) ([]id.UserID, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	at := r.now()
	shared, err := r.mutualRooms(ctx, cred, target)
	if err != nil && refused(err) {
		var byTarget map[id.UserID][]id.RoomID
		byTarget, at, err = r.sharedRooms(ctx, user, cred, []id.UserID{target}, at)
		shared = byTarget[target]
	}
	if len(shared) > 0 || err == nil {
		r.learn(user, target, len(shared) > 0, at)
	}
	var locals []id.UserID
	for _, room := range shared {
		m, roomErr := r.roomMembers(ctx, cred, room)
		if roomErr != nil {
			err = roomErr
			break
		}
		locals = append(locals, m.locals...)
	}
	slices.Sort(locals)
	locals = slices.Compact(locals)
	for _, local := range locals {
		if local != target {
			r.learn(local, target, true, at)
		}
	}
	return locals, err
}

// sharedRooms tells, of each target, the user's rooms that it is in, and when it was asked which rooms those are: not
// before since. With an error, it tells of the rooms whose members are known.
func (r *Rooms) sharedRooms(ctx context.Context, user id.UserID, cred homeserver.Credentials, targets []id.UserID, since time.Time) (shared map[id.UserID][]id.RoomID, at time.Time, err error) {
	joined, err := r.joinedRooms(ctx, user, cred, since)
	if err != nil {
		return nil, time.Time{}, err
	}
	found := make([]members, len(joined.rooms))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, room := range joined.rooms {
		group.Go(func() (err error) {
			found[i], err = r.roomMembers(ctx, cred, room)
			return err
		})
	}
	err = group.Wait()
	shared = make(map[id.UserID][]id.RoomID, len(targets))
	for _, target := range targets {
		hash := maphash.String(r.seed, string(target))
		for i, m := range found {
			if _, in := slices.BinarySearch(m.hashes, hash); in {
				shared[target] = append(shared[target], joined.rooms[i])
			}
		}
	}
	return shared, joined.at, err
}

func (r *Rooms) joinedRooms(ctx context.Context, user id.UserID, cred homeserver.Credentials, since time.Time) (joinedRooms, error) {
	if j, ok := r.joined.GetIfPresent(user); ok && r.fresh(j.at) && !j.at.Before(since) {
		return j, nil
	}
	at := r.now()
	rooms, err := question(ctx, r, func() ([]id.RoomID, error) { return r.hs.JoinedRooms(ctx, cred) })
	if err != nil {
		return joinedRooms{}, err
	}
	j := joinedRooms{rooms: rooms, at: at}
	r.joined.Set(user, j)
	return j, nil
}

func (r *Rooms) mutualRooms(ctx context.Context, cred homeserver.Credentials, target id.UserID) ([]id.RoomID, error) {
	return question(ctx, r, func() ([]id.RoomID, error) { return r.hs.MutualRooms(ctx, cred, target) })
}

// roomMembers tells who is in a room that the asking user is in. A room that they have left meanwhile has nobody in it
// for them; that is not remembered, since others are still there.
func (r *Rooms) roomMembers(ctx context.Context, cred homeserver.Credentials, room id.RoomID) (members, error) {
	if m, ok := r.members.GetIfPresent(room); ok && r.fresh(m.at) {
		return m, nil
	}
	at := r.now()
	users, err := question(ctx, r, func() ([]id.UserID, error) { return r.hs.JoinedMembers(ctx, cred, room) })
	if outside(err) {
		return members{}, nil
	}
	if err != nil {
		return members{}, err
	}
	m := members{hashes: make([]uint64, len(users)), at: at}
	for i, user := range users {
		m.hashes[i] = maphash.String(r.seed, string(user))
		if freshen.Destination(user) == r.serverName && len(m.locals) < maxLocals {
			m.locals = append(m.locals, user)
		}
	}
	slices.Sort(m.hashes)
	r.members.Set(room, m)
	return m, nil
}

// outside says that the homeserver refuses a room's members because the user is not in it, or it is gone.
func outside(err error) bool {
	var answer *homeserver.AnswerError
	return errors.As(err, &answer) && (answer.Status == http.StatusForbidden || answer.Status == http.StatusNotFound)
}

// question waits for its turn to ask the homeserver.
func question[T any](ctx context.Context, r *Rooms, ask func() (T, error)) (T, error) {
	select {
	case r.questions <- struct{}{}:
		defer func() { <-r.questions }()
		return ask()
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
