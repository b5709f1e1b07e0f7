package addressing

import "net/netip"

// Client returns the range of addresses that is charged for what somebody outside takes: his IPv4 address, or the /64
// from which he can take his IPv6 addresses. For the zero Addr it is the zero Prefix.
func Client(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap().WithZone(""); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // fails only for the zero Addr
	return p
}
