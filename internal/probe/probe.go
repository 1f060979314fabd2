// Package probe proves which way a request took: whether it came through freshen, and with which path it arrived.
//
// Who asks sends a question that only a holder of the homeserver's signing key can make; freshen answers it in the
// response with what only such a holder can make or read as true. Every instance has that key, so nothing has to be agreed
// between them. A question of anybody else's is a header like any other: it passes, and nothing is answered, so strangers
// learn nothing. One that is heard on the way can be repeated for some minutes, and tells the listener that freshen is
// there, which GET /versions tells everybody.
package probe

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
	"time"
)

// Header carries the question in a request, and the answer in the response.
const Header = "Freshen-Probe"

// Purpose is what the key is derived for, see [federation.SigningKey.Derive].
const Purpose = "freshen probe 1"

// tolerance is how far the clocks of who asks and who answers may be apart, the way included.
const tolerance = 10 * time.Minute

const (
	nonceBytes = 16
	timeBytes  = 8
	askBytes   = nonceBytes + timeBytes + sha256.Size
)

// Key is shared by who asks and who answers.
type Key [32]byte

// Ask makes a question, for one request.
func (k Key) Ask(now time.Time) string {
	ask := make([]byte, nonceBytes, askBytes)
	_, _ = rand.Read(ask) // never fails
	ask = binary.BigEndian.AppendUint64(ask, uint64(now.Unix()))
	return encode(append(ask, k.sum("ask", string(ask))...))
}

// mine says whether a question is one of this key's, and not old.
func (k Key) mine(ask string, now time.Time) bool {
	if len(ask) != base64.RawURLEncoding.EncodedLen(askBytes) {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(ask)
	if err != nil {
		return false
	}
	said, sum := raw[:nonceBytes+timeBytes], raw[nonceBytes+timeBytes:]
	at := time.Unix(int64(binary.BigEndian.Uint64(said[nonceBytes:])), 0)
	return hmac.Equal(sum, k.sum("ask", string(said))) && now.Sub(at).Abs() <= tolerance
}

func (k Key) answer(ask, method, path string) string {
	return encode(k.sum("answer", ask, method, path)) + " " + path
}

// Arrived reads the answer to a question: with which path, escaped as it came, the request arrived. ok is false where it
// did not come to freshen.
func (k Key) Arrived(ask, method, answer string) (path string, ok bool) {
	_, path, found := strings.Cut(answer, " ")
	return path, found && hmac.Equal([]byte(answer), []byte(k.answer(ask, method, path)))
}

func (k Key) sum(parts ...string) []byte {
	mac := hmac.New(sha256.New, k[:])
	for _, part := range parts {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(part)))
		mac.Write(length[:])
		mac.Write([]byte(part))
	}
	return mac.Sum(nil)
}

func encode(raw []byte) string { return base64.RawURLEncoding.EncodeToString(raw) }

// Handler answers questions and has next do all else. A question that was answered goes no further.
func Handler(key Key, now func() time.Time, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked := r.Header[Header]; len(asked) == 1 && key.mine(asked[0], now()) {
			r.Header.Del(Header)
			w.Header().Set(Header, key.answer(asked[0], r.Method, r.URL.EscapedPath()))
		}
		next.ServeHTTP(w, r)
	})
}
