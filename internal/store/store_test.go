package store_test

import (
	"context"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"freshen"
	"freshen/internal/limit"
	"freshen/internal/store"
	"freshen/internal/store/storetest"
)

func TestMain(m *testing.M) { storetest.Main(m) }

var start = time.UnixMilli(1_700_000_000_000)

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// each runs a test over both databases.
func each(t *testing.T, test func(*testing.T, store.Config)) {
	t.Helper()
	config := store.Config{
		PerDestination: limit.Rate{Every: time.Second, Burst: 20}, SuccessFor: 30 * time.Second, FailureFor: 10 * time.Second,
		Log: slog.New(slog.DiscardHandler),
	}
	t.Run("SQLite", func(t *testing.T) {
		config := config
		config.Path = filepath.Join(t.TempDir(), "freshen.db")
		test(t, config)
	})
	t.Run("Postgres", func(t *testing.T) {
		config := config
		config.URL = storetest.Shared(t).NewDatabase(t)
		test(t, config)
	})
}

// instance opens a database until the test ends.
func instance(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func list(t *testing.T, user id.UserID, key string) *freshen.DeviceList {
	t.Helper()
	l, err := freshen.ParseDeviceList([]byte(`{"user_id":"`+string(user)+`","stream_id":7,"devices":[
		{"device_id":"PHONE","keys":{"device_id":"PHONE",  "user_id":"`+string(user)+`","keys":{"ed25519:PHONE":"`+key+`<&>"}},"device_display_name":"A \"phone\""}]}`), user)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// owe records a failure as a client's request would, with the simplest of policies.
func owe(t *testing.T, s *store.Store, target, requester id.UserID, at time.Time, wait time.Duration) time.Time {
	t.Helper()
	next, err := s.RecordFailure(t.Context(), store.Failed{
		Target: target, Destination: freshen.Destination(target), At: at, Requesters: []id.UserID{requester},
	}, func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		dest.Failures++
		dest.RetryAt = at.Add(wait)
		return dest, debt, true
	})
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// begins is how a debt begins that waits for nothing.
func begins(debt store.Debt) store.Debt { return debt }

func claim(t *testing.T, s *store.Store, at time.Time, limit int) []id.UserID {
	t.Helper()
	var targets []id.UserID
	for _, d := range claims(t, s, at, limit) {
		targets = append(targets, d.Target)
	}
	return targets
}

func claims(t *testing.T, s *store.Store, at time.Time, limit int) []store.Debt {
	t.Helper()
	debts, err := s.Claim(t.Context(), at, time.Minute, "token-"+at.String(), store.Places{Fine: limit, Failing: limit})
	if err != nil {
		t.Fatal(err)
	}
	return debts
}

// A promise that is lost with the process would leave a user waiting for ever.
func TestADebtSurvivesARestart(t *testing.T) { each(t, testADebtSurvivesARestart) }

func testADebtSurvivesARestart(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	next := owe(t, s, "@bob:b.org", "@alice:a.org", start, 30*time.Second)
	if !next.Equal(start.Add(30 * time.Second)) {
		t.Errorf("the requester was told of %v, not of %v", next, start.Add(30*time.Second))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = instance(t, cfg)
	if early := claim(t, s, start.Add(29*time.Second), 10); len(early) > 0 {
		t.Errorf("claimed %v while its destination backs off", early)
	}
	if due := claim(t, s, start.Add(30*time.Second), 10); len(due) != 1 {
		t.Errorf("claimed %v when it was due", due)
	}
}

// Two workers with the same debt would ask the remote server twice; a crashed one must not keep it for ever.
func TestAClaimEndsByTime(t *testing.T) { each(t, testAClaimEndsByTime) }

func testAClaimEndsByTime(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	owe(t, s, "@bob:b.org", "@alice:a.org", start, 0)
	if got := claim(t, s, start, 10); len(got) != 1 {
		t.Fatalf("claimed %v", got)
	}
	if got := claim(t, s, start.Add(59*time.Second), 10); len(got) != 0 {
		t.Errorf("claimed %v, which another holds", got)
	}
	if got := claim(t, s, start.Add(61*time.Second), 10); len(got) != 1 {
		t.Errorf("claimed %v after the first claim was over", got)
	}
}

func TestClaimsOfADestinationAreBounded(t *testing.T) { each(t, testClaimsOfADestinationAreBounded) }

func testClaimsOfADestinationAreBounded(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	for _, name := range []string{"1", "2", "3", "4", "5", "6"} {
		owe(t, s, id.UserID("@u"+name+":b.org"), "@alice:a.org", start, 0)
	}
	owe(t, s, "@other:c.org", "@alice:a.org", start, 0)
	// b.org has failed: one probe, which keeps neither the others of b.org busy nor c.org waiting.
	if got := claim(t, s, start, 10); len(got) != 2 {
		t.Fatalf("claimed %v, not one a failing destination", got)
	}
	if got := claim(t, s, start, 10); len(got) != 0 {
		t.Fatalf("claimed %v beside the probe", got)
	}
	// The probe succeeds: all are due at once, four at a time.
	keep(t, s, "@u1:b.org", start)
	if got := claim(t, s, start, 10); len(got) != 4 {
		t.Errorf("claimed %v from a destination that has come back", got)
	}
	if next, ok, err := s.NextDue(t.Context(), store.Places{Fine: 1, Failing: 1}); err != nil || !ok || next.Before(start.Add(time.Minute)) {
		t.Errorf("the next is due at %v (%v, %v): a worker would spin until a claim ends", next, ok, err)
	}
}

func keep(t *testing.T, s *store.Store, target id.UserID, at time.Time, requesters ...id.UserID) store.Kept {
	t.Helper()
	// As a retry is, whatever came of a fetch just before.
	begun, err := s.Begin(t.Context(), store.Fetch{Target: target, Now: at, Token: string(target), Lease: time.Minute, Claimed: true})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := s.Keep(t.Context(), store.Fetched{List: list(t, target, "key"), At: at, Requesters: requesters, PaidGen: begun.Gen, Token: string(target)})
	if err != nil {
		t.Fatal(err)
	}
	return kept
}

// Asking again while a fetch runs may be about a change that the fetch came too early to see.
func TestADebtAskedForDuringAFetchIsNotSwallowed(t *testing.T) {
	each(t, testADebtAskedForDuringAFetchIsNotSwallowed)
}

func testADebtAskedForDuringAFetchIsNotSwallowed(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	owe(t, s, "@bob:b.org", "@alice:a.org", start, time.Hour)
	begun, err := s.Begin(t.Context(), store.Fetch{Target: "@bob:b.org", Now: start, Token: "fetch", Lease: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AskAgain(t.Context(), "@bob:b.org", []id.UserID{"@carol:a.org"}, start, time.Time{}, begins); err != nil {
		t.Fatal(err)
	}
	kept, err := s.Keep(t.Context(), store.Fetched{List: list(t, "@bob:b.org", "key"), At: start, PaidGen: begun.Gen, Token: "fetch"})
	if err != nil || kept.Paid {
		t.Fatalf("paid %v (%v) what was asked for after the fetch had begun", kept.Paid, err)
	}
	if got := claim(t, s, start, 10); len(got) != 1 {
		t.Errorf("claimed %v; the destination is back, so the debt is due", got)
	}
}

// A worker that was paused and comes back late must not write over what another has settled meanwhile.
func TestALostClaimChangesNothing(t *testing.T) { each(t, testALostClaimChangesNothing) }

func testALostClaimChangesNothing(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	owe(t, s, "@bob:b.org", "@alice:a.org", start, 0)
	lost := claims(t, s, start, 1)[0]
	now := start.Add(2 * time.Minute)
	if len(claims(t, s, now, 1)) != 1 {
		t.Fatal("the claim did not end")
	}
	verdict := func(dest store.Destination, debt store.Debt) (store.Destination, store.Debt, bool) {
		debt.DueAt = now.Add(24 * time.Hour)
		return dest, debt, false
	}
	if _, err := s.RecordFailure(t.Context(), store.Failed{Target: lost.Target, Destination: lost.Destination, At: now, Lease: lost.Lease}, verdict); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Debts(t.Context()); err != nil || n != 1 {
		t.Errorf("%d debts are left (%v): the late one ended the debt of the other's claim", n, err)
	}
}

func TestAnnouncements(t *testing.T) { each(t, testAnnouncements) }

func testAnnouncements(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	var mu sync.Mutex
	var heard []store.Announcement
	s.OnCommit(func(c store.Committed) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, c.Announced...)
	})
	if kept := keep(t, s, "@bob:b.org", start, "@alice:a.org"); !kept.Changed {
		t.Error("a first list does not count as a change")
	}
	if kept := keep(t, s, "@bob:b.org", start, "@carol:a.org"); kept.Changed {
		t.Error("the same list counts as a change: everybody would query for nothing")
	}
	audiences := map[id.UserID]int64{}
	for _, a := range heard {
		if a.Position <= audiences[a.Audience] {
			t.Errorf("positions go backwards: %v", heard)
		}
		audiences[a.Audience] = a.Position
	}
	for _, who := range []id.UserID{"", "@alice:a.org", "@carol:a.org"} {
		if audiences[who] == 0 {
			t.Errorf("nothing was announced to %q: %v", who, heard)
		}
	}
	if audiences["@carol:a.org"] < audiences[""] || len(heard) != 3 {
		t.Errorf("an unchanged list was announced to others than who asked: %v", heard)
	}
	all, head, err := s.Announcements(t.Context())
	if err != nil || len(all) != 3 || head != heard[2].Position {
		t.Errorf("the stream holds %v, head %d (%v)", all, head, err)
	}
}

// "Nobody asks: freshen pays its debt, and Alice's sync says so", also where the list turns out unchanged.
func TestWhoWasPromisedHearsOfAnUnchangedList(t *testing.T) {
	each(t, testWhoWasPromisedHearsOfAnUnchangedList)
}

func testWhoWasPromisedHearsOfAnUnchangedList(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	var heard []store.Announcement
	s.OnCommit(func(c store.Committed) { heard = c.Announced })
	keep(t, s, "@bob:b.org", start, "@carol:a.org")
	owe(t, s, "@bob:b.org", "@alice:a.org", start, 0)
	if kept := keep(t, s, "@bob:b.org", start); kept.Changed || !kept.Paid {
		t.Fatalf("kept %+v", kept)
	}
	if len(heard) != 1 || heard[0].Audience != "@alice:a.org" {
		t.Errorf("announced %v, not to alice alone", heard)
	}
}

func TestAKeptListIsByteForByte(t *testing.T) { each(t, testAKeptListIsByteForByte) }

func testAKeptListIsByteForByte(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	want := list(t, "@bob:b.org", "key")
	keep(t, s, "@bob:b.org", start)
	got, err := s.KeptList(t.Context(), "@bob:b.org")
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Devices[0].Keys) != string(want.Devices[0].Keys) {
		t.Errorf("the signed bytes changed:\n%s\n%s", got.Devices[0].Keys, want.Devices[0].Keys)
	}
	if got.Devices[0].DisplayName != `A "phone"` || *got.StreamID != 7 || got.Hash() != want.Hash() {
		t.Errorf("read back %+v", got)
	}
	if err := s.Retire(t.Context(), "@bob:b.org", start); err != nil {
		t.Fatal(err)
	}
	if got, err := s.KeptList(t.Context(), "@bob:b.org"); got != nil || err != nil {
		t.Errorf("a retired list is still served: %v %v", got, err)
	}
	if kept := keep(t, s, "@bob:b.org", start); kept.Changed {
		t.Error("a retired list that comes again counts as changed")
	}
}

// Whoever asks for strangers with endless lists must not fill the disk; a contact's long list is kept.
func TestALongListOfAStrangerIsNotKept(t *testing.T) { each(t, testALongListOfAStrangerIsNotKept) }

func testALongListOfAStrangerIsNotKept(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	long := store.Fetched{List: list(t, "@bob:b.org", "key"), At: start, HashOnly: true}
	for _, want := range []bool{false, true} {
		if _, err := s.Keep(t.Context(), long); err != nil {
			t.Fatal(err)
		}
		infos, err := s.KeptLists(t.Context())
		if err != nil || (len(infos) == 1) != want {
			t.Errorf("lists kept: %v (%v), want one: %v", infos, err, want)
		}
		if got, err := s.KeptList(t.Context(), "@bob:b.org"); err != nil || (got != nil) != want {
			t.Errorf("the list is kept: %v (%v), want: %v", got != nil, err, want)
		}
		if err := s.MarkShared(t.Context(), "@bob:b.org"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDevicePositions(t *testing.T) { each(t, testDevicePositions) }

func testDevicePositions(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	want := store.DevicePosition{UserID: "@alice:a.org", DeviceID: "PHONE", Acked: 5, Above: map[id.UserID]int64{"@bob:b.org": 9}, SeenAt: start}
	for range 2 {
		if err := s.SavePositions(t.Context(), []store.DevicePosition{want}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.DevicePosition(t.Context(), "@alice:a.org", "PHONE")
	if err != nil || got.Acked != 5 || got.Above["@bob:b.org"] != 9 || !got.SeenAt.Equal(start) {
		t.Errorf("read back %+v (%v)", got, err)
	}
	if err := s.Prune(t.Context(), start.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := s.DevicePosition(t.Context(), "@alice:a.org", "PHONE"); err != nil || got.Acked != 0 || len(got.Above) != 0 {
		t.Errorf("a device that was not seen for long is still there: %+v (%v)", got, err)
	}
}

// Clients choose the IDs of their devices; one of an odd ID must not keep those of others from being stored with it.
func TestADeviceIDThatIsNoText(t *testing.T) { each(t, testADeviceIDThatIsNoText) }

func testADeviceIDThatIsNoText(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	odd := store.DevicePosition{UserID: "@mallory:a.org", DeviceID: "\x00'\u202e", Acked: 5, SeenAt: start}
	usual := store.DevicePosition{UserID: "@alice:a.org", DeviceID: "DÉVICE 📱", Acked: 5, SeenAt: start}
	if err := s.SavePositions(t.Context(), []store.DevicePosition{odd, usual}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.DevicePosition(t.Context(), usual.UserID, usual.DeviceID); err != nil || got.Acked != 5 {
		t.Errorf("the usual one stands at %d (%v)", got.Acked, err)
	}
	if _, err := s.DevicePosition(t.Context(), odd.UserID, odd.DeviceID); err != nil {
		t.Error(err)
	}
}

// One change that the database refuses must not take the others' of its commit with it.
func TestManyWriters(t *testing.T) { each(t, testManyWriters) }

func testManyWriters(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			target := id.UserID("@u" + string(rune('a'+i%26)) + ":b.org")
			if err := s.AnnounceTo(t.Context(), target, []id.UserID{"@alice:a.org"}, start); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, head, err := s.Announcements(t.Context()); err != nil || head != 200 {
		t.Errorf("200 announcements moved the head to %d (%v)", head, err)
	}
}

func TestAfterClose(t *testing.T) { each(t, testAfterClose) }

func testAfterClose(t *testing.T, cfg store.Config) {
	s := instance(t, cfg)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.AnnounceTo(t.Context(), "@bob:b.org", []id.UserID{"@alice:a.org"}, start); err == nil {
		t.Error("a write after Close was taken for done")
	}
}

// Each of these is what an administrator meets on a bad day; the error must name the file and what to do.
func TestDatabaseFilesThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(path string, statements ...string) string {
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		for _, s := range statements {
			if _, err := db.ExecContext(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	newer := filepath.Join(dir, "newer.db")
	if err := open(t, newer).Close(); err != nil {
		t.Fatal(err)
	}
	run(newer, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)

	for name, c := range map[string]struct{ path, says string }{
		"a directory":            {dir, "is a directory"},
		"no such folder":         {filepath.Join(dir, "none", "freshen.db"), "folder"},
		"no database":            {write("text.db", strings.Repeat("no database at all. ", 300)), "cannot be used as an SQLite database"},
		"another program's":      {run(filepath.Join(dir, "synapse.db"), `CREATE TABLE device_lists_remote_cache (a)`), "another program"},
		"of a newer version":     {newer, "newer freshen"},
		"a device, not a file":   {os.DevNull, "regular file"},
		"a socket-like odd path": {filepath.Join(dir, "text.db", "below"), "database:"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := store.Open(context.Background(), store.Config{Path: c.path, Log: slog.New(slog.DiscardHandler)})
			if err == nil {
				_ = s.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "secret") {
				t.Errorf("the error is: %v", err)
			}
		})
	}
}
