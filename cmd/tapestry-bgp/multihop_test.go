package main

import (
	"net/netip"
	"strings"
	"testing"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// A router that is not on the node's link has no session, and that is told, until its BGPPeer says how many hops it is
// away. Then it has the route, with the node as the next hop.
func TestMultihop(t *testing.T) {
	t.Parallel()
	installed(t, frr, "vtysh")
	peer := announce.Peer{
		Name: "far", Address: netip.MustParseAddrPort("172.31.8.1:179"), Source: netip.MustParseAddr("172.31.9.1"), ASN: 64512, MyASN: 65000, HoldTime: 9,
	}
	w := newWorld(t, nil, peer)
	far := behind(t, w.ns)
	show := far.frr("172.31.8.1", `router bgp 64512
 bgp router-id 172.31.8.1
 no bgp ebgp-requires-policy
 neighbor 172.31.9.1 remote-as 65000
 neighbor 172.31.9.1 passive
 neighbor 172.31.9.1 ebgp-multihop 2
`)
	w.announce(route("192.0.2.1/32", "far"))
	await.Until(t, "that there is no session to be told", func() bool {
		return strings.Contains(w.problem("far"), "there has been no session with the router at 172.31.8.1:179 (AS 64512)")
	})
	peer.Multihop = 2
	w.mu.Lock()
	w.plan = &announce.Plan{Node: "node", Peers: []announce.Peer{peer}, Routes: w.plan.Routes}
	w.mu.Unlock()
	await.Until(t, "the route", func() bool { return strings.Contains(show("show bgp ipv4 unicast"), "*> 192.0.2.1/32") })
	await.Until(t, "nothing to be told", func() bool { return w.problem("far") == "" })
	t.Logf("vtysh, show bgp ipv4 unicast:\n%s", show("show bgp ipv4 unicast"))
}

// behind makes a host that the node reaches through another one: node 172.31.9.1, router 172.31.9.2 and 172.31.8.2,
// host 172.31.8.1.
func behind(t *testing.T, node *tap.Namespace) host {
	t.Helper()
	made := func() *tap.Namespace {
		ns, err := tap.NewNamespace()
		must(t, err)
		t.Cleanup(func() { _ = ns.Close() })
		must(t, tap.SetUp(ns, "lo"))
		return ns
	}
	router, far := made(), made()
	must(t, tap.SetSysctl(router, "net/ipv4/ip_forward", "1"))
	must(t, tap.NewVeth(tap.End{Namespace: node, Name: "up"}, tap.End{Namespace: router, Name: "node"}, 1500))
	must(t, tap.NewVeth(tap.End{Namespace: router, Name: "far"}, tap.End{Namespace: far, Name: "up"}, 1500))
	for _, end := range []struct {
		ns         *tap.Namespace
		name, addr string
	}{{node, "up", "172.31.9.1/24"}, {router, "node", "172.31.9.2/24"}, {router, "far", "172.31.8.2/24"}, {far, "up", "172.31.8.1/24"}} {
		must(t, tap.SetUp(end.ns, end.name))
		must(t, tap.AddAddr(end.ns, end.name, netip.MustParsePrefix(end.addr)))
	}
	must(t, tap.AddRoute(node, "up", tap.Route{Dst: netip.MustParsePrefix("172.31.8.0/24"), Via: netip.MustParseAddr("172.31.9.2")}))
	must(t, tap.AddRoute(far, "up", tap.Route{Dst: netip.MustParsePrefix("172.31.9.0/24"), Via: netip.MustParseAddr("172.31.8.2")}))
	return host{t, far}
}
