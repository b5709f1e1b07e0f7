package ingress

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
)

// may is a Law that forbids what it does not name. It counts how often it was asked about an endpoint.
type may struct {
	list  map[netip.Addr]map[netip.AddrPort]Permission
	asked atomic.Int64
}

func (m *may) For(client netip.Addr) Judge { return mayFor{m, client} }

type mayFor struct {
	*may
	client netip.Addr
}

func (m mayFor) Permits(endpoint netip.AddrPort) Permission {
	m.asked.Add(1)
	if p, ok := m.list[m.client][endpoint]; ok {
		return p
	}
	return Forbidden
}

// toWeb are routes to one Service port.
var toWeb = Config{Routes: []Route{{Source: "default/web", Backend: ServicePort{Namespace: "default", Name: "web", Port: "80"}}}}

// TestPermits: a client gets answers of those endpoints alone that it may reach, and 403 when these are none.
func TestPermits(t *testing.T) {
	var list []netip.AddrPort
	for _, name := range []string{"a", "b", "c"} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }))
		t.Cleanup(s.Close)
		list = append(list, netip.MustParseAddrPort(strings.TrimPrefix(s.URL, "http://")))
	}
	pod := netip.MustParseAddr("10.244.1.3") // behind a socket of this host
	var law atomic.Pointer[may]
	r := newRig(t, Options{
		Endpoints: func(ServicePort) []netip.AddrPort { return list },
		Who:       func(_, _ netip.AddrPort) netip.Addr { return pod },
		Law:       func() Law { return law.Load() },
	}, toWeb)
	for _, c := range []struct {
		may  map[netip.AddrPort]Permission
		code int
		want string // who may answer
	}{
		{map[netip.AddrPort]Permission{}, http.StatusForbidden, ""},
		{map[netip.AddrPort]Permission{list[1]: Permitted}, http.StatusOK, "b"},
		{map[netip.AddrPort]Permission{list[0]: Permitted, list[2]: Permitted}, http.StatusOK, "ac"},
		{map[netip.AddrPort]Permission{list[0]: Permitted, list[2]: Undecided}, http.StatusOK, "a"},
		{map[netip.AddrPort]Permission{list[2]: Undecided}, http.StatusServiceUnavailable, ""},
	} {
		law.Store(&may{list: map[netip.Addr]map[netip.AddrPort]Permission{pod: c.may}})
		for range 6 {
			resp, err := http.Get("http://" + r.http + "/")
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != c.code || c.want != "" && !strings.Contains(c.want, string(body)) {
				t.Errorf("with %v: %s %q", c.may, resp.Status, body)
			}
		}
	}
	if s := r.Stats(); s.Forbidden != 6 || s.NoEndpoint != 6 {
		t.Errorf("%d requests are counted as forbidden, %d as without an endpoint", s.Forbidden, s.NoEndpoint)
	}
	http.DefaultClient.CloseIdleConnections()
}

// TestPermittedDown: an endpoint that failed lately is asked again when the client may reach no other, whatever becomes
// of those that it may not reach.
func TestPermittedDown(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "back") }))
	t.Cleanup(s.Close)
	near, other := netip.MustParseAddrPort(strings.TrimPrefix(s.URL, "http://")), netip.MustParseAddrPort("127.0.0.1:1")
	law := &may{list: map[netip.Addr]map[netip.AddrPort]Permission{netip.MustParseAddr("127.0.0.1"): {near: Permitted}}}
	var down atomic.Bool
	r := newRig(t, Options{
		Endpoints: func(ServicePort) []netip.AddrPort { return []netip.AddrPort{near, other} },
		Law:       func() Law { return law },
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if down.Load() {
				return nil, errors.New("not now")
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}, toWeb)
	get := func(want int) {
		t.Helper()
		resp, err := http.Get("http://" + r.http + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("got %s, want %d", resp.Status, want)
		}
	}
	down.Store(true)
	get(http.StatusBadGateway)
	down.Store(false)
	get(http.StatusOK)
	http.DefaultClient.CloseIdleConnections()
}

// TestWho: it is asked who has made a connection when something was read of it, once, by both its ends.
func TestWho(t *testing.T) {
	pod := netip.MustParseAddr("10.244.1.3")
	asked := make(chan [2]netip.AddrPort, 8)
	endpoint := netip.MustParseAddrPort("127.0.0.1:1")
	law := &may{list: map[netip.Addr]map[netip.AddrPort]Permission{pod: {endpoint: Undecided}}}
	r := newRig(t, Options{
		Endpoints: func(ServicePort) []netip.AddrPort { return []netip.AddrPort{endpoint} },
		Who: func(client, at netip.AddrPort) netip.Addr {
			asked <- [2]netip.AddrPort{client, at}
			return pod
		},
		Law: func() Law { return law },
	}, toWeb)
	silent, err := net.Dial("tcp", r.http) // it is accepted before the next
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c, err := net.Dial("tcp", r.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	for range 2 {
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("got %s, %v; want what the pod gets", resp.Status, err)
		}
	}
	if got, want := <-asked, [2]netip.AddrPort{endOf(c.LocalAddr()), endOf(c.RemoteAddr())}; got != want || len(asked) > 0 {
		t.Errorf("asked about %v and %d others, want %v", got, len(asked), want)
	}
}
