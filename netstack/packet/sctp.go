package packet

// Types of SCTP chunks that begin or end an association, or must not be answered (RFC 9260 3.2).
const (
	chunkInit             = 1
	chunkInitAck          = 2
	chunkAbort            = 6
	chunkShutdown         = 7
	chunkShutdownAck      = 8
	chunkCookieAck        = 11
	chunkShutdownComplete = 14
)

const (
	sctpHeadLen  = 12
	chunkHeadLen = 4
	// maxChunks is how many chunks of a packet are looked at. Control chunks come first (RFC 9260 6.10).
	maxChunks = 16
)

// sctpFlags says in TCP's flags what the chunks of the SCTP packet b do to its association: SYN for INIT, SYN and ACK
// for INIT ACK, RST for ABORT, FIN for those of a shutdown, and ACK for anything else. An INIT, and an INIT ACK, is
// alone in its packet (RFC 9260 6.10).
func sctpFlags(b []byte) (flags uint8) {
	at := sctpHeadLen
	for i := range maxChunks {
		if at+chunkHeadLen > len(b) {
			break
		}
		switch {
		case i > 0:
		case b[at] == chunkInit:
			return SYN
		case b[at] == chunkInitAck:
			return SYN | ACK
		}
		switch b[at] {
		case chunkAbort:
			return flags | RST // a receiver ignores what follows (RFC 9260 3.3.7)
		case chunkShutdown, chunkShutdownAck, chunkShutdownComplete:
			flags |= FIN
		}
		flags |= ACK
		n := int(be.Uint16(b[at+2:]))
		if n < chunkHeadLen {
			break
		}
		at += (n + 3) &^ 3 // padded to a multiple of four
	}
	return flags
}

// PutAbort writes to dst the SCTP packet that refuses p, with an ABORT, and returns its length (RFC 9260 8.4). It
// returns 0 for packets that must not be answered so: with an ABORT, the end of a shutdown, or a COOKIE ACK. It also
// returns 0 for a fragment, a packet other than SCTP, one without a chunk, and one whose source or destination is not a
// single host. dst holds 60 bytes.
func PutAbort(dst []byte, p *Packet) int {
	if p.Tuple.Proto != SCTP || p.Frag != NoFrag || p.TCPFlags&RST != 0 || !p.answerable() {
		return 0
	}
	got := p.IP[p.L4:]
	if len(got) < sctpHeadLen+chunkHeadLen {
		return 0
	}
	tag, reflected := got[4:8], byte(1)
	switch got[sctpHeadLen] {
	case chunkShutdownComplete, chunkCookieAck:
		return 0
	case chunkInit: // the peer has said which tag it expects
		if len(got) < sctpHeadLen+chunkHeadLen+4 {
			return 0
		}
		tag, reflected = got[sctpHeadLen+chunkHeadLen:][:4], 0
	}
	hl := 40
	if p.EtherType == EtherIPv4 {
		hl = 20
	}
	dst = dst[:hl+sctpHeadLen+chunkHeadLen]
	to := dst[hl:]
	be.PutUint16(to, p.Tuple.DstPort)
	be.PutUint16(to[2:], p.Tuple.SrcPort)
	copy(to[4:8], tag)
	to[12], to[13] = chunkAbort, reflected
	be.PutUint16(to[14:], chunkHeadLen)
	le.PutUint32(to[8:], sctpSum(to))
	src, back := p.Tuple.Dst, p.Tuple.Src
	putIP(dst, SCTP, &src, &back)
	return len(dst)
}
