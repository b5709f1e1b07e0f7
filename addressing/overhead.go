package addressing

// DefaultUnderlayMTU is the MTU in bytes of the network between the nodes unless configured otherwise: Ethernet's.
const DefaultUnderlayMTU = 1500

// MinMTU is the smallest MTU in bytes that a link with IPv6 may have (RFC 8200, section 5), and MinMTU4 that of one
// with IPv4 alone (RFC 791, section 3.2).
const (
	MinMTU  = 1280
	MinMTU4 = 68
)

const (
	ipv4Header = 20
	ipv6Header = 40
	udpHeader  = 8
	// wireGuard is what a data message has besides the packet: 16 bytes of header and 16 of tag (WireGuard paper,
	// 5.4.6).
	wireGuard = 32
)

// Tunnel returns the number of bytes that a WireGuard data message adds to a packet, over an underlay of IPv6 or of
// IPv4.
func Tunnel(over6 bool) int { return Encap(over6) + udpHeader + wireGuard }

// Encap returns the number of bytes that IP-in-IP adds to a packet, between two addresses of IPv6 or of IPv4.
func Encap(over6 bool) int {
	if over6 {
		return ipv6Header
	}
	return ipv4Header
}
