package nodeport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// both are the protocols that host sockets serve.
var both = map[string]packet.Proto{"tcp": packet.TCP, "udp": packet.UDP}

// backendAt starts a backend for both protocols at one port of a loopback address.
func backendAt(t *testing.T, host string) netip.AddrPort {
	t.Helper()
	tcp := tcpBackendAt(t, host, echo("one"))
	udpBackendAt(t, tcp.String(), "one")
	return netip.MustParseAddrPort(tcp.String())
}

// refused asserts that the kernel turns a client away at once.
func refused(t *testing.T, network, host string, port uint16) {
	t.Helper()
	c, err := net.DialTimeout(network, net.JoinHostPort(host, fmt.Sprint(port)), 5*time.Second)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(await.Patience))
		if _, err = c.Write([]byte("x")); err == nil && network == "udp" {
			_, err = c.Read(make([]byte, 1))
		}
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s %s port %d: %v, want it refused", network, host, port, err)
	}
}

// served asserts that the backend answers.
func served(t *testing.T, network, host string, port uint16) {
	t.Helper()
	if network == "udp" {
		if got := exchange(t, dialUDP(t, host, port), "hello"); got != "one:hello" {
			t.Errorf("udp %s: got %q", host, got)
		}
		return
	}
	c := dialTCP(t, host, port)
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Errorf("tcp %s: %v", host, err)
	}
}

func tableConfig(node string) services.Config {
	return services.Config{Node: node, NodeAddrs: []netip.Addr{node4, node6}, OwnAddrs: []netip.Addr{node4, node6}}
}

// nodePortConfig returns a Config with one Service. It has a NodePort for both protocols and one backend, on node n.
func nodePortConfig(port uint16, backend netip.AddrPort) services.Config {
	s := &services.Service{Namespace: "d", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}}
	if backend.Addr().Is6() {
		s.ClusterIPs = []netip.Addr{netip.MustParseAddr("fd96::1")}
	}
	e := services.Endpoint{Addr: backend.Addr(), ID: "one", Node: "n", Ready: true, Serving: true}
	for _, proto := range both {
		s.Ports = append(s.Ports, services.Port{Protocol: proto, Port: 80, NodePort: port})
		e.Ports = append(e.Ports, services.EndpointPort{Protocol: proto, Port: backend.Port()})
	}
	s.Endpoints = []services.Endpoint{e}
	c := tableConfig("n")
	c.Services = roll.From([]*services.Service{s})
	return c
}

// over starts a Proxy that serves the Table of c.
func over(t *testing.T, c services.Config) *Proxy {
	t.Helper()
	table, problems := services.NewTable(c)
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	_, p := newWorld(t, func(o *Options) { o.Pick, o.Stays = table.PickOnHost, table.StaysOnHost })
	if problems := p.Set(Ports(table)); len(problems) != 0 {
		t.Fatal(problems)
	}
	return p
}

// A client of a family that the Service or pod lacks is refused, so that it tries the other family.
func TestOneFamily(t *testing.T) {
	all := hosts(t)
	for i, host := range all {
		backend := backendAt(t, host)
		t.Run("NodePort at "+host, func(t *testing.T) {
			port := freeport.Of(t)
			over(t, nodePortConfig(port, backend))
			for network := range both {
				served(t, network, host, port)
				if len(all) == 2 {
					refused(t, network, all[1-i], port)
				}
			}
		})
		t.Run("hostPort at "+host, func(t *testing.T) {
			port := freeport.Of(t)
			c := tableConfig("n")
			every := netip.IPv4Unspecified()
			if backend.Addr().Is6() {
				every = netip.IPv6Unspecified()
			}
			for _, proto := range both {
				c.HostPorts = append(c.HostPorts, services.HostPort{Pod: "d/p", ID: "p", Addr: every, Port: port, Protocol: proto, To: backend})
			}
			over(t, c)
			for network := range both {
				served(t, network, host, port)
				if len(all) == 2 {
					refused(t, network, all[1-i], port)
				}
			}
		})
	}
}

// A NodePort is open while there is a backend. Present connections continue when it closes.
func TestOpenWhileServed(t *testing.T) {
	port := freeport.Of(t)
	c := nodePortConfig(port, backendAt(t, "127.0.0.1"))
	table, _ := services.NewTable(c)
	_, p := newWorld(t, func(o *Options) {
		o.Pick = func(tu *packet.Tuple) packet.Choice { return table.PickOnHost(tu) }
		o.Stays = func(tu *packet.Tuple, c packet.Choice) bool { return table.StaysOnHost(tu, c) }
	})
	ready := func(is bool) []services.Problem {
		s := *c.Services.At(0)
		s.Endpoints = append([]services.Endpoint(nil), s.Endpoints...)
		s.Endpoints[0].Ready, s.Endpoints[0].Serving = is, is
		c.Services = roll.From([]*services.Service{&s})
		// All sockets are closed while the Table changes.
		p.Set(nil)
		table, _ = table.Update(c)
		return p.Set(Ports(table))
	}
	if problems := ready(true); len(problems) != 0 {
		t.Fatal(problems)
	}
	for network := range both {
		served(t, network, "127.0.0.1", port)
	}
	held := dialTCP(t, "127.0.0.1", port)
	if _, err := io.ReadFull(held, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	ready(false)
	for network := range both {
		refused(t, network, "127.0.0.1", port)
	}
	io.WriteString(held, "ping")
	got := make([]byte, 4)
	if _, err := io.ReadFull(held, got); err != nil || string(got) != "ping" {
		t.Errorf("the connection from before: %q, %v", got, err)
	}
	// Another program takes the port before there is a backend again.
	other, err := net.Listen("tcp4", fmt.Sprint("0.0.0.0:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	problems := ready(true)
	if len(problems) != 1 || problems[0].Object != "Service d/web" || !strings.Contains(problems[0].Message, fmt.Sprintf("NodePort %d/TCP is taken", port)) {
		t.Errorf("told is %v", problems)
	}
	served(t, "udp", "127.0.0.1", port)
	other.Close()
	await.Until(t, "the port is had again", func() bool { return len(p.Problems()) == 0 })
	served(t, "tcp", "127.0.0.1", port)
}

// Under the Local policy a node without a backend refuses clients, except its own processes on localhost, which are
// inside the cluster.
func TestLocalPolicy(t *testing.T) {
	for node, everywhere := range map[string]bool{"n": true, "other": false} {
		t.Run(node, func(t *testing.T) {
			port := freeport.Of(t)
			c := nodePortConfig(port, backendAt(t, "127.0.0.1"))
			c.Node, c.Services.At(0).ExternalLocal = node, true
			over(t, c)
			for network := range both {
				served(t, network, "127.0.0.1", port)
				if everywhere {
					served(t, network, "127.0.0.2", port) // stands for any other address of the host
				} else {
					refused(t, network, "127.0.0.2", port)
				}
			}
		})
	}
}
