package node

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
)

// TestPlaces: a node port is open at the host's addresses that are named, as the host has them, and at no others. There
// another program may have the port. A health check is where node ports are.
func TestPlaces(t *testing.T) {
	other, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	port := uint16(other.Addr().(*net.TCPAddr).Port)
	h := held(t)
	h.NodePorts = services.Places{Ranges: addresstest.Prefixes("127.0.77.0/24")}
	var checked []netip.Addr
	h.ListenHealthCheck = func(at netip.Addr, _ uint16) (net.Listener, error) {
		checked = append(checked, at)
		return net.Listen("tcp4", "127.0.0.1:0")
	}
	var changed func([]netip.Addr)
	h.HostAddrs = func(ctx context.Context, f func([]netip.Addr)) error {
		changed = f
		f(addresstest.Addrs("127.0.0.1", "127.0.77.1", "192.0.2.1"))
		<-ctx.Done()
		return ctx.Err()
	}
	c := config()
	c.Netstack.NodeAddrs = addresstest.Addrs("192.0.2.1")
	c.Services = services.Config{
		Node: "n1", NodeAddrs: c.Netstack.NodeAddrs, OwnAddrs: c.Netstack.NodeAddrs,
		Services: roll.From([]*services.Service{{
			Namespace: "default", Name: "web", ClusterIPs: addresstest.Addrs("10.96.0.1"),
			HealthCheckNodePort: 31999,
			Ports:               []services.Port{{Name: "p", Protocol: packet.TCP, Port: 80, NodePort: port}},
			Endpoints: []services.Endpoint{{
				Addr: netip.MustParseAddr("10.244.1.3"), Node: "n1", Ready: true, Serving: true,
				Ports: []services.EndpointPort{{Name: "p", Protocol: packet.TCP, Port: 8080}},
			}},
		}}),
	}
	n, err := Start(h, c)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	open := func(when string, want map[string]bool) {
		t.Helper()
		for at, want := range want {
			conn, err := net.Dial("tcp4", netip.AddrPortFrom(netip.MustParseAddr(at), port).String())
			if err == nil {
				_ = conn.Close()
			}
			// The pod is not there, so the connection is reset, perhaps before it is returned.
			if is := !errors.Is(err, syscall.ECONNREFUSED); is != want {
				t.Errorf("%s, %s: %v, want open %v", when, at, err, want)
			}
		}
		if list := n.Problems(); len(list) != 0 {
			t.Errorf("%s: %v", when, list)
		}
	}
	if err := n.Set(c); err != nil {
		t.Fatal(err)
	}
	open("at first", map[string]bool{"127.0.77.1": true, "127.0.77.2": false, "127.0.0.2": false})
	changed(addresstest.Addrs("127.0.0.1", "127.0.77.2", "192.0.2.1"))
	open("with other addresses", map[string]bool{"127.0.77.1": false, "127.0.77.2": true, "127.0.0.2": false})
	if want := addresstest.Addrs("127.0.77.1", "127.0.77.2"); !slices.Equal(checked, want) {
		t.Errorf("the health check is at %s, want %s: where node ports are", checked, want)
	}
}
