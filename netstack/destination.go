package netstack

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"tapestry.dev/tapestry/netstack/packet"
)

// Destination is a range of addresses outside of the cluster, of which one port or all are meant. Its text is RANGE or RANGE:PORT.
type Destination struct {
	Range netip.Prefix
	Port  uint16 // of TCP and UDP; 0 for all, and all protocols
}

func (d Destination) String() string {
	if d.Port == 0 {
		return d.Range.String()
	}
	return fmt.Sprintf("%s:%d", d.Range, d.Port)
}

// MetadataServers are where clouds tell a machine its secrets, at addresses that are not link-local. (Those that are, pods do not reach
// anyway.) Of Azure's only the ports that AKS keeps from pods: the same address is the resolver that pods with dnsPolicy Default ask.
var MetadataServers = []Destination{
	{Range: netip.MustParsePrefix("100.100.100.200/32")},         // Alibaba
	{Range: netip.MustParsePrefix("192.0.0.192/32")},             // Oracle, Classic
	{Range: netip.MustParsePrefix("168.63.129.16/32"), Port: 80}, // Azure, the wire server
	{Range: netip.MustParsePrefix("168.63.129.16/32"), Port: 32526},
	{Range: netip.MustParsePrefix("fd00:ec2::254/128")},      // AWS
	{Range: netip.MustParsePrefix("fd20:ce::254/128")},       // Google
	{Range: netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128")}, // Oracle
	{Range: netip.MustParsePrefix("fd00:a9fe:a9fe::1/128")},  // Akamai
	{Range: netip.MustParsePrefix("fd00:42::42/128")},        // Scaleway
}

// ParseDestination reads a Destination. An address stands for the range of it alone, but with a port it must be a range.
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
		return Destination{}, fmt.Errorf("destination %q: an IPv4 range is written as such", text)
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

// destinations finds out whether a packet goes to one of many Destinations. The zero value has none.
type destinations struct {
	lengths []int                     // distinct lengths of the ranges, of 128
	ports   map[netip.Prefix][]uint16 // of the ranges; 0 for all
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

// has reports whether one of them is where packets of the tuple go.
func (ds *destinations) has(t *packet.Tuple) bool {
	a := netip.AddrFrom16(t.Dst)
	for _, n := range ds.lengths {
		p, _ := a.Prefix(n) // cannot fail: n is within 0..128
		for _, port := range ds.ports[p] {
			if port == 0 || port == t.DstPort && (t.Proto == packet.TCP || t.Proto == packet.UDP) {
				return true
			}
		}
	}
	return false
}
