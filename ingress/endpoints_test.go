package ingress

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// directory holds the endpoints of Service ports, and counts how often it was asked.
type directory struct {
	mu    sync.Mutex
	lists map[ServicePort][]netip.AddrPort
	asked int
}

func (d *directory) set(p ServicePort, list ...netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lists[p] = list
}

func (d *directory) endpoints(p ServicePort) []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	return d.lists[p]
}

func newDirectory() *directory { return &directory{lists: map[ServicePort][]netip.AddrPort{}} }

// Requests follow the endpoints of a Service port, with no Set in between.
func TestEndpointsChange(t *testing.T) {
	answer := func(name string) netip.AddrPort {
		return backend(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) })
	}
	a, b := answer("a"), answer("b")
	web := ServicePort{"default", "web", "http"}
	d := newDirectory()
	r := newRig(t, Options{Endpoints: d.endpoints}, Config{Routes: []Route{{Source: "default/web", Backend: web}}})
	c := r.client(nil, speakHTTP1)
	for _, tt := range []struct {
		endpoints []netip.AddrPort
		want      []string
	}{
		{nil, []string{"503"}}, {[]netip.AddrPort{a}, []string{"a"}}, {[]netip.AddrPort{a, b}, []string{"a", "b"}},
		{[]netip.AddrPort{b}, []string{"b"}}, {nil, []string{"503"}},
	} {
		d.set(web, tt.endpoints...)
		var got []string
		for range 6 {
			code, body := get(t, c, "http://any.test/")
			if code != 200 {
				body = fmt.Sprint(code)
			}
			got = append(got, body)
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, tt.want) {
			t.Errorf("%v: answered by %v, want %v", tt.endpoints, got, tt.want)
		}
	}
}

// An endpoint that was not reached stays left out when another endpoint is added.
func TestHealthOutlivesAChange(t *testing.T) {
	s := New(Options{})
	u := s.newUpstream(ServicePort{})
	first := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")}
	list := first
	s.resolve = func(ServicePort) []netip.AddrPort { return list }
	before := u.endpoints().endpoints
	before[1].downUntil.Store(7)
	if again := u.endpoints().endpoints; &again[0] != &before[0] {
		t.Error("the same list was resolved twice")
	}
	list = append([]netip.AddrPort{netip.MustParseAddrPort("10.0.0.0:80")}, first...)
	after := u.endpoints().endpoints
	if len(after) != 3 || after[1] != before[0] || after[2] != before[1] || after[0].downUntil.Load() != 0 {
		t.Errorf("got %v", after)
	}
}

// Requests succeed while the endpoints change.
func TestEndpointsUnderLoad(t *testing.T) {
	a, b := endpointsIn(named(t, "a")), endpointsIn(named(t, "b"))
	lists := [][]netip.AddrPort{a, b, {a[0], b[0]}}
	var current atomic.Pointer[[]netip.AddrPort]
	current.Store(&lists[0])
	o := Options{Endpoints: func(ServicePort) []netip.AddrPort { return *current.Load() }}
	r := newRig(t, o, Config{Routes: []Route{{Backend: ServicePort{"default", "web", "80"}}}})
	var done atomic.Bool
	var requests atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		c := r.client(nil, speakHTTP1)
		wg.Go(func() {
			for !done.Load() {
				resp, err := c.Get("http://any.test/")
				if err != nil {
					t.Error(err)
					return
				}
				if b := readAll(t, resp); resp.StatusCode != 200 || len(b) != 1 {
					t.Errorf("got %d %q", resp.StatusCode, b)
					return
				}
				requests.Add(1)
			}
		})
	}
	for i := 0; requests.Load() < 500 && !t.Failed(); i++ {
		current.Store(&lists[i%len(lists)])
		runtime.Gosched()
	}
	done.Store(true)
	wg.Wait()
}

// Set compiles only what has changed.
func TestSetCompilesWhatChanged(t *testing.T) {
	cert, _ := certificate(t, "shop.example")
	fallback := ServicePort{"default", "fallback", "80"}
	c := Config{
		Routes:       []Route{{Source: "default/a", Path: "/a", Backend: ServicePort{"default", "web", "80"}}},
		Certificates: []Certificate{cert}, Default: &fallback,
	}
	s := New(Options{})
	set := func(c Config) *state {
		if err := s.Set(c); err != nil {
			t.Fatal(err)
		}
		return s.state.Load()
	}
	first := set(c)
	if same := set(c); same.table != first.table || fmt.Sprintf("%p", same.certs) != fmt.Sprintf("%p", first.certs) {
		t.Error("the same Config was compiled again")
	}
	c.Certificates = []Certificate{cert}
	certs := set(c)
	if certs.table != first.table || fmt.Sprintf("%p", certs.certs) == fmt.Sprintf("%p", first.certs) {
		t.Error("new certificates: the routes were compiled, or the certificates were not")
	}
	c.Routes = []Route{c.Routes[0], {Source: "default/b", Path: "/b", Backend: ServicePort{"default", "web", "80"}}}
	routes := set(c)
	if routes.table == first.table || fmt.Sprintf("%p", routes.certs) != fmt.Sprintf("%p", certs.certs) {
		t.Error("new routes: the certificates were compiled, or the routes were not")
	}
	if routes.routes[0].upstream != first.routes[0].upstream || routes.routes[1].upstream != routes.routes[0].upstream {
		t.Error("one Service port has several upstreams")
	}
	c.Default = nil
	if set(c).fallback.upstream != nil {
		t.Error("the default backend stayed")
	}
	if set(Config{}).way("any.test", "/a").upstream != nil {
		t.Error("routes stayed")
	}
}

// BenchmarkManyPaths has 5,000 paths that lead to one Service of 5,000 endpoints. It measures the cost of setting the
// routes, of setting them again when something else has changed, and of the first request after an endpoint has
// changed.
func BenchmarkManyPaths(b *testing.B) {
	const n = 5000
	web := ServicePort{"default", "web", "80"}
	routes := func() []Route {
		list := make([]Route, n)
		for i := range list {
			list[i] = Route{Source: "default/web", Host: "shop.example", Path: fmt.Sprint("/", i), Backend: web}
		}
		return list
	}
	endpoints := func() []netip.AddrPort {
		list := make([]netip.AddrPort, n)
		for i := range list {
			list[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)
		}
		return list
	}
	list := endpoints()
	s := New(Options{Endpoints: func(ServicePort) []netip.AddrPort { return list }})
	set := func(c Config) {
		if err := s.Set(c); err != nil {
			b.Fatal(err)
		}
	}
	c := Config{Routes: routes()}
	set(c)
	b.Run("routes", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.Routes = slices.Clone(c.Routes)
			set(c)
		}
	})
	b.Run("nothing", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			set(c)
		}
	})
	b.Run("endpoint", func(b *testing.B) {
		b.ReportAllocs()
		u := s.state.Load().way("shop.example", "/7")
		for b.Loop() {
			list = slices.Clone(list)
			u.endpoints()
		}
	})
	b.Run("request", func(b *testing.B) {
		b.ReportAllocs()
		r := httptest.NewRequest("GET", "http://shop.example/7", nil)
		for b.Loop() {
			if len(s.state.Load().way(r.Host, r.URL.Path).endpoints().endpoints) != n {
				b.Fatal("no endpoints")
			}
		}
	})
}
