// Package baseline makes what Tapestry is compared with: the kernel's own paths, stock wireguard-go, and other
// programs. Each is a bench.Topology in network namespaces of its own.
package baseline

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/netstack/tap"
)

// The addresses of baselines lie in the range that RFC 2544 (appendix C.2.2) reserves for benchmarks.
var (
	clientAddr     = netip.MustParsePrefix("198.18.0.1/24")
	serverAddr     = netip.MustParsePrefix("198.18.0.2/24")
	clientUnderlay = netip.MustParsePrefix("198.18.1.1/24")
	serverUnderlay = netip.MustParsePrefix("198.18.1.2/24")
	// A namespace in the middle has an address on both sides. The server then has behindAddr.
	middleAddr       = netip.MustParsePrefix("198.18.0.254/24")
	middleBehindAddr = netip.MustParsePrefix("198.18.2.254/24")
	behindAddr       = netip.MustParsePrefix("198.18.2.2/24")
)

// pair is what all baselines have in common: a client's and a server's namespace.
type pair struct {
	name           string
	client, server *tap.Namespace
	targets        map[bench.Service]netip.AddrPort
	closers        []io.Closer // closed last to first
}

var _ bench.Topology = (*pair)(nil)

func (p *pair) Name() string           { return p.name }
func (p *pair) Client() *tap.Namespace { return p.client }
func (p *pair) Server() *tap.Namespace { return p.server }

func (p *pair) Target(s bench.Service) (netip.AddrPort, bool) {
	target, ok := p.targets[s]
	return target, ok
}

func (p *pair) Close() error {
	var errs []error
	for _, c := range slices.Backward(p.closers) {
		errs = append(errs, c.Close())
	}
	p.closers = nil
	return errors.Join(errs...)
}

// build makes the two namespaces and calls join, which joins them and may change the targets. The targets are the load
// generator's and iperf3's servers at serverAddr unless join changes them. On an error nothing is left behind.
func build(name string, join func(*pair) error) (bench.Topology, error) {
	p := &pair{name: name, targets: map[bench.Service]netip.AddrPort{
		bench.Load:   netip.AddrPortFrom(serverAddr.Addr(), bench.LoadPort),
		bench.IPerf3: netip.AddrPortFrom(serverAddr.Addr(), bench.IPerf3Port),
	}}
	err := func() (err error) {
		if p.client, err = p.namespace(); err != nil {
			return err
		}
		if p.server, err = p.namespace(); err != nil {
			return err
		}
		return join(p)
	}()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("baseline: make %s: %w", name, err), p.Close())
	}
	return p, nil
}

// namespace makes a namespace that is closed when p is closed.
func (p *pair) namespace() (*tap.Namespace, error) {
	ns, err := tap.NewNamespace()
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, ns)
	// The congestion control is that of a lab. With BBR, which some machines have as the default, its pacing and not
	// the path would decide: the kernel bridge then measured 11 to 42 Gbit/s from one run to the next.
	if err := tap.SetCongestionControl(ns, "cubic", "reno"); err != nil {
		return nil, err
	}
	return ns, tap.SetUp(ns, "lo")
}

// bridge joins client and server by a kernel bridge in a namespace of its own, as nodes of a lab are.
func (p *pair) bridge(mtu int, client, server netip.Prefix) error {
	hub, err := p.namespace()
	if err != nil {
		return err
	}
	if err := tap.NewBridge(hub, "br0", mtu); err != nil {
		return err
	}
	for _, end := range []struct {
		ns   *tap.Namespace
		port string
		addr netip.Prefix
	}{{p.client, "client", client}, {p.server, "server", server}} {
		if err := tap.NewVeth(tap.End{Namespace: end.ns, Name: "eth0"}, tap.End{Namespace: hub, Name: end.port}, mtu); err != nil {
			return err
		}
		if err := tap.SetBridge(hub, end.port, "br0"); err != nil {
			return err
		}
		if err := tap.AddAddr(end.ns, "eth0", end.addr); err != nil {
			return err
		}
	}
	return nil
}

// wire joins client and server by a veth pair.
func (p *pair) wire() error {
	return wire(bench.DefaultMTU,
		side{tap.End{Namespace: p.client, Name: "eth0"}, clientAddr},
		side{tap.End{Namespace: p.server, Name: "eth0"}, serverAddr})
}

// middle makes a namespace between client and server, with a veth pair to each. Both reach the namespace, but not one
// another.
func (p *pair) middle() (*tap.Namespace, error) {
	ns, err := p.namespace()
	if err != nil {
		return nil, err
	}
	return ns, errors.Join(
		wire(bench.DefaultMTU,
			side{tap.End{Namespace: p.client, Name: "eth0"}, clientAddr}, side{tap.End{Namespace: ns, Name: "client"}, middleAddr}),
		wire(bench.DefaultMTU,
			side{tap.End{Namespace: p.server, Name: "eth0"}, behindAddr}, side{tap.End{Namespace: ns, Name: "server"}, middleBehindAddr}))
}

// side is one end of a wire with its address.
type side struct {
	tap.End
	addr netip.Prefix
}

// wire joins two ends by a veth pair.
func wire(mtu int, a, b side) error {
	if err := tap.NewVeth(a.End, b.End, mtu); err != nil {
		return err
	}
	for _, e := range []side{a, b} {
		if err := tap.AddAddr(e.Namespace, e.Name, e.addr); err != nil {
			return err
		}
	}
	return nil
}

// defaultRoute gives ns a default route to a gateway on its eth0.
func defaultRoute(ns *tap.Namespace, gateway netip.Prefix) error {
	return tap.AddRoute(ns, "eth0", tap.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: gateway.Addr()})
}
