package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

const (
	// Routers and node take one another for lost after 6 s: a busy machine stops each of them for a while.
	bfdInterval, bfdMultiplier = 300, 20
	// noHold is in seconds. Nothing that the test waits for is seen by a hold time.
	noHold = 600
	// bfdRouter is a router at %[1]s for a node at %[2]s, with options of the session %[3]s.
	bfdRouter = `router id %[1]s;
protocol device {}
template bgp nodes { local %[1]s as 64512; passive yes; error wait time 1, 2; ipv4 { import all; export none; }; }
protocol bgp node from nodes { neighbor %[2]s as 65000; %[3]s }
`
)

// A router whose link is cut without a word loses the node's routes by BFD, and the node notices the same. The sessions
// with others go on: with one that speaks BFD, and with one that never does, which is told. When the link is there
// again, the router has the routes again.
func TestBFD(t *testing.T) {
	t.Parallel()
	installed(t, "bird", "birdc")
	s := newStar(t, "cut", "other", "mute")
	asked := map[string]func(...string) string{}
	for i, name := range s.names {
		config := fmt.Sprintf(bfdRouter, spoke(i, 1), spoke(i, 11), "")
		if name != "mute" {
			config = fmt.Sprintf(bfdRouter+`protocol bfd { interface "*" { interval %[4]d ms; multiplier %[5]d; }; }`+"\n", spoke(i, 1), spoke(i, 11), "bfd yes;", bfdInterval, bfdMultiplier)
		}
		asked[name] = s.routers[name].bird(config)
	}
	routed := func(name string) bool { return strings.Contains(asked[name]("show", "route"), "192.0.2.1/32") }
	t.Cleanup(func() {
		if t.Failed() {
			for name, ask := range asked {
				t.Logf("in the end, %s:\n%s\n%s", name, ask("show", "protocols", "all", "node"), ask("show", "bfd", "sessions"))
			}
		}
	})
	s.node.announce(route("192.0.2.1/32", "cut"), route("192.0.2.1/32", "other"), route("192.0.2.1/32", "mute"))
	for name := range asked {
		await.Until(t, "the route at "+name, func() bool { return routed(name) })
	}
	await.Until(t, "both sessions of BFD", func() bool { is := s.node.sessions(); return is["cut"].BFD == "up" && is["other"].BFD == "up" })
	await.Until(t, "the router without BFD to be told", func() bool {
		return strings.Contains(s.node.problem("mute"), "there has been no BFD session with the router at 172.31.3.1 for more than 15s")
	})
	t.Logf("birdc, show bfd sessions:\n%s", asked["cut"]("show", "bfd", "sessions"))
	before := s.node.sessions()

	at := time.Now()
	s.cut("cut")
	await.Until(t, "the route to be gone", func() bool { return !routed("cut") })
	gone := time.Since(at)
	await.Until(t, "the node to have noticed", func() bool { is := s.node.sessions()["cut"]; return is.BFD != "up" && is.State != "established" })
	t.Logf("the route is gone after %s, and the node has told its agent after %s", gone, time.Since(at))
	s.mend("cut")
	await.Until(t, "the route to be back", func() bool { return routed("cut") })
	await.Until(t, "the session to be told", func() bool {
		is := s.node.sessions()["cut"]
		return is.BFD == "up" && is.State == "established" && is.Ups > before["cut"].Ups && is.Problem == ""
	})
	for _, name := range []string{"other", "mute"} {
		if is, was := s.node.sessions()[name], before[name]; is.Ups != was.Ups || is.State != "established" || is.BFD != was.BFD {
			t.Errorf("the session with %s is %+v, and was %+v before another link was cut", name, is, was)
		}
		if !routed(name) {
			t.Errorf("%s has lost the route, and another link was cut", name)
		}
	}
}

// sessions returns what the agent knows of the announcer's sessions, by router.
func (w *world) sessions() map[string]announce.Session {
	// There are none when it is busy.
	rows, _ := localapi.Sessions.Ask(w.t.Context(), &localapi.Client{Path: filepath.Join(w.dir, "agent.sock")})
	list := map[string]announce.Session{}
	for _, s := range rows {
		list[s.Peer] = s
	}
	return list
}

// star is a node with a link to each router, and a switch in each link.
type star struct {
	t        *testing.T
	names    []string
	routers  map[string]host
	switches *tap.Namespace
	node     *world
}

// cut has a switch forward nothing, while both ends keep their carrier. mend has it forward again.
func (s *star) cut(router string) {
	s.t.Helper()
	must(s.t, tap.SetBridge(s.switches, "to-"+router, ""))
}
func (s *star) mend(router string) {
	s.t.Helper()
	must(s.t, tap.SetBridge(s.switches, "to-"+router, "br-"+router))
}

// spoke returns an address in the network of the link with the router of a number.
func spoke(i int, host byte) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, byte(i + 1), host}) }

// newStar makes routers at 172.31.1.1, 172.31.2.1, ... and a node at 172.31.1.11, 172.31.2.11, ..., which is to have
// BFD with each.
func newStar(t *testing.T, names ...string) *star {
	t.Helper()
	made := func() *tap.Namespace {
		ns, err := tap.NewNamespace()
		must(t, err)
		t.Cleanup(func() { _ = ns.Close() })
		must(t, tap.SetUp(ns, "lo"))
		return ns
	}
	s := &star{t: t, names: names, routers: map[string]host{}, switches: made()}
	node := host{t, made()}
	var peers []announce.Peer
	for i, name := range names {
		s.routers[name] = host{t, made()}
		must(t, tap.NewBridge(s.switches, "br-"+name, 1500))
		for _, end := range []struct {
			ns         *tap.Namespace
			name, port string
			addr       netip.Addr
		}{{node.ns, fmt.Sprintf("eth%d", i), "from-" + name, spoke(i, 11)}, {s.routers[name].ns, "eth0", "to-" + name, spoke(i, 1)}} {
			must(t, tap.NewVeth(tap.End{Namespace: end.ns, Name: end.name}, tap.End{Namespace: s.switches, Name: end.port}, 1500))
			must(t, tap.SetBridge(s.switches, end.port, "br-"+name))
			must(t, tap.SetUp(end.ns, end.name))
			must(t, tap.AddAddr(end.ns, end.name, netip.PrefixFrom(end.addr, 24)))
		}
		peers = append(peers, announce.Peer{
			Name: name, Address: netip.AddrPortFrom(spoke(i, 1), 179), ASN: 64512, MyASN: 65000,
			HoldTime: noHold, BFD: announce.BFD{Transmit: bfdInterval, Receive: bfdInterval, Multiplier: bfdMultiplier},
		})
	}
	s.node = worldIn(node, []netip.Addr{spoke(0, 11)}, nil, peers...)
	return s
}
