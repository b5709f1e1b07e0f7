package addressing

import "net/netip"

// Metadata lists the addresses at which clouds describe a machine and hand it credentials. Link-local ones are not in
// the list: nobody in a cluster has them.
var Metadata = []netip.Prefix{
	netip.MustParsePrefix("100.100.100.200/32"),     // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),       // Azure's WireServer
	netip.MustParsePrefix("192.0.0.192/32"),         // Oracle Cloud, Classic
	netip.MustParsePrefix("fd00:ec2::254/128"),      // AWS
	netip.MustParsePrefix("fd20:ce::254/128"),       // Google Cloud
	netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle Cloud
	netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"),  // Akamai
	netip.MustParsePrefix("fd00:42::42/128"),        // Scaleway
}

// reserved lists ranges in which no host has its address: "this network" (RFC 791, section 3.2), class E with the
// limited broadcast address (RFC 1112, section 4), and IPv4-compatible addresses (RFC 4291, section 2.5.5.1).
var reserved = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("::/96")}

// translated lists the IPv6 ranges in which an address stands for an IPv4 address. A translator or a tunnel forwards
// packets for it to that IPv4 address.
var translated = []struct {
	netip.Prefix
	at int // where in the address the four bytes of IPv4 are
}{
	{netip.MustParsePrefix("64:ff9b::/96"), 12},    // NAT64 (RFC 6052, section 2.1)
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12}, // SIIT (RFC 2765, section 2.1)
	{netip.MustParsePrefix("2002::/16"), 2},        // 6to4 (RFC 3056, section 2)
}

// private lists the ranges for private use: RFC 1918, RFC 6598 and RFC 4193.
var private = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// Special returns the kind of an address at which no host can be reached from another network: "a loopback address", "a
// link-local address", and so on. It returns "" for an address that a host may have.
func Special(a netip.Addr) string {
	a = a.Unmap()
	switch {
	case !a.IsValid():
		return "no address"
	case a.IsUnspecified():
		return "the unspecified address"
	case a.IsLoopback():
		return "a loopback address"
	case a.IsMulticast():
		return "a multicast address"
	case a.IsLinkLocalUnicast() || a.Zone() != "":
		return "a link-local address"
	case Contains(reserved, a):
		return "a reserved address"
	}
	for _, t := range translated {
		if t.Contains(a) {
			b := a.As16()
			return Special(netip.AddrFrom4([4]byte(b[t.at : t.at+4])))
		}
	}
	return ""
}

// Private reports whether a range lies within those for private use, so that its use is the cluster's own business.
func Private(p netip.Prefix) bool { return Within(private, p) }

// Within reports whether p lies within one of the ranges.
func Within(ranges []netip.Prefix, p netip.Prefix) bool {
	for _, r := range ranges {
		if r.Bits() <= p.Bits() && r.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// Whole returns the range that holds only a.
func Whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
