package ingress

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"testing"
)

// BenchmarkRequest measures a small request through a Server, with no network between client and Server. For comparison
// plain is the same request through a bare ReverseProxy.
func BenchmarkRequest(b *testing.B) {
	for name, handler := range handlers(b, frugal(b)) {
		b.Run(name, func(b *testing.B) {
			near, far := net.Pipe()
			defer near.Close()
			defer far.Close()
			r := httptest.NewRequestWithContext(withClient(b.Context(), near), "GET", "http://shop.example/cart", nil)
			b.ReportAllocs()
			for b.Loop() {
				w := discard{http.Header{}}
				handler.ServeHTTP(w, r)
			}
		})
	}
}

func handlers(tb testing.TB, backend netip.AddrPort) map[string]http.Handler {
	s := New(Options{Endpoints: endpointsIn})
	tb.Cleanup(func() { s.Shutdown(context.Background()) })
	if err := s.Set(Config{Routes: []Route{{Host: "shop.example", Path: "/cart", Backend: portOf(backend)}}}); err != nil {
		tb.Fatal(err)
	}
	target := &url.URL{Scheme: "http", Host: backend.String()}
	transport := &http.Transport{DisableCompression: true}
	tb.Cleanup(transport.CloseIdleConnections)
	plain := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite:   func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = target.Scheme, target.Host },
	}
	return map[string]http.Handler{"ingress": http.HandlerFunc(s.serve), "plain": plain}
}

// frugal starts a backend that allocates nothing.
func frugal(tb testing.TB) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf, response, n := make([]byte, 4096), []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), 0
				for {
					m, err := c.Read(buf[n:])
					if err != nil {
						return
					}
					if n += m; bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						c.Write(response)
						n = 0
					}
				}
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// The Server allocates no more than a bare ReverseProxy, which has no routes and sets no headers.
func TestRequestAllocations(t *testing.T) {
	allocs := map[string]float64{}
	for name, handler := range handlers(t, frugal(t)) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		r := httptest.NewRequestWithContext(withClient(t.Context(), near), "GET", "http://shop.example/cart", nil)
		allocs[name] = testing.AllocsPerRun(200, func() { handler.ServeHTTP(discard{http.Header{}}, r) })
	}
	if allocs["ingress"] > allocs["plain"] {
		t.Errorf("the Server allocates %v times a request, ReverseProxy %v", allocs["ingress"], allocs["plain"])
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header       { return d.h }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}
func (discard) Flush()                      {}
