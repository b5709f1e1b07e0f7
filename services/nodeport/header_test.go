package nodeport

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/freeport"
)

// TestProxyProtocol: a backend that asks for it is told from where and to where its client connected, in the bytes of
// the protocol's description, and the stream follows.
func TestProxyProtocol(t *testing.T) {
	for version := range uint8(3) {
		for _, host := range hosts(t) {
			w, p := newWorld(t, func(o *Options) {
				o.Join = func(_ context.Context, c *net.TCPConn, _, _ netip.AddrPort, _ func(bool)) (*net.TCPConn, bool) {
					if version != 0 {
						t.Error("a connection that begins with a header was joined without one")
					}
					return c, false
				}
				// The client may be a pod.
				o.Forbidden = func(a netip.Addr) bool { return version != 0 && a.IsLoopback() }
			})
			w.choose(1, tcpBackend(t, echo("")))
			at := PortSpec{Owner: "Service d/web", Addr: netip.MustParseAddr(host), Port: freeport.Of(t), Protocol: packet.TCP, Proxy: version}
			if problems := p.Set([]PortSpec{at}); len(problems) != 0 {
				t.Fatal(problems)
			}
			c := dialTCP(t, host, at.Port)
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			c.CloseWrite()
			got, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			from := c.LocalAddr().(*net.TCPAddr).AddrPort()
			if want := headerOf(version, from, netip.AddrPortFrom(at.Addr, at.Port)) + "hello"; string(got) != "\n"+want {
				t.Errorf("version %d at %s: %q, want %q", version, host, got, want)
			}
		}
	}
}

// TestProxyAtNodePort: the node ports of a Service speak the PROXY protocol as its load balancer does. Otherwise their
// clients could write a header of their own.
func TestProxyAtNodePort(t *testing.T) {
	table, problems := services.NewTable(services.Config{
		NodeAddrs: []netip.Addr{node4}, OwnAddrs: []netip.Addr{node4},
		Services: roll.From([]*services.Service{{
			Namespace: "d", Name: "web", Proxy: 2, SocketIPs: []netip.Addr{node4}, Ports: []services.Port{{Protocol: packet.TCP, Port: 80, NodePort: 30080}},
			Endpoints: []services.Endpoint{{Addr: netip.MustParseAddr("10.0.0.1"), Ready: true, Serving: true, Ports: []services.EndpointPort{{Protocol: packet.TCP, Port: 8080}}}},
		}}),
	})
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	got := Ports(table)
	if len(got) != 2 || got[0].Port != 30080 || got[1].Port != 80 {
		t.Fatalf("ports %+v", got)
	}
	for _, s := range got {
		if s.Proxy != 2 {
			t.Errorf("port %d speaks version %d of the protocol, want 2", s.Port, s.Proxy)
		}
	}
}

// headerOf writes the header by hand (PROXY protocol 3.0, sections 2.1 and 2.2).
func headerOf(version uint8, from, to netip.AddrPort) string {
	var b []byte
	switch version {
	case 0:
		return ""
	case 1:
		family := "TCP4"
		if from.Addr().Is6() {
			family = "TCP6"
		}
		return fmt.Sprintf("PROXY %s %s %s %d %d\r\n", family, from.Addr(), to.Addr(), from.Port(), to.Port())
	}
	b = append(b, "\r\n\r\n\x00\r\nQUIT\n\x21"...) // version 2, command PROXY
	if from.Addr().Is4() {
		b = append(b, 0x11, 0, 12)
	} else {
		b = append(b, 0x21, 0, 36)
	}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	return string(binary.BigEndian.AppendUint16(b, to.Port()))
}
