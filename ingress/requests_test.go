package ingress

import (
	"crypto/tls"
	"io"
	"slices"
	"strings"
	"testing"
)

// Headers that come more than once, or in pieces over HTTP/2, and a Host in any form, arrive as they were sent. The
// values of one header keep their order; the order of different headers has no meaning (RFC 9110 section 5.3).
func TestRequestsArriveAsSent(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, plainOK)))
	const get = "GET / HTTP/1.1\r\n"
	for _, tt := range []struct {
		name, sent string
		want       []string // lines
	}{
		{"host with a port", get + "Host: Shop.Example:8080\r\n\r\n", []string{"Host: Shop.Example:8080", "X-Forwarded-Host: Shop.Example:8080"}},
		{"host with a dot", get + "Host: shop.example.\r\n\r\n", []string{"Host: shop.example.", "X-Forwarded-Host: shop.example."}},
		{"host in IPv6", get + "Host: [::1]:8080\r\n\r\n", []string{"Host: [::1]:8080"}},
		{"host with an underscore", get + "Host: my_shop.example\r\n\r\n", []string{"Host: my_shop.example"}},
		{"empty host", get + "Host: \r\n\r\n", []string{"Host: "}},
		{"HTTP/1.0 without a host", "GET / HTTP/1.0\r\n\r\n", []string{"Host: "}},
		{"one header several times", get + "Host: a\r\nX-B: 2\r\nX-A: 0\r\nX-B: 1\r\nx-b: 3, 4\r\n\r\n", []string{"X-B: 2", "X-B: 1", "X-B: 3, 4"}},
		{"credentials", get + "Host: a\r\nAuthorization: Basic eA==\r\n\r\n", []string{"Authorization: Basic eA=="}},
		{"a range", get + "Host: a\r\nRange: bytes=0-1\r\nIf-Range: \"x\"\r\n\r\n", []string{"If-Range: \"x\"", "Range: bytes=0-1"}},
		{"coding", get + "Host: a\r\nAccept-Encoding: br;q=1, *;q=0\r\n\r\n", []string{"Accept-Encoding: br;q=1, *;q=0"}},
	} {
		w := r.dial()
		w.say(tt.sent)
		if resp := w.answer(t, "GET"); resp.StatusCode != 200 {
			t.Errorf("%s: got %d", tt.name, resp.StatusCode)
		}
		got := lines(seen.take()[0])
		at := 0
		for _, want := range tt.want {
			i := slices.Index(got[at:], want)
			if i < 0 {
				t.Errorf("%s: the backend did not get %q in its place: %q", tt.name, want, got)
				break
			}
			at += i + 1
		}
	}
	// RFC 9113 section 8.2.3: the pieces of a cookie are one header in HTTP/1.1.
	if a := r.dialH2(nil).get("/", "cookie", "a=1", "cookie", "b=2", "cookie", "c=3"); a.status != "200" {
		t.Errorf("HTTP/2: got %+v", a)
	}
	if got := seen.take()[0]; !strings.Contains(got, "\r\nCookie: a=1; b=2; c=3\r\n") {
		t.Errorf("HTTP/2: the backend got %q", got)
	}
}

// A client that sends its whole body before it reads the response gets a response that came early, though the backend
// has closed its connection.
func TestEarlyAnswerReachesWhoSendsOn(t *testing.T) {
	const size = 32 << 20
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
		w.say("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
		w.hangUp()
	})))
	for _, scheme := range []string{"http", "https"} {
		w := r.dial()
		if scheme == "https" {
			c, err := tls.Dial("tcp", r.https, &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			w = newWire(c)
		}
		w.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 33554432\r\n\r\n")
		piece := make([]byte, 64<<10)
		for sent := 0; sent < size; sent += len(piece) {
			if _, err := w.Write(piece); err != nil {
				t.Fatalf("%s: cut after %d bytes: %v", scheme, sent, err)
			}
		}
		resp := w.answer(t, "POST")
		if body := readAll(t, resp); resp.StatusCode != 413 || body != "no" {
			t.Errorf("%s: got %d %q", scheme, resp.StatusCode, body)
		}
		if _, err := w.in.ReadByte(); err != io.EOF {
			t.Errorf("%s: the connection ends with %v", scheme, err)
		}
	}
}
