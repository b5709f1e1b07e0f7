package packet

// VNetHdr is a virtio_net_hdr, in host order (include/uapi/linux/virtio_net.h). The wire form is little-endian.
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

// Fault is what Parse found wrong with a frame.
type Fault uint8

// The faults. The zero value is a good packet.
const (
	Good       Fault = iota
	NotIP            // ARP or another EtherType: look at EtherType
	Malformed        // truncated or inconsistent headers, or a route that the sender made up
	BadOffload       // the virtio-net header disagrees with our own parse
)

// FragKind tells fragments apart (RFC 791, RFC 8200 4.5).
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

// Packet is a parsed view of one packet or superframe; the bytes are borrowed.
//
// Two forms exist. From a TAP or the stack the bytes are contiguous: Buf is the whole superframe and IP is
// Buf[HeadLen:]. From the Link, Buf is nil, IP is one packet in the tunnel's buffer, and Tail holds the payloads of the
// packets that were coalesced behind it.
type Packet struct {
	Buf  []byte
	IP   []byte
	Tail [][]byte

	VNet      VNetHdr
	EtherType uint16 // EtherIPv4, EtherIPv6, or what the frame said when the fault is NotIP
	Frag      FragKind
	FragID    uint32
	TCPFlags  uint8
	// ICMPType and ICMPCode are those of an ICMPv4 or ICMPv6 packet.
	ICMPType, ICMPCode uint8
	// DontFragment: the DF bit, always true for IPv6.
	DontFragment bool
	// L4 is the offset of the L4 header in IP; Payload that of the L4 payload (== len(IP) when unknown).
	L4, Payload int
	Tuple       Tuple

	fragAt int // where IP has an IPv6 fragment header, also that of an atomic fragment; 0 for none
}

// Len is the length of the IP packet in bytes, Tail included.
func (p *Packet) Len() int {
	n := len(p.IP)
	for _, t := range p.Tail {
		n += len(t)
	}
	return n
}

// Encap says how to wrap packets for another node's stack (RFC 2003, RFC 2473): both addresses of one family.
type Encap struct {
	Src, Dst Addr
}
