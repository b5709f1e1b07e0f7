package tap

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// RouterMAC is the Ethernet address that every pod and the host TAP know their router by. It is the same on all
// nodes.
var RouterMAC = packet.MAC{0x02, 0x54, 0x41, 0x50, 0x00, 0x01}

// HostMAC is the Ethernet address of the host's own TAP, the same on all nodes, since it is seen only by its own
// router.
var HostMAC = packet.MAC{0x02, 0x54, 0x41, 0x50, 0x00, 0x02}

// The next hops that pods and the host send everything to. They are never resolved: a permanent neighbour entry with
// RouterMAC goes with them.
var (
	Router4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Router6 = netip.MustParseAddr("fe80::1")
)

// DefaultTxQueueLen is how many frames wait in a TAP for its reader before the kernel drops.
const DefaultTxQueueLen = 1000

// Config describes a TAP device as its namespace sees it.
type Config struct {
	// Name of the interface, 1 to 15 bytes.
	Name string
	// MAC of the interface; zero leaves it to the kernel.
	MAC packet.MAC
	// MTU in bytes, 0 for 1500.
	MTU int
	// Addrs are the interface's addresses, usually host prefixes (/32, /128).
	Addrs     []netip.Prefix
	Routes    []Route
	Neighbors []Neighbor
	// TxQueueLen in frames (superframes count one); 0 is DefaultTxQueueLen.
	TxQueueLen int
	// Owner is the uid that may attach without a capability; -1 leaves it open to everybody who can open /dev/net/tun
	// in that namespace, or, with Reuse, as it was.
	Owner int
	// Persist keeps the device when its last descriptor is closed.
	Persist bool
	// Reuse takes over a TAP of this name when there is one and makes it as described, so that Create is idempotent.
	Reuse bool
}

// Route is a route through the device.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop; the zero Addr for a destination on the link.
	Via netip.Addr
	// Src is the preferred source address; the zero Addr for the kernel's choice.
	Src netip.Addr
	// OnLink says the next hop is reachable though no address of the interface covers it.
	OnLink bool
}

// Neighbor is a permanent ARP or NDP entry.
type Neighbor struct {
	Addr netip.Addr
	MAC  packet.MAC
}

// PodConfig is the eth0 of a pod: its addresses as host prefixes and everything else by way of the router.
func PodConfig(addrs []netip.Addr, mac packet.MAC, mtu int) Config {
	c := Config{Name: "eth0", MAC: mac, MTU: mtu, Owner: -1}
	for _, a := range addrs {
		c.addAddr(a)
		gw := routerFor(a)
		c.Routes = append(c.Routes, Route{Dst: netip.PrefixFrom(unspecified(a), 0), Via: gw, OnLink: true})
	}
	return c
}

// HostConfig is the host's own attachment: addrs are its addresses (one per family), and traffic to the ranges, those
// of pods and Services, goes through it with the address of the same family as source. Ranges of a family without an
// address are left out. owner is the uid of the agent that will open it.
func HostConfig(name string, addrs []netip.Addr, ranges []netip.Prefix, mtu, owner int) Config {
	c := Config{Name: name, MAC: HostMAC, MTU: mtu, Owner: owner, Persist: true, Reuse: true}
	for _, a := range addrs {
		c.addAddr(a)
		for _, r := range ranges {
			if r.Addr().Is4() == a.Is4() {
				c.Routes = append(c.Routes, Route{Dst: r.Masked(), Via: routerFor(a), Src: a, OnLink: true})
			}
		}
	}
	return c
}

// addAddr gives the device one more address, and its family's router a neighbour entry.
func (c *Config) addAddr(a netip.Addr) {
	c.Addrs = append(c.Addrs, netip.PrefixFrom(a, a.BitLen()))
	n := Neighbor{Addr: routerFor(a), MAC: RouterMAC}
	for _, have := range c.Neighbors {
		if have == n {
			return
		}
	}
	c.Neighbors = append(c.Neighbors, n)
}

func (c *Config) has6() bool {
	for _, p := range c.Addrs {
		if p.Addr().Is6() {
			return true
		}
	}
	return false
}

func routerFor(a netip.Addr) netip.Addr {
	if a.Is4() {
		return Router4
	}
	return Router6
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
