package underlay

import (
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// groups is how many messages one system call receives; each may be maxSegments coalesced datagrams.
	groups = conn.IdealBatchSize / maxSegments
	// controlLen is the room in bytes for control messages: UDP_GRO, the local address, and one that somebody else
	// enabled on the socket.
	controlLen = 128
)

// receiver is the receiving side of one opening of the Bind. One goroutine uses it.
//
// The kernel scatters each coalesced message over WireGuard's buffers, one datagram in each, when the receiver guesses
// the segment size right. The guess is the last size seen. After a wrong guess the datagrams are copied through stash.
type receiver struct {
	b    *Bind
	sock *socket

	msgs  [groups]mmsghdr
	iovs  [groups][maxSegments]unix.Iovec
	names [groups]unix.RawSockaddrInet6
	ctls  [groups][controlLen]byte
	stash [groups]stash
	guess int // segment size in bytes that lay assumed
	seen  int // the latest size seen; the next guess

	last    *endpoint // of the last datagram
	lastWay way

	used  int // messages to read into
	got   int
	errno unix.Errno
	try   func(fd uintptr) bool
}

// stash is a coalesced message that has to be cut by copying.
type stash struct {
	buf  []byte // nil until needed
	rest []byte // of buf
	size int
	from *endpoint
}

func newReceiver(b *Bind, sock *socket) *receiver {
	r := &receiver{b: b, sock: sock, seen: 1 << 16}
	r.try = func(fd uintptr) bool {
		// The call is raw for the reason given in newSender.
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.msgs[0])), uintptr(r.used),
			unix.MSG_DONTWAIT, 0, 0)
		r.got, r.errno = int(n), errno
		return errno != unix.EAGAIN
	}
	return r
}

// receive is the conn.ReceiveFunc. WireGuard stops calling it after errors, so it returns one only when the Bind
// closed.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	clear(sizes[:len(bufs)])
	if n := r.drain(bufs, sizes, eps); n > 0 {
		r.screen(bufs[:n], sizes, eps)
		return n, nil
	}
	for {
		r.lay(bufs)
		if err := r.sock.raw.Read(r.try); err != nil {
			return 0, net.ErrClosed
		}
		if r.errno != 0 { // an ICMP error about an earlier datagram, or EINTR
			continue
		}
		n := 0
		for i := range r.got {
			lo := i * maxSegments
			hi := min(lo+maxSegments, len(bufs))
			if k := r.take(i, bufs[lo:hi], sizes[lo:hi], eps[lo:hi]); k > 0 {
				n = lo + k
			}
		}
		if n > 0 {
			r.screen(bufs[:n], sizes, eps)
			return n, nil
		}
	}
}

// screen empties datagrams that are not admitted, because WireGuard skips empty ones.
func (r *receiver) screen(bufs [][]byte, sizes []int, eps []conn.Endpoint) {
	if r.b.o.Admit == nil {
		return
	}
	for i, b := range bufs {
		if sizes[i] == 0 || b[0] == messageData {
			continue
		}
		from := eps[i].(*endpoint)
		pass, answer := r.b.o.Admit(b[:sizes[i]], from.ap)
		if !pass {
			sizes[i] = 0
		}
		if answer != nil {
			r.answer(answer, from)
		}
	}
}

// answer sends a datagram, and drops it when the socket has no room.
func (r *receiver) answer(b []byte, to *endpoint) {
	var msg unix.Msghdr
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	msg.Iov = &iov
	msg.SetIovlen(1)
	if msg.Name, msg.Namelen = to.sockaddr(r.sock.is6); msg.Name == nil {
		return
	}
	setControl(&msg, to.source.control(r.sock.is6))
	_ = r.sock.raw.Control(func(fd uintptr) {
		_, _, _ = unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT)
	})
}

// lay points the messages' vectors into bufs: the first guess bytes of each buffer, and the whole of each group's last
// one, so that nothing is cut off.
func (r *receiver) lay(bufs [][]byte) {
	r.used, r.guess = 0, r.seen
	for i := range r.msgs {
		lo := i * maxSegments
		if lo >= len(bufs) {
			break
		}
		group := bufs[lo:min(lo+maxSegments, len(bufs))]
		n := len(group)
		if r.guess >= len(group[0]) {
			n = 1
		}
		for j, b := range group[:n] {
			size := len(b)
			if j < n-1 {
				size = min(size, r.guess)
			}
			r.iovs[i][j].Base = unsafe.SliceData(b)
			r.iovs[i][j].SetLen(size)
		}
		m := &r.msgs[i]
		m.Iov = &r.iovs[i][0]
		m.SetIovlen(n)
		m.Name, m.Namelen = (*byte)(unsafe.Pointer(&r.names[i])), unix.SizeofSockaddrInet6
		m.Control = &r.ctls[i][0]
		m.SetControllen(controlLen)
		r.used++
	}
}

// take sets sizes and eps for the datagrams of message i, which lies in bufs. It returns how many of bufs the caller
// has to look at.
func (r *receiver) take(i int, bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	m := &r.msgs[i]
	total := int(m.n)
	segment, local := arrived(r.ctls[i][:m.Controllen])
	if segment == 0 {
		segment = total
	}
	from := r.from(&r.names[i], local)
	if from == nil || total == 0 || m.Flags&unix.MSG_TRUNC != 0 {
		return 0
	}
	spread := min(r.guess, len(bufs[0])) // bytes in each buffer
	if segment < total && segment != spread || total > spread && segment == total {
		r.restash(i, bufs, total, segment, from)
		return r.cut(&r.stash[i], bufs, sizes, eps)
	}
	n := 0
	for left := total; left > 0 && n < len(bufs); n++ {
		size := min(segment, left)
		if n == len(bufs)-1 {
			size = left
		}
		sizes[n], eps[n] = size, from
		left -= size
	}
	if n == len(bufs) && sizes[n-1] > segment { // more segments than buffers: the last buffer holds several
		n--
		st := r.room(i)
		st.rest = append(st.buf[:0], bufs[n][:sizes[n]]...)
		st.size, st.from = segment, from
		sizes[n] = 0
		return n + r.cut(st, bufs[n:], sizes[n:], eps[n:])
	}
	return n
}

// restash copies message i out of the buffers that it was scattered over into stash, and corrects the next guess.
func (r *receiver) restash(i int, bufs [][]byte, total, segment int, from *endpoint) {
	st := r.room(i)
	st.rest = st.buf[:0]
	spread := min(r.guess, len(bufs[0]))
	for j := 0; total > 0; j++ {
		n := min(spread, total)
		if j == int(r.msgs[i].Iovlen)-1 {
			n = total
		}
		st.rest = append(st.rest, bufs[j][:n]...)
		total -= n
	}
	st.size, st.from = segment, from
	if segment < len(st.rest) {
		r.seen = segment
	}
}

func (r *receiver) room(i int) *stash {
	st := &r.stash[i]
	if st.buf == nil {
		st.buf = make([]byte, 0, 1<<16)
	}
	return st
}

// cut copies datagrams of st to bufs as long as there are buffers, and returns how many.
func (r *receiver) cut(st *stash, bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	n := 0
	for ; len(st.rest) > 0 && n < len(bufs); n++ {
		size := copy(bufs[n], st.rest[:min(st.size, len(st.rest))])
		st.rest = st.rest[size:]
		sizes[n], eps[n] = size, st.from
	}
	return n
}

// drain copies to bufs the datagrams that an earlier call had no buffers for, and returns how many.
func (r *receiver) drain(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	n := 0
	for i := range r.stash {
		n += r.cut(&r.stash[i], bufs[n:], sizes[n:], eps[n:])
	}
	return n
}

// from returns the endpoint of the sender of a message to local; nil when datagrams from that sender are dropped.
func (r *receiver) from(sa *unix.RawSockaddrInet6, local netip.Addr) *endpoint {
	ap := addrPort(sa)
	if w := (way{ap, local}); w != r.lastWay || r.last == nil || r.last.source.gone.Load() {
		if !ap.IsValid() {
			return nil
		}
		r.lastWay, r.last = w, r.b.endpointAt(ap, local)
	}
	if r.b.o.Forbidden != nil && r.b.o.Forbidden(ap.Addr()) {
		r.b.forbidden.Add(1)
		return nil
	}
	return r.last
}
