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
	v, ok := r.pairs.GetIfPresent(pair{user, target})
	return v.shares, ok && r.fresh(v.at)
}

func (r *Rooms) fresh(at time.Time) bool { return r.now().Before(at.Add(remember)) }

func (r *Rooms) learn(user, target id.UserID, shares bool) {
	r.pairs.Set(pair{user, target}, verdict{shares: shares, at: r.now()})
	if shares {
		r.onShared(target)
	}
}

// Shares says whether who shares a room with target, and asks the homeserver if that is not known.
func (r *Rooms) Shares(ctx context.Context, who id.UserID, cred homeserver.Credentials, target id.UserID) (bool, error) {
	if shares, known := r.Known(who, target); known {
		return shares, nil
	}
	if err := r.Resolve(ctx, who, cred, []id.UserID{target}); err != nil {
		return false, err
	}
	shares, _ := r.Known(who, target)
	return shares, nil
}

// Resolve asks the homeserver, as user, which of the targets they share a room with; then [Rooms.Known] knows.
func (r *Rooms) Resolve(ctx context.Context, user id.UserID, cred homeserver.Credentials, targets []id.UserID) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	// One question per target is cheap for a few of them; for many, or where the homeserver cannot answer it, the
	// members of the user's rooms tell about all targets at once.
	if len(targets) <= atOnce {
		err := r.resolveMutual(ctx, user, cred, targets)
		if err == nil || !refused(err) {
			return err
		}
	}
	shared, err := r.sharedRooms(ctx, user, cred, targets)
	if err != nil {
		return err
	}
	for _, target := range targets {
		r.learn(user, target, len(shared[target]) > 0)
	}
	return nil
}

// refused says that mutual_rooms is not to be had: the homeserver lacks it, or refuses it to this user (an appservice,
// say). The members of the user's rooms tell the same.
func refused(err error) bool {
	var answer *homeserver.AnswerError
	return errors.Is(err, homeserver.ErrUnrecognized) || (errors.As(err, &answer) && answer.Status != http.StatusTooManyRequests)
}

func (r *Rooms) resolveMutual(ctx context.Context, user id.UserID, cred homeserver.Credentials, targets []id.UserID) error {
	for _, target := range targets {
		rooms, err := r.mutualRooms(ctx, cred, target)
		if err != nil {
			return err
		}
		r.learn(user, target, len(rooms) > 0)
	}
	return nil
}

// Neighbours finds the local users who are in a room that user shares with target, which settles [Rooms.Known] for
// each of them.
func (r *Rooms) Neighbours(ctx context.Context, user id.UserID, cred homeserver.Credentials, target id.UserID) ([]id.UserID, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	shared, err := r.mutualRooms(ctx, cred, target)
	if err != nil && refused(err) {
		var byTarget map[id.UserID][]id.RoomID
		byTarget, err = r.sharedRooms(ctx, user, cred, []id.UserID{target})
		shared = byTarget[target]
	}
	if err != nil {
		return nil, err
	}
	r.learn(user, target, len(shared) > 0)
	var locals []id.UserID
	for _, room := range shared {
		m, err := r.roomMembers(ctx, cred, room)
		if err != nil {
			return nil, err
		}
		locals = append(locals, m.locals...)
	}
	slices.Sort(locals)
	locals = slices.Compact(locals)
	for _, local := range locals {
		r.learn(local, target, true)
	}
	return locals, nil
}

// sharedRooms tells, of each target, the user's rooms that it is in.
func (r *Rooms) sharedRooms(ctx context.Context, user id.UserID, cred homeserver.Credentials, targets []id.UserID) (map[id.UserID][]id.RoomID, error) {
	rooms, err := r.joinedRooms(ctx, user, cred)
	if err != nil {
		return nil, err
	}
	found := make([]members, len(rooms))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i, room := range rooms {
		group.Go(func() (err error) {
			found[i], err = r.roomMembers(ctx, cred, room)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	shared := make(map[id.UserID][]id.RoomID, len(targets))
	for _, target := range targets {
		hash := maphash.String(r.seed, string(target))
		for i, m := range found {
			if _, in := slices.BinarySearch(m.hashes, hash); in {
				shared[target] = append(shared[target], rooms[i])
			}
		}
	}
	return shared, nil
}

func (r *Rooms) joinedRooms(ctx context.Context, user id.UserID, cred homeserver.Credentials) ([]id.RoomID, error) {
	if j, ok := r.joined.GetIfPresent(user); ok && r.fresh(j.at) {
		return j.rooms, nil
	}
	rooms, err := question(ctx, r, func() ([]id.RoomID, error) { return r.hs.JoinedRooms(ctx, cred) })
	if err != nil {
		return nil, err
	}
	r.joined.Set(user, joinedRooms{rooms: rooms, at: r.now()})
	return rooms, nil
}

func (r *Rooms) mutualRooms(ctx context.Context, cred homeserver.Credentials, target id.UserID) ([]id.RoomID, error) {
	return question(ctx, r, func() ([]id.RoomID, error) { return r.hs.MutualRooms(ctx, cred, target) })
}

func (r *Rooms) roomMembers(ctx context.Context, cred homeserver.Credentials, room id.RoomID) (members, error) {
	if m, ok := r.members.GetIfPresent(room); ok && r.fresh(m.at) {
		return m, nil
	}
	users, err := question(ctx, r, func() ([]id.UserID, error) { return r.hs.JoinedMembers(ctx, cred, room) })
	if err != nil {
		return members{}, err
	}
	m := members{hashes: make([]uint64, len(users)), at: r.now()}
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
