package refresh

import (
	"context"
	"fmt"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/homeserver"
	"freshen/internal/limit"
	"freshen/internal/store"
)

// standingRate is how often a user may ask how lists stand.
var standingRate = limit.Rate{Every: time.Second, Burst: 30}

// Standing says how the lists of these users stand. It leaves out those of whom nothing is known, and, so that nobody
// learns of others' contacts, those with whom who shares no room unless who has asked for them. Its error is a
// *[freshen.Error], or the context's.
func (e *Engine) Standing(ctx context.Context, who freshen.Requester, users []id.UserID, cred homeserver.Credentials) (map[id.UserID]freshen.Standing, error) {
	now := e.cfg.Now()
	if wait := e.asking.Take(string(who.UserID), now); wait > 0 {
		return nil, &freshen.Error{
			Code:       freshen.CodeLimited,
			Message:    fmt.Sprintf("You have asked many times how device lists stand: please try again in %s.", inWords(wait)),
			RetryAfter: wait,
		}
	}
	known, err := e.store.Standings(ctx, who.UserID, users, now)
	if err != nil {
		return nil, store.Away(err)
	}
	var unsure []id.UserID
	for user, one := range known {
		if !one.Asked {
			unsure = append(unsure, user)
		}
	}
	var sharing []id.UserID
	if len(unsure) > 0 {
		if sharing, err = e.rooms.SharesOf(ctx, who.UserID, cred, unsure); err != nil {
			return nil, &freshen.Error{
				Code:    freshen.CodeHomeserverDown,
				Message: "The homeserver did not say with whom you share rooms, so nothing is said of their device lists: please try again in a minute.",
				Err:     err,
			}
		}
	}
	told := make(map[id.UserID]freshen.Standing, len(known))
	for user, one := range known {
		if one.Asked || slices.Contains(sharing, user) {
			told[user] = one.Standing
		}
	}
	return told, nil
}
