package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	mxfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"freshen/internal/federation/fedtest"
	"freshen/internal/homeserver/hstest"
	"freshen/internal/overlay"
)

const (
	pathSync = "/_matrix/client/v3/sync"
	// smallAnswer is more than a user's answer takes, in bytes.
	smallAnswer = 2 << 10
	// quietAfter is how long after the last poll has come freshen has nothing left to do.
	quietAfter = 1500 * time.Millisecond
)

// world is freshen, in processes of its own, between users and their homeserver and a remote server that speaks TLS and checks
// the signature, which are all in this one: its clock sees when the remote's answer is out and when the users have theirs.
type world struct {
	*bench
	ca     *fedtest.CA
	key    *mxfed.SigningKey
	remote *fedtest.Homeserver
	bob    id.UserID
	dir    string
	url    string // of the first instance
	hs     string // the homeserver's address
	users  []*user
	// instances are freshen's processes, and spent is what they have used of the CPU in the last wake.
	instances []*process
	spent     time.Duration

	waiting chan struct{} // gets one for each poll that has come to wait

	mu       sync.Mutex
	release  chan struct{} // closed: the polls that wait at the plain server are answered
	answered time.Time     // when the remote's last byte was written
	lists    int
}

// user has a connection to the instance of freshen where they poll, and one to a server of net/http's, as freshen is one.
type user struct {
	number          int
	name            string
	through, direct *client
	at, plain       string // their addresses
	since           int
}

// newWorld starts freshen for so many users, who share a room with bob: on a file, or an instance on each of these Postgres
// databases, which may be the same. The users poll at them in turn.
func newWorld(b *bench, users int, databases ...*url.URL) (*world, error) {
	w := &world{bench: b, ca: fedtest.NewCA(b), dir: b.TempDir(), waiting: make(chan struct{}, users), release: make(chan struct{})}
	rest := hstest.New(b)
	var listening net.ListenConfig
	hs, err := listening.Listen(b.ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b.Cleanup(func() { _ = hs.Close() })
	go (&terse{rest: rest.URL(), waiting: w.waiting}).serve(hs)
	w.hs = hs.Addr().String()
	base := &url.URL{Scheme: "http", Host: w.hs}
	plain := httptest.NewServer(http.HandlerFunc(w.sync))
	b.Cleanup(plain.Close)
	path := filepath.Join(w.dir, "freshen.db")
	cfg, err := configure(base, path)
	if err != nil {
		return nil, err
	}
	written, err := os.ReadFile(cfg.Homeserver.SigningKey)
	if err != nil {
		return nil, err
	}
	if w.key, err = mxfed.ParseSynapseKey(strings.TrimSpace(string(written))); err != nil {
		return nil, err
	}
	listener := fedtest.NewNetwork(b).Listen("127.1.0.1:443")
	name := listener.Addr().String()
	w.bob = bobAt(name)
	w.remote = fedtest.NewHomeserver(name, serverName, w.key)
	fedtest.ServeTLS(b, listener, w.ca.Issue("127.0.0.1"), http.HandlerFunc(w.federation))
	if len(databases) == 0 {
		databases = []*url.URL{nil} // the file
	}
	for _, database := range databases {
		args := []string{"-ca", w.ca.File()}
		if database != nil {
			args = append(args, "-postgres", database.String())
		}
		p, err := b.startFreshen(fmt.Sprintf("wake%d-%d-%d", users, len(databases), len(w.instances)), w.hs, path, args...)
		if err != nil {
			return nil, err
		}
		w.instances = append(w.instances, p)
	}
	w.url = "http://" + w.instances[0].addr
	members := []id.UserID{w.bob}
	for i := range users {
		u := &user{number: i, name: "user" + strconv.Itoa(i), at: w.instances[i%len(w.instances)].addr, plain: plain.Listener.Addr().String()}
		rest.AddUser(token(u.name), userID(u.name), "DEVICE")
		if err := u.connect(b); err != nil {
			return nil, err
		}
		w.users = append(w.users, u)
		members = append(members, userID(u.name))
	}
	rest.SetRoom(sharedRoom, members...)
	return w, nil
}

func (u *user) connect(b *bench) (err error) {
	if u.through, err = dialWith(b.ctx, u.at, smallAnswer); err != nil {
		return err
	}
	b.Cleanup(func() { _ = u.through.conn.Close() })
	if u.direct, err = dialWith(b.ctx, u.plain, smallAnswer); err != nil {
		return err
	}
	b.Cleanup(func() { _ = u.direct.conn.Close() })
	return nil
}

// sync waits until all are answered at once.
func (w *world) sync(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	release := w.release
	w.mu.Unlock()
	w.waiting <- struct{}{}
	select {
	case <-release:
	case <-r.Context().Done():
		return
	}
	since, _ := strconv.Atoi(r.URL.Query().Get("since"))
	body := syncAnswer(since)
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = rw.Write(body)
}

// federation answers as the remote does, and takes the time once all of the answer's bytes are written.
func (w *world) federation(rw http.ResponseWriter, r *http.Request) {
	recorded := httptest.NewRecorder()
	w.remote.ServeHTTP(recorded, r)
	rw.Header().Set("Content-Type", "application/json")
	rw.Header().Set("Content-Length", strconv.Itoa(recorded.Body.Len()))
	rw.WriteHeader(recorded.Code)
	_, _ = rw.Write(recorded.Body.Bytes())
	_ = http.NewResponseController(rw).Flush()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answered = time.Now()
}

func (w *world) lastByte() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.answered
}

// change gives bob a list that he has not had.
func (w *world) change() {
	w.lists++
	w.remote.SetList(w.bob, deviceList(w.bob, 5, w.lists))
}

// end is how one poll ended.
type end struct {
	user *user
	at   time.Time
	body []byte
	err  error
}

// poll syncs.
func (u *user) poll(by *client, addr string) end {
	r := request{addr, fmt.Sprintf("%s?timeout=30000&since=%d", pathSync, u.since), token(u.name)}
	var body buffer
	_, err := by.get(r.bytes(), &body)
	return end{user: u, at: time.Now(), body: body, err: err}
}

// check wants bob to be announced, and takes the token.
func (w *world) check(e end) error {
	if e.err != nil {
		return e.err
	}
	var answer struct {
		NextBatch   string `json:"next_batch"`
		DeviceLists struct {
			Changed []id.UserID `json:"changed"`
		} `json:"device_lists"`
	}
	if err := json.Unmarshal(e.body, &answer); err != nil {
		return err
	}
	if len(answer.DeviceLists.Changed) != 1 || answer.DeviceLists.Changed[0] != w.bob {
		return fmt.Errorf("the sync of %s announces %q in place of %s", e.user.name, answer.DeviceLists.Changed, w.bob)
	}
	var err error
	e.user.since, err = strconv.Atoi(answer.NextBatch)
	return err
}

// refresh asks for bob's list as the first user.
func (w *world) refresh() error {
	req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, w.url+"/_matrix/client/v3/user/"+string(w.bob)+"/devices/refresh", http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token(w.users[0].name))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusAccepted {
		err = fmt.Errorf("the refresh is answered %d: %.200s", resp.StatusCode, body)
	}
	return err
}

// wake has everybody's poll wait, refreshes as the first user, and returns how long after the remote's last byte each
// user's sync's last byte was there, by their number.
func (w *world) wake() ([]time.Duration, error) {
	w.change()
	ends := make(chan end, len(w.users))
	for _, u := range w.users {
		go func() { ends <- u.poll(u.through, u.at) }()
	}
	if err := w.allWait(); err != nil {
		return nil, err
	}
	defer undisturbed()()
	before, err := w.used()
	if err != nil {
		return nil, err
	}
	if err := w.refresh(); err != nil {
		return nil, err
	}
	all := make([]end, len(w.users))
	for i := range all {
		all[i] = <-ends
	}
	after, err := w.used()
	if err != nil {
		return nil, err
	}
	w.spent = after - before
	each := make([]time.Duration, len(all))
	for _, e := range all {
		if err := w.check(e); err != nil {
			return nil, err
		}
		each[e.user.number] = e.at.Sub(w.lastByte())
	}
	return each, nil
}

// used is what freshen's processes have used of the CPU so far.
func (w *world) used() (all time.Duration, err error) {
	for _, p := range w.instances {
		one, err := p.cpuTime()
		if err != nil {
			return 0, err
		}
		all += one
	}
	return all, nil
}

// undisturbed keeps the garbage of the users and the homeserver from being collected on the cores that freshen needs, until the
// function that it returns is called.
func undisturbed() (end func()) {
	runtime.GC()
	before := debug.SetGCPercent(-1)
	return func() { debug.SetGCPercent(before) }
}

// allWait returns once all polls wait at the homeserver and nothing else happens.
func (w *world) allWait() error {
	for range w.users {
		select {
		case <-w.waiting:
		case <-time.After(20 * time.Second):
			return errors.New("a poll has not come to wait at the homeserver")
		}
	}
	if len(w.users) == 1 {
		return nil
	}
	select { // until what was abandoned by the last wake is closed, and what these polls have acknowledged is saved
	case <-time.After(quietAfter):
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

// write has everybody's poll wait at a server of net/http's, which answers them all at once, and returns how long after
// that the last one's answer was there.
func (w *world) write() (time.Duration, error) {
	ends := make(chan end, len(w.users))
	for _, u := range w.users {
		go func() { ends <- u.poll(u.direct, u.plain) }()
	}
	if err := w.allWait(); err != nil {
		return 0, err
	}
	defer undisturbed()()
	began := time.Now()
	w.mu.Lock()
	close(w.release)
	w.release = make(chan struct{})
	w.mu.Unlock()
	var last time.Time
	for range w.users {
		end := <-ends
		if end.err != nil {
			return 0, end.err
		}
		if end.at.After(last) {
			last = end.at
		}
	}
	return last.Sub(began), nil
}

// question has the homeserver asked for everybody's sync by so few of them at a time, without waiting, and returns how long the
// last answer took.
func (w *world) question() (time.Duration, error) {
	var by []*client
	defer func() {
		for _, one := range by {
			_ = one.conn.Close()
		}
	}()
	for range overlay.MaxHurried {
		one, err := dialWith(w.ctx, w.hs, smallAnswer)
		if err != nil {
			return 0, err
		}
		by = append(by, one)
	}
	defer undisturbed()()
	began := time.Now()
	var asking sync.WaitGroup
	failed := make(chan error, len(by))
	for k := range by {
		asking.Go(func() {
			for i := k; i < len(w.users); i += len(by) {
				u := w.users[i]
				r := request{w.hs, fmt.Sprintf("%s?timeout=0&since=%d", pathSync, u.since), token(u.name)}
				if _, err := by[k].get(r.bytes(), io.Discard); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	asking.Wait()
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, err
	default:
		return took, nil
	}
}

// deviceList is the body of /user/devices for so many devices; version is in each device's keys.
func deviceList(user id.UserID, devices, version int) []byte {
	var list bytes.Buffer
	fmt.Fprintf(&list, `{"user_id":%q,"stream_id":%d,"devices":[`, user, version)
	for i := range devices {
		if i > 0 {
			list.WriteByte(',')
		}
		device := "DEVICE" + strconv.Itoa(i)
		fmt.Fprintf(&list, `{"device_id":%[1]q,"device_display_name":"A phone","keys":{"user_id":%[2]q,"device_id":%[1]q,`+
			`"algorithms":["m.olm.v1.curve25519-aes-sha2","m.megolm.v1.aes-sha2"],"keys":{"curve25519:%[3]s":"%043[4]d","ed25519:%[3]s":"%043[4]d"},`+
			`"signatures":{%[2]q:{"ed25519:%[3]s":"%086[4]d"}}}}`, device, user, device, version)
	}
	list.WriteString(`]}`)
	return list.Bytes()
}
