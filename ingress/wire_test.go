package ingress

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"tapestry.dev/tapestry/test/await"
)

// settingsWindow lets the Server send a megabyte on a stream before it waits for more room.
var settingsWindow = http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}

// wireBackend starts a backend that handles bytes. play is called after the head of each request.
func wireBackend(t *testing.T, play func(w *wire, head string)) netip.AddrPort {
	t.Helper()
	return connBackend(t, func(c net.Conn) {
		w := newWire(c)
		defer c.Close()
		for !w.closed {
			c.SetDeadline(time.Now().Add(await.Patience))
			head, err := w.until("\r\n\r\n")
			if err != nil {
				return
			}
			play(w, head)
		}
	})
}

// connBackend starts a backend that hands each connection to serve, and waits for all of them at the end of the test.
func connBackend(t *testing.T, serve func(c net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	return mustAddr(l)
}

func mustAddr(l net.Listener) netip.AddrPort { return netip.MustParseAddrPort(l.Addr().String()) }

// wire is a connection on which a test sees every byte.
type wire struct {
	net.Conn
	in     *bufio.Reader
	closed bool
}

func newWire(c net.Conn) *wire { return &wire{Conn: c, in: bufio.NewReader(c)} }

// until reads up to end, and returns what it read, end included.
func (w *wire) until(end string) (string, error) {
	var got []byte
	for !bytes.HasSuffix(got, []byte(end)) {
		b, err := w.in.ReadByte()
		if err != nil {
			return string(got), err
		}
		got = append(got, b)
	}
	return string(got), nil
}

func (w *wire) say(s string) { io.WriteString(w.Conn, s) }

// hangUp makes the backend close its connection when play returns.
func (w *wire) hangUp() { w.closed = true }

// capture keeps the heads of the requests that its backends get.
type capture struct {
	mu    sync.Mutex
	heads []string
}

func (c *capture) backend(t *testing.T, response string) netip.AddrPort {
	return wireBackend(t, func(w *wire, head string) {
		c.mu.Lock()
		c.heads = append(c.heads, head)
		c.mu.Unlock()
		w.say(response)
	})
}

// take returns the heads since the last call.
func (c *capture) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	heads := c.heads
	c.heads = nil
	return heads
}

const plainOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// dial connects to the rig without an HTTP client.
func (r *rig) dial() *wire {
	r.t.Helper()
	c, err := net.Dial("tcp", r.http)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(await.Patience))
	return newWire(c)
}

// answer reads one response to a request with that method.
func (w *wire) answer(t *testing.T, method string) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(w.in, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// h2 is an HTTP/2 client for which a test chooses the frames.
type h2 struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	block  bytes.Buffer
	enc    *hpack.Encoder
	next   uint32 // stream
}

// dialH2 connects to the rig's HTTP port, or to its HTTPS port when there is a TLS configuration.
func (r *rig) dialH2(config *tls.Config, settings ...http2.Setting) *h2 {
	r.t.Helper()
	var c net.Conn
	var err error
	if config == nil {
		c, err = net.Dial("tcp", r.http)
	} else {
		config.NextProtos = []string{"h2"}
		c, err = tls.Dial("tcp", r.https, config)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return newH2(r.t, c, settings...)
}

// newH2 begins HTTP/2 on a connection.
func newH2(t *testing.T, c net.Conn, settings ...http2.Setting) *h2 {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(await.Patience))
	h := &h2{t: t, conn: c, framer: http2.NewFramer(c, c), next: 1}
	h.enc = hpack.NewEncoder(&h.block)
	h.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.framer.AllowIllegalWrites = true
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := h.framer.WriteSettings(settings...); err != nil {
		t.Fatal(err)
	}
	if err := h.framer.WriteWindowUpdate(0, 1<<24); err != nil { // the connection's window; streams have their own
		t.Fatal(err)
	}
	return h
}

// write adds a field to the block of the next HEADERS frame.
func (h *h2) write(name, value string) {
	_ = h.enc.WriteField(hpack.HeaderField{Name: name, Value: value})
}

// headers sends a HEADERS frame on a new stream, and returns the stream's number. Fields are names and values in turn.
func (h *h2) headers(end bool, fields ...string) uint32 {
	h.t.Helper()
	h.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		h.write(fields[i], fields[i+1])
	}
	id := h.next
	h.next += 2
	if err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndHeaders: true, EndStream: end}); err != nil {
		h.t.Fatal(err)
	}
	return id
}

// get sends a GET for a path, with more fields, and returns the answer.
func (h *h2) get(path string, more ...string) *h2Answer {
	h.t.Helper()
	return h.read(h.headers(true, append([]string{":method", "GET", ":scheme", "http", ":authority", "any.test", ":path", path}, more...)...))
}

// h2Answer is the response that came on a stream.
type h2Answer struct {
	status  string
	interim []string
	header  map[string][]string
	trailer map[string][]string
	body    string
	reset   string // the code of RST_STREAM or GOAWAY, or "closed"
}

// read reads frames until the stream has ended or was cut.
func (h *h2) read(id uint32) *h2Answer {
	a := &h2Answer{}
	for {
		f, err := h.framer.ReadFrame()
		if err != nil {
			a.reset = "closed"
			return a
		}
		if h.take(a, id, f) {
			return a
		}
	}
}

// take adds a frame to an answer, and reports whether the stream has ended.
func (h *h2) take(a *h2Answer, id uint32, f http2.Frame) bool {
	if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
		h.framer.WriteSettingsAck()
	}
	if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
		a.reset = g.ErrCode.String()
		return true
	}
	if f.Header().StreamID != id {
		return false
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		fields := map[string][]string{}
		for _, hf := range f.RegularFields() {
			fields[hf.Name] = append(fields[hf.Name], hf.Value)
		}
		switch status := f.PseudoValue("status"); {
		case strings.HasPrefix(status, "1"):
			a.interim = append(a.interim, status)
		case status != "":
			a.status, a.header = status, fields
		default:
			a.trailer = fields
		}
		return f.StreamEnded()
	case *http2.DataFrame:
		a.body += string(f.Data())
		return f.StreamEnded()
	case *http2.RSTStreamFrame:
		a.reset = f.ErrCode.String()
		return true
	}
	return false
}

// firstLine returns the request line of a head.
func firstLine(head string) string {
	line, _, _ := strings.Cut(head, "\r\n")
	return line
}

// lines returns the header lines of a head, without the request line.
func lines(head string) []string {
	all := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
	return all[1:]
}

// asked sends a GET for the target over HTTP/1.1 and over HTTP/2, and returns the status of both.
func (r *rig) asked(target string) (status [2]string) {
	r.t.Helper()
	w := r.dial()
	fmt.Fprintf(w, "GET %s HTTP/1.1\r\nHost: any.test\r\nConnection: close\r\n\r\n", target)
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		r.t.Fatalf("%q: %v", target, err)
	}
	io.Copy(io.Discard, resp.Body)
	status[0] = fmt.Sprint(resp.StatusCode)
	a := r.dialH2(nil).get(target)
	if status[1] = a.status; a.status == "" {
		status[1] = a.reset
	}
	return status
}
