package packet

// TTL is the time to live of the IP packet, of IPv6 the hop limit.
func (p *Packet) TTL() uint8 {
	if p.EtherType == EtherIPv6 {
		return p.IP[7]
	}
	return p.IP[8]
}

// TrafficClass is that of the IP packet, of IPv4 the octet of the same meaning: DSCP (RFC 2474) and ECN (RFC 3168).
func (p *Packet) TrafficClass() uint8 {
	if p.EtherType == EtherIPv6 {
		return trafficClass(p.IP)
	}
	return p.IP[1]
}

// PutFields writes TTL and traffic class to the IP packet ip, whose IPv4 checksum is still to be made. The flow label
// of IPv6 becomes 0.
func PutFields(ip []byte, ttl, class uint8) {
	if ip[0]>>4 == 6 {
		ip[0], ip[1], ip[2], ip[3] = 6<<4|class>>4, class<<4, 0, 0
		ip[7] = ttl
		return
	}
	ip[1], ip[8] = class, ttl
}
