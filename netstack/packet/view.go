package packet

// VNetHdr is a virtio_net_hdr in host byte order (include/uapi/linux/virtio_net.h). The wire form is little-endian.
type VNetHdr struct {
	Flags, GSOType                         uint8
	HdrLen, GSOSize, CsumStart, CsumOffset uint16
}

// virtio_net_hdr flags and types.
const (
	NeedsCsum uint8 = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	DataValid uint8 = 2 // VIRTIO_NET_HDR_F_DATA_VALID

	GSONone  uint8 = 0
	GSOTCPv4 uint8 = 1
	GSOTCPv6 uint8 = 4
	GSOUDPL4 uint8 = 5
	GSOECN   uint8 = 0x80 // may be or'ed in
)

// Fault is what ParseFrame or ParseIP found wrong with a packet.
type Fault uint8

// The faults. The zero value is a good packet.
const (
	Good       Fault = iota
	NotIP            // ARP or something else; Packet.EtherType says which
	Malformed        // truncated or inconsistent headers, or a route chosen by the sender
	BadOffload       // the virtio-net header disagrees with the packet
)

// FragKind says whether a packet is a fragment, and which kind (RFC 791, RFC 8200 4.5).
type FragKind uint8

// The kinds of fragments.
const (
	NoFrag    FragKind = iota
	FirstFrag          // has the L4 header
	LaterFrag          // has no ports; Tuple's ports are 0
)

// TCP flags as they stand in the header.
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Opens reports whether these are the TCP flags of the first packet of a connection.
func Opens(flags uint8) bool { return flags&(SYN|ACK|RST|FIN) == SYN }

// Packet is a parsed view of one packet or superframe; the bytes are borrowed.
//
// It has one of two forms. From a TAP or the stack the bytes are contiguous: Buf is the whole superframe and IP is
// Buf[HeadLen:]. From the Link Buf is nil, IP is one packet in the tunnel's buffer, and Tail holds the payloads of the
// packets that were coalesced with it.
type Packet struct {
	Buf  []byte
	IP   []byte
	Tail [][]byte

	VNet      VNetHdr
	EtherType uint16 // EtherIPv4, EtherIPv6, or the frame's own when the fault is NotIP
	Frag      FragKind
	FragID    uint32
	// TCPFlags are those of a TCP segment, or say the same of an SCTP packet (see sctpFlags); 0 for other packets.
	TCPFlags uint8
	// ICMPType and ICMPCode are set for ICMPv4 and ICMPv6 packets.
	ICMPType, ICMPCode uint8
	// DontFragment is the DF bit. It is always true for IPv6.
	DontFragment bool
	// L4 and Payload are the offsets in IP of the L4 header and of the L4 payload. Payload is len(IP) when it is not
	// known.
	L4, Payload int
	Tuple       Tuple

	tcpSeq, tcpAck uint32 // see Segment

	fragAt int // offset of the IPv6 fragment header in IP, also of an atomic fragment; 0 for none
}

// Len returns the length of the IP packet in bytes, Tail included.
func (p *Packet) Len() int {
	n := len(p.IP)
	for _, t := range p.Tail {
		n += len(t)
	}
	return n
}

// Encap holds the outer addresses of packets for another node's stack (RFC 2003, RFC 2473). Both are of one family.
type Encap struct {
	Src, Dst Addr
}
