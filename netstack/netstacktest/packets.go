package netstacktest

import (
	"encoding/binary"
	"net/netip"

	"tapestry.dev/tapestry/netstack/packet"
)

// Spec describes a packet. Proto, addresses and ports are those of its tuple. For ICMP the port of Src is the echo
// identifier.
type Spec struct {
	Src, Dst  netip.AddrPort
	Proto     packet.Proto
	TCPFlags  uint8
	Seq, Ack  uint32 // of TCP; Seq is the verification tag of SCTP
	Options   []byte // of TCP, a multiple of 4 bytes
	Payload   []byte // for SCTP its chunks
	ICMPType  uint8  // of an ICMP packet
	ICMPCode  uint8
	NoHop     bool // the time to live is 0, and not 64
	MayFrag   bool // clear DF
	FragFirst bool // set More Fragments
	FragAt    int  // offset in bytes of a later fragment, whose Payload directly follows the IP header
	ID        uint16
	Partial   bool // the checksum field holds only the folded sum of the pseudo header
}

// IP builds the IP packet, with right checksums.
func (s Spec) IP() []byte {
	l4 := s.l4()
	var ip []byte
	if s.Src.Addr().Is4() {
		ip = make([]byte, 20, 20+len(l4))
		ip[0] = 0x45
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
		binary.BigEndian.PutUint16(ip[4:], s.ID)
		frag := uint16(s.FragAt / 8)
		switch {
		case s.FragFirst:
			frag |= 0x2000
		case s.FragAt == 0 && !s.MayFrag:
			frag |= 0x4000
		}
		binary.BigEndian.PutUint16(ip[6:], frag)
		ip[8], ip[9] = s.hops(), byte(s.Proto)
		copy(ip[12:], s.Src.Addr().AsSlice())
		copy(ip[16:], s.Dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], ^sum(ip, 0))
	} else {
		ip = make([]byte, 40, 40+len(l4))
		ip[0] = 0x60
		binary.BigEndian.PutUint16(ip[4:], uint16(len(l4)))
		ip[6], ip[7] = byte(s.Proto), s.hops()
		copy(ip[8:], s.Src.Addr().AsSlice())
		copy(ip[24:], s.Dst.Addr().AsSlice())
	}
	return append(ip, l4...)
}

func (s Spec) hops() byte {
	if s.NoHop {
		return 0
	}
	return 64
}

func (s Spec) l4() []byte {
	if s.FragAt > 0 {
		return s.Payload
	}
	var b []byte
	at := 0
	switch s.Proto {
	case packet.TCP:
		b, at = make([]byte, 20), 16
		b = append(b, s.Options...)
		b[12], b[13] = byte(len(b)/4)<<4, s.TCPFlags
		b[14] = 0xff
		binary.BigEndian.PutUint32(b[4:], s.Seq)
		binary.BigEndian.PutUint32(b[8:], s.Ack)
	case packet.UDP:
		b, at = make([]byte, 8), 6
		binary.BigEndian.PutUint16(b[4:], uint16(8+len(s.Payload)))
	case packet.SCTP:
		b = make([]byte, 12)
		binary.BigEndian.PutUint32(b[4:], s.Seq)
	default:
		b, at = make([]byte, 8), 2
		b[0], b[1] = s.ICMPType, s.ICMPCode
		binary.BigEndian.PutUint16(b[4:], s.Src.Port())
	}
	if s.Proto == packet.TCP || s.Proto == packet.UDP || s.Proto == packet.SCTP {
		binary.BigEndian.PutUint16(b[0:], s.Src.Port())
		binary.BigEndian.PutUint16(b[2:], s.Dst.Port())
	}
	b = append(b, s.Payload...)
	if s.Proto == packet.SCTP {
		binary.LittleEndian.PutUint32(b[8:], CRC32c(b))
		return b
	}
	var pseudo uint32
	if s.Proto != packet.ICMPv4 {
		pseudo = uint32(s.Proto) + uint32(len(b))
		for _, a := range [][]byte{s.Src.Addr().AsSlice(), s.Dst.Addr().AsSlice()} {
			pseudo += uint32(sum(a, 0))
		}
	}
	if s.Partial {
		binary.BigEndian.PutUint16(b[at:], sum(nil, pseudo))
		return b
	}
	binary.BigEndian.PutUint16(b[at:], ^sum(b, pseudo))
	return b
}

// CRC32c returns the checksum of SCTP over b, bit by bit as RFC 9260 appendix A defines it: the remainder of b,
// inverted at both ends, divided by the polynomial 0x1EDC6F41, with the bits of each byte reflected.
func CRC32c(b []byte) uint32 {
	crc := ^uint32(0)
	for _, octet := range b {
		crc ^= uint32(octet)
		for range 8 {
			low := crc & 1
			crc >>= 1
			if low != 0 {
				crc ^= 0x82f63b78 // 0x1EDC6F41, reflected
			}
		}
	}
	return ^crc
}

func sum(b []byte, acc uint32) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		acc += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		acc += uint32(b[len(b)-1]) << 8
	}
	for acc > 0xffff {
		acc = acc>>16 + acc&0xffff
	}
	return uint16(acc)
}

// Frame builds the superframe that a pod with Ethernet address src sends to the router.
func (s Spec) Frame(src, router packet.MAC) []byte {
	f := make([]byte, packet.HeadLen)
	copy(f[packet.VNetHdrLen:], router[:])
	copy(f[packet.VNetHdrLen+6:], src[:])
	ether := packet.EtherIPv4
	if !s.Src.Addr().Is4() {
		ether = packet.EtherIPv6
	}
	binary.BigEndian.PutUint16(f[packet.HeadLen-2:], ether)
	return append(f, s.IP()...)
}
