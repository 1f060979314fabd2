package federation

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"maunium.net/go/mautrix"

	"freshen"
	"freshen/internal/federation/dial"
)

const (
	maxErrCode     = 64
	maxRemoteError = 256
	maxRetryAfter  = 24 * time.Hour
)

// failing is a request that failed: what is needed to say how.
type failing struct {
	server  string
	attempt *attempt
	ended   error // of the request's context
	cause   error // why that ended
	now     time.Time
}

// failure sorts err, and resp where there was an answer, into the reasons. An answer that breaks off is a broken
// connection and counts against the destination (connect); an answer that is whole, but no list, counts against the
// user (bad_response). What does not parse as HTTP is no answer: connect.
func (f *failing) failure(resp *http.Response, err error) *freshen.Failure {
	cause := withoutRequest(err)
	if f.ended != nil && !errors.Is(cause, f.ended) {
		cause = errors.Join(cause, f.ended)
	}
	dialed, notConnected := errors.AsType[*dialError](err)
	if stage, _, _ := f.attempt.at(); stage == stageAnswer && isTimeout(err) {
		notConnected = false // net/http was sending it again and again
	}
	alert, refused := alertOf(err)
	_, noService := errors.AsType[*noServiceError](err)
	switch {
	case resp != nil && resp.StatusCode != http.StatusOK:
		return f.answered(resp, err)
	case errors.Is(f.cause, errClosed):
		return f.because(freshen.ReasonTimeout, cause, "%s was not waited for, because freshen is stopping.", f.server)
	case errors.Is(f.ended, context.Canceled) && !errors.Is(f.cause, errOverdue):
		return f.because(freshen.ReasonTimeout, cause, "%s was not waited for: the request was given up.", f.server)
	case notConnected:
		return f.notConnected(dialed, cause)
	case f.ended != nil, errors.Is(err, context.DeadlineExceeded):
		return f.because(freshen.ReasonTimeout, cause, "%s", f.silence())
	case errors.Is(err, mautrix.ErrBodyReadReachedLimit), errors.Is(err, mautrix.ErrResponseTooLong):
		failure := f.because(freshen.ReasonBadResponse, cause, "%s answered with more than the %d MiB that a device list may have.",
			f.where(), freshen.MaxDeviceListBytes>>20)
		failure.Status = resp.StatusCode
		return failure
	case resp != nil:
		return f.because(freshen.ReasonConnect, cause, "%s broke the connection in the middle of its answer.", f.where())
	case noService:
		return f.because(freshen.ReasonDNS, cause, "%s is not asked: %v.", f.server, cause)
	case errors.Is(err, dial.ErrBusy):
		return f.because(freshen.ReasonTimeout, cause, "%s was not asked in time: freshen has as many connections open as it may have.", f.server)
	case refused: // after the handshake, where TLS 1.3 has it
		return f.because(freshen.ReasonTLS, cause, "%s %s.", f.where(), explainAlert(alert, f.attempt.route.tlsName))
	case isBroken(err), errors.Is(err, errBreaksOff):
		return f.because(freshen.ReasonConnect, cause, "%s broke the connection before it answered.%s", f.where(), f.attempt.route.noHelp(f.server, clause{}))
	}
	return f.because(freshen.ReasonConnect, cause, "%s gave an answer that is no usable HTTP.%s", f.where(), f.attempt.route.noHelp(f.server, clause{}))
}

func (f *failing) because(reason freshen.Reason, cause error, format string, args ...any) *freshen.Failure {
	return &freshen.Failure{Destination: f.server, Reason: reason, Sentence: fmt.Sprintf(format, args...), Err: cause}
}

// where names the server as far as it was found: "b.org", or "matrix.b.org:8448, the server of b.org,".
func (f *failing) where() string {
	if f.attempt.route == nil {
		return f.server
	}
	at := f.attempt.route.targets[0]
	if _, _, socket := f.attempt.at(); socket != nil {
		at = target{socket.Host, socket.Port}
	}
	if parsed, err := parseName(f.server); err == nil && strings.EqualFold(parsed.host, at.host) {
		if parsed.direct() && parsed.target().port == at.port {
			return f.server
		}
		return at.String()
	}
	return fmt.Sprintf("%s, the server of %s,", clean(at.String(), maxRemoteError), f.server)
}

// silence says what did not happen in time.
func (f *failing) silence() string {
	stage, waited, _ := f.attempt.at()
	took := humanDuration(waited)
	switch stage {
	case stageDiscovery:
		return fmt.Sprintf("Where the server of %s is could not be found out within %s.", f.server, took)
	case stageQueue:
		return fmt.Sprintf("%s was not asked within %s: as many requests as it may have at once were still waiting for it.", f.server, took)
	case stageConnect:
		return fmt.Sprintf("%s could not be connected to within %s.", f.where(), took)
	case stageBody:
		return fmt.Sprintf("%s was still sending its answer after %s.", f.where(), took)
	}
	return fmt.Sprintf("%s did not answer within %s.", f.where(), took)
}

// answered is an answer other than 200.
func (f *failing) answered(resp *http.Response, err error) *freshen.Failure {
	failure := &freshen.Failure{Destination: f.server, Reason: freshen.ReasonHTTP, Status: resp.StatusCode, Err: withoutRequest(err)}
	httpErr, _ := errors.AsType[mautrix.HTTPError](err)
	failure.RetryAfter = retryAfter(resp.Header, httpErr.RespError, f.now)
	if remote := httpErr.RespError; remote != nil {
		failure.ErrCode = errCode(remote.ErrCode)
		failure.RemoteError = clean(remote.Err, maxRemoteError)
	}
	failure.Sentence = f.answerSentence(failure)
	return failure
}

func (f *failing) answerSentence(failure *freshen.Failure) string {
	status, errCode := failure.Status, failure.ErrCode
	switch {
	case status >= 200 && status < 300:
		return fmt.Sprintf("%s answered %d where only 200 carries a device list.", f.where(), status)
	case status < 400:
		return fmt.Sprintf("%s answered %d, a redirect, which federation does not follow.", f.where(), status)
	case status == http.StatusUnauthorized:
		return fmt.Sprintf("%s answered 401: it does not accept our signature; is our signing key published?", f.where())
	case status == http.StatusTooManyRequests && failure.RetryAfter > 0:
		return fmt.Sprintf("%s answered 429: too many requests; it asks to wait %s.", f.where(), humanDuration(failure.RetryAfter))
	case status == http.StatusTooManyRequests:
		return fmt.Sprintf("%s answered 429: too many requests.", f.where())
	case status >= 500 && errCode == "":
		return fmt.Sprintf("%s answered %d: it, or a proxy in front of it, is in trouble.", f.where(), status)
	case errCode == "":
		return fmt.Sprintf("%s answered %d with no Matrix error; perhaps no homeserver runs there any more.%s", f.where(), status, f.attempt.route.noHelp(f.server, clause{}))
	}
	return fmt.Sprintf("%s answered %d with the error %s.", f.where(), status, errCode)
}

// notAList is an answer of 200 that is whole, but no device list of the target.
func notAList(server string, resp *http.Response, err error) *freshen.Failure {
	why := clean(err.Error(), maxRemoteError)
	if encoding := resp.Header.Get("Content-Encoding"); encoding != "" {
		why = fmt.Sprintf("it is compressed (%s), which was not asked for", clean(encoding, 32))
	}
	return &freshen.Failure{
		Destination: server, Reason: freshen.ReasonBadResponse, Status: resp.StatusCode, Err: err,
		Sentence: fmt.Sprintf("%s answered with something that cannot be used as the device list: %s.", server, why),
	}
}

// notConnected tells of the first target that failed for a reason other than our refusal to dial it.
func (f *failing) notConnected(dialed *dialError, cause error) *freshen.Failure {
	route := f.attempt.route
	isDenied := func(t targetError) bool {
		_, denied := errors.AsType[*dial.DeniedError](t.err)
		return denied
	}
	told := max(slices.IndexFunc(dialed.targets, func(t targetError) bool { return !isDenied(t) }), 0)
	c := explain(dialed.targets[told].target, dialed.targets[told].err, f.now)
	text := route.tell(f.server, c)
	switch others := len(route.targets) - 1; {
	case others == 1:
		text += " The other server that it names could not be used either."
	case others > 1:
		text += fmt.Sprintf(" None of the other %d that it names could be used either.", others)
	}
	return f.because(c.reason, cause, "%s%s", text, route.noHelp(f.server, c))
}

// withoutRequest strips what net/http and mautrix wrap around an error: both hold the request, with its signature.
func withoutRequest(err error) error {
	if httpErr, ok := errors.AsType[mautrix.HTTPError](err); ok {
		if httpErr.WrappedError == nil {
			return nil // the answer itself, which the failure tells
		}
		err = httpErr.WrappedError
	}
	if urlErr, ok := errors.AsType[*url.Error](err); ok {
		return urlErr.Err
	}
	return err
}

// retryAfter reads how long the destination asks to be left alone, at most a day: Retry-After in seconds or as a date
// (RFC 9110 §10.2.3), else retry_after_ms.
func retryAfter(header http.Header, remote *mautrix.RespError, now time.Time) time.Duration {
	var wait time.Duration
	if value := strings.TrimSpace(header.Get("Retry-After")); value != "" {
		if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
			wait = time.Duration(seconds) * time.Second
		} else if at, err := http.ParseTime(value); err == nil {
			wait = at.Sub(now)
		}
	}
	if wait <= 0 && remote != nil {
		ms, _ := remote.ExtraData["retry_after_ms"].(float64)
		wait = time.Duration(min(max(ms, 0), float64(maxRetryAfter.Milliseconds()))) * time.Millisecond
	}
	return min(max(wait, 0), maxRetryAfter)
}

// errCode returns code if it looks like one, else "": a made-up half of a code would mislead.
func errCode(code string) string {
	plain := func(r rune) bool {
		return r < utf8.RuneSelf && (r == '_' || r == '.' || unicode.IsLetter(r) || unicode.IsDigit(r))
	}
	if len(code) > maxErrCode || strings.ContainsFunc(code, func(r rune) bool { return !plain(r) }) {
		return ""
	}
	return code
}

// clean makes foreign text fit to be shown: printable characters only (no control characters, no direction marks),
// valid UTF-8, at most limit bytes.
func clean(text string, limit int) string {
	var kept strings.Builder
	for _, r := range text {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			r = ' '
		}
		if kept.Len()+utf8.RuneLen(r) > limit {
			break
		}
		kept.WriteRune(r)
	}
	return strings.TrimSpace(kept.String())
}

func humanDate(t time.Time) string { return t.UTC().Format("2 January 2006") }

// humanDuration writes a duration with a unit and no needless digits: "10 s", "0.3 s", "5 min", "24 h".
func humanDuration(d time.Duration) string {
	if d >= 2*time.Hour {
		return fmt.Sprintf("%d h", int(d.Round(time.Hour)/time.Hour))
	}
	if d >= 2*time.Minute {
		return fmt.Sprintf("%d min", int(d.Round(time.Minute)/time.Minute))
	}
	if d >= 100*time.Millisecond {
		d = d.Round(100 * time.Millisecond)
	} else {
		d = d.Round(time.Millisecond)
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + " s"
}
