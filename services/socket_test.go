package services

import (
	"fmt"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// TestSockets: the host listens at this node's own addresses that load balancers have, where clients outside get a
// backend. A pod that asks there is translated, unless it has to come through the socket as well.
func TestSockets(t *testing.T) {
	c := testConfig()
	dual, none, local, here := c.Services.At(0), c.Services.At(1), c.Services.At(2), c.Services.At(3)
	c.Services.At(6).Ports = nil
	dual.Ports[0].Port, none.Ports[0].Port, local.Ports[0].Port, here.Ports[0].Port = 8004, 8006, 8005, 8100
	// Of this node, of the other, and of none.
	dual.ExternalIPs = addresstest.Addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "198.51.100.1")
	none.ExternalIPs, local.ExternalIPs = addresstest.Addrs("192.0.2.1"), addresstest.Addrs("192.0.2.1")
	here.SocketIPs, here.Proxy = addresstest.Addrs("192.0.2.1", "192.0.2.2"), 2
	table, _ := NewTable(c)
	var got []string
	for _, s := range table.Sockets() {
		got = append(got, fmt.Sprintf("%s@%s:%d/%d", s.Service, s.Addr, s.Port, s.Proxy))
	}
	if want := "d/dual@192.0.2.1:8004/0 d/here@192.0.2.1:8100/2 d/dual@2001:db8::1:8004/0"; strings.Join(got, " ") != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
	for what, tc := range map[string]struct {
		pick  func(*packet.Tuple) packet.Choice
		tuple string
		want  packet.ChoiceKind
	}{
		"a pod":                           {table.Pick, "tcp 10.0.0.7:999 192.0.2.1:8004", packet.Picked},
		"a pod, the other node":           {table.Pick, "tcp 10.0.0.7:999 192.0.2.2:8004", packet.Picked},
		"a socket":                        {table.PickOnHost, "tcp 203.0.113.1:999 192.0.2.1:8004", packet.Picked},
		"a pod, PROXY protocol":           {table.Pick, "tcp 10.0.0.7:999 192.0.2.1:8100", packet.NotFrontend},
		"a pod, PROXY, the other":         {table.Pick, "tcp 10.0.0.7:999 192.0.2.2:8100", packet.NotFrontend},
		"a socket, PROXY protocol":        {table.PickOnHost, "tcp 203.0.113.1:999 192.0.2.1:8100", packet.Picked},
		"a socket, Local, no pod":         {table.PickOnHost, "tcp 203.0.113.1:999 192.0.2.1:8005", packet.DropLocal},
		"a pod, PROXY, its other address": {table.Pick, "tcp 10.0.0.7:999 10.96.0.4:8100", packet.Picked},
	} {
		at := tuple(tc.tuple)
		if got := tc.pick(at).Kind; got != tc.want {
			t.Errorf("%s: %v, want %v", what, got, tc.want)
		}
	}
	stay := tuple("tcp 203.0.113.1:999 192.0.2.1:8100")
	if choice := table.PickOnHost(stay); !table.StaysOnHost(stay, choice) {
		t.Error("a datagram's client of a socket is moved at once")
	}
}
