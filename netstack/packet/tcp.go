package packet

// TCPHeader holds the fields that change from one segment of a connection to the next (RFC 9293 3.1). The length of
// Options is a multiple of 4.
type TCPHeader struct {
	Seq, Ack uint32
	Flags    uint8
	Window   uint16
	Options  []byte
}

// Segment says where a TCP segment stands in the streams of its connection (RFC 9293 3.1). The zero value is what is
// known of a packet that is no TCP segment.
type Segment struct {
	Seq, Ack uint32 // Ack is valid with the flag ACK
	Flags    uint8
}

// Segment returns what p's TCP header says.
func (p *Packet) Segment() Segment { return Segment{Seq: p.tcpSeq, Ack: p.tcpAck, Flags: p.TCPFlags} }

// TCPHeadLen returns the length of the headers that PutTCP writes without options, for the family of a.
func TCPHeadLen(a *Addr) int {
	if a.Is4() {
		return 40
	}
	return 60
}

// PutTCP writes the IP and TCP headers of a segment from t.Src to t.Dst, and returns their length. The caller puts the
// payload of n bytes after them. The checksum is partial, and vnet says so; where the payload is longer than mss, vnet
// makes the packet a superframe. dst holds TCPHeadLen and the options. Headers and payload must fit into one IP packet.
func PutTCP(dst []byte, t *Tuple, h *TCPHeader, n, mss int) (head int, vnet VNetHdr) {
	head = TCPHeadLen(&t.Src) + len(h.Options)
	l4 := TCPHeadLen(&t.Src) - 20
	vnet = VNetHdr{Flags: NeedsCsum, HdrLen: uint16(EthLen + head), CsumStart: uint16(EthLen + l4), CsumOffset: 16}
	if t.Src.Is4() {
		put4(dst, head+n, TCP, &t.Src, &t.Dst)
		vnet.GSOType = GSOTCPv4
	} else {
		put6(dst, head+n, TCP, &t.Src, &t.Dst)
		vnet.GSOType = GSOTCPv6
	}
	vnet.GSOSize = uint16(mss)
	if n <= mss {
		vnet.GSOType, vnet.GSOSize = GSONone, 0
	}
	b := dst[l4:head]
	be.PutUint16(b, t.SrcPort)
	be.PutUint16(b[2:], t.DstPort)
	be.PutUint32(b[4:], h.Seq)
	be.PutUint32(b[8:], h.Ack)
	b[12], b[13] = byte(head-l4)<<2, h.Flags
	be.PutUint16(b[14:], h.Window)
	b[18], b[19] = 0, 0
	copy(b[20:], h.Options)
	putPartial(dst, l4, TCP, head-l4+n)
	return head, vnet
}
