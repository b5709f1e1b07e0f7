package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/test/await"
)

// Many frames that make the Server keep memory for the connection, or that break the protocol, end the connection.
// Frames that cost only being read do not. Other clients are served meanwhile. With memory set the connection is in
// memory: the client reads nothing, and no kernel buffers hold what the client does not read.
func TestFloods(t *testing.T) {
	for name, tt := range map[string]struct {
		memory bool
		most   int
		cut    bool
		send   func(h *h2, i int) error
	}{
		"PING":               {true, 30_000, true, func(h *h2, _ int) error { return h.framer.WritePing(false, [8]byte{}) }},
		"streams":            {true, 30_000, true, func(h *h2, _ int) error { return h.open(true) }},
		"uploads":            {true, 30_000, true, func(h *h2, _ int) error { return h.open(false) }},
		"reset of nothing":   {false, 1 << 30, true, func(h *h2, i int) error { return h.framer.WriteRSTStream(uint32(2*i+101), http2.ErrCodeCancel) }},
		"CONTINUATION":       {false, 1 << 30, true, func(h *h2, i int) error { return h.continuation(i, []byte("\x00\x01x\x40"+strings.Repeat("a", 64))) }},
		"empty CONTINUATION": {true, 100_000, false, func(h *h2, i int) error { return h.continuation(i, nil) }},
		"SETTINGS":           {true, 100_000, false, func(h *h2, _ int) error { return h.framer.WriteSettings() }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) {
				if io.Copy(io.Discard, req.Body); req.Method == http.MethodPost {
					<-req.Context().Done()
				}
			})))
			l := make(pipes)
			served := make(chan error, 1)
			go func() { served <- r.ServeHTTP(t.Context(), l) }()
			defer func() { close(l); <-served }()
			before := inUse()
			var h *h2
			if tt.memory {
				h = newH2(t, l.dial("192.0.2.1"))
			} else {
				h = r.dialH2(nil)
			}
			sent := 0
			for sent < tt.most && tt.send(h, sent) == nil {
				if sent++; sent == 1000 {
					if a := r.dialH2(nil).get("/"); a.status != "200" {
						t.Errorf("another client got %+v", a)
					}
				}
			}
			grown := inUse() - before
			t.Logf("%d frames were sent; %d KB more in use; %d requests begun", sent, grown>>10, r.Stats().Requests)
			if (sent < tt.most) != tt.cut {
				t.Errorf("after %d frames of %d: cut is %v", sent, tt.most, !tt.cut)
			}
			if grown > 64<<20 {
				t.Errorf("%d MB more are in use", grown>>20)
			}
		})
	}
}

// inUse returns the bytes of heap and stacks that this process uses.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// open begins a POST, which the backend does not answer; end says that it has no body.
func (h *h2) open(end bool) error {
	h.block.Reset()
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "any.test"}, {":path", "/"}} {
		h.write(f[0], f[1])
	}
	id := h.next
	h.next += 2
	return h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndHeaders: true, EndStream: end})
}

// continuation sends the i-th frame of a header that never ends.
func (h *h2) continuation(i int, block []byte) error {
	if i == 0 {
		return h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: nil})
	}
	return h.framer.WriteContinuation(1, false, block)
}

// The size of headers is limited. In HTTP/2 the size after decompression counts.
func TestHeaderSizes(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, plainOK)))
	large, most := strings.Repeat("x", 4000), maxHeaderBytes/4000
	for _, tt := range []struct {
		fields     int
		one, other string
	}{{most - 2, "200", "200"}, {most + 2, "431", "431"}} {
		w := r.dial()
		var head strings.Builder
		fmt.Fprint(&head, "GET / HTTP/1.1\r\nHost: any.test\r\n")
		var fields []string
		for i := range tt.fields {
			fmt.Fprintf(&head, "X-%d: %s\r\n", i, large)
			fields = append(fields, "x", large) // after the first, each takes one byte: an index of the HPACK table
		}
		w.say(head.String() + "\r\n")
		if got := fmt.Sprint(w.answer(t, "GET").StatusCode); got != tt.one {
			t.Errorf("%d bytes over HTTP/1.1: got %s, want %s", head.Len(), got, tt.one)
		}
		if got := r.dialH2(nil).get("/", fields...).status; got != tt.other {
			t.Errorf("%d bytes over HTTP/2: got %s, want %s", head.Len(), got, tt.other)
		}
	}
}

// stallTest is how long a client may stall in these tests. It is long enough for a busy machine to write to a client
// that does not stall.
const stallTest = time.Second

// A client that stops in the middle of a body gets 408, and the backend sees that the request is not whole.
func TestStalledBody(t *testing.T) {
	got := make(chan error, 2)
	r := newRig(t, Options{StallTimeout: stallTest}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) {
		_, err := io.Copy(io.Discard, req.Body)
		got <- err
	})))
	w := r.dial()
	w.say("POST / HTTP/1.1\r\nHost: any.test\r\nContent-Length: 10\r\n\r\nhalf")
	resp := w.answer(t, "POST")
	if readAll(t, resp); resp.StatusCode != http.StatusRequestTimeout || !resp.Close {
		t.Errorf("got %d, closing %v", resp.StatusCode, resp.Close)
	}
	if err := <-got; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the backend saw %v", err)
	}
	if !w.gone() {
		t.Error("the connection is still there")
	}
	h := r.dialH2(nil)
	id := h.headers(false, ":method", "POST", ":scheme", "http", ":authority", "any.test", ":path", "/")
	if a := h.read(id); a.status != "408" {
		t.Errorf("HTTP/2: got %+v", a)
	}
	if err := <-got; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the backend saw %v", err)
	}
	if n := r.Stats().ClientBroke; n != 2 {
		t.Errorf("ClientBroke is %d", n)
	}
}

// A client that does not read its responses is cut off, whether there is one response or many, large or small.
func TestStalledReader(t *testing.T) {
	large := strings.Repeat("x", 64<<20)
	r := newRig(t, Options{StallTimeout: stallTest}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/small" {
			io.WriteString(w, strings.Repeat("x", 1800)) // less than net/http writes before the handler returns
			return
		}
		io.WriteString(w, large)
	})))
	const get = "GET /%s HTTP/1.1\r\nHost: any.test\r\n\r\n"
	w := r.dial()
	fmt.Fprintf(w, get, "large")
	await.Until(t, "the reader of a large response is cut off", func() bool { s := r.Stats(); return s.Broken == 1 && s.Conns == 0 })

	h := r.dialH2(nil)
	h.headers(true, ":method", "GET", ":scheme", "http", ":authority", "any.test", ":path", "/large")
	await.Until(t, "and in HTTP/2", func() bool { s := r.Stats(); return s.Broken == 2 && s.InFlight == 0 })
	h.conn.Close()

	// No window at all: even the smallest response has no room.
	h = r.dialH2(nil, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	if a := h.get("/small"); a.status != "200" || a.reset != "INTERNAL_ERROR" {
		t.Errorf("without a window: got %+v", a)
	}

	// Many responses in a row, of which none is read.
	h.conn.Close()
	c := r.deaf()
	go func() {
		for {
			if _, err := fmt.Fprintf(c, get, "small"); err != nil {
				return
			}
		}
	}()
	await.Until(t, "many are answered", func() bool { return r.Stats().Requests > 10 })
	await.Until(t, "who reads none of many responses is cut off", func() bool { return r.Stats().Conns == 0 })
}

// deaf connects a client whose kernel buffers little that the client does not read.
func (r *rig) deaf() net.Conn {
	r.t.Helper()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		// With a much smaller buffer the kernel drops acknowledgements of what the client sends, and the client stalls.
		return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) })
	}}
	c, err := d.Dial("tcp", r.http)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// pipes is a listener in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects a client that has the address addr.
func (p pipes) dial(addr string) net.Conn {
	near, far := net.Pipe()
	p <- addressed{far, &net.TCPAddr{}, &net.TCPAddr{IP: net.ParseIP(addr)}}
	return near
}

// A connection without a whole request ends when its time is over.
func TestSlowConnections(t *testing.T) {
	for _, tt := range []struct {
		name   string
		secure bool
		sent   string        // at once
		drip   string        // then, once a second
		ends   time.Duration // counted from the beginning
	}{
		{"nothing", false, "", "", headerTimeout},
		{"half a head", false, "GET / HTTP/1.1\r\nHost: a\r\n", "", headerTimeout},
		{"a head byte by byte", false, "GET / HTTP/1.1\r\nHost: a\r\nX: ", "x", headerTimeout},
		{"header by header", false, "GET / HTTP/1.1\r\nHost: a\r\n", "X: 1\r\n", headerTimeout},
		{"nothing over TLS", true, "", "", headerTimeout},
		{"half a handshake", true, "\x16\x03\x01\x02\x00", "\x01", headerTimeout},
		{"idle", false, "GET /none HTTP/1.1\r\nHost: a\r\n\r\n", "", idleTimeout},
		{"idle, then half a head", false, "GET /none HTTP/1.1\r\nHost: a\r\n\r\nGET /", "", headerTimeout},
		{"half a preface", false, "PRI * HTTP/2.0\r\n", "", headerTimeout},
		{"a preface and no more", false, http2.ClientPreface, "", 2 * time.Second},
		{"settings and no more", false, http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00", "", 2 * pingTimeout},
		// A HEADERS frame of 10 bytes without its end, and CONTINUATION frames that never end it.
		{"half a header in HTTP/2", false, http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x00\x01\x00\x00\x00\x00\x01", "\x00\x00\x00\x09\x00\x00\x00\x00\x01", 2 * pingTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(Options{})
				l := make(pipes)
				served := make(chan error, 1)
				go func() {
					serve := s.ServeHTTP
					if tt.secure {
						serve = s.ServeHTTPS
					}
					served <- serve(t.Context(), l)
				}()
				near := l.dial("192.0.2.1")
				start := time.Now()
				var client sync.WaitGroup
				client.Go(func() {
					io.WriteString(near, tt.sent)
					for tt.drip != "" {
						time.Sleep(time.Second)
						if _, err := io.WriteString(near, tt.drip); err != nil {
							return
						}
					}
				})
				io.Copy(io.Discard, near)
				if lasted := time.Since(start); lasted > tt.ends || lasted < tt.ends/2 {
					t.Errorf("it was there for %v, want %v", lasted, tt.ends)
				}
				near.Close()
				client.Wait()
				close(l)
				s.Shutdown(context.Background())
				<-served
			})
		})
	}
}
