package packet

// Piece is the part of a packet that one fragment carries.
type Piece struct {
	At   int    // offset of Data in the fragmented part of the packet, in bytes
	Data []byte // borrowed
	More bool   // later fragments follow
}

// Piece returns the part that p carries. p must be a fragment.
func (p *Packet) Piece() Piece {
	if p.EtherType == EtherIPv4 {
		word := be.Uint16(p.IP[6:])
		return Piece{int(word&0x1fff) * 8, p.IP[p.ihl():], word&0x2000 != 0}
	}
	word := be.Uint16(p.IP[p.fragAt+2:])
	return Piece{int(word &^ 7), p.IP[p.fragAt+8:], word&1 != 0}
}

func (p *Packet) ihl() int { return int(p.IP[0]&15) * 4 }

// PutWholeHead writes to dst the IP header of the packet whose first fragment is p, and returns the header's length.
// The length field of that header is not yet right; see PutLength. PutWholeHead returns 0 when dst is too short.
func (p *Packet) PutWholeHead(dst []byte) int {
	if p.EtherType == EtherIPv4 {
		hl := p.ihl()
		if len(dst) < hl {
			return 0
		}
		copy(dst, p.IP[:hl])
		be.PutUint16(dst[6:], 0)
		return hl
	}
	if len(dst) < p.fragAt {
		return 0
	}
	copy(dst, p.IP[:p.fragAt])
	// The header before the fragment header must now name what followed the fragment header.
	next := 6
	for at := 40; at < p.fragAt; at += (int(p.IP[at+1]) + 1) * 8 {
		next = at
	}
	dst[next] = p.IP[p.fragAt]
	return p.fragAt
}

// PutLength writes the length of the packet ip into its IP header. It returns false when the length does not fit the
// field.
func PutLength(ip []byte) bool {
	if ip[0]>>4 == 6 {
		be.PutUint16(ip[4:], uint16(len(ip)-40))
		return len(ip) <= 40+65535
	}
	be.PutUint16(ip[2:], uint16(len(ip)))
	setHeaderChecksum(ip[:int(ip[0]&15)*4])
	return len(ip) <= 65535
}

// PutFragments cuts ip into fragments of at most mtu bytes with the identification id (RFC 791 3.2, RFC 8200 4.5), and
// passes each to emit, which borrows it until it returns. ip must be a whole packet that this node made, without
// options. dst holds mtu bytes. Nothing is emitted for an mtu that leaves no room for data.
func PutFragments(ip []byte, mtu int, id uint32, dst []byte, emit func(ip []byte)) {
	head, l4 := 20, 20
	if ip[0]>>4 == 6 {
		head, l4 = 48, 40
	}
	size := (mtu - head) &^ 7
	if size < 8 {
		return
	}
	rest := ip[l4:]
	for at := 0; at < len(rest); at += size {
		f := dst[:head+copy(dst[head:head+size], rest[at:])]
		copy(f, ip[:l4])
		if more := at+size < len(rest); l4 == 20 {
			putFragment4(f, at, more, uint16(id))
		} else {
			putFragment6(f, at, more, id)
		}
		emit(f)
	}
}

// putFragment4 turns the IPv4 header of f into that of a fragment.
func putFragment4(f []byte, at int, more bool, id uint16) {
	word := uint16(at / 8)
	if more {
		word |= 0x2000
	}
	be.PutUint16(f[2:], uint16(len(f)))
	be.PutUint16(f[4:], id)
	be.PutUint16(f[6:], word)
	setHeaderChecksum(f[:20])
}

// putFragment6 writes a fragment header into f after its IPv6 header, which it updates.
func putFragment6(f []byte, at int, more bool, id uint32) {
	word := uint16(at)
	if more {
		word |= 1
	}
	be.PutUint16(f[4:], uint16(len(f)-40))
	f[40], f[41], f[6] = f[6], 0, extFragment
	be.PutUint16(f[42:], word)
	be.PutUint32(f[44:], id)
}
