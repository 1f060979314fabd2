package clientapi

import (
	"encoding/json"
	"fmt"
	"net/http"

	"freshen"
	"freshen/internal/homeserver"

	"maunium.net/go/mautrix/id"
)

// MaxStandings is the most users that one request may ask about.
const MaxStandings = 500

// maxStandingsBody bounds a request with as many of the longest user IDs.
const maxStandingsBody = 160 << 10

// standingsBody is the answer. Times are told as how long they are from now, so that no clocks need agree.
type standingsBody struct {
	Users map[id.UserID]standingBody `json:"users"`
}

type standingBody struct {
	// FetchedAgoMS is absent where freshen has not fetched the list, or not within 90 days.
	FetchedAgoMS *int64    `json:"fetched_ago_ms,omitempty"`
	Owed         *owedBody `json:"owed,omitempty"`
}

type owedBody struct {
	Reason freshen.Reason `json:"reason,omitempty"`
	// Running: it is being tried, and RetryAfterMS is absent.
	Running bool `json:"running,omitempty"`
	// RetryAfterMS is when freshen itself tries next.
	RetryAfterMS *int64 `json:"retry_after_ms,omitempty"`
}

// standing answers {"users": […]} with how those users' lists stand. What is no user ID is passed over: rooms have members
// with odd ones, about whom nothing can be known.
func (h *Handler) standing(w http.ResponseWriter, r *http.Request) {
	cred := homeserver.CredentialsOf(r)
	who, ok := h.whoAsks(w, r, cred)
	if !ok {
		return
	}
	body, refused := readBody(w, r, maxStandingsBody)
	if refused != nil {
		writeError(w, *refused)
		return
	}
	var asked struct {
		Users []string `json:"users"`
	}
	if json.Unmarshal(body, &asked) != nil {
		writeError(w, answer{status: http.StatusBadRequest, errcode: codeBadJSON, message: `The body must be {"users": […]}, with user IDs.`})
		return
	}
	if len(asked.Users) > MaxStandings {
		writeError(w, answer{
			status:  http.StatusBadRequest,
			errcode: codeInvalidParam,
			message: fmt.Sprintf("At most %d users can be asked about at once.", MaxStandings),
		})
		return
	}
	users := make([]id.UserID, 0, len(asked.Users))
	for _, name := range asked.Users {
		if user, _, err := freshen.ParseUserID(name); err == nil {
			users = append(users, user)
		}
	}
	standings, err := h.refresher.Standing(r.Context(), who, users, cred)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	told := standingsBody{Users: make(map[id.UserID]standingBody, len(standings))}
	for user, standing := range standings {
		told.Users[user] = standingOf(standing)
	}
	encoded, err := json.Marshal(told)
	if err != nil {
		h.fail(w, r, fmt.Errorf("how lists stand cannot be written: %w", err))
		return
	}
	write(w, http.StatusOK, encoded)
}

func standingOf(s freshen.Standing) (b standingBody) {
	if s.Fetched {
		ago := s.FetchedAgo.Milliseconds()
		b.FetchedAgoMS = &ago
	}
	if s.Owed == nil {
		return b
	}
	b.Owed = &owedBody{Reason: s.Owed.Reason, Running: s.Owed.Running}
	if !s.Owed.Running {
		after := milliseconds(s.Owed.RetryAfter)
		b.Owed.RetryAfterMS = &after
	}
	return b
}
