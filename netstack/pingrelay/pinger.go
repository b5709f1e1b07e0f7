package pingrelay

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/share"
)

var be = binary.BigEndian

const (
	echoLen = 8 // type, code, checksum, identifier, sequence number
	ttl     = 64
	// turn is how many replies of one socket are handled before other sockets get their turn.
	turn = 16
	// tries is how often a request is given to the kernel. If an error about an earlier request is pending on the
	// socket, the call returns it and sends nothing.
	tries = 3
)

// pinger is one socket, and the exchange that it carries.
type pinger struct {
	r     *Relay
	key   key
	fd    int
	addr  dgram.Addr // key.to, for the kernel
	watch atomic.Pointer[poll.Watch]
	claim share.Claim[packet.Addr, *pinger]
	gone  bool // guarded by Relay.mu

	used  atomic.Int64 // the time of the last use, by Relay.now
	users atomic.Int32 // an entry in Relay.known counts as one; whoever makes it zero closes fd
	says  dgram.Says
}

func newPinger(r *Relay, k key) *pinger {
	s := &pinger{r: r, key: k, addr: dgram.AddrOf(packet.Endpoint{Addr: k.to})}
	s.claim.Value = s
	s.used.Store(r.now.Load())
	return s
}

// open opens the socket. The caller is its first user.
func (s *pinger) open() error {
	fd, err := dgram.Open(dgram.Echo, s.key.to.Is4())
	if err != nil {
		return err
	}
	s.fd = fd
	s.users.Store(1)
	w, err := s.r.o.Poller.Add(fd, s, 0)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	s.watch.Store(w)
	w.Arm(poll.In)
	return nil
}

func (s *pinger) acquire() bool {
	for {
		n := s.users.Load()
		if n == 0 {
			return false
		}
		if s.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *pinger) release() {
	if s.users.Add(-1) == 0 {
		s.watch.Load().Close()
		_ = unix.Close(s.fd)
	}
}

func (s *pinger) touch() {
	if now := s.r.now.Load(); s.used.Load() != now {
		s.used.Store(now)
		s.r.share.Touch(&s.claim)
	}
}

// send sends an echo request. The caller has acquired the pinger.
func (s *pinger) send(p *packet.Packet) (mtu int, err error) {
	s.touch()
	s.says.Set(s.fd, s.key.to.Is4(), dgram.HeadOf(p))
	var errno unix.Errno
	for range tries {
		if errno = sendTo(s.fd, &s.addr, p.IP[p.L4:]); errno == 0 {
			return 0, nil
		}
		if errno == unix.EMSGSIZE {
			if mtu = dgram.PathMTU(s.key.to); mtu > 0 && mtu < len(p.IP) {
				return mtu, ErrTooBig
			}
		}
		s.hearErrors()
	}
	return 0, errno
}

// Ready implements poll.Handler. It passes the replies that have arrived to the pod.
func (s *pinger) Ready(events uint32, buf []byte) []byte {
	if !s.acquire() {
		return buf
	}
	defer s.release()
	if events&poll.Fail != 0 {
		s.hearErrors()
	}
	head := 40
	if s.key.to.Is4() {
		head = 20
	}
	for range turn {
		var from dgram.Addr
		n, came, errno := receive(s.fd, &from, buf[head:cap(buf)])
		if errno == unix.EAGAIN {
			break
		}
		if errno != 0 {
			s.hearErrors()
			continue
		}
		if e, ok := from.Endpoint(); ok && e.Addr == s.key.to {
			s.touch()
			s.answer(buf[:head+n], came)
		}
	}
	if w := s.watch.Load(); w != nil {
		w.Arm(poll.In)
	}
	return buf
}

// Types of echoes (RFC 792, RFC 4443).
const (
	request4, reply4 = 8, 0
	request6, reply6 = 128, 129
)

// answer makes a packet of an echo reply and sends it to the pod. In ip the reply stands after room for the IP header.
// came is what the reply's own IP header said.
func (s *pinger) answer(ip []byte, came dgram.Head) {
	reply := byte(reply6)
	if s.key.to.Is4() {
		reply = reply4
	}
	echo := ip[putHead(ip, &s.key.to, &s.key.pod, came):]
	if len(echo) < echoLen || echo[0] != reply {
		return
	}
	be.PutUint16(echo[4:], s.key.id)
	putChecksum(ip, len(ip)-len(echo))
	mtu := s.r.o.MTU()
	if len(ip) <= mtu {
		s.r.o.Send(ip, packet.VNetHdr{})
		return
	}
	packet.PutFragments(ip, mtu, s.r.id.Add(1), make([]byte, mtu), func(f []byte) { s.r.o.Send(f, packet.VNetHdr{}) })
}

// putHead writes the IP header of the packet that fills ip and returns its length.
func putHead(ip []byte, src, dst *packet.Addr, h dgram.Head) int {
	head := 40
	if src.Is4() {
		head = 20
		clear(ip[:head])
		ip[0], ip[8], ip[9] = 0x45, ttl, byte(packet.ICMPv4)
		copy(ip[12:], src[12:])
		copy(ip[16:], dst[12:])
	} else {
		clear(ip[:8])
		ip[0], ip[6], ip[7] = 6<<4, byte(packet.ICMPv6), ttl
		copy(ip[8:], src[:])
		copy(ip[24:], dst[:])
	}
	h.Put(ip)
	packet.PutLength(ip)
	return head
}

// putChecksum completes the ICMP message at l4 of ip.
func putChecksum(ip []byte, l4 int) {
	b := ip[l4:]
	b[2], b[3] = 0, 0
	initial := uint32(0)
	if l4 == 40 { // RFC 4443 2.3
		initial = uint32(packet.Checksum(ip[8:40], uint32(packet.ICMPv6)+uint32(len(b))))
	}
	be.PutUint16(b[2:], ^packet.Checksum(b, initial))
}

// hearErrors reads the socket's error queue and tells the pod of the errors.
func (s *pinger) hearErrors() {
	dgram.Hear(s.fd, func(e dgram.Error) {
		if e.About.Addr != s.key.to || len(e.Data) < echoLen {
			return
		}
		var ip [40 + echoLen]byte
		head, kind := 40, byte(request6)
		if s.key.to.Is4() {
			head, kind = 20, request4
		}
		whole := ip[:head+echoLen]
		putHead(whole, &s.key.pod, &s.key.to, dgram.Head{})
		whole[head] = kind
		be.PutUint16(whole[head+4:], s.key.id)
		copy(whole[head+6:], e.Data[6:8]) // the sequence number
		putChecksum(whole, head)
		var p packet.Packet
		if p.ParseIP(whole) == packet.Good {
			s.r.o.Refuse(&p, e.Why, e.By)
		}
	})
}

// sendTo and receive are raw system calls; package dgram says why.
func sendTo(fd int, to *dgram.Addr, b []byte) unix.Errno {
	var msg unix.Msghdr
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	to.To(&msg)
	msg.Iov = &iov
	msg.SetIovlen(1)
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT, 0, 0, 0)
	return errno
}

func receive(fd int, from *dgram.Addr, b []byte) (int, dgram.Head, unix.Errno) {
	var msg unix.Msghdr
	var ctl dgram.Control
	ctl.For(&msg)
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	from.From(&msg)
	msg.Iov = &iov
	msg.SetIovlen(1)
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT, 0, 0, 0)
	if errno != 0 {
		return 0, dgram.Head{}, errno
	}
	came, _ := ctl.Read(&msg)
	return int(n), came, 0
}

var _ poll.Handler = (*pinger)(nil)
