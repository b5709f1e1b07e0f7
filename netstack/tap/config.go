package tap

import (
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// RouterMAC is the Ethernet address of the router, as every pod and the host TAP know it. It is the same on all nodes.
var RouterMAC = packet.MAC{0x02, 0x54, 0x41, 0x50, 0x00, 0x01}

// HostMAC is the Ethernet address of the host TAP. All nodes have the same one, because only a node's own router sees
// it.
var HostMAC = packet.MAC{0x02, 0x54, 0x41, 0x50, 0x00, 0x02}

// Router4 and Router6 are the next hops of everything that pods and the host TAP send. They are never resolved: a
// permanent neighbour entry maps them to RouterMAC.
var (
	Router4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Router6 = netip.MustParseAddr("fe80::1")
)

// DefaultTxQueueLen is the number of frames that wait in a TAP for its reader before the kernel drops further ones.
const DefaultTxQueueLen = 1000

// Config describes a TAP device as its namespace sees it.
type Config struct {
	// Name of the interface, 1 to 15 bytes long.
	Name string
	// MAC of the interface. The zero MAC leaves the choice to the kernel.
	MAC packet.MAC
	// MTU in bytes; 0 means 1500.
	MTU int
	// Addrs are the interface's addresses, usually host prefixes (/32, /128).
	Addrs     []netip.Prefix
	Routes    []Route
	Neighbors []Neighbor
	// TxQueueLen in frames, where a superframe counts as one; 0 means DefaultTxQueueLen.
	TxQueueLen int
	// Owner is the uid that may attach without a capability. With -1, everybody who can open /dev/net/tun in that
	// namespace may attach, or, with Reuse, whoever could before.
	Owner int
	// Persist keeps the device after its last descriptor is closed.
	Persist bool
	// Reuse takes over an existing TAP of this name and configures it as described, so that Create is idempotent.
	Reuse bool
	// Alias is a text that stands with the device for whoever finds it, MaxAlias bytes at most; "" leaves it alone.
	Alias string
}

// MaxAlias is the length of the longest alias that the kernel takes (IFALIASZ, with its last byte).
const MaxAlias = 255

// Route is a route through the device.
type Route struct {
	Dst netip.Prefix
	// Via is the next hop; the zero Addr means a destination on the link.
	Via netip.Addr
	// Src is the preferred source address; the zero Addr leaves the choice to the kernel.
	Src netip.Addr
	// OnLink says that the next hop is reachable although no address of the interface covers it.
	OnLink bool
}

// Neighbor is a permanent ARP or NDP entry.
type Neighbor struct {
	Addr netip.Addr
	MAC  packet.MAC
}

// PodConfig returns the configuration of a pod's eth0: its addresses as host prefixes, and default routes through the
// router. mtu is in bytes.
func PodConfig(addrs []netip.Addr, mac packet.MAC, mtu int) Config {
	c := Config{Name: "eth0", MAC: mac, MTU: mtu, Owner: -1}
	for _, a := range addrs {
		c.addAddr(a)
		gw := routerFor(a)
		c.Routes = append(c.Routes, Route{Dst: netip.PrefixFrom(unspecified(a), 0), Via: gw, OnLink: true})
	}
	return c
}

// HostConfig returns the configuration of the host TAP. addrs are its addresses, one per family. ranges are those of
// pods and Services: the host routes them through the TAP, with the address of the same family as source. Ranges of a
// family without an address are left out. mtu is in bytes, and owner is the uid of the agent that will open the TAP.
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

// addAddr adds an address to the device, and a neighbour entry for the router of its family.
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
