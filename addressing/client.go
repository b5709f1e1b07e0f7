package addressing

import "net/netip"

// Client is whom what somebody outside takes is charged to: his address, or the network of 64 bits that he can take his
// IPv6 addresses from. Of the zero Addr it is the zero Prefix.
func Client(a netip.Addr) netip.Prefix {
	bits := 32
	if a = a.Unmap().WithZone(""); a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // fails for the zero Addr alone
	return p
}
