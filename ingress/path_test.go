package ingress

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The backend gets the bytes that the client sent, in both protocols.
func TestPathBytes(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, plainOK)))
	for _, target := range []string{
		"/", "/a/b/", "/a%2Fb|c", "/a%2fb", `/"quoted"`, "/a^b", "/a`b{c}<d>", "/caf\xc3\xa9", "/\xff\xfe", "/caf%C3%A9", "/%41%7e",
		"//a", "//a|b", "///", "/a//b", "/a;x=1;y", `/a\b`, "/%252e%252e/x", "/a?", "/a?%zz&;=|\"\xff", "/a??/../b", "/a?b=http://c/../d",
		"/[a]:@!$&'()*+,=", "/a%20b%0d%0a",
	} {
		status := r.asked(target)
		heads := seen.take()
		if status != [2]string{"200", "200"} || len(heads) != 2 {
			t.Errorf("%q: got %v and %d requests", target, status, len(heads))
			continue
		}
		for i, head := range heads {
			if got, want := firstLine(head), "GET "+target+" HTTP/1.1"; got != want {
				t.Errorf("HTTP/%d: the backend got %q, want %q", i+1, got, want)
			}
		}
	}
}

// gRPC goes to the backend over HTTP/2, with the same bytes.
func TestPathBytesOfGRPC(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, echoHeaders)))
	for _, target := range []string{"/pkg.Service/M", "/a%2Fb|c?q", "//a|b", `/"^` + "\xff?"} {
		a := r.dialH2(nil).get(target, "content-type", "application/grpc")
		if want := "GET " + target + " HTTP/2.0\n"; !strings.HasPrefix(a.body, want) {
			t.Errorf("the backend got %q, want %q", a.body, want)
		}
		if strings.Contains(a.body, "Go-http-client") {
			t.Errorf("a User-Agent was made up:\n%s", a.body)
		}
	}
}

// Forms of the request target other than a path.
func TestTargetForms(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, plainOK)))
	for _, tt := range []struct{ line, host, want, wantHost string }{
		{"OPTIONS * HTTP/1.1", "any.test", "OPTIONS * HTTP/1.1", "any.test"},
		{"OPTIONS http://other.test HTTP/1.1", "other.test", "OPTIONS * HTTP/1.1", "other.test"},
		{"GET http://other.test/a%2Fb|c?q HTTP/1.1", "other.test", "GET /a%2Fb|c?q HTTP/1.1", "other.test"},
		// RFC 9112 section 3.2.2: the host of the target counts, whatever the Host header says.
		{"GET http://other.test/a HTTP/1.1", "any.test", "GET /a HTTP/1.1", "other.test"},
		{"GET http://other.test?q HTTP/1.1", "other.test", "GET /?q HTTP/1.1", "other.test"},
	} {
		w := r.dial()
		fmt.Fprintf(w, "%s\r\nHost: %s\r\n\r\n", tt.line, tt.host)
		resp := w.answer(t, "GET")
		heads := seen.take()
		if resp.StatusCode != 200 || len(heads) != 1 || firstLine(heads[0]) != tt.want || !slices.Contains(lines(heads[0]), "Host: "+tt.wantHost) {
			t.Errorf("%s: got %d, the backend got %q", tt.line, resp.StatusCode, heads)
		}
	}
	a := r.dialH2(nil)
	id := a.headers(true, ":method", "OPTIONS", ":scheme", "http", ":authority", "any.test", ":path", "*")
	if got := a.read(id); got.status != "200" || firstLine(seen.take()[0]) != "OPTIONS * HTTP/1.1" {
		t.Errorf("OPTIONS * over HTTP/2: got %+v", got)
	}
}

// No request reaches a route by the path of another one.
func TestDotSegments(t *testing.T) {
	var raw, admin, root capture
	config := Config{Routes: []Route{
		{Source: "a/raw", Path: "/raw", Backend: portOf(raw.backend(t, plainOK))},
		{Source: "a/admin", Path: "/admin", Backend: portOf(admin.backend(t, plainOK))},
		{Source: "a/cafe", Path: "/caf%C3%A9 au lait", Backend: portOf(raw.backend(t, plainOK))},
		{Source: "a/root", Path: "/", Backend: portOf(root.backend(t, plainOK))},
	}}
	r := newRig(t, Options{}, config)
	for _, tt := range []struct {
		target string
		to     *capture // nil: refused
		as     string
	}{
		{"/raw/x", &raw, "/raw/x"},
		{"/raw/../admin", &admin, "/admin"},
		{"/raw/%2e%2e/admin", &admin, "/admin"},
		{"/raw/.%2E/admin/?q=/../raw", &admin, "/admin/?q=/../raw"},
		{"/admin/../raw/./x|y", &raw, "/raw/x|y"},
		{"/./raw", &raw, "/raw"},
		{"/raw/..", &root, "/"},
		{"/raw/../../admin", nil, ""},
		{"/..", nil, ""},
		{"/raw/..%2fadmin", nil, ""},
		{"/raw/%2e%2e%2Fadmin", nil, ""},
		{"/raw%2F..%2Fadmin", nil, ""},
		{`/raw/..\admin`, nil, ""},
		{`/raw\..\admin`, nil, ""},
		{"/raw/..%5cadmin", nil, ""},
		{"/raw/..;/admin", nil, ""},
		{"/raw/..;x=1/admin", nil, ""},
		{"/raw/%00", nil, ""},
		{"/raw#/../admin", nil, ""},
		// An encoded slash does not separate elements, and nothing is decoded twice.
		{"/raw%2Fx", &root, "/raw%2Fx"},
		{"/admin%2F", &root, "/admin%2F"},
		{"/raw/%252e%252e/admin", &raw, "/raw/%252e%252e/admin"},
		{"/raw/%252e%252e%252fadmin", &raw, "/raw/%252e%252e%252fadmin"},
		{"//admin", &root, "//admin"},
		{"/raw;x/y", &root, "/raw;x/y"},
		{"/r%61w/x", &raw, "/r%61w/x"},
		{"/caf\xc3\xa9%20au%20lait", &raw, "/caf\xc3\xa9%20au%20lait"},
	} {
		status := r.asked(tt.target)
		for _, c := range []*capture{&raw, &admin, &root} {
			heads := c.take()
			if c != tt.to {
				if len(heads) > 0 {
					t.Errorf("%q went to the wrong backend as %q", tt.target, firstLine(heads[0]))
				}
				continue
			}
			if len(heads) != 2 || firstLine(heads[0]) != "GET "+tt.as+" HTTP/1.1" || firstLine(heads[1]) != firstLine(heads[0]) {
				t.Errorf("%q: the backend got %q, want %q twice", tt.target, heads, tt.as)
			}
		}
		if tt.to == nil && status != [2]string{"400", "400"} || tt.to != nil && status != [2]string{"200", "200"} {
			t.Errorf("%q: got %v", tt.target, status)
		}
	}
}
