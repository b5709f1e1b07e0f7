package underlay

import (
	"errors"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// maxSegments is how many datagrams every kernel with UDP_SEGMENT accepts in one message (UDP_MAX_SEGMENTS).
	maxSegments = 64
	// maxBytes is the largest payload of one message: 65535 bytes less the UDP header and the larger IP header.
	maxBytes = 65535 - 8 - 40

	// The first byte of WireGuard's transport data messages, and the length of one without payload (a keepalive).
	messageData      = 4
	keepaliveMessage = 32
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// segmentControl is a control message with one UDP_SEGMENT in it, padded as CMSG_SPACE pads.
type segmentControl struct {
	hdr  unix.Cmsghdr
	size uint16
	_    [6]byte
}

// control is a segmentControl, and behind it room for the control message of a source.
type control struct {
	segmentControl
	source [sourceLen]byte
}

// setControl makes ctl the control message of m, nil for none. ctl is only read.
func setControl(m *unix.Msghdr, ctl []byte) {
	m.Control = unsafe.SliceData(ctl)
	m.SetControllen(len(ctl))
}

// sender is the memory of one Send. Senders are pooled. A sender's functions are made once, because a closure per call
// would allocate.
type sender struct {
	msgs [conn.IdealBatchSize]mmsghdr
	ctls [conn.IdealBatchSize]control
	iovs [conn.IdealBatchSize]unix.Iovec

	pending []mmsghdr // what is still to be sent
	sent    int
	errno   unix.Errno
	try     func(fd uintptr)      // sends once
	wait    func(fd uintptr) bool // sends once, false while the socket's buffer is full
}

func newSender(*Bind) *sender {
	s := new(sender)
	s.try = func(fd uintptr) {
		// The call is raw because it does not block. With an ordinary system call the runtime would take its tens of
		// microseconds for blocking and hand the processor to another thread, which cost a fifth of the throughput
		// between two nodes.
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.pending[0])),
			uintptr(len(s.pending)), unix.MSG_DONTWAIT, 0, 0)
		s.sent, s.errno = int(n), errno
	}
	s.wait = func(fd uintptr) bool {
		s.try(fd)
		return s.errno != unix.EAGAIN
	}
	return s
}

// Send implements conn.Bind. Errors of single datagrams are counted and not returned, since WireGuard would log each.
func (b *Bind) Send(bufs [][]byte, ep conn.Endpoint) error {
	sock := b.sock.Load()
	if sock == nil {
		return net.ErrClosed
	}
	e, ok := ep.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	if b.o.Sent != nil {
		defer b.o.Sent(dataMessages(bufs))
	}
	name, nameLen := e.sockaddr(sock.is6)
	if name == nil {
		return errors.New("the WireGuard socket is for IPv4 only, the peer's endpoint is IPv6")
	}
	s := b.senders.Get().(*sender)
	defer b.senders.Put(s)
	for len(bufs) > 0 {
		batch := bufs[:min(len(bufs), len(s.iovs))]
		bufs = bufs[len(batch):]
		n := s.gather(batch, !b.noGSO.Load())
		from := e.source.control(sock.is6)
		for i := range s.msgs[:n] {
			s.msgs[i].Name, s.msgs[i].Namelen = name, nameLen
			s.from(i, from)
		}
		err := b.flush(sock, s, n, e)
		clear(s.iovs[:len(batch)]) // the buffers are WireGuard's again
		if err != nil {
			return err
		}
	}
	return nil
}

func dataMessages(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		if len(b) > keepaliveMessage && b[0] == messageData {
			n++
		}
	}
	return n
}

// gather lays out bufs as messages, and returns how many. With gso, a run of datagrams of equal length, of which the
// last may be shorter, becomes one message. Nothing is copied: every datagram is one element of a message's vector.
func (s *sender) gather(bufs [][]byte, gso bool) (messages int) {
	for i := 0; i < len(bufs); messages++ {
		size, total, first := len(bufs[i]), 0, i
		for i < len(bufs) && (i == first || gso) {
			n := len(bufs[i])
			if n > size || total+n > maxBytes && i > first || i-first == maxSegments {
				break
			}
			s.iovs[i].Base = unsafe.SliceData(bufs[i])
			s.iovs[i].SetLen(n)
			total += n
			i++
			if n < size {
				break
			}
		}
		m := &s.msgs[messages]
		m.Iov = &s.iovs[first]
		m.SetIovlen(i - first)
		setControl(&m.Msghdr, nil)
		if i-first > 1 {
			c := &s.ctls[messages]
			c.hdr.Level, c.hdr.Type = unix.SOL_UDP, unix.UDP_SEGMENT
			c.hdr.SetLen(unix.CmsgLen(2))
			c.size = uint16(size)
			m.Control = (*byte)(unsafe.Pointer(c))
			m.SetControllen(int(unsafe.Sizeof(c.segmentControl)))
		}
	}
	return messages
}

// from adds a source's control message to message i; nil adds none.
func (s *sender) from(i int, source []byte) {
	switch m := &s.msgs[i]; {
	case source == nil:
	case m.Controllen == 0:
		setControl(&m.Msghdr, source)
	default:
		m.SetControllen(int(m.Controllen) + copy(s.ctls[i].source[:], source))
	}
}

// flush sends the first n messages of s to e.
func (b *Bind) flush(sock *socket, s *sender, n int, e *endpoint) error {
	for s.pending = s.msgs[:n]; len(s.pending) > 0; {
		// Control only keeps the descriptor open, so senders to different peers do not wait for each other.
		err := sock.raw.Control(s.try)
		if err == nil && s.errno == unix.EAGAIN {
			err = sock.raw.Write(s.wait)
		}
		if err != nil {
			return net.ErrClosed
		}
		switch s.errno {
		case 0:
			s.pending = s.pending[s.sent:]
		case unix.EINTR, unix.EAGAIN:
		default:
			if err := b.refused(sock, s, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// refused handles the first pending message, which the kernel refused with s.errno.
func (b *Bind) refused(sock *socket, s *sender, e *endpoint) error {
	errno, m := s.errno, s.pending[0]
	rest := s.pending[1:]
	segments := unsafe.Slice(m.Iov, m.Iovlen)
	if len(segments) == 1 {
		if isOfSource(errno) && m.Controllen > 0 {
			e.ClearSrc()
			setControl(&s.pending[0].Msghdr, nil)
			return nil // it is sent again
		}
		b.count(errno, e)
		s.pending = rest
		return nil
	}
	if errno == unix.EIO {
		b.noGSO.Store(true) // a device that cannot checksum (udp(7), UDP_SEGMENT)
	}
	// Its datagrams are sent one by one, since some may fit where the longest does not. A kernel before 6.14 refuses
	// such a message with EINVAL.
	for i := range segments {
		m.Iov = &segments[i]
		m.SetIovlen(1)
		setControl(&m.Msghdr, e.source.control(sock.is6))
		one := [1]mmsghdr{m}
		if err := b.sendOne(sock, s, one[:], e); err != nil {
			return err
		}
	}
	s.pending = rest
	return nil
}

func (b *Bind) sendOne(sock *socket, s *sender, one []mmsghdr, e *endpoint) error {
	s.pending = one
	if err := sock.raw.Write(s.wait); err != nil {
		return net.ErrClosed
	}
	if isOfSource(s.errno) && one[0].Controllen > 0 {
		e.ClearSrc()
		setControl(&one[0].Msghdr, nil)
		return b.sendOne(sock, s, one, e)
	}
	if s.errno != 0 {
		b.count(s.errno, e)
	}
	return nil
}

func (b *Bind) count(errno unix.Errno, e *endpoint) {
	if errno != unix.EMSGSIZE {
		b.failed.Add(1)
		b.logSendError(e.ap, errno)
		return
	}
	b.tooBig.Add(1)
	if b.o.TooBig != nil {
		b.o.TooBig(e.ap)
	}
}
