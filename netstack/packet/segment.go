package packet

// Segmenter cuts a superframe into IP packets with full checksums, as a network card would, and passes other packets
// through. Call Reset, then Next until it returns 0. The zero value is ready for Reset; nothing is allocated.
type Segmenter struct {
	// Partial makes Next leave partial checksums partial: the checksum field of each packet holds the folded sum of
	// that packet's own pseudo header, for receivers that expect it (Coalescer.Partial). Set Partial before Reset,
	// which keeps it.
	Partial bool

	p    *Packet
	via  Encap
	cur  []byte // unread rest of the current piece of the payload
	tail int    // index of the next piece in p.Tail

	outer int // length of the outer IP header, 0 for none
	head  int // length of the IP and L4 headers, which each segment repeats
	size  int // payload of each segment but the last
	rest  int // payload not yet emitted
	count int // packets emitted
	done  bool
}

// Reset starts on p, which is borrowed and must not change until Next has returned 0. With a non-nil via, which is not
// kept, each packet gets an outer header (RFC 2003, RFC 2473).
func (s *Segmenter) Reset(p *Packet, via *Encap) {
	*s = Segmenter{Partial: s.Partial, p: p, head: p.Payload, cur: p.IP[p.Payload:], rest: p.Len() - p.Payload}
	s.size = s.rest
	if p.VNet.GSOType != GSONone {
		s.size = int(p.VNet.GSOSize)
	}
	if via != nil {
		s.via = *via
		s.outer = 40
		if via.Src.Is4() {
			s.outer = 20
		}
		// The length field of the outer header has 16 bits, so a larger packet cannot be sent.
		s.done = s.Size() > 65535
	}
}

// Size returns the length in bytes of the largest packet that Next writes. dst of Next must hold it.
func (s *Segmenter) Size() int { return s.outer + s.head + min(s.size, s.p.Len()-s.head) }

// Next writes the next packet to dst and returns its length, 0 when there is none left.
func (s *Segmenter) Next(dst []byte) int {
	if s.done {
		return 0
	}
	n := min(s.size, s.rest)
	dst = dst[:s.outer+s.head+n]
	ip := dst[s.outer:]
	copy(ip, s.p.IP[:s.head])
	s.copyPayload(ip[s.head:])
	s.rest -= n
	s.done = s.rest == 0
	if s.p.VNet.GSOType != GSONone {
		s.fix(ip, len(ip))
	}
	switch {
	case !s.p.isPartial():
	case s.Partial:
		putPartial(ip, s.p.L4, s.p.Tuple.Proto, len(ip)-s.p.L4)
	default:
		setL4Checksum(ip, s.p.L4, s.p.Tuple.Proto)
	}
	if s.outer != 0 {
		putOuter(dst, s.outer, &s.via)
	}
	s.count++
	return len(dst)
}

func (s *Segmenter) copyPayload(b []byte) {
	for len(b) > 0 {
		if len(s.cur) == 0 {
			s.cur = s.p.Tail[s.tail]
			s.tail++
		}
		n := copy(b, s.cur)
		b, s.cur = b[n:], s.cur[n:]
	}
}

// fix adapts the copied headers to the current segment, whose length is n bytes; it leaves the L4 checksum alone. ip
// holds at least the headers.
func (s *Segmenter) fix(ip []byte, n int) {
	if s.p.EtherType == EtherIPv4 {
		be.PutUint16(ip[2:], uint16(n))
		be.PutUint16(ip[4:], be.Uint16(ip[4:])+uint16(s.count))
		setHeaderChecksum(ip[:s.p.L4])
	} else {
		be.PutUint16(ip[4:], uint16(n-40))
	}
	b := ip[s.p.L4:]
	if s.p.Tuple.Proto == UDP {
		be.PutUint16(b[4:], uint16(n-s.p.L4))
		return
	}
	be.PutUint32(b[4:], be.Uint32(b[4:])+uint32(s.count*s.size))
	if !s.done {
		b[13] &^= FIN | PSH
	}
	if s.count > 0 {
		b[13] &^= CWR // only the first segment reports the reduced window (RFC 3168 6.1.2)
	}
}
