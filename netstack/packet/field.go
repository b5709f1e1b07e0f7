package packet

// TTL returns the time to live of an IPv4 packet, or the hop limit of an IPv6 packet.
func (p *Packet) TTL() uint8 {
	if p.EtherType == EtherIPv6 {
		return p.IP[7]
	}
	return p.IP[8]
}

// TrafficClass returns the traffic class of an IPv6 packet, or the octet with the same meaning of an IPv4 packet: DSCP
// (RFC 2474) and ECN (RFC 3168).
func (p *Packet) TrafficClass() uint8 {
	if p.EtherType == EtherIPv6 {
		return trafficClass(p.IP)
	}
	return p.IP[1]
}

// PutFields writes TTL and traffic class into the IP packet ip. The caller computes the IPv4 header checksum
// afterwards. The flow label of IPv6 becomes 0.
func PutFields(ip []byte, ttl, class uint8) {
	if ip[0]>>4 == 6 {
		ip[0], ip[1], ip[2], ip[3] = 6<<4|class>>4, class<<4, 0, 0
		ip[7] = ttl
		return
	}
	ip[1], ip[8] = class, ttl
}
