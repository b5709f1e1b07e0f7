package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// A marker in a payload tells where the payload came from, such as "e2e:honest".
var marker = regexp.MustCompile(`e2e:[a-z0-9-]+`)

// packetSocket opens a raw socket on eth0. With vnet, every frame begins with a virtio-net header.
func packetSocket(vnet bool) (int, error) {
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return -1, err
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		return -1, err
	}
	if vnet {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	}
	err = errors.Join(err, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: int64(20 * time.Millisecond / time.Microsecond)}))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) != nil {
		// An ordinary user gets what the machine allows.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<20)
	}
	return fd, nil
}

// mac prints the Ethernet address of eth0.
func mac(context.Context, []string) error {
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	fmt.Println(i.HardwareAddr)
	return nil
}

// capture counts what eth0 receives, by marker and source, until the input ends: KNOWN,ADDRESSES. A frame without a
// marker is counted if its source is not a known address.
func capture(ctx context.Context, args []string) error {
	ctx = untilInputEnds(ctx)
	known := strings.Split(args[0], ",")
	fd, err := packetSocket(false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	started()
	seen := map[string]int{}
	buf := make([]byte, 1<<17)
	for {
		// Frames that are there when the input ends are counted, too.
		flags, ended := 0, ctx.Err() != nil
		if ended {
			flags = unix.MSG_DONTWAIT
		}
		n, from, err := unix.Recvfrom(fd, buf, flags)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if ended {
				return print(seen)
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		}
		if sll, ok := from.(*unix.SockaddrLinklayer); ok && sll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		src := source(buf[:n])
		if token := marker.Find(buf[:n]); token != nil {
			seen[string(token[4:])+" from "+src]++
		} else if !slices.Contains(known, src) && !strings.HasPrefix(src, "fe80:") {
			seen["stranger "+src]++
		}
	}
}

// source is the source address of a frame.
func source(frame []byte) string {
	if len(frame) < 14 {
		return fmt.Sprintf("frame of %d bytes", len(frame))
	}
	ip := frame[14:]
	switch ether := binary.BigEndian.Uint16(frame[12:]); {
	case ether == unix.ETH_P_IP && len(ip) >= 20:
		return netip.AddrFrom4([4]byte(ip[12:16])).String()
	case ether == unix.ETH_P_IPV6 && len(ip) >= 40:
		return netip.AddrFrom16([16]byte(ip[8:24])).String()
	}
	return fmt.Sprintf("%d bytes of type %x", len(ip), frame[12:14])
}

// attack sends raw frames on eth0. It knows the interface's own addresses.
type attack struct {
	fd     int
	mac    packet.MAC
	v4, v6 netip.Addr

	Sent, Refused int
}

func newAttack(own string) (*attack, error) {
	i, err := net.InterfaceByName("eth0")
	if err != nil {
		return nil, err
	}
	a := &attack{mac: packet.MAC(i.HardwareAddr)}
	for _, s := range strings.Split(own, ",") {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, err
		}
		if ip.Is4() {
			a.v4 = ip
		} else {
			a.v6 = ip
		}
	}
	a.fd, err = packetSocket(true)
	return a, err
}

func (a *attack) own(like netip.Addr) netip.Addr {
	if like.Is4() {
		return a.v4
	}
	return a.v6
}

// send sends one frame with its virtio-net header. It counts frames that the kernel refuses, and waits while the queue
// is full.
func (a *attack) send(frame []byte) error {
	for {
		switch _, err := unix.Write(a.fd, frame); {
		case err == nil:
			a.Sent++
			return nil
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.EFAULT), errors.Is(err, unix.ENXIO):
			a.Refused++
			return nil
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			// The agent has not read the others yet.
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(a.fd), Events: unix.POLLOUT}}, 1); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		default:
			return err
		}
	}
}

// udp returns a datagram to a closed port. The answer, an ICMP error, goes to its source and is not answered itself.
func udp(src, dst netip.Addr, payload string) netstacktest.Spec {
	return netstacktest.Spec{
		Src: netip.AddrPortFrom(src, 40000), Dst: netip.AddrPortFrom(dst, 9), Proto: packet.UDP, Payload: []byte(payload),
	}
}

// spoofFrames sends frames with forged addresses, and one honest frame of each family: OWN,OWN VICTIM,VICTIM
// SOURCE,SOURCE... OTHERMAC GATEWAY,GATEWAY.
func spoofFrames(_ context.Context, args []string) error {
	a, err := newAttack(args[0])
	if err != nil {
		return err
	}
	defer unix.Close(a.fd)
	otherMAC, err := net.ParseMAC(args[3])
	if err != nil {
		return err
	}
	for _, v := range strings.Split(args[1], ",") {
		victim := netip.MustParseAddr(v)
		own := a.own(victim)
		frames := [][]byte{
			udp(own, victim, "e2e:mac-random").Frame(packet.MAC{2, 1, 2, 3, 4, 5}, tap.RouterMAC),
			udp(own, victim, "e2e:mac-router").Frame(tap.RouterMAC, tap.RouterMAC),
			udp(own, victim, "e2e:mac-other").Frame(packet.MAC(otherMAC), tap.RouterMAC),
		}
		for _, s := range strings.Split(args[2], ",") {
			src := netip.MustParseAddr(s)
			if src.Is4() != victim.Is4() {
				continue
			}
			frames = append(frames,
				udp(src, victim, "e2e:source").Frame(a.mac, tap.RouterMAC),
				udp(src, victim, "e2e:source-and-mac").Frame(packet.MAC(otherMAC), tap.RouterMAC))
			for _, g := range strings.Split(args[4], ",") {
				stack := netip.MustParseAddr(g)
				if stack.Is4() == victim.Is4() {
					frames = append(frames, encapsulated(own, stack, udp(src, victim, "e2e:encapsulated")).Frame(a.mac, tap.RouterMAC))
				}
			}
		}
		frames = append(frames, udp(own, victim, "e2e:honest").Frame(a.mac, tap.RouterMAC))
		for _, f := range frames {
			if err := a.send(f); err != nil {
				return err
			}
		}
	}
	return print(a)
}

// encapsulated returns a packet in a packet, which only nodes may send.
func encapsulated(src, dst netip.Addr, inner netstacktest.Spec) rawSpec {
	ip := inner.IP()
	proto := byte(unix.IPPROTO_IPIP)
	if src.Is6() {
		proto = unix.IPPROTO_IPV6
	}
	return rawSpec{src, dst, proto, ip}
}

// rawSpec is an IP packet of any protocol.
type rawSpec struct {
	src, dst netip.Addr
	proto    byte
	body     []byte
}

func (r rawSpec) Frame(src, router packet.MAC) []byte {
	// A fragment's payload follows its IP header directly. Without the fragmentation it is any payload.
	s := netstacktest.Spec{Src: netip.AddrPortFrom(r.src, 0), Dst: netip.AddrPortFrom(r.dst, 0), Proto: packet.Proto(r.proto), FragAt: 8, Payload: r.body}
	f := s.Frame(src, router)
	if ip := f[packet.HeadLen:]; ip[0]>>4 == 4 {
		binary.BigEndian.PutUint16(ip[6:], 0)
		binary.BigEndian.PutUint16(ip[10:], 0)
		binary.BigEndian.PutUint16(ip[10:], ^packet.Checksum(ip[:20], 0))
	}
	return f
}

// fuzzFrames sends frames with all kinds of mistakes, also in the virtio-net header: COUNT SEED OWN,OWN
// TARGET,TARGET...
func fuzzFrames(_ context.Context, args []string) error {
	count, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	a, err := newAttack(args[2])
	if err != nil {
		return err
	}
	defer unix.Close(a.fd)
	var targets []netip.Addr
	for _, s := range strings.Split(args[3], ",") {
		targets = append(targets, netip.MustParseAddr(s))
	}
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range count {
		frame := a.template(rnd, targets)
		for range 1 + rnd.IntN(3) {
			frame = mutate(rnd, frame)
		}
		if err := a.send(frame); err != nil {
			return err
		}
	}
	return print(a)
}

// template returns a valid frame of a random kind.
func (a *attack) template(rnd *rand.Rand, targets []netip.Addr) []byte {
	dst := targets[rnd.IntN(len(targets))]
	ports := []uint16{9000, 81, 53, 8080, 30081, 51820, uint16(rnd.Uint32())}
	payload := append([]byte("e2e:fuzzed "), make([]byte, []int{0, 1, 7, 500, 1300}[rnd.IntN(5)])...)
	s := netstacktest.Spec{
		Src: netip.AddrPortFrom(a.own(dst), 40000+uint16(rnd.IntN(50))), Dst: netip.AddrPortFrom(dst, ports[rnd.IntN(len(ports))]),
		Proto: packet.UDP, Payload: payload, ID: uint16(rnd.Uint32()),
	}
	var h packet.VNetHdr
	switch rnd.IntN(6) {
	case 0: // a datagram
	case 1: // TCP with any flags
		s.Proto, s.TCPFlags = packet.TCP, uint8(rnd.Uint32())
	case 2: // echo, or an error that quotes something
		s.Proto, s.ICMPType = packet.ICMPv4, []uint8{8, 0, 3, 11, 5}[rnd.IntN(5)]
		if dst.Is6() {
			s.Proto, s.ICMPType = packet.ICMPv6, []uint8{128, 1, 2, 3, 135, 136}[rnd.IntN(6)]
		}
		s.Payload = append(udp(dst, a.own(dst), "e2e:fuzzed").IP(), payload...)
	case 3: // a first fragment
		s.FragFirst = true
	case 4: // a later one
		s.FragAt = 8 * (1 + rnd.IntN(200))
	case 5: // a superframe
		s.Proto, s.TCPFlags = packet.TCP, 0x18
		s.Payload = append(payload, make([]byte, 1+rnd.IntN(20000))...)
		h = packet.VNetHdr{Flags: 1, GSOType: 1, HdrLen: 54, GSOSize: 1300, CsumStart: 34, CsumOffset: 16}
		if dst.Is6() {
			h.GSOType, h.HdrLen, h.CsumStart = 4, 74, 54
		}
	}
	f := s.Frame(a.mac, tap.RouterMAC)
	h.Encode(f[:packet.VNetHdrLen])
	return f
}

// mutate makes one thing wrong.
func mutate(rnd *rand.Rand, f []byte) []byte {
	odd := []uint16{0, 1, 8, 13, 14, 33, 34, 35, 54, 0x7fff, 0xffff, uint16(rnd.Uint32())}
	pick := func() uint16 { return odd[rnd.IntN(len(odd))] }
	head := min(len(f), packet.HeadLen+60)
	switch rnd.IntN(7) {
	case 0: // the virtio-net header
		packet.VNetHdr{
			Flags: []uint8{0, 1, 2, 4, uint8(rnd.Uint32())}[rnd.IntN(5)], GSOType: []uint8{0, 1, 3, 4, 5, 0x80, 0x81, uint8(rnd.Uint32())}[rnd.IntN(8)],
			HdrLen: pick(), GSOSize: pick(), CsumStart: pick(), CsumOffset: pick(),
		}.Encode(f[:packet.VNetHdrLen])
	case 1: // only where the checksum is
		binary.LittleEndian.PutUint16(f[6:], pick())
		binary.LittleEndian.PutUint16(f[8:], pick())
		f[0] |= 1
	case 2: // bits of the headers
		for range 1 + rnd.IntN(8) {
			if at := packet.VNetHdrLen + rnd.IntN(max(head-packet.VNetHdrLen, 1)); at < len(f) {
				f[at] ^= byte(1) << rnd.IntN(8)
			}
		}
	case 3: // cut
		f = f[:packet.VNetHdrLen+rnd.IntN(len(f)-packet.VNetHdrLen+1)]
	case 4: // too long
		f = append(f, make([]byte, rnd.IntN(100))...)
	case 5: // a length of the IP header
		if len(f) > packet.HeadLen+6 {
			if f[packet.HeadLen]>>4 == 4 {
				f[packet.HeadLen] = 0x40 | byte(rnd.IntN(16))
			}
			binary.BigEndian.PutUint16(f[packet.HeadLen+2+2*rnd.IntN(2):], pick())
		}
	case 6: // the source
		if at := packet.HeadLen + 8 + rnd.IntN(8); at < len(f) {
			f[at] = byte(rnd.Uint32())
		}
	}
	return f
}

// wireguardJunk sends invalid messages to a WireGuard port, the expensive kinds included: ADDR COUNT SEED KEY.
func wireguardJunk(ctx context.Context, args []string) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return err
	}
	public, err := base64.StdEncoding.DecodeString(args[3])
	if err != nil || len(public) != 32 {
		return fmt.Errorf("%q is no key: %w", args[3], err)
	}
	c, err := new(net.Dialer).DialContext(ctx, "udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	rnd := rand.New(rand.NewPCG(seed, 1))
	sent := 0
	for range count {
		if _, err := c.Write(junk(rnd, public)); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		sent++
	}
	return print(sent)
}

// junk returns one datagram.
func junk(rnd *rand.Rand, public []byte) []byte {
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	typed := func(kind byte, n int) []byte {
		b := random(n)
		copy(b, []byte{kind, 0, 0, 0})
		return b
	}
	switch rnd.IntN(7) {
	case 0:
		return random(rnd.IntN(1400))
	case 1: // of the right size for its type
		kinds := []int{148, 92, 64, 32 + 16*rnd.IntN(80)}
		k := rnd.IntN(4)
		return typed(byte(k+1), kinds[k])
	case 2: // of the wrong size
		return typed(byte(rnd.IntN(6)), 4+rnd.IntN(300))
	case 3: // an initiation with a valid first MAC, so that the keys must be computed
		b := typed(1, 148)
		key := blake2s.Sum256(append([]byte("mac1----"), public...))
		mac, err := blake2s.New128(key[:])
		if err != nil {
			return b
		}
		mac.Write(b[:116])
		copy(b[116:132], mac.Sum(nil))
		return b
	case 4: // data for the smallest receivers' indices
		b := typed(4, 48)
		binary.LittleEndian.PutUint32(b[4:], uint32(rnd.IntN(8)))
		return b
	case 5: // nothing
		return nil
	}
	return bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(9000)) // fragments
}
