package federation_test

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"freshen"
	"freshen/internal/federation/fedtest"
)

const (
	// goodList is the list of a user without devices.
	goodList = `{"user_id": "$user", "stream_id": 1, "devices": []}`
	// noEnd is how sentences tell of an answer that begins and does not end.
	noEnd   = "was still sending its answer after "
	chunked = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n"
)

// hostileHTTP1 are servers that break HTTP/1.1, or bend it.
var hostileHTTP1 = []row{
	{"hangs", fedtest.HTTP1(fedtest.Hang), timesOut("did not answer within ")},
	{"hangs up", fedtest.HTTP1(fedtest.HangUp), connects("broke the connection before it answered")},
	{"no HTTP", fedtest.HTTP1(fedtest.Bytes("SSH-2.0-OpenSSH_9.9\n\n")), connects("no usable HTTP")},
	{"noise", fedtest.HTTP1(fedtest.Exactly(strings.Repeat("\x00\xff\r\n", 1000))), connects("no usable HTTP")},

	{"status line drips", fedtest.HTTP1(fedtest.DripAfter("HTTP/1.1 200 O", 20*time.Millisecond)), timesOut("did not answer within ")},
	{"status line without end", fedtest.HTTP1(fedtest.Flood("HTTP/1.1 200 OK", 1<<20)), connects("")},
	{"status that is none", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 999999 What\n\n")), connects("no usable HTTP")},
	{"status that is a word", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 OK OK\n\n")), connects("no usable HTTP")},
	{"negative status", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 -20 What\n\n")), connects("no usable HTTP")},
	{"no status", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1\n\n")), connects("no usable HTTP")},
	{"status 000", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 000 What\nContent-Length: 0\n\n")), connects("no usable HTTP")},
	{"status 999", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 999 What\nContent-Length: 0\n\n")), answers(999, freshen.BlameDestination, "999")},
	{"HTTP/0.9", fedtest.HTTP1(fedtest.Exactly(goodList)), connects("no usable HTTP")},
	{"HTTP/1.0, which is well", fedtest.HTTP1(fedtest.Bytes("HTTP/1.0 200 OK\n\n" + goodList)), lists(0)},
	{"HTTP/7.3, which is overlooked", fedtest.HTTP1(fedtest.Bytes("HTTP/7.3 200 OK\nContent-Length: 2\n\n{}")), bad("no user_id")},

	{"header lines for ever", fedtest.HTTP1(fedtest.Then(fedtest.Exactly("HTTP/1.1 200 OK\r\n"), fedtest.Flood("X-Flood: "+strings.Repeat("x", 1000)+"\r\n", 64<<10))), connects("")},
	{"one header line for ever", fedtest.HTTP1(fedtest.Then(fedtest.Exactly("HTTP/1.1 200 OK\r\nX-Flood: "), fedtest.Flood("x", 64<<20))), connects("")},
	{"headers drip", fedtest.HTTP1(fedtest.DripAfter("HTTP/1.1 200 OK\nX-Drip: ", 20*time.Millisecond)), timesOut("did not answer within ")},
	{"many tiny headers", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\n" + strings.Repeat("a: b\n", 100_000) + "\n")), connects("")},
	{"header without colon", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nNonsense\nContent-Length: 2\n\n{}")), connects("no usable HTTP")},
	{"header without name", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\n: x\nContent-Length: 2\n\n{}")), connects("no usable HTTP")},
	{"space before the colon, which is overlooked", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length : 2\n\n{}")), bad("no user_id")},
	{"NUL in a header", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nX: a\x00b\nContent-Length: 2\n\n{}")), connects("no usable HTTP")},
	{"CR in a header", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nX: a\rb\nContent-Length: 2\n\n{}")), connects("no usable HTTP")},
	{"folded header, which is well", fedtest.HTTP1(fedtest.Answer(200, "X-Folded: a\n  b", goodList)), lists(0)},
	{"first header folded", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\n X: a\nContent-Length: 2\n\n{}")), connects("no usable HTTP")},
	{"header that is no UTF-8, which is well", fedtest.HTTP1(fedtest.Answer(200, "X-Latin: \xe9\xff", goodList)), lists(0)},

	{"half an answer", fedtest.HTTP1(fedtest.Half(`{"user_id"`)), connects("in the middle of its answer")},
	{"body drips", fedtest.HTTP1(fedtest.Drip(20 * time.Millisecond)), timesOut(noEnd)},
	{"list comes, its end does not", fedtest.HTTP1(fedtest.Then(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 1000000\n\n"+goodList), fedtest.Hang)), timesOut(noEnd)},
	{"no length, and kept open", fedtest.HTTP1(fedtest.Then(fedtest.Bytes("HTTP/1.1 200 OK\n\n"+goodList), fedtest.Hang)), timesOut(noEnd)},
	{"no body", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 0\n\n")), bad("cannot be used")},
	{"no body, and kept open", fedtest.HTTP1(fedtest.Then(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 0\n\n"), fedtest.Hang)), bad("cannot be used")},
	{"negative length", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: -1\n\n{}")), connects("no usable HTTP")},
	{"length that is a word", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: two\n\n{}")), connects("no usable HTTP")},
	{"length beyond all numbers", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 99999999999999999999\n\n{}")), connects("no usable HTTP")},
	{"length of 8 EiB", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 9223372036854775807\n\n{}")), bad("more than the 16 MiB")},
	{"64 MiB announced", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 67108864\n\n{")), bad("more than the 16 MiB")},
	{"20 MiB", fedtest.HTTP1(fedtest.Huge(20 << 20)), bad("more than the 16 MiB").large()},
	{"20 MiB without length", fedtest.HTTP1(fedtest.Then(fedtest.Bytes("HTTP/1.1 200 OK\n\n\""), fedtest.Flood("x", 20<<20))), bad("more than the 16 MiB").large()},
	{"two lengths", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 4\n\nnull")), connects("no usable HTTP")},
	{"two lengths in one line", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 2, 4\n\nnull")), connects("no usable HTTP")},
	{"length shorter than the body", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 10\n\n" + goodList)), bad("cannot be used").uncleanly()},

	{"length and chunks, which hold", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nContent-Length: 4\nTransfer-Encoding: chunked\n\n2\r\n{}\r\n0\r\n\r\n")), bad("no user_id")},
	{"unknown transfer encoding", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n2\r\n{}\r\n0\r\n\r\n")), connects("no usable HTTP")},
	{"chunked twice", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n0\r\n\r\n")), connects("no usable HTTP")},
	{"chunks, which is well", fedtest.HTTP1(fedtest.Chunked("\r\n0\r\n\r\n")), lists(0)},
	{"chunk size that is none", fedtest.HTTP1(fedtest.Bytes(chunked + "zz\r\n{}\r\n")), connects("in the middle of its answer")},
	{"chunk of 16 EiB", fedtest.HTTP1(fedtest.Bytes(chunked + "ffffffffffffffff\r\n{}")), connects("in the middle of its answer")},
	{"chunk size beyond all numbers", fedtest.HTTP1(fedtest.Bytes(chunked + strings.Repeat("f", 1000) + "\r\n{}")), connects("in the middle of its answer")},
	{"negative chunk", fedtest.HTTP1(fedtest.Bytes(chunked + "-2\r\n{}\r\n0\r\n\r\n")), connects("in the middle of its answer")},
	{"chunk longer than its size", fedtest.HTTP1(fedtest.Bytes(chunked + "2\r\n{} and more\r\n0\r\n\r\n")), connects("in the middle of its answer")},
	{"chunk extension for ever", fedtest.HTTP1(fedtest.Then(fedtest.Bytes(chunked+"2;x="), fedtest.Flood("x", 64<<20))), connects("in the middle of its answer")},
	{"chunks of one byte with large extensions", fedtest.HTTP1(fedtest.Then(fedtest.Bytes(chunked), fedtest.Flood("1;"+strings.Repeat("x", 1000)+"\r\n \r\n", 64<<10))), connects("in the middle of its answer")},
	{"no last chunk", fedtest.HTTP1(fedtest.Chunked("\r\n")), connects("in the middle of its answer")},
	{"no last chunk, and kept open", fedtest.HTTP1(fedtest.Then(fedtest.Chunked("\r\n"), fedtest.Hang)), timesOut(noEnd)},
	{"trailers for ever", fedtest.HTTP1(fedtest.Then(fedtest.Chunked("\r\n0\r\n"), fedtest.Flood("X-Trailer: "+strings.Repeat("x", 1000)+"\r\n", 64<<10))), connects("in the middle of its answer")},
	{"trailer without colon", fedtest.HTTP1(fedtest.Chunked("\r\n0\r\nnonsense\r\n\r\n")), connects("in the middle of its answer")},

	{"100 for ever", fedtest.HTTP1(fedtest.Flood("HTTP/1.1 100 Continue\r\n\r\n", 1<<20)), connects("no usable HTTP")},
	{"103 for ever, with headers", fedtest.HTTP1(fedtest.Flood("HTTP/1.1 103 Early Hints\r\nLink: "+strings.Repeat("x", 1000)+"\r\n\r\n", 64<<10)), connects("no usable HTTP")},
	{"102 and then a list, which is well", fedtest.HTTP1(fedtest.Then(fedtest.Exactly("HTTP/1.1 102 Processing\r\n\r\n"), fedtest.List(goodList))), lists(0)},
	{"102 and then nothing", fedtest.HTTP1(fedtest.Then(fedtest.Exactly("HTTP/1.1 102 Processing\r\n\r\n"), fedtest.Hang)), timesOut("did not answer within ")},
	{"switches protocols", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\n\n")), connects("no usable HTTP")},
	{"two answers at once", fedtest.HTTP1(fedtest.Then(fedtest.List(goodList), fedtest.List(`{"user_id": "$user", "devices": [{"device_id": "SECOND", "keys": {}}]}`))), lists(0).uncleanly()},
	{"a list and then noise for ever", fedtest.HTTP1(fedtest.Then(fedtest.List(goodList), fedtest.Flood("noise", 1<<20))), lists(0).uncleanly()},
}

// hostileStatus are servers that answer in good order, but not with a list.
var hostileStatus = []row{
	{"204", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 204 No Content\n\n")), answers(204, freshen.BlameDestination, "204 where only 200")},
	{"201 with a list", fedtest.HTTP1(fedtest.Answer(201, "", goodList)), answers(201, freshen.BlameDestination, "201 where only 200")},
	{"205", fedtest.HTTP1(fedtest.Answer(205, "", "")), answers(205, freshen.BlameDestination, "205 where only 200")},
	{"206", fedtest.HTTP1(fedtest.Answer(206, "Content-Range: bytes 0-9/100", goodList)), answers(206, freshen.BlameDestination, "206 where only 200")},
	{"304", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 304 Not Modified\nContent-Length: 100\n\n")), answers(304, freshen.BlameDestination, "304")},
	{"300", fedtest.HTTP1(fedtest.Answer(300, "", "")), answers(300, freshen.BlameDestination, "300")},
	{"301 to http", fedtest.HTTP1(redirects(301, "http://127.1.255.1/")), answers(301, freshen.BlameDestination, "301, a redirect")},
	{"302 to loopback", fedtest.HTTP1(redirects(302, "https://127.0.0.1/")), answers(302, freshen.BlameDestination, "302, a redirect")},
	{"303 to the cloud's metadata", fedtest.HTTP1(redirects(303, "http://169.254.169.254/latest/meta-data/")), answers(303, freshen.BlameDestination, "303, a redirect")},
	{"307 to itself", fedtest.HTTP1(redirects(307, "/_matrix/federation/v1/user/devices/$user")), answers(307, freshen.BlameDestination, "307, a redirect")},
	{"308 to the good server", fedtest.HTTP1(redirects(308, "https://"+goodServer+"/_matrix/federation/v1/user/devices/@alice:"+goodServer)), answers(308, freshen.BlameDestination, "308, a redirect")},
	{"302 without a place", fedtest.HTTP1(fedtest.Answer(302, "", "")), answers(302, freshen.BlameDestination, "302, a redirect")},
	{"302 to a file", fedtest.HTTP1(redirects(302, "file:///etc/passwd")), answers(302, freshen.BlameDestination, "302, a redirect")},

	{"401", fedtest.HTTP1(fedtest.Answer(401, "", `{"message": "bad"}`)), answers(401, freshen.BlameDestination, "is our signing key published?")},
	{"401 that would log our user out", fedtest.HTTP1(fedtest.Answer(401, "WWW-Authenticate: Basic", `{"errcode": "M_UNKNOWN_TOKEN", "soft_logout": true}`)), answers(401, freshen.BlameDestination, "our signature")},
	{"403 with an error", fedtest.HTTP1(fedtest.Answer(403, "", `{"errcode": "M_FORBIDDEN", "error": "no"}`)), answers(403, freshen.BlameUser, "403 with the error M_FORBIDDEN")},
	{"403 with an error of 17 MiB", fedtest.HTTP1(fedtest.Answer(403, "", `{"errcode": "M_FORBIDDEN", "error": "`+strings.Repeat("x", 17<<20)+`"}`)), answers(403, freshen.BlameDestination, "403").large()},
	{"404 in HTML", fedtest.HTTP1(fedtest.Answer(404, "", "<h1>Gone</h1>")), answers(404, freshen.BlameDestination, "perhaps no homeserver runs there")},
	{"404 with an error", fedtest.HTTP1(fedtest.Answer(404, "", `{"errcode": "M_NOT_FOUND"}`)), answers(404, freshen.BlameUser, "M_NOT_FOUND")},
	{"404 with half a body", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 404 Not Found\nContent-Length: 100\n\n{")), answers(404, freshen.BlameDestination, "404")},
	{"404 with an error that is nested without end", fedtest.HTTP1(fedtest.Answer(404, "", `{"errcode": `+strings.Repeat("[", 1<<20))), answers(404, freshen.BlameDestination, "404").large()},
	{"407", fedtest.HTTP1(fedtest.Answer(407, "Proxy-Authenticate: Basic", "")), answers(407, freshen.BlameDestination, "407")},
	{"418 with a code that is none", fedtest.HTTP1(fedtest.Answer(418, "", `{"errcode": "<script>alert(1)</script>"}`)), answers(418, freshen.BlameDestination, "418")},
	{"421", fedtest.HTTP1(fedtest.Answer(421, "", "")), answers(421, freshen.BlameDestination, "421")},
	{"429 with a date gone by", fedtest.HTTP1(fedtest.Answer(429, "Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", "")), answers(429, freshen.BlameDestination, "429: too many requests.")},
	{"429 for an age", fedtest.HTTP1(fedtest.Answer(429, "Retry-After: 99999999999999999999", "")), answers(429, freshen.BlameDestination, "429: too many requests")},
	{"429 for a year", fedtest.HTTP1(fedtest.Answer(429, "Retry-After: 31536000", "")), answers(429, freshen.BlameDestination, "asks to wait 24 h.")},
	{"429 for a negative time", fedtest.HTTP1(fedtest.Answer(429, "Retry-After: -1", `{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": -1}`)), answers(429, freshen.BlameDestination, "429: too many requests.")},
	{"429 for nonsense", fedtest.HTTP1(fedtest.Answer(429, "Retry-After: soon", `{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": {"a": [1]}}`)), answers(429, freshen.BlameDestination, "429: too many requests.")},

	{"500 with 20 MiB", fedtest.HTTP1(fedtest.HugeError(500, 20<<20)), answers(500, freshen.BlameDestination, "500").large()},
	{"500 with 64 MiB announced", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 500 Oops\nContent-Length: 67108864\n\n{")), answers(500, freshen.BlameDestination, "500")},
	{"500 that drips", fedtest.HTTP1(fedtest.DripAfter("HTTP/1.1 500 Oops\nContent-Length: 100000\n\n", 20*time.Millisecond)), answers(500, freshen.BlameDestination, "500").slowly()},
	{"500 with a list", fedtest.HTTP1(fedtest.Answer(500, "", goodList)), answers(500, freshen.BlameDestination, "in trouble")},
	{"502", fedtest.HTTP1(fedtest.Answer(502, "", "Bad Gateway")), answers(502, freshen.BlameDestination, "in trouble")},
	{"503 with an error", fedtest.HTTP1(fedtest.Answer(503, "", `{"errcode": "M_UNKNOWN", "error": "starting"}`)), answers(503, freshen.BlameDestination, "M_UNKNOWN")},
}

func redirects(status int, to string) fedtest.Script {
	return fedtest.Bytes(fmt.Sprintf("HTTP/1.1 %d %s\nLocation: %s\nContent-Length: 0\n\n", status, http.StatusText(status), to))
}

// hostileCompression are servers that compress although nobody asked for it.
var hostileCompression = []row{
	{"gzip", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip", fedtest.Gzip(goodList))), bad("compressed (gzip)")},
	{"gzip over HTTP/2", fedtest.HTTP2(fedtest.Says2(fedtest.Gzip(goodList), ":status", "200", "content-encoding", "gzip")), bad("compressed (gzip)")},
	{"gzip in capitals", fedtest.HTTP1(fedtest.Answer(200, "CONTENT-ENCODING: GZIP", fedtest.Gzip(goodList))), bad("compressed (GZIP)")},
	{"gzip that does not say so", fedtest.HTTP1(fedtest.Answer(200, "", fedtest.Gzip(goodList))), bad("cannot be used")},
	{"gzip twice", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip, gzip", fedtest.Gzip(fedtest.Gzip(goodList)))), bad("compressed (gzip, gzip)")},
	{"bomb of 32 MiB in gzip", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip", bomb)), bad("compressed (gzip)")},
	{"bomb of 32 MiB in gzip over HTTP/2", fedtest.HTTP2(fedtest.Says2(bomb, ":status", "200", "content-encoding", "gzip")), bad("compressed (gzip)")},
	{"bomb in an error", fedtest.HTTP1(fedtest.Answer(404, "Content-Encoding: gzip", bomb)), answers(404, freshen.BlameDestination, "404")},
	{"half a gzip", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip", "\x1f\x8b\x08\x00")), bad("compressed (gzip)")},
	{"says gzip, is plain, which is well", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: gzip", goodList)), lists(0)},
	{"deflate", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: deflate", fedtest.Deflate(goodList))), bad("compressed (deflate)")},
	// A raw block of zstandard (RFC 8878 §3.1.1.2), and an uncompressed meta-block of Brotli (RFC 7932 §9.2).
	{"zstd", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: zstd", "\x28\xb5\x2f\xfd\x20\x02\x11\x00\x00{}")), bad("compressed (zstd)")},
	{"br", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: br", "\x0b\x00\x80{}\x03")), bad("compressed (br)")},
	{"an encoding with tricks in its name", fedtest.HTTP1(fedtest.Answer(200, "Content-Encoding: <b>\u202e"+strings.Repeat("x", 100), "x")), bad("compressed (<b> xxx")},
	{"gzip as the transfer encoding", fedtest.HTTP1(fedtest.Bytes("HTTP/1.1 200 OK\nTransfer-Encoding: gzip\n\n" + fedtest.Gzip(goodList))), connects("no usable HTTP")},
}

// bomb is 32 MiB of zeros in 32 KiB, as 32 members (RFC 1952 §2.2).
var bomb = strings.Repeat(fedtest.Gzip(strings.Repeat("\x00", 1<<20)), 32)
