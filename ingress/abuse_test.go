package ingress

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"tapestry.dev/tapestry/test/await"
)

// strict is a backend that reads whole requests as RFC 9112 says, and notes each request that it read.
type strict struct {
	mu       sync.Mutex
	requests []string
}

func (s *strict) backend(t *testing.T) netip.AddrPort {
	return wireBackend(t, func(w *wire, head string) {
		req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), w.in)))
		if err != nil {
			w.hangUp()
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			w.hangUp()
			return
		}
		s.note(fmt.Sprintf("%s %s %s %q", req.Method, req.Host, req.RequestURI, body))
		w.say(plainOK)
	})
}

func (s *strict) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, what)
}

func (s *strict) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.requests
	s.requests = nil
	return got
}

// The Server and a backend could disagree about the end, host or target of these requests. Each is followed by a
// request that an attacker would want to be taken for another client's. The table says what the client gets, and which
// requests the backend reads.
func TestSmuggling(t *testing.T) {
	var back strict
	r := newRig(t, Options{}, anyRoute(back.backend(t)))
	const get, post = "GET / HTTP/1.1\r\nHost: a\r\n", "POST / HTTP/1.1\r\nHost: a\r\n"
	for _, tt := range []struct {
		name, sent string
		statuses   string // of the responses that come before the connection ends
		seen       string // by the backend
	}{
		{"plain", post + "Content-Length: 2\r\n\r\nok", "200 200", `POST a / "ok"; GET b /next ""`},
		// The end of a request. RFC 9112 section 6.1: with both headers, Transfer-Encoding counts, and the connection
		// ends.
		{"length and chunked", post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "200", `POST a / ""`},
		{"chunked and length", post + "Transfer-Encoding: chunked\r\nContent-Length: 60\r\n\r\n0\r\n\r\n", "200", `POST a / ""`},
		{"chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "200", `POST a / "0\r\n\r\n"`},
		{"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501", ""},
		{"chunked and more", post + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "501", ""},
		{"gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501", ""},
		{"xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501", ""},
		{"chunked, quoted", post + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", "501", ""},
		{"space before the colon", post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400", ""},
		{"vertical tab", post + "Transfer-Encoding:\vchunked\r\n\r\n0\r\n\r\n", "400", ""},
		{"folded line", post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "200", `POST a / ""`},
		{"folded other line", get + "X: a\r\n b: c\r\n\r\n", "200 200", `GET a / ""; GET b /next ""`},
		{"underscore", post + "Transfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "200 200", `POST a / "0\r\n\r\n"; GET b /next ""`},
		{"two lengths", post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok", "400", ""},
		{"one length twice", post + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", "200 200", `POST a / "ok"; GET b /next ""`},
		{"list of lengths", post + "Content-Length: 2, 2\r\n\r\nok", "400", ""},
		{"signed length", post + "Content-Length: +2\r\n\r\nok", "400", ""},
		{"negative length", post + "Content-Length: -2\r\n\r\nok", "400", ""},
		{"hexadecimal length", post + "Content-Length: 0x2\r\n\r\nok", "400", ""},
		{"huge length", post + "Content-Length: 99999999999999999999\r\n\r\nok", "400", ""},
		{"empty length", post + "Content-Length: \r\n\r\n", "400", ""},
		{"body of a GET", get + "Content-Length: 2\r\n\r\nok", "200 200", `GET a / "ok"; GET b /next ""`},
		// Chunks.
		{"extension", post + "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n", "200", `POST a / "ok"`},
		{"lone LF in an extension", post + "Transfer-Encoding: chunked\r\n\r\n2;\nok\r\n0\r\n\r\n", "400", ""},
		{"lone LF after a size", post + "Transfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n", "400", ""},
		{"lone LF after data", post + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\n0\r\n\r\n", "400", ""},
		{"size too large", post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nok\r\n0\r\n\r\n", "400", ""},
		{"signed size", post + "Transfer-Encoding: chunked\r\n\r\n+2\r\nok\r\n0\r\n\r\n", "400", ""},
		{"size 0x2", post + "Transfer-Encoding: chunked\r\n\r\n0x2\r\nok\r\n0\r\n\r\n", "400", ""},
		{"more data than size", post + "Transfer-Encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n", "400", ""},
		// Lines.
		{"lone LF", "GET / HTTP/1.1\nHost: a\n\n", "200 200", `GET a / ""; GET b /next ""`},
		{"lone CR", get + "X: a\rY: b\r\n\r\n", "400", ""},
		{"zero byte", get + "X: a\x00b\r\n\r\n", "400", ""},
		{"space in a name", get + "X Y: a\r\n\r\n", "400", ""},
		{"no name", get + ": a\r\n\r\n", "400", ""},
		{"no colon", get + "X\r\n\r\n", "400", ""},
		{"space before the first header", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", "400", ""},
		// Host and target.
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400", ""},
		{"two hosts", get + "Host: b\r\n\r\n", "400", ""},
		{"host with a path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400", ""},
		{"host with a user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "400", ""},
		{"host with a bracket", "GET / HTTP/1.1\r\nHost: [a.example]b.example\r\n\r\n", "400", ""},
		{"host with a name in brackets", "GET / HTTP/1.1\r\nHost: [a.example]\r\n\r\n", "400", ""},
		{"host with a port that is none", "GET / HTTP/1.1\r\nHost: a.example:abc\r\n\r\n", "400", ""},
		{"host with two ports", "GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", "400", ""},
		{"host of IPv6", "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "200 200", `GET [2001:db8::1]:80 / ""; GET b /next ""`},
		{"two hosts in one", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", "400", ""},
		{"host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400", ""},
		{"URL for another host", "GET http://c/x HTTP/1.1\r\nHost: a\r\n\r\n", "200 200", `GET c /x ""; GET b /next ""`},
		{"URL with a user", "GET http://u@c/x HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"tab in the target", "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"no slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"asterisk", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"asterisk of OPTIONS", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "200 200", `OPTIONS a * ""; GET b /next ""`},
		{"PRI", "PRI / HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"PRI *", "PRI * HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"length and chunked in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "200", `POST a / "0\r\n\r\n"`},
		{"strange method", "GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"no version", "GET /\r\nHost: a\r\n\r\n", "400", ""},
		{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", "200 200", `GET a / ""; GET b /next ""`},
		{"HTTP/3.0", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505", ""},
		{"lower case", "GET / http/1.1\r\nHost: a\r\n\r\n", "400", ""},
		{"upgrade to h2c", get + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "200 200", `GET a / ""; GET b /next ""`},
		{"connect", "CONNECT b:22 HTTP/1.1\r\nHost: b:22\r\n\r\n", "405 200", `GET b /next ""`},
	} {
		w := r.dial()
		w.say(tt.sent + "GET /next HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
		var statuses []string
		for {
			resp, err := http.ReadResponse(w.in, nil)
			if err != nil {
				break
			}
			io.Copy(io.Discard, resp.Body)
			statuses = append(statuses, fmt.Sprint(resp.StatusCode))
		}
		if got := strings.Join(statuses, " "); got != tt.statuses {
			t.Errorf("%s: the client got %q, want %q", tt.name, got, tt.statuses)
		}
		r.quiet(tt.name)
		back.check(t, tt.name, tt.seen)
	}
}

// The same for HTTP/2, whose fields can hold characters that a line of HTTP/1.1 cannot.
func TestSmugglingOverHTTP2(t *testing.T) {
	var back strict
	r := newRig(t, Options{}, anyRoute(back.backend(t)))
	const ok = `GET a / ""`
	for _, tt := range []struct {
		name   string
		fields []string // replace or follow those of a plain request; "-" leaves one out
		data   string
		want   string // status, or how the stream ended
		seen   string
	}{
		{"plain", nil, "", "200", ok},
		{"transfer-encoding", []string{"transfer-encoding", "chunked"}, "", "400", ""},
		{"connection", []string{"connection", "close"}, "", "400", ""},
		{"upgrade", []string{"upgrade", "websocket"}, "", "400", ""},
		{"te", []string{"te", "gzip"}, "", "400", ""},
		{"te: trailers", []string{"te", "trailers"}, "", "200", ok},
		{"line end in a value", []string{"x", "a\r\nEvil: 1"}, "", "PROTOCOL_ERROR", ""},
		{"zero byte in a value", []string{"x", "a\x00"}, "", "PROTOCOL_ERROR", ""},
		{"line end in a name", []string{"x\r\nevil", "1"}, "", "PROTOCOL_ERROR", ""},
		{"colon in a name", []string{"x: evil", "1"}, "", "PROTOCOL_ERROR", ""},
		{"capital letter", []string{"X", "1"}, "", "PROTOCOL_ERROR", ""},
		{"line end in the path", []string{":path", "/ HTTP/1.1\r\nEvil: 1\r\n\r\n"}, "", "PROTOCOL_ERROR", ""},
		{"space in the path", []string{":path", "/ HTTP/1.1"}, "", "400", ""},
		{"URL as the path", []string{":path", "http://b/x"}, "", "400", ""},
		{"no slash", []string{":path", "x"}, "", "PROTOCOL_ERROR", ""},
		{"no path", []string{":path", ""}, "", "PROTOCOL_ERROR", ""},
		{"space in the method", []string{":method", "GET /evil HTTP/1.1"}, "", "400", ""},
		{"line end in the method", []string{":method", "GET / HTTP/1.1\r\nEvil: 1"}, "", "PROTOCOL_ERROR", ""},
		{"space in the authority", []string{":authority", "a evil"}, "", "400", ""},
		{"bracket in the authority", []string{":authority", "[a.example]b.example"}, "", "400", ""},
		{"port that is none", []string{":authority", "a.example:abc"}, "", "400", ""},
		{"asterisk", []string{":path", "*"}, "", "400", ""},
		{"PRI", []string{":method", "PRI"}, "", "400", ""},
		{"path in the authority", []string{":authority", "a/evil"}, "", "400", ""},
		{"user in the authority", []string{":authority", "u@a"}, "", "PROTOCOL_ERROR", ""},
		{"another host", []string{"host", "b"}, "", "400", ""},
		{"the same host", []string{"host", "a"}, "", "200", ok},
		{"two hosts", []string{"host", "a", "host", "b"}, "", "400", ""},
		{"host alone", []string{":authority", "-", "host", "a"}, "", "200", ok},
		{"pseudo-header twice", []string{":path ", "/evil"}, "", "PROTOCOL_ERROR", ""},
		{"pseudo-header after others", []string{"x", "1", ":evil", "1"}, "", "PROTOCOL_ERROR", ""},
		{"length of a body", []string{":method", "POST", "content-length", "2"}, "ok", "200", `POST a / "ok"`},
		{"no length", []string{":method", "POST"}, "ok", "200", `POST a / "ok"`},
		{"length too large", []string{":method", "POST", "content-length", "3"}, "ok", "400", ""},
		{"length too small", []string{":method", "POST", "content-length", "1"}, "ok", "PROTOCOL_ERROR", ""},
		{"two lengths", []string{":method", "POST", "content-length", "2", "content-length", "3"}, "ok", "400", ""},
		{"length that is none", []string{":method", "POST", "content-length", "+2"}, "", "400", ""},
	} {
		fields := []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}
		for i := 0; i < len(tt.fields); i += 2 {
			name, value := tt.fields[i], tt.fields[i+1]
			at := -1
			for j := 0; j < len(fields); j += 2 {
				if fields[j] == name && strings.HasPrefix(name, ":") {
					at = j
				}
			}
			switch {
			case at < 0:
				fields = append(fields, strings.TrimSpace(name), value)
			case value == "-":
				fields = append(fields[:at:at], fields[at+2:]...)
			default:
				fields[at+1] = value
			}
		}
		h := r.dialH2(nil)
		id := h.headers(tt.data == "", fields...)
		if tt.data != "" {
			h.framer.WriteData(id, true, []byte(tt.data))
		}
		a := h.read(id)
		got := a.status
		if got == "" {
			got = a.reset
		}
		if got != tt.want {
			t.Errorf("%s: the client got %q, want %q", tt.name, got, tt.want)
		}
		r.quiet(tt.name)
		back.check(t, tt.name, tt.seen)
	}
}

// quiet waits until no request is under way, so that the backend has seen all that it will see.
func (r *rig) quiet(name string) {
	r.t.Helper()
	await.Until(r.t, name+": nothing is under way", func() bool { return r.Stats().InFlight == 0 })
}

// check compares the whole requests that the backend saw with want.
func (s *strict) check(t *testing.T, name, want string) {
	t.Helper()
	if got := strings.Join(s.take(), "; "); got != want {
		t.Errorf("%s: the backend saw\n%s, want\n%s", name, got, want)
	}
}
