package exit

import (
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

func TestOf(t *testing.T) {
	table := New(Config{Routed: addresstest.Prefixes("192.0.2.0/24", "198.51.100.7/32", "10.0.0.0/8", "2001:db8::/32", "2001:db8:1::/48")})
	for addr, want := range map[string]Way{
		"192.0.2.0": HostTAP, "192.0.2.255": HostTAP, "192.0.3.0": Sockets, "198.51.100.7": HostTAP, "198.51.100.8": Sockets,
		"10.255.0.1": HostTAP, "11.0.0.1": Sockets, "2001:db8:1::1": HostTAP, "2001:db8:ffff::": HostTAP, "2001:db9::": Sockets,
		"::192.0.2.1": Sockets, "8.8.8.8": Sockets,
	} {
		a := packet.AddrFrom(netip.MustParseAddr(addr))
		if got := table.Of(nil, a).Way; got != want {
			t.Errorf("%s: way %d, want %d", addr, got, want)
		}
		if n := testing.AllocsPerRun(10, func() { table.Of(nil, a) }); n != 0 {
			t.Errorf("%s: %v allocations", addr, n)
		}
	}
	if New(Config{}) != nil || (*Table)(nil).Of(nil, packet.Addr{}) != (Exit{}) {
		t.Error("without ranges everything leaves over sockets")
	}
	if all := New(Config{Routed: addresstest.Prefixes("0.0.0.0/0")}); all.Of(nil, packet.AddrFrom(netip.MustParseAddr("8.8.8.8"))).Way != HostTAP || all.Of(nil, packet.AddrFrom(netip.MustParseAddr("2001:db8::1"))).Way != Sockets {
		t.Error("0.0.0.0/0 is all of IPv4, and nothing of IPv6")
	}
	if all := New(Config{Routed: addresstest.Prefixes("::/0", "10.0.0.0/8")}); all.Of(nil, packet.AddrFrom(netip.MustParseAddr("8.8.8.8"))).Way != Sockets ||
		all.Of(nil, packet.AddrFrom(netip.MustParseAddr("10.0.0.1"))).Way != HostTAP || all.Of(nil, packet.AddrFrom(netip.MustParseAddr("2001:db8::1"))).Way != HostTAP {
		t.Error("::/0 is all of IPv6, and nothing of IPv4")
	}
}

func TestPods(t *testing.T) {
	addr := func(s string) packet.Addr { return packet.AddrFrom(netip.MustParseAddr(s)) }
	e4, e6, far, lost, early := "203.0.113.50", "2001:db8:1b::50", "203.0.113.51", "203.0.113.52", "203.0.113.53"
	table := New(Config{
		Routed: addresstest.Prefixes("192.0.2.0/24"),
		Pods: Pods{Addresses: addresstest.Addrs(e4, e6, far, lost, early), Addrs: map[string][]netip.Addr{
			"shop/both": addresstest.Addrs(e4, e6), "shop/four": addresstest.Addrs(e4), "shop/far": addresstest.Addrs(far), "shop/lost": addresstest.Addrs(lost), "shop/early": addresstest.Addrs(early), "shop/stale": addresstest.Addrs("203.0.113.54"), "shop/none": nil,
		}, Held: []string{"shop"}, Free: map[string]bool{"shop/free": true}},
		Gateways: map[netip.Addr]Gateway{
			netip.MustParseAddr(e4): {Here: true}, netip.MustParseAddr(e6): {Here: true}, netip.MustParseAddr(far): {Peer: 7}, netip.MustParseAddr(lost): {},
		},
	})
	nowhere := Exit{Way: Nowhere}
	for name, want := range map[string][3]Exit{ // to 192.0.2.1, 8.8.8.8, 2001:db8:d::1
		"shop/both":   {{HostTAP, addr(e4), 0}, {HostTAP, addr(e4), 0}, {HostTAP, addr(e6), 0}},
		"shop/four":   {{HostTAP, addr(e4), 0}, {HostTAP, addr(e4), 0}, nowhere},
		"shop/far":    {{ToPeer, addr(far), 7}, {ToPeer, addr(far), 7}, nowhere},
		"shop/lost":   {nowhere, nowhere, nowhere},
		"shop/early":  {{Unsettled, addr(early), 0}, {Unsettled, addr(early), 0}, nowhere},
		"shop/stale":  {nowhere, nowhere, nowhere},
		"shop/none":   {nowhere, nowhere, nowhere},
		"shop/new":    {nowhere, nowhere, nowhere},
		"shop/free":   {{Way: HostTAP}, {}, {}},
		"shopping/me": {{Way: HostTAP}, {}, {}},
	} {
		pod := table.Pod(name)
		for i, dst := range []string{"192.0.2.1", "8.8.8.8", "2001:db8:d::1"} {
			if got := table.Of(pod, addr(dst)); got != want[i] {
				t.Errorf("%s to %s: %+v, want %+v", name, dst, got, want[i])
			}
		}
	}
	for src, want := range map[string]Exit{e4: {HostTAP, addr(e4), 0}, far: {ToPeer, addr(far), 7}, lost: nowhere, early: {Unsettled, addr(early), 0}, "203.0.113.54": nowhere} {
		if got := table.From(addr(src)); got != want {
			t.Errorf("from %s: %+v, want %+v", src, got, want)
		}
	}
	if none := (*Table)(nil); none.Pod("shop/both") != nil || none.Has(addr(e4)) || none.From(addr(e4)) != nowhere {
		t.Error("without a table nobody has an egress address")
	}
}

func TestMoved(t *testing.T) {
	e4, e6 := netip.MustParseAddr("203.0.113.50"), netip.MustParseAddr("2001:db8:1b::50")
	with := func(gateways map[netip.Addr]Gateway) *Table {
		return New(Config{Pods: Pods{Addresses: []netip.Addr{e4, e6}}, Gateways: gateways})
	}
	here, there := Gateway{Here: true}, Gateway{Peer: 7}
	both := with(map[netip.Addr]Gateway{e4: here, e6: there})
	for name, c := range map[string]struct {
		before, now *Table
		want        []netip.Addr
	}{
		"the first table":     {nil, both, []netip.Addr{e4, e6}},
		"no table any more":   {both, nil, nil},
		"as before":           {both, both, nil},
		"one of them":         {both, with(map[netip.Addr]Gateway{e4: there, e6: there}), []netip.Addr{e4}},
		"by another node":     {both, with(map[netip.Addr]Gateway{e4: here, e6: {Peer: 8}}), []netip.Addr{e6}},
		"none, and unsettled": {both, with(map[netip.Addr]Gateway{e4: {}}), nil},
		"settled":             {with(map[netip.Addr]Gateway{e4: {}}), both, []netip.Addr{e4, e6}},
	} {
		got := map[packet.Addr]bool{}
		for _, a := range c.now.Moved(c.before) {
			got[a] = true
		}
		for _, a := range []netip.Addr{e4, e6} {
			if got[packet.AddrFrom(a)] != slices.Contains(c.want, a) {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
		}
	}
}
