// Package exit says by which way what pods send to the outside leaves the cluster.
package exit

import (
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// Config is what a Table is made of.
type Config struct {
	// Routed lists ranges outside of the cluster to which pods' packets are routed as they are, from the pods' own
	// addresses: they leave by the host TAP, and the network outside knows the way back to the pods.
	Routed []netip.Prefix
}

// Way is how a packet leaves.
type Way uint8

// The ways.
const (
	Sockets Way = iota // over host sockets: the node's address is seen
	HostTAP            // routed by the host
)

// Table is a compiled Config. It is immutable.
type Table struct {
	config  Config
	lengths []int // distinct lengths of the ranges in bits of 128, longest first
	routed  map[netip.Prefix]struct{}
}

// New compiles a Config; nil when everything leaves over host sockets. The caller must not change c afterwards.
func New(c Config) *Table {
	if len(c.Routed) == 0 {
		return nil
	}
	t := &Table{config: c, routed: make(map[netip.Prefix]struct{}, len(c.Routed))}
	for _, p := range c.Routed {
		p = mapped(p)
		t.routed[p] = struct{}{}
		if !slices.Contains(t.lengths, p.Bits()) {
			t.lengths = append(t.lengths, p.Bits())
		}
	}
	slices.Sort(t.lengths)
	slices.Reverse(t.lengths)
	return t
}

// Of returns the way of packets to dst. It allocates nothing, and may be called on a nil Table.
func (t *Table) Of(dst packet.Addr) Way {
	if t == nil {
		return Sockets
	}
	a := netip.AddrFrom16(dst)
	for _, n := range t.lengths {
		if n < packet.Before4 && dst.Is4() {
			break // ::/0 is all of IPv6, and nothing of IPv4
		}
		p, _ := a.Prefix(n) // cannot fail: n is within 0..128
		if _, ok := t.routed[p]; ok {
			return HostTAP
		}
	}
	return Sockets
}

// mapped converts a prefix to the 128-bit form of packet.Addr.
func mapped(p netip.Prefix) netip.Prefix {
	p = p.Masked()
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), p.Bits()+packet.Before4)
	}
	return p
}
