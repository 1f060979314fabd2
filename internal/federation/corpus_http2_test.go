package federation_test

import (
	"context"
	"strings"

	"golang.org/x/net/http2"

	"freshen"
	"freshen/internal/federation/fedtest"
)

const many = 10_000

// hostileHTTP2 are servers that break HTTP/2 (RFC 9113), frame by frame.
var hostileHTTP2 = []row{
	{"a list, which is well", then2((*fedtest.H2).Good), lists(0)},
	{"hangs", fedtest.HTTP2(hang2), timesOut("did not answer within ")},
	{"no SETTINGS and nothing else", fedtest.Mute2(hang2), timesOut("did not answer within ")},
	{"no SETTINGS, but an answer", mute2(func(h *fedtest.H2) { h.HeadersOn(1, true, ":status", "204") }), connects("")},
	{"GOAWAY at once", mute2(func(h *fedtest.H2) { _ = h.WriteSettings(); _ = h.WriteGoAway(0, http2.ErrCodeNo, nil) }), connects("")},
	{"GOAWAY at once, enhance your calm", mute2(func(h *fedtest.H2) {
		_ = h.WriteSettings()
		_ = h.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("too_many_pings"))
	}), connects("")},
	{"GOAWAY in place of an answer", then2(func(h *fedtest.H2) { _ = h.WriteGoAway(h.Stream, http2.ErrCodeInternal, nil); h.HangUp() }), connects("")},
	{"GOAWAY that does not count the request", then2(func(h *fedtest.H2) { _ = h.WriteGoAway(0, http2.ErrCodeNo, nil) }), connects("")},
	{"GOAWAY with 16 KiB of reasons", then2(func(h *fedtest.H2) { _ = h.WriteGoAway(h.Stream, http2.ErrCodeNo, make([]byte, 16000)); h.Good() }), lists(0)},
	{"hangs up", then2(func(h *fedtest.H2) { h.HangUp() }), connects("broke the connection before it answered")},
	{"reset: internal error", reset2(http2.ErrCodeInternal), connects("")},
	{"reset: cancel", reset2(http2.ErrCodeCancel), connects("")},
	{"reset: no error", reset2(http2.ErrCodeNo), connects("")},
	{"reset: use HTTP/1.1", reset2(http2.ErrCodeHTTP11Required), connects("")},
	{"reset: refused, for ever", reset2(http2.ErrCodeRefusedStream), connects("").slowly().otherwise(timesOut(""))},
	{"reset in the middle of the body", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		h.Data(false, `{"user_id"`)
		_ = h.WriteRSTStream(h.Stream, http2.ErrCodeInternal)
	}), connects("in the middle of its answer")},
	{"hangs up in the middle of the body", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		h.Data(false, `{"user_id"`)
		h.HangUp()
	}), connects("in the middle of its answer")},

	{"many SETTINGS", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WriteSettings() })), timesOut("did not answer within ")},
	{"many SETTINGS, and reads nothing", fedtest.Deaf2(fedtest.Flood2(200*many, func(h *fedtest.H2, _ int) error { return h.WriteSettings() })), timesOut("did not answer within ")},
	{"many PING", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WritePing(false, [8]byte{}) })), timesOut("did not answer within ")},
	{"many PING, and reads nothing", fedtest.Deaf2(fedtest.Flood2(200*many, func(h *fedtest.H2, _ int) error { return h.WritePing(false, [8]byte{}) })), timesOut("did not answer within ")},
	{"many answers to no PING", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WritePing(true, [8]byte{}) })), timesOut("did not answer within ")},
	{"many WINDOW_UPDATE", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WriteWindowUpdate(0, 1) })), timesOut("did not answer within ")},
	{"many frames of no known kind", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WriteRawFrame(0xbe, 0, 0, []byte("unknown")) })), timesOut("did not answer within ")},
	{"many PRIORITY", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, i int) error { return h.WritePriority(uint32(2*i+1), http2.PriorityParam{}) })), timesOut("did not answer within ")},
	{"many resets of streams that are none", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WriteRSTStream(h.Stream+2, http2.ErrCodeCancel) })), timesOut("did not answer within ")},
	{"CONTINUATION for ever", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, i int) error {
		if i == 0 {
			return h.Split(h.Block(":status", "200"), 100, false)
		}
		return h.WriteContinuation(h.Stream, false, h.Block("x-flood", strings.Repeat("x", 8000)))
	})), connects("")},
	{"empty CONTINUATION for ever", fedtest.HTTP2(fedtest.Flood2(many, func(h *fedtest.H2, i int) error {
		if i == 0 {
			return h.Split(h.Block(":status", "200"), 100, false)
		}
		return h.WriteContinuation(h.Stream, false, nil)
	})), timesOut("did not answer within ")},
	{"a header block of 1 MiB", then2(func(h *fedtest.H2) {
		_ = h.Split(h.Block(":status", "200", "x-big", strings.Repeat("\x01", 1<<20)), 16000, true)
	}), connects("").allocates(8)},
	{"a header block that unpacks to 64 MiB", then2(func(h *fedtest.H2) { _ = h.Split(h.Bomb(16<<10), 16000, true) }), connects("")},
	{"a header table of 4 GiB", then2(func(h *fedtest.H2) { h.Raw(http2.FrameHeaders, 0x5, h.Stream, "\x3f\xe1\xff\xff\xff\x0f\x88") }), connects("")},
	{"a header block that is none", then2(func(h *fedtest.H2) {
		h.Raw(http2.FrameHeaders, 0x5, h.Stream, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")
	}), connects("")},
	{"a header that is in no table", then2(func(h *fedtest.H2) { h.Raw(http2.FrameHeaders, 0x5, h.Stream, "\xfe") }), connects("")},
	{"no status", then2(func(h *fedtest.H2) { h.Headers(true, "x", "y") }), connects("")},
	{"two statuses", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "200", ":status", "404") }), connects("")},
	{"status that is a word", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "fine") }), connects("")},
	{"status after the headers", then2(func(h *fedtest.H2) { h.Headers(true, "x", "y", ":status", "200") }), connects("")},
	{"header with a line end", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "200", "x", "a\r\nb: c") }), connects("")},
	{"header in capitals", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "200", "X-Capital", "y") }), connects("")},
	{"a request's pseudo-header", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "200", ":path", "/") }), connects("")},
	{"103 for ever", then2(func(h *fedtest.H2) {
		for range many {
			h.Headers(false, ":status", "103")
		}
	}), connects("")},
	{"101", then2(func(h *fedtest.H2) { h.Headers(false, ":status", "101") }), timesOut("did not answer within ")},
	{"103 that ends the answer", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "103") }), connects("")},

	{"a window of nothing for us, which is well", then2(func(h *fedtest.H2) {
		_ = h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		h.Good()
	}), lists(0)},
	{"no stream allowed", mute2(func(h *fedtest.H2) { _ = h.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0}) }), timesOut("within ")},
	{"a window beyond all windows", then2(func(h *fedtest.H2) { h.Raw(http2.FrameSettings, 0, 0, "\x00\x04\xff\xff\xff\xff") }), connects("")},
	{"window grown beyond all windows", then2(func(h *fedtest.H2) { _ = h.WriteWindowUpdate(0, 1<<31-1); _ = h.WriteWindowUpdate(0, 1<<31-1) }), connects("")},
	{"window grown by nothing", then2(func(h *fedtest.H2) { h.Raw(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00") }), connects("")},
	{"frames of one byte demanded", then2(func(h *fedtest.H2) { h.Raw(http2.FrameSettings, 0, 0, "\x00\x05\x00\x00\x00\x01") }), connects("")},
	{"SETTINGS cut short", then2(func(h *fedtest.H2) { h.Raw(http2.FrameSettings, 0, 0, "\x00\x04\x00") }), connects("")},
	{"SETTINGS on a stream", then2(func(h *fedtest.H2) { h.Raw(http2.FrameSettings, 0, h.Stream, "") }), connects("")},
	{"PING cut short", then2(func(h *fedtest.H2) { h.Raw(http2.FramePing, 0, 0, "1234") }), connects("")},
	{"a frame of 16 MiB", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		h.Raw(http2.FrameData, 0, h.Stream, strings.Repeat("x", 16<<20-1))
	}), connects("in the middle of its answer").allocates(40)},
	{"pushes", then2(func(h *fedtest.H2) {
		_ = h.WritePushPromise(http2.PushPromiseParam{StreamID: h.Stream, PromiseID: 2, EndHeaders: true, BlockFragment: h.Block(":method", "GET", ":path", "/", ":scheme", "https", ":authority", "a")})
	}), connects("")},
	{"answers on a stream of its own", then2(func(h *fedtest.H2) { h.HeadersOn(2, true, ":status", "200") }), timesOut("did not answer within ")},
	{"answers on a stream that we did not open", then2(func(h *fedtest.H2) { h.HeadersOn(h.Stream+2, true, ":status", "200") }), timesOut("did not answer within ")},
	{"HEADERS on no stream", then2(func(h *fedtest.H2) { h.HeadersOn(0, true, ":status", "200") }), connects("")},
	{"a body before the headers", then2(func(h *fedtest.H2) { h.Data(true, goodList) }), connects("")},
	{"DATA on no stream", then2(func(h *fedtest.H2) { h.Raw(http2.FrameData, 0, 0, "x") }), connects("")},
	{"DATA of nothing but padding", then2(func(h *fedtest.H2) { h.Headers(false, ":status", "200"); h.Raw(http2.FrameData, 0x9, h.Stream, "\x05") }), connects("in the middle of its answer")},
	{"DATA between HEADERS and CONTINUATION", then2(func(h *fedtest.H2) { _ = h.Split(h.Block(":status", "200"), 1, false); h.Data(true, goodList) }), connects("")},
	{"CONTINUATION of nothing", then2(func(h *fedtest.H2) { _ = h.WriteContinuation(h.Stream, true, h.Block(":status", "200")) }), connects("")},

	{"no body", then2(func(h *fedtest.H2) { h.Headers(true, ":status", "200") }), bad("cannot be used")},
	{"body longer than its length", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200", "content-length", "10")
		h.Data(true, goodList)
	}), connects("in the middle of its answer")},
	{"body shorter than its length", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200", "content-length", "1000")
		h.Data(true, goodList)
	}), connects("in the middle of its answer")},
	{"64 MiB announced", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200", "content-length", "67108864")
		h.Data(false, "{")
	}), bad("more than the 16 MiB")},
	{"40 MiB", fedtest.HTTP2(func(_ context.Context, h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		for range 2560 {
			h.Data(false, strings.Repeat("x", 16<<10)) // the window is not heeded
		}
	}), bad("more than the 16 MiB").otherwise(connects("in the middle of its answer")).large()},
	{"trailers, which is well", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		h.Data(false, goodList)
		h.Headers(true, "x-trailer", "y")
	}), lists(0)},
	{"trailers that end nothing", then2(func(h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		h.Data(false, goodList)
		h.Headers(false, "x-trailer", "y")
	}), connects("in the middle of its answer")},
	{"list comes, its end does not", fedtest.HTTP2(func(gone context.Context, h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		h.Data(false, goodList)
		<-gone.Done()
	}), timesOut(noEnd)},
	{"many bytes in a frame each", fedtest.HTTP2(func(gone context.Context, h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WriteData(h.Stream, false, []byte(" ")) })(gone, h)
	}), timesOut(noEnd)},
	{"many empty DATA", fedtest.HTTP2(func(gone context.Context, h *fedtest.H2) {
		h.Headers(false, ":status", "200")
		fedtest.Flood2(many, func(h *fedtest.H2, _ int) error { return h.WriteData(h.Stream, false, nil) })(gone, h)
	}), timesOut(noEnd)},
	{"a second answer on the same stream", then2(func(h *fedtest.H2) {
		h.Good()
		h.Headers(false, ":status", "200")
		h.Data(true, `{"user_id": "$user", "devices": [{"device_id": "SECOND", "keys": {}}]}`)
	}), lists(0)},
	{"404 with an error", then2(func(h *fedtest.H2) { h.Headers(false, ":status", "404"); h.Data(true, `{"errcode": "M_NOT_FOUND"}`) }), answers(404, freshen.BlameUser, "M_NOT_FOUND")},
	{"308", fedtest.HTTP2(fedtest.Says2("", ":status", "308", "location", "https://127.0.0.1/")), answers(308, freshen.BlameDestination, "308, a redirect")},
}

func hang2(gone context.Context, _ *fedtest.H2) { <-gone.Done() }

func then2(answer func(*fedtest.H2)) fedtest.Server {
	return fedtest.HTTP2(func(_ context.Context, h *fedtest.H2) { answer(h) })
}

func mute2(begin func(*fedtest.H2)) fedtest.Server {
	return fedtest.Mute2(func(gone context.Context, h *fedtest.H2) { begin(h); <-gone.Done() })
}

func reset2(code http2.ErrCode) fedtest.Server {
	return then2(func(h *fedtest.H2) { _ = h.WriteRSTStream(h.Stream, code) })
}
