package ingress

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tapestry.dev/tapestry/test/await"
)

func TestRoutes(t *testing.T) {
	exact, prefix, wild, other, fallback := named(t, "exact"), named(t, "prefix"), named(t, "wild"), named(t, "other"), named(t, "fallback")
	config := Config{
		Routes: []Route{
			{Source: "default/a", Host: "shop.example", Path: "/cart", Type: Exact, Backend: exact},
			{Source: "default/a", Host: "shop.example", Path: "/cart", Type: Prefix, Backend: prefix},
			{Source: "default/a", Host: "*.example", Backend: wild},
			{Source: "default/b", Path: "/other", Backend: other},
			{Source: "default/c", Host: "empty.test", Backend: ServicePort{"default", "empty", "80"}},
		},
		Default: &fallback,
	}
	r := newRig(t, Options{}, config)
	c := r.client(nil, speakHTTP1)
	for _, tt := range []struct {
		url, want string
		code      int
	}{
		{"http://shop.example/cart", "exact", 200},
		{"http://SHOP.example:80/cart", "exact", 200},
		{"http://shop.example/cart/", "prefix", 200},
		{"http://shop.example/cart/1?x=/other", "prefix", 200},
		{"http://shop.example/carts", "wild", 200},
		{"http://a.example/", "wild", 200},
		{"http://a.b.example/", "fallback", 200},
		{"http://nobody.test/other/x", "other", 200},
		{"http://nobody.test/", "fallback", 200},
		{"http://empty.test/", "no endpoint is ready\n", 503},
	} {
		if code, body := get(t, c, tt.url); code != tt.code || body != tt.want {
			t.Errorf("%s: got %d %q, want %d %q", tt.url, code, body, tt.code, tt.want)
		}
	}

	config.Default = nil
	r.set(config)
	if code, body := get(t, c, "http://nobody.test/"); code != 404 || body != "no route for this host and path\n" {
		t.Errorf("without default backend: got %d %q", code, body)
	}
	s := r.Stats()
	if s.Requests != 11 || s.Responses[2] != 9 || s.NoEndpoint != 1 || s.NoRoute != 1 {
		t.Errorf("stats: %+v", s)
	}
}

func TestBeforeSet(t *testing.T) {
	s := New(Options{})
	defer s.Shutdown(context.Background())
	w := httptest.NewRecorder()
	near, _ := net.Pipe()
	s.serve(w, httptest.NewRequestWithContext(withClient(t.Context(), near), "GET", "http://any.test/", nil))
	if w.Code != 404 {
		t.Errorf("got %d, want 404", w.Code)
	}
}

func TestSetRefusesAndKeeps(t *testing.T) {
	good := named(t, "good")
	r := newRig(t, Options{}, anyRoute(endpointsIn(good)...))
	for name, bad := range map[string]Config{
		"host":        {Routes: []Route{{Source: "team/bad", Host: "a.*.b", Backend: good}}},
		"path":        {Routes: []Route{{Source: "team/bad", Path: "no-slash", Backend: good}}},
		"certificate": {Certificates: []Certificate{{Name: "team/bad", Hosts: []string{"x"}}}},
	} {
		if err := r.Set(bad); err == nil || !strings.Contains(err.Error(), "team/bad") {
			t.Errorf("%s: got error %v, want one that names team/bad", name, err)
		}
	}
	if code, body := get(t, r.client(nil, speakHTTP1), "http://any.test/"); code != 200 || body != "good" {
		t.Errorf("after refused Sets: got %d %q", code, body)
	}
}

// echoHeaders answers with the request as the backend saw it.
func echoHeaders(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "%s %s %s\n", r.Method, r.RequestURI, r.Proto)
	h := r.Header
	h.Set("Host", r.Host)
	h.Write(w)
}

func TestForwardedHeaders(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, echoHeaders)))
	_, httpPort, _ := net.SplitHostPort(r.http)
	_, httpsPort, _ := net.SplitHostPort(r.https)
	for _, scheme := range []string{"http", "https"} {
		cert, roots := certificate(t, "shop.example")
		r.set(Config{Routes: anyRoute(backend(t, echoHeaders)).Routes, Certificates: []Certificate{cert}})
		req, _ := http.NewRequest("GET", scheme+"://shop.example/a%2Fb//c;d?q=1;2&%zz", nil)
		for _, h := range []string{"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-Ip", "Forwarded"} {
			req.Header[h] = []string{"hostile", "twice"}
		}
		req.Header.Set("Connection", "close, X-Hop")
		req.Header.Set("X-Hop", "hostile")
		req.Header.Set("Keep-Alive", "hostile")
		req.Header.Set("X-Own", "kept")
		resp, err := r.client(roots, speakHTTP1).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got := readAll(t, resp)
		port := map[string]string{"http": httpPort, "https": httpsPort}[scheme]
		for _, want := range []string{
			"GET /a%2Fb//c;d?q=1;2&%zz HTTP/1.1\n", "Host: shop.example\r\n", "X-Own: kept\r\n",
			"X-Forwarded-For: 127.0.0.1\r\n", "X-Real-Ip: 127.0.0.1\r\n", "X-Forwarded-Host: shop.example\r\n",
			"X-Forwarded-Proto: " + scheme + "\r\n", "X-Forwarded-Port: " + port + "\r\n",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: backend did not see %q in\n%s", scheme, want, got)
			}
		}
		for _, banned := range []string{"hostile", "twice", "X-Hop", "X-Forwarded-Prefix"} {
			if strings.Contains(got, banned) {
				t.Errorf("%s: backend saw %q in\n%s", scheme, banned, got)
			}
		}
	}
}

func TestWebSocket(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, msg, err := c.Read(r.Context())
			if err != nil {
				return
			}
			c.Write(r.Context(), kind, msg)
		}
	})
	cert, roots := certificate(t, "shop.example")
	config := anyRoute(addr)
	config.Certificates = []Certificate{cert}
	r := newRig(t, Options{}, config)
	for _, url := range []string{"ws://shop.example/ws", "wss://shop.example/ws"} {
		ctx := t.Context()
		c, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: r.client(roots, speakHTTP1)})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			sent := fmt.Sprintf("message %d %s", i, strings.Repeat("x", i*500))
			if err := c.Write(ctx, websocket.MessageText, []byte(sent)); err != nil {
				t.Fatal(err)
			}
			if _, got, err := c.Read(ctx); err != nil || string(got) != sent {
				t.Fatalf("message %d: got %d bytes, %v", i, len(got), err)
			}
		}
		if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
			t.Error(err)
		}
	}
}

// An h2c tunnel through an HTTP/1.1 upgrade would carry requests past the routes.
func TestUpgradeToH2CIsNotPassedOn(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, echoHeaders)))
	req, _ := http.NewRequest("GET", "http://any.test/", nil)
	req.Header.Set("Connection", "Upgrade, HTTP2-Settings")
	req.Header.Set("Upgrade", "h2c")
	req.Header.Set("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA")
	resp, err := r.client(nil, speakHTTP1).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, resp); resp.StatusCode != 200 || strings.Contains(got, "Upgrade") || strings.Contains(got, "Settings") {
		t.Errorf("got %d, backend saw\n%s", resp.StatusCode, got)
	}
}

func TestConnectIsRefused(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, echoHeaders)))
	c, err := net.Dial("tcp", r.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "CONNECT 192.0.2.1:22 HTTP/1.1\r\nHost: 192.0.2.1:22\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("got %d, want 405", resp.StatusCode)
	}
}

// Each event must reach the client before the backend sends the next.
func TestEventStreamIsFlushed(t *testing.T) {
	next := make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	r := newRig(t, Options{}, anyRoute(addr))
	for name, protocols := range map[string]func(*http.Protocols){"HTTP/1": speakHTTP1, "HTTP/2": speakHTTP2} {
		resp, err := r.client(nil, protocols).Get("http://any.test/")
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(resp.Body)
		for i := range 3 {
			line, err := lines.ReadString('\n')
			if want := fmt.Sprintf("data: %d\n", i); err != nil || line != want {
				t.Fatalf("%s: got %q, %v; want %q", name, line, err, want)
			}
			lines.ReadString('\n')
			next <- struct{}{}
		}
		resp.Body.Close()
	}
}

func TestLargeBodies(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	})
	cert, roots := certificate(t, "shop.example")
	config := anyRoute(addr)
	config.Certificates = []Certificate{cert}
	r := newRig(t, Options{}, config)
	const size = 8 << 20
	resp, err := r.client(roots, speakHTTP2).Post("https://shop.example/", "application/octet-stream", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, resp); len(got) != size {
		t.Errorf("got %d bytes back, want %d", len(got), size)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestListenerEndsWithContext(t *testing.T) {
	s := New(Options{})
	defer s.Shutdown(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.ServeHTTP(ctx, l) }()
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(await.Patience):
		t.Fatal("ServeHTTP did not return")
	}
}

func TestBrokenListenerIsAnError(t *testing.T) {
	s := New(Options{})
	defer s.Shutdown(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := s.ServeHTTP(t.Context(), l); err == nil {
		t.Error("a closed listener was no error")
	}
}

// addressed is a connection with given addresses.
type addressed struct {
	net.Conn
	local, remote net.Addr
}

func (a addressed) LocalAddr() net.Addr  { return a.local }
func (a addressed) RemoteAddr() net.Addr { return a.remote }

func TestClientAddress(t *testing.T) {
	tcp := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	for _, tt := range []struct {
		conn       net.Conn
		addr, port string
	}{
		{addressed{local: tcp("192.0.2.1:8080"), remote: tcp("198.51.100.7:4000")}, "198.51.100.7", "8080"},
		{addressed{local: tcp("[::]:80"), remote: tcp("[::ffff:198.51.100.7]:4000")}, "198.51.100.7", "80"},
		{addressed{local: tcp("[2001:db8::1]:80"), remote: tcp("[2001:db8::7]:4000")}, "2001:db8::7", "80"},
		{addressed{local: tcp("[fe80::1%eth0]:80"), remote: tcp("[fe80::7%eth0]:4000")}, "fe80::7", "80"},
	} {
		c := withClient(t.Context(), tt.conn).Value(clientKey{}).(*client)
		if c.addr[0] != tt.addr || c.port[0] != tt.port || c.proto[0] != "http" {
			t.Errorf("%v: got %+v", tt.conn, c)
		}
	}
}
