package ingress

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// Heads of responses that backends have sent to proxies, and the responses that the client gets. After each one the
// client sends another request, to show that nothing of one response is taken for the next.
func TestResponseHeads(t *testing.T) {
	const bad = "502"
	for _, tt := range []struct {
		name, method, response string
		status, body           string
		// In both protocols, without Date; not compared for answers of the Server itself.
		header []string
	}{
		// RFC 9110 section 9.3.2: a response to HEAD has the length of the body that it leaves out.
		{"HEAD", "HEAD", "200 OK\r\nContent-Length: 99\r\n\r\n", "200", "", []string{"content-length: 99"}},
		{"HEAD, chunked", "HEAD", "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200", "", nil},
		{"HEAD, no length", "HEAD", "200 OK\r\n\r\n", "200", "", nil},
		{"HEAD, with a body", "HEAD", "200 OK\r\nContent-Length: 4\r\n\r\nevil", "200", "", []string{"content-length: 4"}},
		// RFC 9110 section 8.6: no Content-Length in 204, and RFC 9113 section 8.1.1.
		{"204 and length 0", "GET", "204 No Content\r\nContent-Length: 0\r\n\r\n", "204", "", nil},
		{"204 and a body", "GET", "204 No Content\r\nContent-Length: 4\r\n\r\nevil", "204", "", nil},
		{"204 and chunks", "GET", "204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "204", "", nil},
		{"304 and chunks", "GET", "304 Not Modified\r\nETag: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "304", "", []string{"etag: x"}},
		{"no reason", "GET", "200\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-length: 2"}},
		// RFC 9112 section 6.1: Transfer-Encoding counts.
		{"length and chunks", "GET", "200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200", "ok", []string{"content-length: 2"}},
		{"chunked twice", "GET", "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", bad, "", nil},
		{"identity", "GET", "200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		{"two lengths", "GET", "200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", bad, "", nil},
		{"one length twice", "GET", "200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-length: 2"}},
		{"leading zeros", "GET", "200 OK\r\nContent-Length: 010\r\n\r\n0123456789", "200", "0123456789", []string{"content-length: 10"}},
		{"signed length", "GET", "200 OK\r\nContent-Length: +2\r\n\r\nok", bad, "", nil},
		// RFC 9112 section 5.1: a proxy removes the space.
		{"space before a colon", "GET", "200 OK\r\nX-A  : 1\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-length: 2", "x-a: 1"}},
		{"length, space, colon", "GET", "200 OK\r\nContent-Length : 2\r\n\r\nok", "200", "ok", []string{"content-length: 2"}},
		{"chunked, space, colon", "GET", "200 OK\r\nTransfer-Encoding : chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "200", "ok", []string{"content-length: 2"}},
		{"two lengths, one with a space", "GET", "200 OK\r\nContent-Length: 2\r\nContent-Length : 3\r\n\r\nok", bad, "", nil},
		{"space in a name", "GET", "200 OK\r\nReferrer Policy: x\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-length: 2"}},
		{"no name", "GET", "200 OK\r\n: x\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		{"no colon", "GET", "200 OK\r\nX\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		{"control character", "GET", "200 OK\r\nX: a\x01b\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		// RFC 9110 section 15: three digits, from 100 on.
		{"status 099", "GET", "099 Odd\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		{"status 000", "GET", "000 Odd\r\n\r\n", bad, "", nil},
		{"status 99999", "GET", "99999 Odd\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		{"status -20", "GET", "-20 Odd\r\nContent-Length: 2\r\n\r\nok", bad, "", nil},
		{"status 999", "GET", "999 Odd\r\nContent-Length: 2\r\n\r\nok", "999", "ok", []string{"content-length: 2"}},
		{"nobody asked for 101", "GET", "101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", bad, "", nil},
		// The Server adds no headers.
		{"coding", "GET", "200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-encoding: gzip", "content-length: 2"}},
		{"cookies", "GET", "200 OK\r\nSet-Cookie: b=2\r\nSet-Cookie: a=1\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-length: 2", "set-cookie: b=2", "set-cookie: a=1"}},
		// RFC 9113 section 8.2.2: HTTP/2 has no Upgrade; there are clients that fail on it.
		{"offer of HTTP/2", "GET", "200 OK\r\nConnection: Upgrade, Keep-Alive\r\nUpgrade: h2,h2c\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nok", "200", "ok", []string{"content-length: 2"}},
		// RFC 9110 section 6.5.1: framing headers are not allowed in trailers.
		{"Trailer names a length", "GET", "200 OK\r\nTrailer: Content-Length, Transfer-Encoding, X Y\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nContent-Length: 9\r\n\r\n", "200", "ok", []string{"content-length: 2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, head string) {
				if strings.HasPrefix(head, "GET /next ") {
					w.say(plainOK)
					return
				}
				w.say("HTTP/1.1 " + tt.response)
			})))
			check := func(protocol, status, body string, got []string) {
				t.Helper()
				if status != tt.status {
					t.Fatalf("%s: got status %q, want %q", protocol, status, tt.status)
				}
				if tt.status == bad {
					return
				}
				slices.SortStableFunc(got, func(a, b string) int {
					a, _, _ = strings.Cut(a, ":")
					b, _, _ = strings.Cut(b, ":")
					return strings.Compare(a, b)
				})
				if body != tt.body || !slices.Equal(got, tt.header) {
					t.Errorf("%s: got %q %q, want %q %q", protocol, body, got, tt.body, tt.header)
				}
			}
			w := r.dial()
			fmt.Fprintf(w, "%s / HTTP/1.1\r\nHost: any.test\r\n\r\n", tt.method)
			resp := w.answer(t, tt.method)
			body := readAll(t, resp)
			check("HTTP/1.1", fmt.Sprint(resp.StatusCode), body, fields(resp.Header))
			w.say("GET /next HTTP/1.1\r\nHost: any.test\r\n\r\n")
			if resp := w.answer(t, "GET"); resp.StatusCode != 200 || readAll(t, resp) != "ok" {
				t.Errorf("HTTP/1.1: the next response is %d", resp.StatusCode)
			}
			h := r.dialH2(nil)
			a := h.read(h.headers(true, ":method", tt.method, ":scheme", "http", ":authority", "any.test", ":path", "/"))
			check("HTTP/2", a.status, a.body, fields(a.header))
			if a := h.get("/next"); a.status != "200" || a.body != "ok" {
				t.Errorf("HTTP/2: the next response is %+v", a)
			}
		})
	}
}

// fields returns the lines of a header, names in lower case, without Date.
func fields(h map[string][]string) []string {
	var lines []string
	for name, values := range h {
		if name = strings.ToLower(name); name == "date" {
			continue
		}
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	return lines
}

// Interim responses are passed on, each as it is, without a Content-Length (RFC 9110 section 8.6).
func TestInterimResponses(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
		w.say("HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n" + plainOK)
	})))
	w := r.dial()
	w.say("GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
	for _, want := range []string{"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n"} {
		if got, err := w.until("\r\n\r\n"); got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if resp := w.answer(t, "GET"); resp.StatusCode != 200 || resp.Header.Get("Link") != "" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
	if a := r.dialH2(nil).get("/"); a.status != "200" || !slices.Equal(a.interim, []string{"103", "102", "103"}) {
		t.Errorf("HTTP/2: got %+v", a)
	}
}

// Headers that are not allowed in trailers are not passed on as such.
func TestResponseTrailers(t *testing.T) {
	for _, announced := range []string{"", "Trailer: X-Sum, Keep-Alive, Connection, Set-Cookie\r\n"} {
		r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
			w.say("HTTP/1.1 200 OK\r\n" + announced + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\nKeep-Alive: x\r\nConnection: x\r\nContent-Length: 7\r\nSet-Cookie: a=b\r\nLocation: /\r\nContent-Type: x\r\nAccess-Control-Allow-Origin: *\r\n\r\n")
		})))
		w := r.dial()
		w.say("GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
		resp := w.answer(t, "GET")
		if body := readAll(t, resp); body != "ok" || len(resp.Trailer) != 1 || resp.Trailer.Get("X-Sum") != "1" {
			t.Errorf("HTTP/1.1: got %q and %v", body, resp.Trailer)
		}
		if a := r.dialH2(nil).get("/"); a.body != "ok" || !slices.Equal(fields(a.trailer), []string{"x-sum: 1"}) {
			t.Errorf("HTTP/2: got %+v", a)
		}
	}
}

// A 426 says in Upgrade what to change to (RFC 9110 section 15.5.22). HTTP/2 has no such header.
func TestUpgradeRequired(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
		w.say("HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\nContent-Length: 0\r\n\r\n")
	})))
	for version, want := range map[string][]string{"1.1": {"Upgrade"}, "1.0": {"close", "Upgrade"}} {
		w := r.dial()
		fmt.Fprintf(w, "GET / HTTP/%s\r\nHost: any.test\r\n\r\n", version)
		head, _ := w.until("\r\n\r\n")
		var connection []string
		for _, line := range lines(head) {
			if value, ok := strings.CutPrefix(line, "Connection: "); ok {
				connection = append(connection, value)
			}
		}
		if !strings.Contains(head, " 426 ") || !slices.Contains(lines(head), "Upgrade: websocket") || !slices.Equal(connection, want) {
			t.Errorf("HTTP/%s: got %q", version, head)
		}
	}
	if a := r.dialH2(nil).get("/"); a.status != fmt.Sprint(http.StatusUpgradeRequired) || a.header["upgrade"] != nil || a.header["connection"] != nil {
		t.Errorf("HTTP/2: got %+v", a)
	}
}
