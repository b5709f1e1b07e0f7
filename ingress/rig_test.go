package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/test/freeport"
)

func TestMain(m *testing.M) {
	if kind := os.Getenv(crowdVar); kind != "" {
		if err := beCrowd(kind, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// rig is a running Server on loopback.
type rig struct {
	*Server
	t           *testing.T
	http, https string // address:port
}

func newRig(t *testing.T, o Options, c Config) *rig {
	t.Helper()
	if o.Endpoints == nil {
		o.Endpoints = endpointsIn
	}
	r := &rig{Server: New(o), t: t}
	r.set(c)
	done := make(chan error, 2)
	listen := func(serve func(context.Context, net.Listener) error) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { done <- serve(context.Background(), l) }()
		return l.Addr().String()
	}
	r.http, r.https = listen(r.ServeHTTP), listen(r.ServeHTTPS)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		r.Shutdown(ctx) // cuts what the test has left open
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

func (r *rig) set(c Config) {
	r.t.Helper()
	if err := r.Set(c); err != nil {
		r.t.Fatal(err)
	}
}

// client returns an HTTP client that connects to the rig whatever the URL's host, and trusts roots.
func (r *rig) client(roots *x509.CertPool, protocols func(*http.Protocols)) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		Protocols:       new(http.Protocols),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := r.http
			if strings.HasSuffix(addr, ":443") {
				to = r.https
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
	}
	protocols(tr.Protocols)
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func speakHTTP1(p *http.Protocols) { p.SetHTTP1(true) }
func speakHTTP2(p *http.Protocols) { p.SetHTTP2(true); p.SetUnencryptedHTTP2(true) }

// backend starts an HTTP server that speaks HTTP/1.1 and h2c.
func backend(t *testing.T, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return addrOf(s)
}

func addrOf(s *httptest.Server) netip.AddrPort {
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// named starts a backend that answers with its name, and returns its Service port.
func named(t *testing.T, name string) ServicePort {
	return portOf(backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) }))
}

// portOf returns a Service port whose name lists its endpoints, so that endpointsIn finds them.
func portOf(endpoints ...netip.AddrPort) ServicePort {
	var texts []string
	for _, a := range endpoints {
		texts = append(texts, a.String())
	}
	return ServicePort{Namespace: "default", Name: strings.Join(texts, ","), Port: "80"}
}

var portsSeen sync.Map // ServicePort to []netip.AddrPort

// endpointsIn returns the endpoints that the name of a Service port lists.
func endpointsIn(p ServicePort) []netip.AddrPort {
	if list, known := portsSeen.Load(p); known {
		return list.([]netip.AddrPort)
	}
	var list []netip.AddrPort
	for text := range strings.SplitSeq(p.Name, ",") {
		if a, err := netip.ParseAddrPort(text); err == nil {
			list = append(list, a)
		}
	}
	first, _ := portsSeen.LoadOrStore(p, list)
	return first.([]netip.AddrPort)
}

// upgrading returns anyRoute(endpoint) with a route that allows protocols.
func upgrading(endpoint netip.AddrPort, protocols ...string) Config {
	c := anyRoute(endpoint)
	c.Routes[0].Upgrades = protocols
	return c
}

// anyRoute returns a Config that sends all requests to endpoints.
func anyRoute(endpoints ...netip.AddrPort) Config {
	return Config{Routes: []Route{{Source: "default/any", Backend: portOf(endpoints...)}}}
}

// refused returns an address on which nothing listens.
func refused(t *testing.T) netip.AddrPort {
	t.Helper()
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freeport.Of(t))
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, readAll(t, resp)
}

func readAll(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
