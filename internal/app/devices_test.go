package app_test

import "testing"

// A client that renews its access token is the device that it was: what it has acknowledged must not come again, and what it
// has not must not be lost with the old token.
func TestATokenThatChanges(t *testing.T) {
	w := running(t)
	bob, dora := w.remote().has("bob", "DEV1"), w.remote().has("dora", "DEV2")
	w.introduce(aliceToken, alice)
	w.refreshed(aliceToken, bob)
	wantChanged(t, w.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2"}`), bob)
	w.exchange(aliceToken, "since=s2&timeout=0", `{"next_batch":"s3"}`) // bob has arrived
	w.refreshed(aliceToken, dora)

	const renewed = "alice-renewed-token"
	w.hs.AddUser(renewed, alice, "ALICE")
	w.hs.RemoveUser(aliceToken)
	call, replies := w.waiting(renewed, "s3")
	await(t, call.gone, "hurrying the first poll with the new token")
	w.next().ok(`{"next_batch":"s4"}`)
	wantChanged(t, await(t, replies, "the answer to the new token").body, dora)
	wantChanged(t, w.exchange(renewed, "since=s4&timeout=0", `{"next_batch":"s5"}`))
}

// Two devices of one user each hear, and what one has acknowledged the other has not.
func TestTwoDevicesOfAUser(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	const tabletToken = "alice-tablet-token"
	w.hs.AddUser(tabletToken, alice, "TABLET")
	w.introduce(aliceToken, alice)
	w.introduce(tabletToken, alice)
	wantChanged(t, w.exchange(aliceToken, "since=i1&timeout=0", `{"next_batch":"i2"}`), alice) // introducing told of it again
	w.exchange(aliceToken, "since=i2&timeout=0", `{"next_batch":"s1"}`)
	w.refreshed(aliceToken, bob)

	wantChanged(t, w.exchange(aliceToken, "since=s1&timeout=0", `{"next_batch":"s2"}`), bob)
	wantChanged(t, w.exchange(aliceToken, "since=s2&timeout=0", `{"next_batch":"s3"}`))
	wantChanged(t, w.exchange(tabletToken, "since=t1&timeout=0", `{"next_batch":"t2"}`), bob)
	wantChanged(t, w.exchange(tabletToken, "since=t2&timeout=0", `{"next_batch":"t3"}`))
}

// Who has signed out gets the homeserver's refusal as it is, and no poll that is hurried for nothing.
func TestADeviceThatSignedOut(t *testing.T) {
	w := running(t)
	bob := w.remote().has("bob", "DEV1")
	w.introduce(aliceToken, alice)
	w.hs.RemoveUser(aliceToken)
	w.hs.AddUser("alice-other-token", alice, "OTHER")
	w.refreshed("alice-other-token", bob)

	const refusal = `{"errcode":"M_UNKNOWN_TOKEN","error":"Unknown access token"}`
	replies := w.sync(t.Context(), aliceToken, "since=s1&timeout=0")
	w.next().answer(401, nil, refusal)
	if r := await(t, replies, "the refusal"); r.status != 401 || r.body != refusal {
		t.Errorf("signed out, and answered %d %s", r.status, r.body)
	}
}
