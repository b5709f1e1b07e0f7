package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// SelfTest finds out which of the wanted offloads work on f, leaves those on, and returns them. A successful
// TUNSETOFFLOAD says only that the kernel will produce such frames. To find out whether the kernel also accepts them,
// SelfTest writes one of each kind to an Ethernet address that nobody has, so that the kernel drops the frame after the
// checks in question. (Linux 6.6.48 and its siblings refused valid superframes: commits e269d79c7d35 and 89add40066f9.)
// While the interface is down nothing can be written, and the answer to TUNSETOFFLOAD counts.
func SelfTest(f *os.File, want Offloads) (Offloads, error) {
	var got Offloads
	var err error
	cerr := control(f, func(fd int) {
		var info Info
		if info, err = check(fd, want); err == nil {
			got, _, err = selfTest(fd, info.Offloads)
		}
	})
	if err = errors.Join(err, cerr); err != nil {
		return 0, fmt.Errorf("test tap offloads: %w", err)
	}
	return got, nil
}

func selfTest(fd int, accepted Offloads) (Offloads, []Refusal, error) {
	works, refused := try(accepted, func(frame []byte) unix.Errno { return write(fd, frame) })
	if works == accepted {
		return works, nil, nil
	}
	works, more, err := setOffloads(fd, works)
	return works, append(refused, more...), err
}

// try returns the offloads of which the kernel accepts every frame, and the refusals of the others.
func try(accepted Offloads, write func(frame []byte) unix.Errno) (works Offloads, refused []Refusal) {
	works = accepted
	for _, p := range probes {
		if works&p.needs == 0 {
			continue
		}
		switch errno := write(p.frame()); errno {
		case 0, unix.EIO, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		default:
			lost := p.needs
			if lost == Csum { // all others depend on it
				lost = works
			}
			works &^= lost
			refused = append(refused, Refusal{lost, os.NewSyscallError("write", errno)})
		}
	}
	return works, refused
}

// probe describes one superframe of two segments.
type probe struct {
	needs   Offloads
	gsoType uint8
	v6      bool
	proto   packet.Proto
}

var probes = []probe{
	{Csum, packet.GSONone, false, packet.UDP},
	{TSO4, packet.GSOTCPv4, false, packet.TCP},
	{TSO6, packet.GSOTCPv6, true, packet.TCP},
	{USO, packet.GSOUDPL4, false, packet.UDP},
	{USO, packet.GSOUDPL4, true, packet.UDP},
}

// frame builds the superframe, between two documentation addresses (RFC 5737, RFC 3849).
func (p probe) frame() []byte {
	const segment = 512
	ipLen, l4Len, csumAt := 20, 8, 6
	if p.v6 {
		ipLen = 40
	}
	if p.proto == packet.TCP {
		l4Len, csumAt = 20, 16
	}
	b := make([]byte, packet.HeadLen+ipLen+l4Len+2*segment)
	le, be := binary.LittleEndian, binary.BigEndian

	b[0], b[1] = packet.NeedsCsum, p.gsoType
	le.PutUint16(b[2:], uint16(packet.EthLen+ipLen+l4Len))
	if p.gsoType != packet.GSONone {
		le.PutUint16(b[4:], segment)
	}
	le.PutUint16(b[6:], uint16(packet.EthLen+ipLen))
	le.PutUint16(b[8:], uint16(csumAt))

	eth := b[packet.VNetHdrLen:]
	copy(eth, []byte{0x02, 0x54, 0x41, 0x50, 0xff, 0xff})
	copy(eth[6:], RouterMAC[:])
	ip := b[packet.HeadLen:]
	l4 := ip[ipLen:]
	if p.v6 {
		be.PutUint16(eth[12:], packet.EtherIPv6)
		ip[0], ip[6], ip[7] = 0x60, byte(p.proto), 1
		be.PutUint16(ip[4:], uint16(len(l4)))
		copy(ip[8:], []byte{0x20, 0x01, 0x0d, 0xb8})
		copy(ip[24:], []byte{0x20, 0x01, 0x0d, 0xb8})
		ip[23], ip[39] = 1, 2
	} else {
		be.PutUint16(eth[12:], packet.EtherIPv4)
		ip[0], ip[8], ip[9] = 0x45, 1, byte(p.proto)
		be.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[12:], []byte{192, 0, 2, 1, 192, 0, 2, 2})
		be.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	}
	be.PutUint16(l4, 9) // discard
	be.PutUint16(l4[2:], 9)
	if p.proto == packet.TCP {
		l4[12], l4[13] = 5<<4, packet.ACK
	} else {
		be.PutUint16(l4[4:], uint16(len(l4)))
	}
	return b
}
