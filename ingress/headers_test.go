package ingress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestOurs(t *testing.T) {
	for _, name := range []string{
		"X-Forwarded-For", "X-Forwarded", "X-Forwarded-Anything", "X-Real-Ip", "Forwarded", "X_Forwarded_For", "X_Real_Ip", "X_forwarded-Host",
		"X.Forwarded.For", "x_FORWARDED_proto", "X-Forwarded_", "Proxy", "Content_Length", "Transfer_Encoding", "Transfer.encoding", "Http2-Settings",
	} {
		if !ours(name) {
			t.Errorf("%s would be taken for ours", name)
		}
	}
	for _, name := range []string{"", "X", "X-Forward", "X-Forwardedfor", "Xforwarded-For", "X-Real-Ip2", "Forwarded-For", "Content-Length", "Transfer-Encoding", "Proxy-Status", "X_Own", "Cookie", "Te"} {
		if ours(name) {
			t.Errorf("%s is the client's", name)
		}
	}
}

// The Server adds only its own headers to a request, and removes a client's headers with these names, in any spelling.
func TestRequestHeaders(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, plainOK)))
	_, port, _ := strings.Cut(r.http, ":")
	own := []string{"Cdn-Loop: tapestry", "Host: any.test", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Host: any.test", "X-Forwarded-Port: " + port,
		"X-Forwarded-Proto: http", "X-Real-Ip: 127.0.0.1"}
	for _, tt := range []struct {
		name string
		sent []string // pairs, in lower case for HTTP/2
		want []string // without the Server's own
	}{
		{"nothing", nil, nil},
		{"what the client says", []string{"accept", "a/b", "user-agent", "x", "x_own", "1", "x-own", "2"}, []string{"Accept: a/b", "User-Agent: x", "X_own: 1", "X-Own: 2"}},
		{"our names", []string{
			"x-forwarded-for", "evil", "x_forwarded_for", "evil", "x-forwarded_for", "evil", "x_real_ip", "evil", "x-real-ip", "evil", "x-forwarded", "evil",
			"x_forwarded", "evil", "x-forwarded-prefix", "evil", "x.forwarded.proto", "evil", "forwarded", "for=evil", "proxy", "http://evil",
			"content_length", "0", "transfer_encoding", "chunked"}, nil},
		{"cookies", []string{"cookie", "a=1; b=2"}, []string{"Cookie: a=1; b=2"}},
	} {
		w := r.dial()
		io.WriteString(w, "GET / HTTP/1.1\r\nHost: any.test\r\n")
		for i := 0; i < len(tt.sent); i += 2 {
			fmt.Fprintf(w, "%s: %s\r\n", tt.sent[i], tt.sent[i+1])
		}
		w.say("\r\n")
		w.answer(t, "GET")
		if a := r.dialH2(nil).get("/", tt.sent...); a.status != "200" {
			t.Errorf("%s: HTTP/2 got %+v", tt.name, a)
		}
		heads := seen.take()
		if len(heads) != 2 {
			t.Fatalf("%s: the backend got %d requests, want 2", tt.name, len(heads))
		}
		want := append(slices.Clone(own), tt.want...)
		slices.Sort(want)
		for i, head := range heads {
			got := lines(head)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("%s: HTTP/%d: the backend got\n%q, want\n%q", tt.name, i+1, got, want)
			}
		}
	}
}

// Headers that Connection names are removed, except those that the Server sets.
func TestHopByHop(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, "HTTP/1.1 200 OK\r\nConnection: X-Mine\r\nX-Mine: 1\r\nX-Yours: 2\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n")))
	w := r.dial()
	w.say("GET / HTTP/1.1\r\nHost: any.test\r\nConnection: X-Hop, X-Forwarded-For, Host\r\nX-Hop: 1\r\nProxy-Authorization: x\r\nKeep-Alive: x\r\nTE: gzip, trailers\r\n\r\n")
	resp := w.answer(t, "GET")
	if resp.Header.Get("X-Mine") != "" || resp.Header.Get("Keep-Alive") != "" || resp.Header.Get("X-Yours") != "2" {
		t.Errorf("the client got %v", resp.Header)
	}
	got := lines(seen.take()[0])
	for _, want := range []string{"Host: any.test", "X-Forwarded-For: 127.0.0.1", "Te: trailers"} {
		if !slices.Contains(got, want) {
			t.Errorf("the backend did not get %q: %q", want, got)
		}
	}
	for _, line := range got {
		if strings.HasPrefix(line, "X-Hop") || strings.HasPrefix(line, "Proxy-") || strings.HasPrefix(line, "Keep-") || strings.HasPrefix(line, "Connection") {
			t.Errorf("the backend got %q", line)
		}
	}
}

// A response has the backend's headers, and a Date, which is added where it is missing (RFC 9110 section 6.6.1).
func TestResponseHeaders(t *testing.T) {
	for _, tt := range []struct {
		name, response, body string
		want                 []string
	}{
		{"nothing said", "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html>x</html", "<html>x</html", []string{"content-length: 13"}},
		{"nosniff", "HTTP/1.1 200 OK\r\nX-Content-Type-Options: nosniff\r\nContent-Length: 13\r\n\r\n<html>x</html", "<html>x</html",
			[]string{"content-length: 13", "x-content-type-options: nosniff"}},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n<html>\r\n0\r\n\r\n", "<html>", nil},
		{"until the end", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<html>", "<html>", nil},
		{"its own type", "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nServer: s\r\nContent-Length: 1\r\n\r\nx", "x", []string{"content-length: 1", "content-type: a/b", "server: s"}},
		{"not modified", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", "", []string{"etag: \"x\""}},
		{"error", "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 6\r\n\r\n<html>", "<html>", []string{"content-length: 6"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
				w.say(tt.response)
				if strings.Contains(tt.response, "Connection: close") {
					w.hangUp()
				}
			})))
			w := r.dial()
			w.say("GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
			head, err := w.until("\r\n\r\n")
			if err != nil {
				t.Fatal(err)
			}
			check := func(protocol string, got []string) {
				got = slices.DeleteFunc(got, func(l string) bool {
					return strings.HasPrefix(l, "date: ") || l == "transfer-encoding: chunked" || strings.HasPrefix(l, "content-length: ") && !slices.Contains(tt.want, l)
				})
				slices.Sort(got)
				if !slices.Equal(got, tt.want) {
					t.Errorf("%s: got %q, want %q", protocol, got, tt.want)
				}
			}
			var got []string
			for _, l := range lines(head) {
				name, value, _ := strings.Cut(l, ":")
				got = append(got, strings.ToLower(name)+":"+value)
			}
			check("HTTP/1.1", got)
			a := r.dialH2(nil).get("/")
			if a.body != tt.body {
				t.Errorf("HTTP/2: body %q, want %q", a.body, tt.body)
			}
			got = nil
			for name, values := range a.header {
				for _, v := range values {
					got = append(got, name+": "+v)
				}
			}
			check("HTTP/2", got)
		})
	}
}

// Of trailers pass those that are allowed in one (RFC 9110 section 6.5.1), whether or not they were announced. Headers
// with the Server's names are removed, too.
func TestRequestTrailers(t *testing.T) {
	const notTrailers = "Host: evil\r\nConnection: evil\r\nX-Forwarded-For: evil\r\nX-Forwarded-Anything: evil\r\nAuthorization: evil\r\nCookie: evil\r\n" +
		"Proxy-Authorization: evil\r\nContent-Type: evil\r\nContent_Type: evil\r\nContent-Encoding: evil\r\nIf-Match: evil\r\nRange: evil\r\nExpect: evil\r\n" +
		"Cache-Control: evil\r\nTE: evil\r\nUpgrade: evil\r\nMax-Forwards: evil\r\nTransfer_Encoding: evil\r\nOrigin: evil\r\n"
	got := make(chan string, 2)
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, head string) {
		rest, _ := w.until("0\r\n")
		end, _ := w.until("\r\n\r\n")
		got <- head + rest + end
		w.say(plainOK)
	})))
	w := r.dial()
	w.say("POST / HTTP/1.1\r\nHost: any.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X_Forwarded_For, X-Real-Ip, Cookie, If-Match, Content_Type\r\n\r\n" +
		"2\r\nok\r\n0\r\nX-Sum: 1\r\nX_Forwarded_For: evil\r\nX-Real-Ip: evil\r\nForwarded: evil\r\n" + notTrailers + "\r\n")
	w.answer(t, "POST")
	if s := <-got; !strings.Contains(s, "Trailer: X-Sum\r\n") || !strings.HasSuffix(s, "0\r\nX-Sum: 1\r\n\r\n") || strings.Contains(s, "evil") {
		t.Errorf("the backend got\n%s", s)
	}
}
