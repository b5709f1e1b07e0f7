package http1

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// The bytes on the wire are those of the Request, and no others.
func TestBytes(t *testing.T) {
	for name, tt := range map[string]struct {
		r           Request
		until, want string
	}{
		"target": {Request{Method: "GET", Target: `//a%2Fb|c"^` + "\xff?%zz", Host: "shop.example", Header: http.Header{"X-A": {"1", "2"}}}, "\r\n\r\n",
			"GET //a%2Fb|c\"^\xff?%zz HTTP/1.1\r\nHost: shop.example\r\nX-A: 1\r\nX-A: 2\r\n\r\n"},
		"asterisk": {Request{Method: "OPTIONS", Target: "*"}, "\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: \r\n\r\n"},
		"framing is not the header's": {Request{Method: "GET", Target: "/", Host: "h", Header: http.Header{
			"Host": {"evil"}, "Content-Length": {"5"}, "Transfer-Encoding": {"chunked"}, "Trailer": {"X"}}}, "\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: h\r\n\r\n"},
		"no body": {Request{Method: "POST", Target: "/", Host: "h"}, "\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"},
		"length": {Request{Method: "PUT", Target: "/", Host: "h", Body: strings.NewReader("hello and more"), Length: 5}, "hello",
			"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"},
		"chunked": {Request{Method: "POST", Target: "/", Host: "h", Body: strings.NewReader("hello"), Length: -1}, "0\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		"trailer": {Request{Method: "POST", Target: "/", Host: "h", Body: strings.NewReader("hello"), Length: -1, Trailer: http.Header{"X-B": {"2"}, "X-A": {"1"}}}, "X-B: 2\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-A, X-B\r\n\r\n5\r\nhello\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, []step{{tt.until, tt.want, ok}})
			if code, body := do(t, client(t, Options{}), s.addr, &tt.r); code != 200 || body != "ok" {
				t.Errorf("got %d %q", code, body)
			}
		})
	}
}

// A body is sent as it can be read, without waiting for more of it.
func TestBodyIsSentAsItComes(t *testing.T) {
	for name, length := range map[string]int64{"length": 4, "chunked": -1} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			body, more := io.Pipe()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				in := bufio.NewReader(c)
				req, err := http.ReadRequest(in) // the head arrives before any of the body
				if err != nil {
					t.Error(err)
					return
				}
				for _, b := range []byte("abcd") {
					go more.Write([]byte{b})
					got, err := io.ReadAll(io.LimitReader(req.Body, 1))
					if err != nil || string(got) != string(b) {
						t.Errorf("got %q, %v, want %q", got, err, b)
						return
					}
				}
				more.Close()
				io.Copy(io.Discard, req.Body)
				io.WriteString(c, ok)
			}()
			if code, got := do(t, client(t, Options{}), l.Addr().String(), &Request{Method: "POST", Target: "/", Body: body, Length: length}); code != 200 || got != "ok" {
				t.Errorf("got %d %q", code, got)
			}
		})
	}
}

// reader is an io.Reader that is a func.
type reader func(p []byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

// Do returns an answer at once that comes before the request is whole. The rest of the request is not sent.
func TestAnswerBeforeTheEnd(t *testing.T) {
	s := serve(t, []step{{until: "start", answer: "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"}}, []step{{until: "\r\n\r\n", answer: ok}})
	c := client(t, Options{})
	answered := make(chan struct{})
	sent := false
	body := reader(func(p []byte) (int, error) {
		if !sent {
			sent = true
			return copy(p, "start"), nil
		}
		<-answered
		return 0, ErrEnough
	})
	resp, err := c.Do(t.Context(), s.addr, &Request{Method: "POST", Target: "/", Body: body, Length: 1000})
	if err != nil {
		t.Fatal(err)
	}
	close(answered)
	if got, err := io.ReadAll(resp.Body); err != nil || string(got) != "no" || resp.StatusCode != 413 {
		t.Errorf("got %d %q, %v", resp.StatusCode, got, err)
	}
	resp.Body.Close()
	do(t, c, s.addr, get("next")) // over another connection: the first is in the middle of a request
	if n := s.conns.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// A body that fails ends the connection, so that the server sees that the request is not whole.
func TestBodyFails(t *testing.T) {
	for name, length := range map[string]int64{"length": 1000, "chunked": -1} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			seen := make(chan error, 1)
			go func() {
				c, err := l.Accept()
				if err != nil {
					seen <- err
					return
				}
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err == nil {
					_, err = io.ReadAll(req.Body)
				}
				seen <- err
			}()
			gone := errors.New("the client is gone")
			_, err = client(t, Options{}).Do(t.Context(), l.Addr().String(), &Request{Method: "POST", Target: "/", Length: length,
				Body: io.MultiReader(strings.NewReader("start"), reader(func([]byte) (int, error) { return 0, gone }))})
			if !errors.As(err, new(*SendError)) || !errors.Is(err, gone) {
				t.Errorf("got %v, want a SendError", err)
			}
			if err := <-seen; !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("the server saw %v, want an unexpected end", err)
			}
		})
	}
	short := &Request{Method: "POST", Target: "/", Length: 1000, Body: strings.NewReader("short")}
	s := serve(t, []step{{until: "never"}})
	if _, err := client(t, Options{}).Do(t.Context(), s.addr, short); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a body shorter than its length: got %v", err)
	}
}

// The body can wait for the server's 100 Continue.
func TestContinue(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: \r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
	s := serve(t, []step{{head, head, "HTTP/1.1 100 Continue\r\n\r\n"}, {"body", "body", ok}})
	proceed := make(chan struct{})
	text := strings.NewReader("body")
	r := &Request{Method: "POST", Target: "/", Length: 4, Header: http.Header{"Expect": {"100-continue"}}, Body: reader(func(p []byte) (int, error) {
		<-proceed
		return text.Read(p)
	}), Interim: func(code int, _ http.Header) { close(proceed) }}
	if code, body := do(t, client(t, Options{}), s.addr, r); code != 200 || body != "ok" {
		t.Errorf("got %d %q", code, body)
	}
}
