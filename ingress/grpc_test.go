package ingress

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"tapestry.dev/tapestry/test/await"
)

// h2Backend starts a backend that handles frames. play is called whenever more of a request's body has come, with the
// body so far, and when the request is whole.
func h2Backend(t *testing.T, play func(h *h2, stream uint32, body string, whole bool)) netip.AddrPort {
	t.Helper()
	return connBackend(t, func(c net.Conn) { serveH2(c, play) })
}

func serveH2(c net.Conn, play func(h *h2, stream uint32, body string, whole bool)) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(await.Patience))
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	h := &h2{conn: c, framer: http2.NewFramer(c, c)}
	h.enc = hpack.NewEncoder(&h.block)
	h.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.framer.WriteSettings()
	bodies := map[uint32]string{}
	for {
		f, err := h.framer.ReadFrame()
		if err != nil {
			return
		}
		id, ended, more := f.Header().StreamID, false, false
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				h.framer.WriteSettingsAck()
			}
		case *http2.MetaHeadersFrame:
			ended = f.StreamEnded()
		case *http2.DataFrame:
			bodies[id] += string(f.Data())
			ended, more = f.StreamEnded(), true
			if n := uint32(len(f.Data())); n > 0 {
				h.framer.WriteWindowUpdate(0, n)
				h.framer.WriteWindowUpdate(id, n)
			}
		}
		if ended || more {
			play(h, id, bodies[id], ended)
		}
	}
}

// respond sends a block of fields, names and values in turn.
func (h *h2) respond(stream uint32, end bool, fields ...string) {
	h.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		h.write(fields[i], fields[i+1])
	}
	h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.block.Bytes(), EndHeaders: true, EndStream: end})
}

// When a backend says that it did not begin a stream, as a gRPC server does when it shuts down, the stream is sent
// again over another connection, to the same backend or to another one (RFC 9113 sections 6.8 and 8.7). A stream that a
// backend may have begun is not sent again.
func TestStreamsThatWereNotBegun(t *testing.T) {
	small, large := "hello", strings.Repeat("x", 3*replayBytes)
	for _, tt := range []struct {
		name, body string
		refuse     func(h *h2, stream uint32)
		status     string
		bodies     int // that backends got
	}{
		{"GOAWAY", small, func(h *h2, _ uint32) { h.framer.WriteGoAway(0, http2.ErrCodeNo, nil) }, "200", 2},
		{"GOAWAY and the end", small, func(h *h2, _ uint32) { h.framer.WriteGoAway(0, http2.ErrCodeNo, nil); h.conn.Close() }, "200", 2},
		{"REFUSED_STREAM", small, func(h *h2, id uint32) { h.framer.WriteRSTStream(id, http2.ErrCodeRefusedStream) }, "200", 2},
		{"no body", "", func(h *h2, _ uint32) { h.framer.WriteGoAway(0, http2.ErrCodeNo, nil) }, "200", 2},
		{"more than is kept", large, func(h *h2, _ uint32) { h.framer.WriteGoAway(0, http2.ErrCodeNo, nil) }, "502", 1},
		{"CANCEL", small, func(h *h2, id uint32) { h.framer.WriteRSTStream(id, http2.ErrCodeCancel) }, "502", 1},
		{"INTERNAL_ERROR", small, func(h *h2, id uint32) { h.framer.WriteRSTStream(id, http2.ErrCodeInternal) }, "502", 1},
		{"the end alone", small, func(h *h2, _ uint32) { h.conn.Close() }, "502", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			var bodies []string
			r := newRig(t, Options{}, anyRoute(h2Backend(t, func(h *h2, stream uint32, body string, whole bool) {
				if !whole {
					return
				}
				mu.Lock()
				bodies = append(bodies, body)
				first := len(bodies) == 1
				mu.Unlock()
				if first {
					tt.refuse(h, stream)
					return
				}
				h.respond(stream, false, ":status", "200", "content-type", "application/grpc")
				h.respond(stream, true, "grpc-status", "0")
			})))
			h := r.dialH2(nil)
			id := h.headers(tt.body == "", ":method", "POST", ":scheme", "http", ":authority", "any.test", ":path", "/pkg.Service/M",
				"content-type", "application/grpc", "te", "trailers")
			for rest := tt.body; rest != ""; {
				n := min(len(rest), 10<<10)
				h.framer.WriteData(id, n == len(rest), []byte(rest[:n]))
				rest = rest[n:]
			}
			if a := h.read(id); a.status != tt.status {
				t.Errorf("got %+v, want status %s", a, tt.status)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(bodies) != tt.bodies {
				t.Errorf("the backend got the request %d times, want %d", len(bodies), tt.bodies)
			}
			for _, b := range bodies {
				if b != tt.body {
					t.Errorf("the backend got %d bytes, want %d", len(b), len(tt.body))
				}
			}
		})
	}
}

// openStream begins a stream with one message, leaves it open, and returns its number.
func (h *h2) openStream(message string) uint32 {
	h.t.Helper()
	id := h.headers(false, ":method", "POST", ":scheme", "http", ":authority", "any.test", ":path", "/pkg.Service/M", "content-type", "application/grpc", "te", "trailers")
	if err := h.framer.WriteData(id, false, []byte(message)); err != nil {
		h.t.Fatal(err)
	}
	return id
}

// A stream that is open in both directions is begun again with what was sent, and goes on.
func TestStreamGoesOnElsewhere(t *testing.T) {
	var refused atomic.Bool
	said := make(chan string, 8)
	r := newRig(t, Options{}, anyRoute(h2Backend(t, func(h *h2, stream uint32, body string, whole bool) {
		if refused.CompareAndSwap(false, true) {
			h.framer.WriteGoAway(0, http2.ErrCodeNo, nil)
			return
		}
		if said <- body; whole {
			h.respond(stream, false, ":status", "200", "content-type", "application/grpc")
			h.respond(stream, true, "grpc-status", "0")
		}
	})))
	h := r.dialH2(nil)
	id := h.openStream("one")
	if got := <-said; got != "one" {
		t.Errorf("the second connection begins with %q", got)
	}
	h.framer.WriteData(id, true, []byte("two"))
	if got := <-said; got != "onetwo" {
		t.Errorf("the second connection goes on with %q", got)
	}
	if a := h.read(id); a.status != "200" || a.trailer["grpc-status"] == nil {
		t.Errorf("got %+v", a)
	}
}

// When a backend ends a stream the client gets the end at once, also while the client's side is open and silent.
func TestBackendEndsAnOpenStream(t *testing.T) {
	for _, tt := range []struct {
		name                  string
		end                   func(h *h2, stream uint32)
		status, grpc, aborted string
	}{
		{"with a status", func(h *h2, id uint32) {
			h.respond(id, false, ":status", "200", "content-type", "application/grpc")
			h.framer.WriteData(id, false, []byte("x"))
			h.respond(id, true, "grpc-status", "3")
		}, "200", "3", ""},
		{"and the rest of the request", func(h *h2, id uint32) {
			h.respond(id, false, ":status", "200", "content-type", "application/grpc")
			h.respond(id, true, "grpc-status", "3")
			h.framer.WriteRSTStream(id, http2.ErrCodeNo) // RFC 9113 section 8.1
		}, "200", "3", ""},
		{"with a status alone", func(h *h2, id uint32) {
			h.respond(id, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "12")
		}, "200", "12", ""},
		{"by a reset", func(h *h2, id uint32) { h.framer.WriteRSTStream(id, http2.ErrCodeInternal) }, "502", "", ""},
		{"by a reset in the middle", func(h *h2, id uint32) {
			h.respond(id, false, ":status", "200", "content-type", "application/grpc")
			h.framer.WriteRSTStream(id, http2.ErrCodeInternal)
		}, "200", "", "INTERNAL_ERROR"},
		{"by closing", func(h *h2, _ uint32) { h.conn.Close() }, "502", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Options{}, anyRoute(h2Backend(t, func(h *h2, stream uint32, _ string, _ bool) { tt.end(h, stream) })))
			h := r.dialH2(nil)
			a := h.read(h.openStream("hello"))
			grpc := strings.Join(append(a.header["grpc-status"], a.trailer["grpc-status"]...), " ")
			if a.status != tt.status && (a.reset == "" || tt.aborted == "") || grpc != tt.grpc || a.reset != tt.aborted {
				t.Errorf("got %+v, want status %s, grpc-status %q, %s", a, tt.status, tt.grpc, tt.aborted)
			}
		})
	}
}

// A gRPC stream may be silent for longer than the body of another request.
func TestQuietStream(t *testing.T) {
	heard := make(chan struct{}, 1)
	r := newRig(t, Options{StallTimeout: stallTest}, anyRoute(h2Backend(t, func(h *h2, stream uint32, body string, whole bool) {
		switch {
		case whole:
			h.respond(stream, true, "grpc-status", "0")
		case body == "hello":
			h.respond(stream, false, ":status", "200", "content-type", "application/grpc")
			heard <- struct{}{}
		}
	})))
	h := r.dialH2(nil)
	id := h.openStream("hello")
	<-heard
	for range 2 { // the second 408 comes well after the stream would have ended
		other := r.dialH2(nil)
		if a := other.read(other.headers(false, ":method", "POST", ":scheme", "http", ":authority", "any.test", ":path", "/")); a.status != "408" {
			t.Fatalf("a body that pauses: got %+v", a)
		}
	}
	h.framer.WriteData(id, true, []byte("again"))
	if a := h.read(id); a.status != "200" || a.trailer["grpc-status"] == nil {
		t.Errorf("a stream that pauses: got %+v", a)
	}
}
