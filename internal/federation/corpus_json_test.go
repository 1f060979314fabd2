package federation_test

import (
	"fmt"
	"strconv"
	"strings"

	"freshen"
	"freshen/internal/federation/fedtest"
)

// answering is a server whose only fault is what it says; $user in body is the user who was asked for.
func answering(body string) fedtest.Server { return fedtest.HTTP1(fedtest.List(body)) }

// hostileJSON are servers whose answer as a whole is no device list, or barely one.
var hostileJSON = []row{
	{"HTML", fedtest.HTTP1(fedtest.Answer(200, "Content-Type: text/html", "<html><body>Welcome to nginx!</body></html>")), bad("cannot be used as the device list")},
	{"null", answering("null"), bad("no user_id")},
	{"a number", answering("7"), bad("cannot be used")},
	{"NaN", answering("NaN"), bad("cannot be used")},
	{"a number of 1 MiB", answering(strings.Repeat("9", 1<<20)), bad("cannot be used").large()},
	{"a string", answering(`"$user"`), bad("cannot be used")},
	{"an array", answering("[" + goodList + "]"), bad("cannot be used")},
	{"true", answering("true"), bad("cannot be used")},
	{"an empty object", answering("{}"), bad("no user_id")},
	{"white space alone", answering(" \n\t "), bad("cannot be used")},
	{"16 MiB of white space", answering(strings.Repeat(" ", freshen.MaxDeviceListBytes)), bad("cannot be used").large()},
	{"16 MiB exactly, which is well", fedtest.HTTP1(fedtest.Sized(freshen.MaxDeviceListBytes)), lists(0).large()},
	{"16 MiB and a byte", fedtest.HTTP1(fedtest.Sized(freshen.MaxDeviceListBytes + 1)), bad("more than the 16 MiB").large()},
	{"half a JSON", answering(`{"user_id": "$user", "dev`), bad("cannot be used")},
	{"two documents", answering(goodList + goodList), bad("cannot be used")},
	{"one on each line", answering(goodList + "\n" + goodList), bad("cannot be used")},
	{"something behind it", answering(goodList + " x"), bad("cannot be used")},
	{"NUL behind it", answering(goodList + "\x00"), bad("cannot be used")},
	{"a comment", answering("/* */" + goodList), bad("cannot be used")},
	{"a comma too many", answering(`{"user_id": "$user", "devices": [],}`), bad("cannot be used")},
	{"single quotes", answering(`{'user_id': '$user', 'devices': []}`), bad("cannot be used")},
	{"byte order mark", answering("\xef\xbb\xbf" + goodList), bad("cannot be used")},
	{"UTF-16", answering("\xff\xfe{\x00}\x00"), bad("cannot be used")},
	{"behind a guard against scripts", answering(")]}'\n" + goodList), bad("cannot be used")},
	{"100,000 arrays in each other", answering(strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)), bad("cannot be used").large()},
	{"100,000 objects in each other", answering(strings.Repeat(`{"a":`, 100_000)), bad("cannot be used").large()},
	{"a million arrays in each other, where nobody looks", answering(`{"user_id": "$user", "devices": [], "x": ` + strings.Repeat("[", 1<<20)), bad("cannot be used").large()},
	{"another user's list", answering(string(listOf("@eve:127.1.0.1:1"))), bad("another user's")},
	{"the user in capitals", answering(`{"user_id": "@BOB:127.1.0.1:1", "devices": []}`), bad("another user's")},
	{"user_id that is a number", answering(`{"user_id": 5, "devices": []}`), bad("cannot be used")},
	{"user_id twice, the second another's", answering(`{"user_id": "$user", "user_id": "@eve:127.1.0.1:1", "devices": []}`), bad("another user's")},
	{"user_id in other capitals", answering(`{"USER_ID": "$user", "devices": []}`), bad("no user_id")},
	{"user_id of 1 MiB", answering(`{"user_id": "` + strings.Repeat("x", 1<<20) + `", "devices": []}`), bad("another user's").large()},
	{"no devices", answering(`{"user_id": "$user"}`), bad("no devices")},
	{"devices null", answering(`{"user_id": "$user", "devices": null}`), bad("no devices")},
	{"devices an object", answering(`{"user_id": "$user", "devices": {"A": {}}}`), bad("cannot be used")},
	{"devices a string", answering(`{"user_id": "$user", "devices": "none"}`), bad("cannot be used")},
	{"10,001 devices", answering(list(numbered(freshen.MaxDevices + 1)...)), bad("over the limit of 10000").large()},
	{"a million devices that are numbers", answering(`{"user_id": "$user", "devices": [5` + strings.Repeat(",5", 1_000_000) + `]}`), bad("over the limit of 10000").allocates(40)},
	{"100,000 times the same name", answering(`{"user_id": "$user", "devices": []` + strings.Repeat(`, "a": 1`, 100_000) + `}`), lists(0).large()},
	{"no device that can be used", answering(list("5", `{"device_id": "A"}`)), bad("none of the 2 devices")},
	{"an object's ancestor among the names", answering(`{"__proto__": {"admin": true}, "constructor": 1, "user_id": "$user", "devices": []}`), lists(0)},
	{"unknown fields", answering(`{"user_id": "$user", "devices": [` + device("A") + `], "org.example.new": [1, {"a": null}]}`), lists(1)},
	{"an error with status 200", answering(`{"errcode": "M_NOT_FOUND", "error": "gone"}`), bad("no user_id")},
}

// hostileLists are device lists with something wrong in them, of which the rest is kept.
var hostileLists = []row{
	{"10,000 devices", answering(list(numbered(freshen.MaxDevices)...)), lists(freshen.MaxDevices).large()},
	{"null keys", answering(`{"user_id": "$user", "devices": [], "master_key": null, "self_signing_key": null}`), lists(0)},
	{"no cross-signing", answering(list(device("A"))), lists(1)},
	{"stream_id a string", answering(`{"user_id": "$user", "devices": [], "stream_id": "5"}`), lists(0)},
	{"stream_id null", answering(`{"user_id": "$user", "devices": [], "stream_id": null}`), lists(0)},
	{"stream_id negative", answering(`{"user_id": "$user", "devices": [], "stream_id": -5}`), lists(0)},
	{"stream_id with a fraction", answering(`{"user_id": "$user", "devices": [], "stream_id": 5.5}`), lists(0)},
	{"stream_id an object", answering(`{"user_id": "$user", "devices": [], "stream_id": {"a": [1]}}`), lists(0)},
	{"stream_id beyond all numbers", answering(`{"user_id": "$user", "devices": [], "stream_id": ` + strings.Repeat("9", 400) + `}`), lists(0)},
	{"stream_id of 1 MiB", answering(`{"user_id": "$user", "devices": [], "stream_id": ` + strings.Repeat("9", 1<<20) + `}`), lists(0).large()},

	{"a device that is a number", answering(list(device("A"), "5")), lists(1, freshen.DropNoObject)},
	{"devices that are nothing", answering(list(device("A"), "null", "[]", `""`, "true")), lists(1, freshen.DropNoObject, freshen.DropNoObject, freshen.DropNoObject, freshen.DropNoObject)},
	{"a device without ID", answering(list(device("A"), `{"keys": {}}`)), lists(1, freshen.DropBadID)},
	{"IDs that are none", answering(list(device("A"), `{"device_id": "", "keys": {}}`, `{"device_id": 5, "keys": {}}`, `{"device_id": null, "keys": {}}`)), lists(1, freshen.DropBadID, freshen.DropBadID, freshen.DropBadID)},
	{"an ID of 10 KiB", answering(list(device("A"), device(strings.Repeat("x", 10<<10)))), lists(1, freshen.DropBadID)},
	{"an ID of 1 MiB", answering(list(device("A"), device(strings.Repeat("x", 1<<20)))), lists(1, freshen.DropNoObject).large()},
	{"a device without keys", answering(list(device("A"), `{"device_id": "B"}`)), lists(1, freshen.DropNoObject)},
	{"keys that are none", answering(list(device("A"), `{"device_id": "B", "keys": null}`, `{"device_id": "C", "keys": []}`)), lists(1, freshen.DropNoObject, freshen.DropNoObject)},
	{"a device twice", answering(list(device("A"), device("B"), device("B"))), lists(1, freshen.DropDuplicate, freshen.DropDuplicate)},
	{"a device twice, written differently", answering(list(device("A"), device("B"), `{"device_id": "\u0042", "keys": {}}`)), lists(1, freshen.DropDuplicate, freshen.DropDuplicate)},
	{"another's device inside", answering(list(device("A"), `{"device_id": "B", "keys": {"device_id": "A"}}`)), lists(1, freshen.DropOtherID)},
	{"another user inside", answering(list(device("A"), `{"device_id": "B", "keys": {"user_id": "@eve:127.1.0.1:1"}}`)), lists(1, freshen.DropOtherID)},
	{"inner IDs that are no strings", answering(list(device("A"), `{"device_id": "B", "keys": {"user_id": ["$user"]}}`, `{"device_id": "C", "keys": {"device_id": 5}}`)), lists(1, freshen.DropOtherID, freshen.DropOtherID)},
	{"another user inside, hidden by a second name", answering(list(device("A"), `{"device_id": "B", "keys": {"user_id": "@eve:127.1.0.1:1", "user_id": "$user"}}`)), lists(1, freshen.DropNoObject)},
	{"two display names in a device", answering(list(device("A"), `{"device_id": "B", "keys": {}, "device_display_name": "a", "device_display_name": "b"}`)), lists(1, freshen.DropNoObject)},
	{"bytes that are no UTF-8", answering(list(device("A"), "{\"device_id\": \"B\", \"keys\": {\"x\": \"\xff\xfe\"}}")), lists(1, freshen.DropNoObject)},
	{"half a surrogate pair", answering(list(device("A"), `{"device_id": "B\ud800", "keys": {}}`)), lists(1, freshen.DropNoObject)},
	{"a device nested 9,000 deep", answering(list(device("A"), `{"device_id": "B", "keys": {"x": `+strings.Repeat("[", 9000)+strings.Repeat("]", 9000)+`}}`)), lists(1, freshen.DropNoObject)},
	{"a device with an ancestor among the names", answering(list(`{"__proto__": {"x": 1}, "device_id": "A", "keys": {"__proto__": {}}}`)), lists(1)},
	{"a display name of 2 KiB", answering(list(`{"device_id": "A", "keys": {}, "device_display_name": "` + strings.Repeat("x", 2<<10) + `"}`)), lists(1)},
	{"a display name of 1 MiB", answering(list(device("A"), `{"device_id": "B", "keys": {}, "device_display_name": "`+strings.Repeat("x", 1<<20)+`"}`)), lists(1, freshen.DropNoObject).large()},
	{"keys of 1 MiB", answering(list(device("A"), `{"device_id": "B", "keys": {"x": "`+strings.Repeat("x", 1<<20)+`"}}`)), lists(1, freshen.DropNoObject).large()},
	{"keys with 100,000 names", answering(list(device("A"), `{"device_id": "B", "keys": {`+strings.Join(numberedKeys(100_000), ", ")+`}}`)), lists(1, freshen.DropNoObject).large()},
	{"keys of 60 KiB, which is well", answering(list(`{"device_id": "A", "keys": {` + strings.Join(numberedKeys(2_000), ", ") + `}}`)), lists(1)},
	{"display names that are none", answering(list(`{"device_id": "A", "keys": {}, "device_display_name": 5}`, `{"device_id": "B", "keys": {}, "device_display_name": null}`)), lists(2)},
	{"a number of 1 MiB in the keys", answering(list(device("A"), `{"device_id": "B", "keys": {"x": `+strings.Repeat("9", 1<<20)+`}}`)), lists(1, freshen.DropNoObject).large()},

	{"both cross-signing keys, which is well", answering(withKeys(crossSigning("$user", "master"), crossSigning("$user", "self_signing"))), lists(1)},
	{"another user's master key", answering(withKeys(crossSigning("@eve:127.1.0.1:1", "master"), "null")), lists(1, freshen.DropCrossSigner)},
	{"a key for another usage", answering(withKeys(crossSigning("$user", "self_signing"), crossSigning("$user", "user_signing"))), lists(1, freshen.DropCrossSigner, freshen.DropCrossSigner)},
	{"cross-signing keys that are no objects", answering(withKeys("5", `"key"`)), lists(1, freshen.DropCrossSigner, freshen.DropCrossSigner)},
	{"cross-signing keys without a key", answering(withKeys(`{"user_id": "$user", "usage": ["master"], "keys": {}}`, `{"user_id": "$user", "usage": ["self_signing"]}`)), lists(1, freshen.DropCrossSigner, freshen.DropCrossSigner)},
	{"usage that is a string", answering(withKeys(`{"user_id": "$user", "usage": "master", "keys": {"ed25519:K": "K"}}`, "null")), lists(1, freshen.DropCrossSigner)},
	{"a cross-signing key with 100,000 keys", answering(withKeys(`{"user_id": "$user", "usage": ["master"], "keys": {`+strings.Join(numberedKeys(100_000), ", ")+`}}`, "null")), lists(1, freshen.DropCrossSigner).large()},
}

func device(deviceID string) string {
	return fmt.Sprintf(`{"device_id": %q, "keys": {"user_id": "$user", "device_id": %q}}`, deviceID, deviceID)
}

func numbered(n int) []string {
	devices := make([]string, n)
	for i := range devices {
		devices[i] = device(strconv.Itoa(i))
	}
	return devices
}

func numberedKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf(`"ed25519:%d": "K"`, i)
	}
	return keys
}

func list(devices ...string) string {
	return `{"user_id": "$user", "stream_id": 5, "devices": [` + strings.Join(devices, ", ") + `]}`
}

func crossSigning(user, usage string) string {
	return fmt.Sprintf(`{"user_id": %q, "usage": [%q], "keys": {"ed25519:K": "K"}}`, user, usage)
}

func withKeys(master, selfSigning string) string {
	return fmt.Sprintf(`{"user_id": "$user", "devices": [%s], "master_key": %s, "self_signing_key": %s}`, device("A"), master, selfSigning)
}
