package node_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/node"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/test/await"
)

// TestNotMasqueraded has ranges that pods reach from their own addresses. Without a host TAP the node says so, once for
// each range; with one, pods' packets leave by it as they are.
func TestNotMasqueraded(t *testing.T) {
	c := nodetest.New(t, 1)
	m, p := c.Members[0], c.Members[0].Pod(3)
	m.RestartWith(func(h *node.Held) {
		h.DenyEgress, h.Routed = nil, addresstest.Prefixes("198.51.100.0/24", "2001:db8:d::/48")
	})
	told := func() (list []string) {
		for _, p := range m.Problems() {
			if strings.Contains(p.Message, "--non-masquerade-cidr") {
				list = append(list, p.Object+": "+p.Message)
			}
		}
		return list
	}
	if list := told(); len(list) != 2 || !strings.HasPrefix(list[0], "Node n1: its pods do not reach 198.51.100.0/24") || !strings.Contains(list[1], "2001:db8:d::/48") {
		t.Errorf("the problems are %q", list)
	}
	host := m.AttachHostTAP()
	if list := told(); len(list) != 0 {
		t.Errorf("with a host TAP there are the problems %q", list)
	}
	for i, to := range []string{"198.51.100.1:53", "[2001:db8:d::1]:53"} {
		dst := netip.MustParseAddrPort(to)
		conn := dial(t, p, "udp", dst)
		for arrived, end := false, time.After(await.Patience); !arrived; {
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			select {
			case f := <-host.Frames():
				var got packet.Packet
				if got.ParseFrame(f) == packet.Good && got.Tuple.Dst == packet.AddrFrom(dst.Addr()) {
					arrived = true
					if got.Tuple.Src != packet.AddrFrom(p.Addrs[i]) {
						t.Errorf("%s came from %s, want the pod's own %s", to, got.Tuple.Src, p.Addrs[i])
					}
				}
			case <-end:
				t.Fatalf("%s: nothing came to the host; %v", to, m.Packets())
			}
		}
	}
}
