package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server runs one script per connection, in the order in which connections come.
type server struct {
	t     *testing.T
	addr  string
	conns atomic.Int32
}

// step is a part of a script: the server reads a request up to until, compares it with want unless that is "", and
// sends answer.
type step struct{ until, want, answer string }

// serve runs one script for each connection. A connection stays open after its script until the test ends, or is closed
// when its last step's answer ends in "!close".
func serve(t *testing.T, scripts ...[]step) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, addr: l.Addr().String()}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for _, script := range scripts {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			t.Cleanup(func() { c.Close() })
			go s.play(c, script)
		}
		for { // a connection without a script is one too many, and is counted
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			c.Close()
		}
	}()
	return s
}

func (s *server) play(c net.Conn, script []step) {
	in := bufio.NewReader(c)
	for _, st := range script {
		var got bytes.Buffer
		for !strings.HasSuffix(got.String(), st.until) {
			b, err := in.ReadByte()
			if err != nil {
				return
			}
			got.WriteByte(b)
		}
		if st.want != "" && got.String() != st.want {
			s.t.Errorf("the server got\n%q, want\n%q", got.String(), st.want)
		}
		answer, closes := strings.CutSuffix(st.answer, "!close")
		io.WriteString(c, answer)
		if closes {
			c.Close()
			return
		}
	}
}

func client(t *testing.T, o Options) *Client {
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}
	}
	c := New(o)
	t.Cleanup(c.Close)
	return c
}

func do(t *testing.T, c *Client, addr string, r *Request) (int, string) {
	t.Helper()
	resp, err := c.Do(t.Context(), addr, r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func get(host string) *Request { return &Request{Method: "GET", Target: "/", Host: host} }

// The table says after which responses a connection is used again.
func TestReuse(t *testing.T) {
	for name, tt := range map[string]struct {
		first string // the answer to the first request; the second gets "ok"
		conns int32
	}{
		"length":         {ok, 1},
		"chunked":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 1},
		"no content":     {"HTTP/1.1 204 No Content\r\n\r\n", 1},
		"after 103":      {"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok, 1},
		"server closes":  {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 2},
		"HTTP/1.0":       {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 2},
		"until its end":  {"HTTP/1.1 200 OK\r\n\r\nok!close", 2},
		"more than told": {ok + "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 2},
		"closed at once": {ok + "!close", 2},
	} {
		t.Run(name, func(t *testing.T) {
			second := []step{{until: "\r\n\r\n", answer: ok}}
			s := serve(t, append([]step{{until: "\r\n\r\n", answer: tt.first}}, second...), second)
			c := client(t, Options{})
			do(t, c, s.addr, get("first"))
			if strings.HasSuffix(tt.first, "!close") { // the end may not have arrived yet
				await.Until(t, "the server's end is seen", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.kept == 0 })
			}
			if code, body := do(t, c, s.addr, get("second")); code != 200 || body != "ok" {
				t.Errorf("got %d %q", code, body)
			}
			if n := s.conns.Load(); n != tt.conns {
				t.Errorf("%d connections were made, want %d", n, tt.conns)
			}
		})
	}
}

// When a kept connection ends as the next request is sent, harmless requests are sent again and others are not.
func TestUnanswered(t *testing.T) {
	for method, again := range map[string]bool{"GET": true, "HEAD": true, "POST": false, "DELETE": false} {
		s := serve(t, []step{{until: "\r\n\r\n", answer: ok}, {until: "\r\n\r\n", answer: "!close"}}, []step{{until: "\r\n\r\n", answer: "HTTP/1.1 204 No Content\r\n\r\n"}})
		c := client(t, Options{})
		do(t, c, s.addr, get("first"))
		resp, err := c.Do(t.Context(), s.addr, &Request{Method: method, Target: "/"})
		if again != (err == nil) {
			t.Errorf("%s: got %v", method, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}

func TestInterim(t *testing.T) {
	s := serve(t, []step{{until: "\r\n\r\n", answer: "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n" + ok}})
	var seen []string
	r := get("h")
	r.Interim = func(code int, h http.Header) { seen = append(seen, fmt.Sprint(code, h)) }
	if code, body := do(t, client(t, Options{}), s.addr, r); code != 200 || body != "ok" {
		t.Errorf("got %d %q", code, body)
	}
	if got := strings.Join(seen, "; "); got != "103 map[Link:[</a>]]; 102 map[]" {
		t.Errorf("interim responses: %s", got)
	}
}

func TestTimeouts(t *testing.T) {
	s := serve(t, []step{{until: "never"}}, []step{{until: "\r\n\r\n", answer: "HTTP/1.1 200 OK\r\nContent-Le"}}, []step{{until: "never"}})
	c := client(t, Options{ResponseTimeout: 20 * time.Millisecond})
	for _, r := range []*Request{get("no answer"), get("half an answer"), {Method: "POST", Target: "/", Body: strings.NewReader("x"), Length: 1}} {
		if _, err := c.Do(t.Context(), s.addr, r); !timedOut(err) {
			t.Errorf("%s %s: got %v, want a time-out", r.Method, r.Host, err)
		}
	}
	s = serve(t, []step{{until: "never"}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for s.conns.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := client(t, Options{}).Do(ctx, s.addr, get("h")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// ResponseTimeout ends with the head: it limits neither the body nor the next request.
func TestSlowBodyIsNoTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := New(Options{ResponseTimeout: time.Second, IdleTimeout: time.Hour, Dial: func(context.Context, string) (net.Conn, error) { return near, nil }})
		go func() {
			in := bufio.NewReader(far)
			for range 2 {
				http.ReadRequest(in)
				io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
				time.Sleep(time.Hour)
				io.WriteString(far, "k")
			}
		}()
		for range 2 {
			if code, body := do(t, c, "h", get("h")); code != 200 || body != "ok" {
				t.Errorf("got %d %q", code, body)
			}
			time.Sleep(time.Minute)
		}
		c.Close()
	})
}

func TestLargeHead(t *testing.T) {
	s := serve(t, []step{{until: "\r\n\r\n", answer: "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n"}})
	if _, err := client(t, Options{}).Do(t.Context(), s.addr, get("h")); !errors.Is(err, errHead) {
		t.Errorf("got %v", err)
	}
}

func TestUpgrade(t *testing.T) {
	s := serve(t, []step{{until: "\r\n\r\n", answer: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly"}, {until: "ping", answer: "pong!close"}})
	resp, err := client(t, Options{}).Do(t.Context(), s.addr, &Request{Method: "GET", Target: "/", Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"echo"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	rw, isConn := resp.Body.(io.ReadWriteCloser)
	if !isConn || resp.StatusCode != 101 {
		t.Fatalf("got %d and a %T", resp.StatusCode, resp.Body)
	}
	io.WriteString(rw, "ping")
	if got, err := io.ReadAll(rw); err != nil || string(got) != "earlypong" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestIdle(t *testing.T) {
	s := serve(t, []step{{until: "\r\n\r\n", answer: ok}}, []step{{until: "\r\n\r\n", answer: ok}})
	c := client(t, Options{IdleTimeout: 10 * time.Millisecond})
	do(t, c, s.addr, get("h"))
	await.Until(t, "the idle connection is closed", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.kept == 0 && len(c.origins) == 0 })

	c = client(t, Options{MaxIdlePerAddr: 1})
	s = serve(t, []step{{until: "\r\n\r\n", answer: ok}}, []step{{until: "\r\n\r\n", answer: ok}})
	var bodies []io.ReadCloser
	for range 2 {
		resp, err := c.Do(t.Context(), s.addr, get("h"))
		if err != nil {
			t.Fatal(err)
		}
		bodies = append(bodies, resp.Body)
	}
	for _, b := range bodies {
		io.Copy(io.Discard, b)
		b.Close()
	}
	if c.mu.Lock(); c.kept != 1 {
		t.Errorf("%d connections are idle, want 1", c.kept)
	}
	c.mu.Unlock()
	c.Close()
	if _, err := c.Do(t.Context(), "127.0.0.1:1", get("h")); err == nil {
		t.Error("nobody answers there")
	}
}

func BenchmarkDo(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf, n := make([]byte, 4096), 0
				for {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						io.WriteString(c, ok)
						n = 0
					}
				}
			}()
		}
	}()
	addr := l.Addr().String()
	b.Run("client", func(b *testing.B) {
		c := New(Options{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}})
		defer c.Close()
		b.ReportAllocs()
		for b.Loop() {
			resp, err := c.Do(b.Context(), addr, &Request{Method: "GET", Target: "/", Host: "h", Header: http.Header{"X": {"y"}}})
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
	b.Run("transport", func(b *testing.B) {
		tr := &http.Transport{DisableCompression: true}
		defer tr.CloseIdleConnections()
		b.ReportAllocs()
		for b.Loop() {
			req, _ := http.NewRequestWithContext(b.Context(), "GET", "http://"+addr+"/", nil)
			req.Header["X"] = []string{"y"}
			resp, err := tr.RoundTrip(req)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
