// Package underlay is the network between a lab's nodes: a bridge in the namespace of the process that makes it, a
// namespace with an eth0 for each member, a client outside of the cluster with a resolver, and impaired paths between
// any two members.
package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab/plan"
)

// The addresses outside of the cluster. All of them are in ranges for documentation (RFC 5737, RFC 3849). The second
// address of each family answers DNS.
var (
	externalAddrs = []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:113::10")}
	resolverAddrs = []netip.Addr{netip.MustParseAddr("203.0.113.53"), netip.MustParseAddr("2001:db8:113::53")}
)

// Resolvers returns the addresses that answer DNS outside of the cluster.
func Resolvers() []netip.Addr { return slices.Clone(resolverAddrs) }

// bridge is the name of the underlay's bridge in the namespace of the process that makes it.
const bridge = "underlay"

// Outside is the member that is no node: a client. Everything that is not on the underlay is reached through it.
const Outside = "outside"

// Underlay is the network. Its methods may be called concurrently, except Add.
type Underlay struct {
	plan  plan.Underlay
	mtu   int
	ports int // made so far

	mu sync.Mutex
	// mu guards the fields below.
	members  map[string]*member
	impaired map[[2]string]*impairment
}

// member is one namespace on the underlay.
type member struct {
	ns    *tap.Namespace
	port  string // its end at the bridge
	addrs []netip.Addr
}

// New makes an underlay with that MTU, in bytes, in this process's namespace. Outside is its first member.
func New(p plan.Underlay, mtu int) (*Underlay, error) {
	if err := tap.NewBridge(nil, bridge, mtu); err != nil {
		return nil, err
	}
	u := &Underlay{plan: p, mtu: mtu, members: map[string]*member{}, impaired: map[[2]string]*impairment{}}
	ns, err := u.Add(Outside, p.Outside)
	if err != nil {
		return nil, err
	}
	for _, a := range slices.Concat(externalAddrs, resolverAddrs) {
		if err := tap.AddAddr(ns, "lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// Add makes a namespace with an eth0 on the underlay. The namespace belongs to the underlay until Remove. Its default
// routes lead through Outside. On an underlay whose MTU is too small for IPv6 eth0 gets the IPv4 addresses alone, as on
// any machine.
func (u *Underlay) Add(name string, addrs []netip.Addr) (ns *tap.Namespace, err error) {
	ns, err = NewNamespace()
	if err != nil {
		return nil, err
	}
	u.ports++
	if u.mtu < addressing.MinMTU {
		addrs = slices.DeleteFunc(slices.Clone(addrs), netip.Addr.Is6)
	}
	m := &member{ns: ns, port: fmt.Sprintf("port%d", u.ports), addrs: addrs}
	defer func() {
		if err != nil {
			ns.Close()
		}
	}()
	if err := tap.NewVeth(tap.End{Name: m.port}, tap.End{Namespace: ns, Name: "eth0", MAC: memberMAC(name)}, u.mtu); err != nil {
		return nil, err
	}
	if err := tap.SetBridge(nil, m.port, bridge); err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := tap.AddAddr(ns, "eth0", netip.PrefixFrom(a, u.bits(a))); err != nil {
			return nil, err
		}
	}
	if name != Outside {
		if err := u.addDefaults(m); err != nil {
			return nil, err
		}
	}
	u.mu.Lock()
	u.members[name] = m
	u.mu.Unlock()
	return ns, nil
}

func (u *Underlay) addDefaults(m *member) error {
	for _, gw := range u.plan.Outside {
		if !slices.ContainsFunc(m.addrs, func(a netip.Addr) bool { return a.Is4() == gw.Is4() }) {
			continue
		}
		everything := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gw.Is4() {
			everything = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		if err := tap.AddRoute(m.ns, "eth0", tap.Route{Dst: everything, Via: gw}); err != nil {
			return err
		}
	}
	return nil
}

// Namespace returns a member's namespace, or nil when there is none of that name.
func (u *Underlay) Namespace(name string) *tap.Namespace {
	if m := u.member(name); m != nil {
		return m.ns
	}
	return nil
}

func (u *Underlay) member(name string) *member {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.members[name]
}

// bits returns the length of the underlay's prefix that contains a.
func (u *Underlay) bits(a netip.Addr) int {
	for _, p := range u.plan.Prefixes {
		if p.Contains(a) {
			return p.Bits()
		}
	}
	return a.BitLen()
}

// Remove removes a member and restores its paths. The namespace lives until the last process in it ends.
func (u *Underlay) Remove(name string) error {
	m := u.member(name)
	if m == nil {
		return nil
	}
	err := u.restore(name)
	u.mu.Lock()
	delete(u.members, name)
	u.mu.Unlock()
	return errors.Join(err, tap.DeleteLink(nil, m.port), m.ns.Close())
}

// NewNamespace makes a network namespace as nodes and pods need it: loopback is up, nothing is forwarded or filtered,
// duplicate address detection does not delay, and every user may use every port and ping.
func NewNamespace() (*tap.Namespace, error) {
	ns, err := tap.NewNamespace()
	if err != nil {
		return nil, err
	}
	for _, s := range []struct{ key, value string }{
		{"net.ipv6.conf.all.disable_ipv6", "0"},
		{"net.ipv6.conf.default.disable_ipv6", "0"},
		{"net.ipv6.conf.all.accept_dad", "0"},
		{"net.ipv6.conf.default.accept_dad", "0"},
		{"net.ipv6.conf.default.accept_ra", "0"},
		{"net.ipv6.conf.all.forwarding", "0"},
		{"net.ipv4.ip_forward", "0"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv4.ip_unprivileged_port_start", "0"},
	} {
		// A kernel without IPv6 lacks some of these.
		if err := tap.SetSysctl(ns, s.key, s.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			ns.Close()
			return nil, err
		}
	}
	// This is Linux's own default, whatever this machine's default is, so that labs are equally fast on all machines.
	if err := errors.Join(tap.SetCongestionControl(ns, "cubic", "reno"), tap.SetUp(ns, "lo"), tap.EnableUnprivilegedPing(ns)); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}
