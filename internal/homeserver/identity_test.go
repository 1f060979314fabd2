package homeserver_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"freshen/internal/homeserver"
	"freshen/internal/homeserver/hstest"
)

func setup(t *testing.T) (*hstest.Server, *homeserver.Client) {
	t.Helper()
	server := hstest.New(t)
	client := homeserver.New(server.URL(), nil)
	t.Cleanup(client.CloseIdleConnections)
	return server, client
}

func bearer(token string) homeserver.Credentials {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return homeserver.CredentialsOf(r)
}

func query(q string) homeserver.Credentials {
	return homeserver.CredentialsOf(httptest.NewRequest(http.MethodPost, "/?"+q, nil))
}

// Users who are taken for somebody else refresh and hear what is not theirs.
func TestWhoAmINamesTheCaller(t *testing.T) {
	server, client := setup(t)
	server.AddUser("alice", "@alice:a.example", "PHONE")
	server.AddUser("nodevice", "@alice:a.example", "")
	server.AddGuest("guest", "@1:a.example", "G")
	server.AddAppservice("bridge", "@bot:a.example", "@_irc_x:a.example")
	for name, test := range map[string]struct {
		cred homeserver.Credentials
		want homeserver.Identity
	}{
		"header":    {bearer("alice"), homeserver.Identity{UserID: "@alice:a.example", DeviceID: "PHONE"}},
		"query":     {query("access_token=alice"), homeserver.Identity{UserID: "@alice:a.example", DeviceID: "PHONE"}},
		"no device": {bearer("nodevice"), homeserver.Identity{UserID: "@alice:a.example"}},
		"guest":     {bearer("guest"), homeserver.Identity{UserID: "@1:a.example", DeviceID: "G", Guest: true}},
		"sender":    {query("access_token=bridge"), homeserver.Identity{UserID: "@bot:a.example"}},
		"puppet": {
			query("access_token=bridge&user_id=@_irc_x:a.example&device_id=D"),
			homeserver.Identity{UserID: "@_irc_x:a.example", DeviceID: "D"},
		},
		"puppet, older parameter": {
			query("access_token=bridge&user_id=@_irc_x:a.example&org.matrix.msc3202.device_id=D"),
			homeserver.Identity{UserID: "@_irc_x:a.example", DeviceID: "D"},
		},
	} {
		if _, ok := client.Known(test.cred); ok {
			t.Errorf("%s: known before anybody asked", name)
		}
		got, err := client.WhoAmI(t.Context(), test.cred)
		if err != nil || got != test.want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, test.want)
		}
		if known, ok := client.Known(test.cred); !ok || known != test.want {
			t.Errorf("%s: known as %+v, %v", name, known, ok)
		}
	}
}

// The administrator's logs and the user's device list would show freshen's own address and name for every client.
func TestQuestionsNameTheClient(t *testing.T) {
	server, client := setup(t)
	server.AddUser("alice", "@alice:a.example", "PHONE")
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.RemoteAddr = "192.0.2.7:1234"
	r.Header.Set("Authorization", "Bearer alice")
	r.Header.Add("X-Forwarded-For", "198.51.100.1")
	r.Header.Add("X-Forwarded-For", "203.0.113.9")
	r.Header.Set("X-Forwarded-Proto", "https")
	r.Header.Set("User-Agent", "Element/1")
	r.Header.Set("Cookie", "private")
	if _, err := client.WhoAmI(t.Context(), homeserver.CredentialsOf(r)); err != nil {
		t.Fatal(err)
	}
	got := server.Recorded(hstest.PathWhoAmI)[0].Header
	for name, want := range map[string]string{
		"X-Forwarded-For":   "198.51.100.1, 203.0.113.9, 192.0.2.7",
		"X-Forwarded-Proto": "https",
		"User-Agent":        "Element/1",
		"Cookie":            "",
	} {
		if got.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, got.Get(name), want)
		}
	}
}

// A client must see exactly why the homeserver refused it, or it cannot tell a soft logout from a hard one.
func TestRefusalIsKeptAsItCame(t *testing.T) {
	for name, test := range map[string]struct {
		status  int
		errcode string
		body    string
		unknown bool
	}{
		"soft logout":   {status: 401, errcode: "M_UNKNOWN_TOKEN", body: `{"errcode":"M_UNKNOWN_TOKEN","error":"x","soft_logout":true}`},
		"forbidden":     {status: 403, errcode: "M_FORBIDDEN", body: `{ "errcode": "M_FORBIDDEN" }`},
		"limited":       {status: 429, errcode: "M_LIMIT_EXCEEDED", body: `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1500}`},
		"not supported": {status: 404, errcode: "M_UNRECOGNIZED", body: `{"errcode":"M_UNRECOGNIZED"}`, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := setup(t)
			server.HandleFunc(hstest.PathWhoAmI, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json; charset=utf-8")
				w.Header().Set("Retry-After", "2")
				w.Header().Set("Set-Cookie", "no")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			})
			_, err := client.WhoAmI(t.Context(), bearer("x"))
			refusal, ok := errors.AsType[*homeserver.AnswerError](err)
			if !ok {
				t.Fatalf("got %v, want an AnswerError", err)
			}
			if refusal.Status != test.status || string(refusal.Body) != test.body || refusal.ErrCode != test.errcode {
				t.Errorf("got %d %q %q", refusal.Status, refusal.Body, refusal.ErrCode)
			}
			if h := refusal.Header; h.Get("Retry-After") != "2" || h.Get("Content-Type") != "application/json; charset=utf-8" || len(h) != 2 {
				t.Errorf("kept the header %v", h)
			}
			if errors.Is(err, homeserver.ErrUnrecognized) != test.unknown {
				t.Errorf("ErrUnrecognized: %v", !test.unknown)
			}
		})
	}
}

// Whatever a broken homeserver or a proxy before it says, it must not log a user out or stand for an identity.
func TestUnusableAnswers(t *testing.T) {
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	for name, handler := range map[string]http.HandlerFunc{
		"HTML":             answer(200, "<html>welcome</html>"),
		"null":             answer(200, "null"),
		"no user_id":       answer(200, `{"device_id":"X"}`),
		"bad user_id":      answer(200, `{"user_id":"@\u0000:a.example"}`),
		"number":           answer(200, `{"user_id":7}`),
		"half":             answer(200, `{"user_id":"@alice:a.exa`),
		"too long":         answer(200, `{"user_id":"@alice:a.example","x":"`+strings.Repeat("x", 1<<20)+`"}`),
		"500":              answer(500, `{"errcode":"M_UNKNOWN_TOKEN"}`),
		"502 HTML":         answer(502, "<html>bad gateway</html>"),
		"401 HTML":         answer(401, "<html>who are you</html>"),
		"401 null":         answer(401, "null"),
		"401 other JSON":   answer(401, `{"message":"no"}`),
		"204":              answer(204, ""),
		"too long refusal": answer(401, `{"errcode":"M_UNKNOWN_TOKEN","x":"`+strings.Repeat("x", 1<<20)+`"}`),
		"breaks off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "50")
			_, _ = io.WriteString(w, "{")
		},
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
	} {
		t.Run(name, func(t *testing.T) {
			server, client := setup(t)
			server.HandleFunc(hstest.PathWhoAmI, handler)
			who, err := client.WhoAmI(t.Context(), query("access_token=secret"))
			if _, ok := errors.AsType[*homeserver.DownError](err); !ok || who != (homeserver.Identity{}) {
				t.Fatalf("got %+v, %v, want a DownError", who, err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the token: %v", err)
			}
			if server.Calls("/elsewhere") > 0 {
				t.Error("the redirect was followed, with the token")
			}
			if _, ok := client.Known(query("access_token=secret")); ok {
				t.Error("a failure is cached")
			}
		})
	}
}

// A homeserver that is down must be told apart from one that refuses, and the address must not carry a token into a log.
func TestHomeserverIsDown(t *testing.T) {
	server, client := setup(t)
	server.Close()
	_, err := client.WhoAmI(t.Context(), query("access_token=secret"))
	if _, ok := errors.AsType[*homeserver.DownError](err); !ok || strings.Contains(err.Error(), "secret") {
		t.Fatalf("got %v, want a DownError without the token", err)
	}
}

// Five clients of one user at once must not be five requests; and the first one hanging up must not fail the rest.
func TestCallersShareOneQuestion(t *testing.T) {
	server, client := setup(t)
	arrived, answer := make(chan struct{}, 1), make(chan struct{})
	server.HandleFunc(hstest.PathWhoAmI, func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-answer
		hstest.WriteJSON(w, http.StatusOK, map[string]string{"user_id": "@alice:a.example", "device_id": "D"})
	})
	first, hangUp := context.WithCancel(t.Context())
	firstErr := make(chan error)
	go func() {
		_, err := client.WhoAmI(first, bearer("t"))
		firstErr <- err
	}()
	<-arrived
	var others sync.WaitGroup
	var started sync.WaitGroup
	for range 5 {
		started.Add(1)
		others.Go(func() {
			started.Done()
			if who, err := client.Identify(t.Context(), bearer("t")); err != nil || who.UserID != "@alice:a.example" {
				t.Errorf("another caller got %+v, %v", who, err)
			}
		})
	}
	started.Wait()
	hangUp()
	if err := <-firstErr; !errors.Is(err, context.Canceled) {
		t.Errorf("who hung up got %v", err)
	}
	close(answer)
	others.Wait()
	if n := server.Calls(hstest.PathWhoAmI); n != 1 {
		t.Errorf("%d requests for one token", n)
	}
}

// inMemory answers without a socket, so that a bubble's clock can run.
type inMemory func(r *http.Request) (*http.Response, error)

func (f inMemory) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

var loopback = &url.URL{Scheme: "http", Host: "127.0.0.1:1"}

// A token that was logged out must not go on refreshing; and a /sync must not cost a whoami each minute.
func TestIdentityAges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		loggedOut := false
		client := homeserver.New(loopback, inMemory(func(*http.Request) (*http.Response, error) {
			asked.Add(1)
			if loggedOut {
				return respond(401, `{"errcode":"M_UNKNOWN_TOKEN"}`), nil
			}
			return respond(200, `{"user_id":"@alice:a.example"}`), nil
		}))
		cred := bearer("t")
		ask := func(how string, f func(context.Context, homeserver.Credentials) (homeserver.Identity, error), want int32) {
			t.Helper()
			if _, err := f(t.Context(), cred); err != nil {
				t.Errorf("%s: %v", how, err)
			}
			if asked.Load() != want {
				t.Errorf("%s: %d questions, want %d", how, asked.Load(), want)
			}
		}
		ask("first", client.WhoAmI, 1)
		time.Sleep(59 * time.Second)
		ask("within the minute", client.WhoAmI, 1)
		time.Sleep(time.Second)
		ask("after a minute, who", client.Identify, 1)
		ask("after a minute, fresh", client.WhoAmI, 2)
		time.Sleep(59*time.Minute + 59*time.Second)
		ask("within the hour", client.Identify, 2)
		time.Sleep(time.Second)
		if _, ok := client.Known(cred); ok {
			t.Error("known after an hour")
		}
		ask("after an hour", client.Identify, 3)
		loggedOut = true
		time.Sleep(time.Minute)
		if _, err := client.WhoAmI(t.Context(), cred); err == nil {
			t.Error("a token that was logged out is still good")
		}
		if _, ok := client.Known(cred); ok {
			t.Error("a token that the homeserver refused is still known")
		}
	})
}

// A homeserver that hangs must not hang a client for ever.
func TestHomeserverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := homeserver.New(loopback, inMemory(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}))
		start := time.Now()
		_, err := client.WhoAmI(t.Context(), bearer("t"))
		if _, ok := errors.AsType[*homeserver.DownError](err); !ok || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a DownError for the time-out", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
