package http1

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A server may close an idle connection while the next request is on its way. A request that may not be sent twice is
// not sent over such a connection, and one that may is sent again.
func TestClosingCrossesARequest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		request Request
		idle    time.Duration
		conns   int
		lost    bool
	}{
		{"GET", Request{Method: "GET", Target: "/"}, 5 * time.Second, 2, false},
		{"POST", Request{Method: "POST", Target: "/"}, 5 * time.Second, 2, false},
		{"POST with a body", Request{Method: "POST", Target: "/", Body: strings.NewReader("body"), Length: 4}, 5 * time.Second, 2, false},
		{"PUT", Request{Method: "PUT", Target: "/"}, 2 * time.Second, 2, false},
		{"POST at once", Request{Method: "POST", Target: "/"}, time.Second / 2, 1, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			var servers []net.Conn
			c := New(Options{Dial: func(context.Context, string) (net.Conn, error) {
				near, far := net.Pipe()
				servers = append(servers, far)
				first := len(servers) == 1
				go func() {
					in := bufio.NewReader(far)
					for n := 0; ; n++ {
						if first && n == 1 {
							in.ReadByte() // the first byte of the request that crosses the close
							far.Close()
							return
						}
						req, err := http.ReadRequest(in)
						if err != nil {
							return
						}
						io.Copy(io.Discard, req.Body)
						io.WriteString(far, ok)
					}
				}()
				return near, nil
			}})
			do(t, c, "h", get("first"))
			time.Sleep(tt.idle)
			resp, err := c.Do(t.Context(), "h", &tt.request)
			if tt.lost != (err != nil) {
				t.Errorf("%s: got %v", tt.name, err)
			}
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if len(servers) != tt.conns {
				t.Errorf("%s: %d connections, want %d", tt.name, len(servers), tt.conns)
			}
			c.Close()
			for _, s := range servers {
				s.Close()
			}
		})
	}
}

// A connection that was idle too long for one request is kept for the next request that may be sent twice.
func TestOldConnectionsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conns := 0
		c := New(Options{Dial: func(context.Context, string) (net.Conn, error) {
			near, far := net.Pipe()
			conns++
			go func() {
				in := bufio.NewReader(far)
				for {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					answer := ok
					if req.Method == "POST" {
						answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
					}
					io.WriteString(far, answer)
				}
			}()
			return near, nil
		}})
		for _, method := range []string{"GET", "POST", "GET", "POST", "GET"} {
			do(t, c, "h", &Request{Method: method, Target: "/"})
			time.Sleep(10 * time.Second)
		}
		if conns != 3 {
			t.Errorf("%d connections, want 3: the GETs', and one for each POST", conns)
		}
		c.Close()
	})
}
