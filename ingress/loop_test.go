package ingress

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
)

func TestPasses(t *testing.T) {
	for _, test := range []struct {
		values []string
		want   int
	}{
		{nil, 0},
		{[]string{""}, 0},
		{[]string{"tapestry"}, 1},
		{[]string{"tapestry, tapestry"}, 2},
		{[]string{"tapestry", "Tapestry ; a=b"}, 2},
		{[]string{"other.example, tapestry;v=1,other, tapestry-2, not-tapestry"}, 1},
		{[]string{",,tapestry,,"}, 1},
		{[]string{`x; y="tapestry"`}, 0},
	} {
		if got := passes(http.Header{loopHeader: test.values}); got != test.want {
			t.Errorf("%q: %d, want %d", test.values, got, test.want)
		}
	}
}

// A request whose backend is the Ingress itself goes round as often as a request may pass, and no further. A client
// that names the header in Connection, or that writes it, has only its own request refused sooner.
func TestLoop(t *testing.T) {
	for _, protocols := range []func(*http.Protocols){speakHTTP1, speakHTTP2} {
		for name, test := range map[string]struct {
			header http.Header
			passes uint64
		}{
			"plain":             {nil, mostPasses + 1},
			"for one hop":       {http.Header{"Connection": {"CDN-Loop"}}, mostPasses + 1},
			"forged":            {http.Header{"Cdn-Loop": {"a.example, tapestry", "tapestry;x"}}, mostPasses - 1},
			"forged to the end": {http.Header{"Cdn-Loop": {strings.Repeat("tapestry,", mostPasses)}}, 1},
			"of another":        {http.Header{"Cdn-Loop": {strings.Repeat("a.example,", 100)}}, mostPasses + 1},
		} {
			if protocols(new(http.Protocols)); name == "for one hop" && isHTTP2(protocols) {
				continue // HTTP/2 has no such header
			}
			r := newRig(t, Options{}, Config{})
			r.set(anyRoute(netip.MustParseAddrPort(r.http)))
			req, err := http.NewRequest(http.MethodGet, "http://round.example/", nil)
			if err != nil {
				t.Fatal(err)
			}
			for key, values := range test.header {
				req.Header[key] = values
			}
			resp, err := r.client(nil, protocols).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusLoopDetected {
				t.Errorf("%s: got %s %q", name, resp.Status, body)
			}
			if got := r.Stats().Requests; got != test.passes {
				t.Errorf("%s: of one request there were %d, want %d", name, got, test.passes)
			}
		}
	}
}

func isHTTP2(protocols func(*http.Protocols)) bool {
	var p http.Protocols
	protocols(&p)
	return p.HTTP2()
}

// The backend sees what the client and others wrote, and one pass more.
func TestLoopHeader(t *testing.T) {
	var got []string
	to := backend(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header[loopHeader] })
	r := newRig(t, Options{}, anyRoute(to))
	for _, test := range []struct{ came, want string }{
		{"", "tapestry"}, {"a.example; x=1, tapestry", "a.example; x=1, tapestry, tapestry"},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://a.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if test.came != "" {
			req.Header.Set(loopHeader, test.came)
		}
		resp, err := r.client(nil, speakHTTP1).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if strings.Join(got, "|") != test.want {
			t.Errorf("of %q the backend got %q, want %q", test.came, got, test.want)
		}
	}
}
