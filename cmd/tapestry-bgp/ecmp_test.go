package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

const (
	ecmpFRR = `router bgp 64512
 bgp router-id 172.31.7.1
 no bgp ebgp-requires-policy
 neighbor 172.31.7.11 remote-as 65000
 neighbor 172.31.7.11 passive
 neighbor 172.31.7.12 remote-as 65000
 neighbor 172.31.7.12 passive
 address-family ipv4 unicast
  maximum-paths 4
 exit-address-family
`
	ecmpBIRD = `router id 172.31.7.1;
protocol device {}
protocol kernel { merge paths on; ipv4 { import none; export all; }; }
template bgp nodes { local 172.31.7.1 port 1790 as 64513; passive yes; ipv4 { import all; export none; }; }
protocol bgp node1 from nodes { neighbor 172.31.7.11 as 65000; }
protocol bgp node2 from nodes { neighbor 172.31.7.12 as 65000; }
`
)

// Two nodes tell a router of one address: FRR and BIRD have both as next hops, and BIRD has its kernel send connections
// to both. When one is drained, and tells it no more, connections go to the other, and those that the other has go on.
func TestECMP(t *testing.T) {
	t.Parallel()
	installed(t, frr, "vtysh", "bird", "birdc")
	router, nodes := rack(t, 2)
	inFRR, inBIRD := router.frr("172.31.7.1", ecmpFRR), router.bird(ecmpBIRD)
	for _, n := range nodes {
		n.announce(route("192.0.2.1/32", "frr"), route("192.0.2.1/32", "bird"))
	}
	hops := func(text string) (n int) {
		for _, hop := range []string{"172.31.7.11", "172.31.7.12"} {
			if strings.Contains(text, hop) {
				n++
			}
		}
		return n
	}
	asFRR := func() string { return inFRR("show bgp ipv4 unicast") }
	await.Until(t, "FRR to have both next hops in use", func() bool {
		text := asFRR()
		return hops(text) == 2 && strings.Contains(text, "*=") // which of them is the best is theirs to say
	})
	kernel := func() int { return hops(router.ask("ip", "route", "show", "192.0.2.1")) }
	await.Until(t, "BIRD to have both next hops in the kernel", func() bool { return kernel() == 2 })
	t.Logf("vtysh:\n%s\nbirdc:\n%s\nip route:\n%s", asFRR(), inBIRD("show", "route", "all"), router.ask("ip", "route", "show", "192.0.2.1"))

	held := map[string]*conn{}
	await.Until(t, "connections to both nodes", func() bool {
		c, err := router.connect("192.0.2.1:7000")
		must(t, err)
		t.Cleanup(func() { _ = c.Close() })
		held[c.node] = c
		return len(held) == 2
	})
	nodes[1].announce()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("in the end:\n%s\n%s\n%s", asFRR(), inBIRD("show", "route", "all"), router.ask("ip", "route"))
		}
	})
	await.Until(t, "the route by the drained node to be gone", func() bool { return kernel() == 1 && hops(asFRR()) == 1 })
	for range 50 {
		c, err := router.connect("192.0.2.1:7000")
		must(t, err)
		if c.node != "node-1" {
			t.Errorf("%s has a connection, and is drained", c.node)
		}
		must(t, c.Close())
	}
	if err := held["node-1"].ask(); err != nil {
		t.Errorf("the connection that node-1 had: %v", err)
	}
}

// rack makes nodes at 172.31.7.11, .12, ... and a router at 172.31.7.1 on one link. The nodes have 192.0.2.1, where
// each says on port 7000 who it is. The router's kernel chooses by ports as well.
func rack(t *testing.T, count int) (router host, nodes []*world) {
	t.Helper()
	made := func() host {
		ns, err := tap.NewNamespace()
		must(t, err)
		t.Cleanup(func() { _ = ns.Close() })
		must(t, tap.SetUp(ns, "lo"))
		return host{t, ns}
	}
	router = made()
	must(t, tap.NewBridge(router.ns, "br", 1500))
	must(t, tap.AddAddr(router.ns, "br", netip.MustParsePrefix("172.31.7.1/24")))
	must(t, tap.SetSysctl(router.ns, "net/ipv4/fib_multipath_hash_policy", "1"))
	addr := netip.MustParseAddr("192.0.2.1")
	for i := 1; i <= count; i++ {
		h, port := made(), fmt.Sprintf("port%d", i)
		must(t, tap.NewVeth(tap.End{Namespace: h.ns, Name: "eth0"}, tap.End{Namespace: router.ns, Name: port}, 1500))
		must(t, tap.SetBridge(router.ns, port, "br"))
		must(t, tap.SetUp(h.ns, "eth0"))
		own := netip.AddrFrom4([4]byte{172, 31, 7, byte(10 + i)})
		must(t, tap.AddAddr(h.ns, "eth0", netip.PrefixFrom(own, 24)))
		must(t, tap.AddAddr(h.ns, "lo", netip.PrefixFrom(addr, 32)))
		h.serve(netip.AddrPortFrom(addr, 7000), fmt.Sprintf("node-%d", i))
		var peers []announce.Peer
		for _, p := range []announce.Peer{{Name: "frr", Address: netip.MustParseAddrPort("172.31.7.1:179"), ASN: 64512}, {Name: "bird", Address: netip.MustParseAddrPort("172.31.7.1:1790"), ASN: 64513}} {
			p.Source, p.MyASN, p.HoldTime = own, 65000, 9
			peers = append(peers, p)
		}
		nodes = append(nodes, worldIn(h, []netip.Addr{own}, nil, peers...))
	}
	return router, nodes
}

// serve answers each byte of a connection with the host's name.
func (h host) serve(at netip.AddrPort, name string) {
	h.t.Helper()
	var l net.Listener
	must(h.t, h.ns.Do(func() (err error) { l, err = net.Listen("tcp", at.String()); return err }))
	h.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for b := make([]byte, 1); ; {
					if _, err := io.ReadFull(c, b); err != nil {
						return
					}
					if _, err := io.WriteString(c, name); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// conn is a connection to a node.
type conn struct {
	net.Conn
	node string
}

// connect opens a connection, and learns whose it is.
func (h host) connect(addr string) (*conn, error) {
	c := &conn{}
	err := h.ns.Do(func() (err error) {
		c.Conn, err = net.DialTimeout("tcp4", addr, await.Patience)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := c.ask(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// ask asks who is there, which must not change.
func (c *conn) ask() error {
	if err := c.SetDeadline(time.Now().Add(await.Patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{'?'}); err != nil {
		return err
	}
	b := make([]byte, len("node-1"))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if c.node != "" && c.node != string(b) {
		return fmt.Errorf("%s answers, and it was %s", b, c.node)
	}
	c.node = string(b)
	return nil
}
