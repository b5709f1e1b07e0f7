package node_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// TestAffinity checks that clients of a Service with session affinity keep their backends while others come, whichever
// way they take: a pod through the ClusterIPs and a node port, and a client of the host's sockets.
func TestAffinity(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	from := m.Pod(3)
	var backends []*nodetest.Pod
	for i := range 8 {
		p := c.Members[i%2].Pod(byte(4 + i))
		serve(t, p, 8080)
		backends = append(backends, p)
	}
	scale := func(n int) {
		s := web(30080, backends[:n]...)
		s.Affinity = time.Hour
		c.Serve(s)
	}
	scale(2)
	vips := c.Members[0].Config().Services.Services.At(0).ClusterIPs
	backend := func(c client) string {
		t.Helper()
		got, err := c.ask("hello")
		if err != nil {
			t.Fatalf("%s %s: %v", c.network, c.RemoteAddr(), err)
		}
		name, _, _ := strings.Cut(got, " ")
		return name
	}
	// The backend that each client has, by what the client is.
	has := map[string]string{}
	ask := func() {
		t.Helper()
		now := map[string]string{}
		for _, network := range []string{"tcp", "udp"} {
			for _, to := range []netip.AddrPort{netip.AddrPortFrom(vips[0], 80), netip.AddrPortFrom(vips[1], 80), netip.AddrPortFrom(m.Addr, 30080)} {
				who, name := fmt.Sprint(network, ", IPv4: ", to.Addr().Is4()), backend(dial(t, from, network, to))
				if other, known := now[who]; known && other != name {
					t.Errorf("%s: %s has %s, and %s at the ClusterIP", to, who, name, other)
				}
				now[who] = name
			}
			at, ok := m.HostSocket(network, 30080)
			if !ok {
				t.Fatalf("nobody listens for the NodePort, %s", network)
			}
			conn, err := net.DialTimeout(network, at.String(), await.Patience)
			if err != nil {
				t.Fatal(err)
			}
			now[network+", outside"] = backend(client{conn, network})
			_ = conn.Close()
		}
		for who, name := range now {
			if before, known := has[who]; known && before != name {
				t.Errorf("%s: moved from %s to %s", who, before, name)
			}
			has[who] = name
		}
	}
	ask()
	for n := 3; n <= len(backends); n++ {
		scale(n)
		ask()
	}
	if got := m.Counters().Get("tapestry_affinity_sessions"); got != float64(len(has)) {
		t.Errorf("%v sessions are counted, want %d", got, len(has))
	}
}
