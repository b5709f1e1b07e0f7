package packet

// Fragment cuts an IPv4 packet without DF into packets of at most mtu bytes (RFC 791 3.2; a fragment may be cut again)
// and passes each to emit, which borrows it until it returns. A partial checksum is completed first; a packet that fits
// is emitted as it is. dst holds mtu bytes. Nothing is emitted for a packet that a router may not fragment, for a
// superframe (segment it first), and for an mtu that leaves no room for data.
func (p *Packet) Fragment(mtu int, dst []byte, emit func(ip []byte)) {
	if p.VNet.GSOType != GSONone || len(p.Tail) != 0 {
		return
	}
	p.CompleteChecksum()
	if len(p.IP) <= mtu {
		emit(p.IP)
		return
	}
	hl := int(p.IP[0]&15) * 4
	size := (mtu - hl) &^ 7
	if p.DontFragment || size < 8 {
		return
	}
	word := be.Uint16(p.IP[6:])
	data := p.IP[hl:]
	hdr := dst[:copy(dst, p.IP[:hl])]
	for at := 0; at < len(data); at += size {
		n := min(size, len(data)-at)
		w := word + uint16(at/8)
		if at+n < len(data) {
			w |= 0x2000
		}
		ip := dst[:hl+n]
		copy(ip[hl:], data[at:])
		be.PutUint16(ip[2:], uint16(len(ip)))
		be.PutUint16(ip[6:], w)
		setHeaderChecksum(ip[:hl])
		emit(ip)
		if at == 0 {
			keepCopied(hdr[20:])
		}
	}
}

// keepCopied overwrites with no-operations the options that only the first fragment carries (RFC 791 3.1), so that the
// header keeps its length.
func keepCopied(opts []byte) {
	for len(opts) > 0 && opts[0] != 0 {
		n := 1
		if opts[0] != 1 {
			if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
				return
			}
			n = int(opts[1])
		}
		if opts[0]&0x80 == 0 {
			for i := range n {
				opts[i] = 1
			}
		}
		opts = opts[n:]
	}
}
