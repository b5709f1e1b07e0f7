package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// Destination is a range of addresses outside the cluster, with one port or all ports. Its text is RANGE or RANGE:PORT.
type Destination struct {
	Range netip.Prefix
	Port  uint16 // of TCP and UDP; 0 for all ports and all protocols
}

func (d Destination) String() string {
	if d.Port == 0 {
		return d.Range.String()
	}
	return fmt.Sprintf("%s:%d", d.Range, d.Port)
}

// azureWireServer is the address of Azure's metadata server. Pods with dnsPolicy Default also use it as resolver, so
// only the ports that AKS keeps from pods are denied.
var azureWireServer = netip.MustParsePrefix("168.63.129.16/32")

// MetadataServers lists the destinations in addressing.Metadata that pods must not reach. (Pods cannot reach the
// link-local ones anyway.)
var MetadataServers = metadataServers()

func metadataServers() []Destination {
	var list []Destination
	for _, p := range addressing.Metadata {
		if p == azureWireServer {
			list = append(list, Destination{Range: p, Port: 80}, Destination{Range: p, Port: 32526})
		} else {
			list = append(list, Destination{Range: p})
		}
	}
	return list
}

// ParseDestination parses a Destination. A single address means the range that holds only that address; with a port, a
// range must be written.
func ParseDestination(text string) (Destination, error) {
	addr, rest, isRange := strings.Cut(text, "/")
	if !isRange {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			return Destination{}, fmt.Errorf("destination %q: expected RANGE or RANGE:PORT, as 192.0.2.0/24 or 2001:db8::/64:80", text)
		}
		return Destination{Range: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	bits, port, hasPort := strings.Cut(rest, ":")
	p, err := netip.ParsePrefix(addr + "/" + bits)
	if err != nil {
		return Destination{}, fmt.Errorf("destination %q: the range: %w", text, err)
	}
	if p.Addr().Is4In6() {
		return Destination{}, fmt.Errorf("destination %q: write this range as one of IPv4", text)
	}
	if p != p.Masked() {
		return Destination{}, fmt.Errorf("destination %q: the range has bits set beyond its length; %s is meant, or another length", text, p.Masked())
	}
	d := Destination{Range: p}
	if hasPort {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Destination{}, fmt.Errorf("destination %q: the port must be within 1..65535", text)
		}
		d.Port = uint16(n)
	}
	return d, nil
}

// destinations is a compiled list of Destinations. The zero value is an empty list.
type destinations struct {
	lengths []int                     // distinct lengths of the ranges, in bits of 128
	ports   map[netip.Prefix][]uint16 // of each range; 0 for all ports
}

func destinationsOf(list []Destination) destinations {
	ds := destinations{ports: make(map[netip.Prefix][]uint16, len(list))}
	for _, d := range list {
		m := mapped(d.Range)
		if !slices.Contains(ds.lengths, m.Bits()) {
			ds.lengths = append(ds.lengths, m.Bits())
		}
		ds.ports[m] = append(ds.ports[m], d.Port)
	}
	return ds
}

// has reports whether packets with this tuple go to one of the destinations.
func (ds *destinations) has(t *packet.Tuple) bool {
	a := netip.AddrFrom16(t.Dst)
	for _, n := range ds.lengths {
		if n < packet.Before4 && t.Dst.Is4() {
			continue // ::/0 is all of IPv6, and nothing of IPv4
		}
		p, _ := a.Prefix(n) // cannot fail: n is within 0..128
		for _, port := range ds.ports[p] {
			if port == 0 || port == t.DstPort && (t.Proto == packet.TCP || t.Proto == packet.UDP) {
				return true
			}
		}
	}
	return false
}
