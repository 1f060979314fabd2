// Package owed shows administrators what is owed, and lets them end or hasten it: over the database, or over the admin
// listener of the freshen that has it.
package owed

import (
	"context"
	"fmt"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/store"
)

// maxDebts is the most debts that are listed.
const maxDebts = 10_000

// List is what is owed, as GET /owed and freshen owed --json tell it. Times are RFC 3339.
type List struct {
	// Debts counts all, also those beyond what is listed.
	Debts        int           `json:"debts"`
	Destinations []Destination `json:"destinations"`
	// Truncated: there are more debts than are listed.
	Truncated bool `json:"truncated,omitempty"`
	// Undelivered is what the homeserver was to announce itself, and is not known to have announced.
	Undelivered []Undelivered `json:"undelivered"`
}

// Undelivered is a user of whose device list the homeserver's clients do not hear from it.
type Undelivered struct {
	Target id.UserID `json:"target"`
	// Since is from when on that is so; AskedAt is when the list was last fetched for somebody.
	Since   time.Time `json:"since"`
	AskedAt time.Time `json:"asked_at"`
	// Hole says why: homeserver_away, not_fetched, other_list, too_many_devices, no_devices, devices_gone or
	// cross_signing_keys_gone. Error is the same as a sentence.
	Hole  string `json:"hole"`
	Error string `json:"error"`
	// NextTry is when it is tried again; absent where that would change nothing.
	NextTry *time.Time `json:"next_try,omitempty"`
}

// Destination is a server that is owed something.
type Destination struct {
	Name string `json:"name"`
	// Failures in a row that the server is to blame for; 0 if it is not backing off.
	Failures     int        `json:"failures,omitempty"`
	FailingSince *time.Time `json:"failing_since,omitempty"`
	// RetryAt is when it is asked again; absent if it is not backing off.
	RetryAt *time.Time `json:"retry_at,omitempty"`
	// Reason and Error are its last failure's; Error is a sentence.
	Reason freshen.Reason `json:"reason,omitempty"`
	Error  string         `json:"error,omitempty"`
	Debts  []Debt         `json:"debts"`
}

// Debt is a user whose device list somebody was told would be fetched.
type Debt struct {
	Target id.UserID `json:"target"`
	// AskedAt is when somebody last asked.
	AskedAt time.Time `json:"asked_at"`
	// Running: it is being tried just now.
	Running bool `json:"running,omitempty"`
	// NextTry is when it is tried next, at the earliest.
	NextTry time.Time `json:"next_try"`
	// GivenUpAt is from when on a further failure ends it.
	GivenUpAt time.Time `json:"given_up_at"`
	// Failures in a row that the user is to blame for, their server being fine.
	Failures int `json:"failures,omitempty"`
	// Reason and Error are its last failure's; absent if it was not tried yet.
	Reason freshen.Reason `json:"reason,omitempty"`
	Error  string         `json:"error,omitempty"`
}

// Whose is a target or a whole server.
type Whose struct {
	Target id.UserID `json:"target,omitempty"`
	Server string    `json:"server,omitempty"`
}

// ParseWhose takes a user ID or a server name.
func ParseWhose(text string) (w Whose, err error) {
	if text != "" && text[0] == '@' {
		w.Target, _, err = freshen.ParseUserID(text)
		if err != nil {
			return Whose{}, fmt.Errorf("%q is no user ID such as @bob:example.org", text)
		}
		return w, nil
	}
	if !freshen.ValidServerName(text) {
		return Whose{}, fmt.Errorf("%q is neither a user ID such as @bob:example.org nor a server name such as example.org", text)
	}
	return Whose{Server: text}, nil
}

func (w Whose) String() string {
	if w.Target != "" {
		return string(w.Target)
	}
	return w.Server
}

// Ledger is the database, and who wants to hear of changes to it.
type Ledger struct {
	Store       *store.Store
	GiveUpAfter time.Duration
	Now         func() time.Time
	// Changed is called when something was dropped, or is due earlier.
	Changed func(dropped int64)
}

// List reads what is owed.
func (l *Ledger) List(ctx context.Context) (*List, error) {
	all, err := l.Store.Owed(ctx, maxDebts+1)
	if err != nil {
		return nil, err
	}
	list := &List{Debts: len(all), Destinations: []Destination{}, Undelivered: []Undelivered{}}
	if len(all) > maxDebts {
		all, list.Truncated = all[:maxDebts], true
		if list.Debts, err = l.Store.Debts(ctx); err != nil {
			return nil, err
		}
	}
	now := l.Now()
	for _, one := range all {
		last := len(list.Destinations) - 1
		if last < 0 || list.Destinations[last].Name != one.Destination {
			list.Destinations = append(list.Destinations, destination(one.Standing))
			last++
		}
		d := &list.Destinations[last]
		d.Debts = append(d.Debts, l.debt(one, now))
	}
	behind, err := l.Store.Undelivered(ctx, maxDebts)
	for _, one := range behind {
		list.Undelivered = append(list.Undelivered, undelivered(one))
	}
	return list, err
}

func undelivered(d store.Delivery) Undelivered {
	shown := Undelivered{Target: d.Target, Since: d.Since.UTC(), AskedAt: d.AskedAt.UTC(), Hole: d.Reason, Error: d.Sentence}
	if !d.DueAt.IsZero() {
		next := d.DueAt.UTC()
		shown.NextTry = &next
	}
	return shown
}

func destination(d store.Destination) Destination {
	shown := Destination{Name: d.Name, Failures: d.Failures, Reason: d.Reason, Error: d.Sentence}
	if d.Failures > 0 {
		since, retry := d.FailingSince.UTC(), d.RetryAt.UTC()
		shown.FailingSince, shown.RetryAt = &since, &retry
	}
	return shown
}

func (l *Ledger) debt(o store.OwedDebt, now time.Time) Debt {
	shown := Debt{
		Target: o.Target, AskedAt: o.AskedAt.UTC(), GivenUpAt: o.AskedAt.Add(l.GiveUpAfter).UTC(),
		Failures: o.Failures, Reason: o.Reason, Error: o.Sentence,
		NextTry: now.UTC().Truncate(time.Millisecond),
	}
	shown.Running = o.Lease != "" && o.DueAt.After(now)
	if shown.Running {
		return shown
	}
	for _, at := range []time.Time{o.DueAt, o.Standing.RetryAt} {
		if at.After(shown.NextTry) {
			shown.NextTry = at.UTC()
		}
	}
	return shown
}

// Drop forgets what is owed and what is undelivered, and says how much that was.
func (l *Ledger) Drop(ctx context.Context, whose Whose) (int64, error) {
	var debts int64
	var err error
	if whose.Target != "" {
		debts, err = l.Store.Forgive(ctx, whose.Target, l.Now())
	} else {
		debts, err = l.Store.DropDestination(ctx, whose.Server)
	}
	if err != nil {
		return 0, err
	}
	if l.Changed != nil {
		l.Changed(debts)
	}
	behind, err := l.Store.ForgetUndelivered(ctx, whose.Target, whose.Server)
	return debts + behind, err
}

// Retry makes what is owed and what is undelivered due, and says how much that is.
func (l *Ledger) Retry(ctx context.Context, whose Whose) (int64, error) {
	var debts int64
	var err error
	if whose.Target != "" {
		debts, err = l.Store.TryNow(ctx, whose.Target, l.Now())
	} else {
		debts, err = l.Store.TryDestinationNow(ctx, whose.Server, l.Now())
	}
	if err != nil {
		return 0, err
	}
	behind, err := l.Store.TryUndelivered(ctx, whose.Target, whose.Server, l.Now())
	if l.Changed != nil {
		l.Changed(0)
	}
	return debts + behind, err
}
