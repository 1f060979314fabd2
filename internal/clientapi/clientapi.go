// Package clientapi is freshen's side of the client-server API: the routes of MSC2638, how lists stand, who asks, and the
// one writer of errors. What a refresh is, it leaves to a [Refresher].
//
// A request is judged in this order, so that nobody learns anything, costs the homeserver anything or has a body read
// before they have earned it: method, token present, token good, no guest, body, user ID.
package clientapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"freshen"
	"freshen/internal/homeserver"

	"maunium.net/go/mautrix/id"
)

const (
	// maxBody bounds the body of a refresh, which nobody reads.
	maxBody = 64 << 10
	// bodyTimeout is how long a body may take to arrive.
	bodyTimeout = 10 * time.Second
)

// Refresher is the engine behind the routes.
type Refresher interface {
	// Refresh fetches target's device list for who. nil means that it was done, or needed not be done; any other outcome
	// that a client may be told is a [*freshen.Error]. cred is who's, and good until Refresh returns.
	Refresh(ctx context.Context, who freshen.Requester, target id.UserID, cred homeserver.Credentials) error
	// Standing says how the lists of these users stand, of those of whom who may know. Its errors are Refresh's.
	Standing(ctx context.Context, who freshen.Requester, users []id.UserID, cred homeserver.Credentials) (map[id.UserID]freshen.Standing, error)
}

// Handler answers freshen's own routes.
type Handler struct {
	homeserver *homeserver.Client
	refresher  Refresher
	log        *slog.Logger
}

// New returns the handler of freshen's own routes. log gets only what no answer can tell.
func New(hs *homeserver.Client, refresher Refresher, log *slog.Logger) *Handler {
	return &Handler{homeserver: hs, refresher: refresher, log: log}
}

// Match says whether the request's path is one of freshen's own, whatever its method. It looks at the path as it was
// sent: behind an [http.ServeMux], which redirects odd paths, some user IDs would never arrive.
func (h *Handler) Match(r *http.Request) bool {
	_, _, ok := match(r.URL.EscapedPath())
	return ok
}

// ServeHTTP answers a request that [Handler.Match] takes; any other is M_UNRECOGNIZED.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if thrown := recover(); thrown != nil {
			h.panicked(w, thrown)
		}
	}()
	setCommonHeaders(w)
	route, escapedID, ok := match(r.URL.EscapedPath())
	switch {
	case !ok:
		writeError(w, answer{status: http.StatusNotFound, errcode: codeUnrecognized, message: "There is no such route."})
	case r.Method == http.MethodOptions:
		w.WriteHeader(http.StatusNoContent)
	case r.Method != route.method:
		w.Header().Set("Allow", route.method+", OPTIONS")
		writeError(w, answer{
			status:  http.StatusMethodNotAllowed,
			errcode: codeUnrecognized,
			message: "This route takes " + route.method + " only.",
		})
	case route == standingRoute:
		h.standing(w, r)
	default:
		h.refresh(w, r, escapedID)
	}
}

func (h *Handler) refresh(w http.ResponseWriter, r *http.Request, escapedID string) {
	cred := homeserver.CredentialsOf(r)
	who, ok := h.whoAsks(w, r, cred)
	if !ok {
		return
	}
	if _, refused := readBody(w, r, maxBody); refused != nil {
		writeError(w, *refused)
		return
	}
	target, err := userIDOf(escapedID)
	if err == nil {
		err = h.refresher.Refresh(r.Context(), who, target, cred)
	}
	if err != nil {
		h.fail(w, r, err)
		return
	}
	write(w, http.StatusAccepted, []byte("{}"))
}

// whoAsks answers the request itself where nobody good asks; then ok is false.
func (h *Handler) whoAsks(w http.ResponseWriter, r *http.Request, cred homeserver.Credentials) (who freshen.Requester, ok bool) {
	if cred.IsZero() {
		// The homeserver could only say the same.
		writeError(w, answer{
			status:  http.StatusUnauthorized,
			errcode: codeMissingToken,
			message: "The request has no access token.",
		})
		return who, false
	}
	identity, err := h.homeserver.WhoAmI(r.Context(), cred)
	if refusal, ok := errors.AsType[*homeserver.AnswerError](err); ok && mayRelay(refusal) {
		relay(w, refusal)
		return who, false
	}
	if err == nil && identity.Guest {
		err = &freshen.Error{Code: freshen.CodeGuest, Message: "Guests cannot refresh device lists."}
	}
	if err != nil {
		h.fail(w, r, err)
		return who, false
	}
	return freshen.Requester{UserID: identity.UserID, DeviceID: identity.DeviceID}, true
}

// mayRelay leaves out refusals that are about whoami and not about the caller: a client that was told that whoami does
// not exist would take the refresh for what does not exist.
func mayRelay(refusal *homeserver.AnswerError) bool {
	return refusal.ErrCode != codeUnrecognized && slices.Contains([]int{
		http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests,
	}, refusal.Status)
}

// fail answers with an error; what its sentence does not tell goes to the log.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	if known, ok := errors.AsType[*freshen.Error](err); ok {
		if a, ok := answerTo(known); ok {
			writeError(w, a)
			return
		}
	}
	if r.Context().Err() != nil {
		// Either the client has gone, and this reaches nobody, or freshen is going.
		writeError(w, answer{
			status:  http.StatusServiceUnavailable,
			errcode: codeUnknown,
			message: "The request was given up before it was done. Please ask again.",
		})
		return
	}
	if refusal, ok := errors.AsType[*homeserver.AnswerError](err); ok {
		err = &homeserver.DownError{Asked: refusal.Asked, Status: refusal.Status, Err: fmt.Errorf("it answered %d %s", refusal.Status, refusal.ErrCode)}
	}
	if _, ok := errors.AsType[*homeserver.DownError](err); ok {
		h.log.WarnContext(r.Context(), "a refresh was refused, since the homeserver could not say who asks", "err", err)
		writeError(w, answer{
			status:  http.StatusBadGateway,
			errcode: codeUnknown,
			message: "The homeserver cannot say who asks: it is down or gave no usable answer. Please ask again later.",
		})
		return
	}
	h.log.ErrorContext(r.Context(), "a refresh failed for a reason that has no answer of its own", "err", err)
	writeError(w, internalError)
}

var internalError = answer{
	status:  http.StatusInternalServerError,
	errcode: codeUnknown,
	message: "freshen failed to answer, which is a mistake in it. Its log says more.",
}

// panicked keeps a mistake in one request from being an answer that breaks off.
func (h *Handler) panicked(w http.ResponseWriter, thrown any) {
	if err, ok := thrown.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(thrown) // net/http's own way to break off an answer
	}
	h.log.Error("a refresh panicked", "panic", fmt.Sprint(thrown), "stack", string(debug.Stack()))
	writeError(w, internalError)
}

// readBody reads the body, which must be empty or a JSON object of at most so many bytes.
func readBody(w http.ResponseWriter, r *http.Request, most int64) (body []byte, refused *answer) {
	// A writer that knows no deadlines has another way to bound a slow client, or none is needed.
	deadlines := http.NewResponseController(w)
	_ = deadlines.SetReadDeadline(time.Now().Add(bodyTimeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	_ = deadlines.SetReadDeadline(time.Time{})
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &answer{
			status:  http.StatusRequestEntityTooLarge,
			errcode: codeTooLarge,
			message: fmt.Sprintf("The body is longer than %d bytes.", most),
		}
	}
	body = bytes.TrimSpace(body)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &answer{status: http.StatusRequestTimeout, errcode: codeUnknown, message: "The body did not arrive in time."}
	case err != nil:
		return nil, &answer{status: http.StatusBadRequest, errcode: codeNotJSON, message: "The body broke off."}
	case len(body) > 0 && !json.Valid(body):
		return nil, &answer{status: http.StatusBadRequest, errcode: codeNotJSON, message: "The body is not JSON."}
	case len(body) > 0 && body[0] != '{':
		return nil, &answer{status: http.StatusBadRequest, errcode: codeBadJSON, message: "The body is no JSON object."}
	}
	return body, nil
}

// userIDOf decodes and checks what stands in the path.
func userIDOf(escapedID string) (id.UserID, error) {
	decoded, err := url.PathUnescape(escapedID)
	if err != nil {
		return "", &freshen.Error{
			Code:    freshen.CodeInvalidUserID,
			Message: "The path names no user ID that can be refreshed: it is not well percent-encoded.",
		}
	}
	user, _, err := freshen.ParseUserID(decoded)
	return user, err
}
