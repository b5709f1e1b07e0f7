package http1

import (
	"bufio"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The table says how a head is parsed, where its body ends, and whether the connection is kept.
func TestParseHead(t *testing.T) {
	for _, tt := range []struct {
		name, method, head string
		length             int64
		chunked, keep      bool
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", 2, false, true},
		{"none", "GET", "HTTP/1.1 200 OK\r\n\r\n", untilClose, false, false},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", untilClose, true, true},
		{"both", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", 2, true, false},
		{"closes", "GET", "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 2\r\n\r\n", 2, false, false},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", 2, false, false},
		{"HTTP/1.0, kept", "GET", "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\n", 2, false, true},
		{"HTTP/1.0, chunked", "GET", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", 2, false, false},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, false, true},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 0, false, true},
		{"204, length 0", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 0, false, true},
		{"204, length 2", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", 0, false, false},
		{"204, chunked", "GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 0, false, false},
		{"304, length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", 0, false, true},
		{"304, chunked", "GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", 0, false, false},
		{"interim", "GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\n", 0, false, true},
	} {
		h, err := parseHead(bufio.NewReader(strings.NewReader(tt.head)), tt.method)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if (!h.chunked && h.length != tt.length) || h.chunked != tt.chunked || h.keep != tt.keep {
			t.Errorf("%s: got length %d, chunked %v, keep %v", tt.name, h.length, h.chunked, h.keep)
		}
	}
	for _, head := range []string{"", "HTTP/1.1", "HTTP/2.0 200 OK", "ICY 200 OK", "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 +20 OK", "HTTP/1.1 OK", "HTTP/1.1 200 OK\r\n X: y"} {
		if h, err := parseHead(bufio.NewReader(strings.NewReader(head+"\r\n\r\n")), "GET"); err == nil {
			t.Errorf("%q was taken for %d", head, h.StatusCode)
		}
	}
	h, err := parseHead(bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nPragma: no-cache\r\nx-a: 1\r\n\r\n")), "GET")
	if want := (http.Header{"Pragma": {"no-cache"}, "X-A": {"1"}}); err != nil || !maps.EqualFunc(h.Header, want, func(a, b []string) bool { return a[0] == b[0] }) {
		t.Errorf("got %v, %v, want %v", h, err, want)
	}
}

// A head is either refused, or has one meaning, whatever a server sends.
func FuzzParseHead(f *testing.F) {
	f.Add("HTTP/1.1 200 OK\r\nContent-Length : 2\r\nTrailer: a, b\r\nTransfer-Encoding: chunked\r\n\r\n", "GET")
	f.Add("HTTP/1.0 304\r\nX Y: z\r\n\r\n", "HEAD")
	f.Fuzz(func(t *testing.T, text, method string) {
		h, err := parseHead(bufio.NewReader(strings.NewReader(text)), method)
		if err != nil {
			return
		}
		if h.StatusCode < 100 || h.StatusCode > 999 || h.length < untilClose || len(h.Header["Content-Length"]) > 1 || h.Header["Transfer-Encoding"] != nil {
			t.Errorf("%q gave %+v", text, h)
		}
		if h.chunked && h.Header["Content-Length"] != nil || !h.chunked && h.length == untilClose && h.keep {
			t.Errorf("%q: it is not known where the response ends: %+v", text, h)
		}
	})
}

// The deadlines for sending a request and for its response do not hold for the protocol that a connection changes to.
func TestUpgradeHasNoDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		c := New(Options{ResponseTimeout: time.Second, Dial: func(context.Context, string) (net.Conn, error) { return near, nil }})
		defer c.Close()
		go func() {
			in := bufio.NewReader(far)
			req, err := http.ReadRequest(in)
			if err != nil {
				t.Error(err)
				return
			}
			io.Copy(io.Discard, req.Body)
			io.WriteString(far, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
			io.Copy(far, in)
		}()
		resp, err := c.Do(t.Context(), "h", &Request{Method: "POST", Target: "/", Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"tcp"}}, Body: strings.NewReader("body"), Length: 4})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		time.Sleep(time.Hour)
		rw := resp.Body.(io.ReadWriteCloser)
		if _, err := io.WriteString(rw, "ping"); err != nil {
			t.Fatalf("after an hour: %v", err)
		}
		got := make([]byte, 4)
		if _, err := io.ReadFull(rw, got); err != nil || string(got) != "ping" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
