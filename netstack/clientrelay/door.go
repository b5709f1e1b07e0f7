package clientrelay

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/superframe"
)

var be = binary.BigEndian

const (
	// turn is how many calls are made for one socket before other sockets get their turn.
	turn = 4
	// room is how many bytes of memory may wait in a Door's socket in each direction, as far as net.core.rmem_max and
	// wmem_max permit. Clients and backends send in bursts, and the default holds about 90 datagrams of 1,400 bytes.
	room = 1 << 20
)

// Door is a host socket at which clients arrive. Its methods are safe for concurrent use, but for Serve.
type Door struct {
	r     *Relay
	fd    int
	is4   bool
	watch atomic.Pointer[poll.Watch]
	users atomic.Int32 // the Door counts as one; whoever makes it zero closes fd
	bulk  atomic.Bool  // the last message was coalesced by the kernel
	noGSO atomic.Bool  // the device refuses UDP_SEGMENT
	ends  atomic.Bool  // Close was called: nobody begins to use fd

	ask    atomic.Pointer[func(client netip.AddrPort, local netip.Addr) io.Closer] // of Serve
	failed chan error
	closed chan struct{} // closed after fd
	once   sync.Once
}

var _ poll.Handler = (*Door)(nil)

// Open makes a Door of a socket, and takes it over.
func (r *Relay) Open(conn *net.UDPConn) (*Door, error) {
	d := &Door{r: r, is4: conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().Is4(), failed: make(chan error, 1), closed: make(chan struct{})}
	var err error
	if d.fd, err = detach(conn); err != nil {
		return nil, err
	}
	d.users.Store(1)
	if err = tune(d.fd, d.is4); err == nil {
		var w *poll.Watch
		w, err = r.o.Poller.Add(d.fd, d, 0) // Serve arms it
		d.watch.Store(w)
	}
	if err != nil {
		unix.Close(d.fd)
		return nil, err
	}
	return d, nil
}

// detach takes the descriptor of a socket away from the standard library: it returns a duplicate that the runtime's
// poller does not know, and closes c.
func detach(c *net.UDPConn) (fd int, err error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return -1, cerr
	}
	return fd, os.NewSyscallError("fcntl", err)
}

// tune makes a socket tell what the headers of datagrams say, and coalesce datagrams.
func tune(fd int, is4 bool) error {
	level, needed := unix.IPPROTO_IPV6, []int{unix.IPV6_RECVPKTINFO, unix.IPV6_RECVHOPLIMIT, unix.IPV6_RECVTCLASS}
	if is4 {
		level, needed = unix.IPPROTO_IP, []int{unix.IP_PKTINFO, unix.IP_RECVTTL, unix.IP_RECVTOS}
	}
	for _, o := range needed {
		if err := unix.SetsockoptInt(fd, level, o, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, room/2) // the kernel doubles it
	}
	// Kernels before 5.0 have no UDP_GRO; with them datagrams come one by one.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	return nil
}

// acquire keeps the socket open until release. It returns false when the Door is closed, or is about to be.
func (d *Door) acquire() bool {
	for {
		n := d.users.Load()
		if n == 0 || d.ends.Load() {
			return false
		}
		if d.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (d *Door) release() {
	if d.users.Add(-1) == 0 {
		unix.Close(d.fd)
		close(d.closed)
	}
}

// Close closes the Door, and waits until nobody uses its socket any more: its address is free then, unless somebody
// holds a duplicate of the socket, who goes on with its options. Closing twice is harmless. It must not be called by
// ask of Serve.
func (d *Door) Close() error {
	d.once.Do(func() {
		d.ends.Store(true)
		d.watch.Load().Close()
		d.release()
	})
	<-d.closed
	return nil
}

// Serve reads the socket until the Door is closed or reading fails, and returns why. ask returns where the datagrams go
// that a client has sent to a local address: what Exchange returned, or an io.Writer, which gets them one by one, or
// nil when they are dropped. The local address is invalid where nobody may answer from it. ask must not block. Once
// the Door is closed, Serve returns when ask has been called for the last time. Serve may be called again.
func (d *Door) Serve(ask func(client netip.AddrPort, local netip.Addr) io.Closer) error {
	d.ask.Store(&ask)
	d.watch.Load().Arm(poll.In)
	select {
	case err := <-d.failed:
		if !d.ends.Load() {
			return err
		}
		<-d.closed // another call of Ready may go on
	case <-d.closed:
	}
	return net.ErrClosed
}

// Ready implements poll.Handler. It passes on one turn of what has arrived, and arms the socket again.
func (d *Door) Ready(_ uint32, buf []byte) []byte {
	ask := d.ask.Load()
	if ask == nil || !d.acquire() {
		return buf
	}
	defer d.release()
	b := d.r.batches.Get()
	defer d.r.batches.Put(b)
	for range turn {
		if d.ends.Load() {
			return buf
		}
		// Coalesced datagrams of one message fill a superframe by themselves and need not be copied.
		want := superframe.Width
		if d.bulk.Load() {
			want = 1
		}
		n, errno := b.Receive(d.fd, d.is4, want)
		if errno != 0 && errno != unix.EAGAIN && errno != unix.EINTR {
			d.ask.Store(nil)
			select {
			case d.failed <- os.NewSyscallError("recvmmsg", errno):
			default: // a stale event
			}
			return buf
		}
		if n > 0 {
			d.pass(b, n, *ask)
		}
		if n < want {
			break
		}
	}
	d.watch.Load().Arm(poll.In)
	return buf
}

// pass sends the n messages of b to their backends.
func (d *Door) pass(b *superframe.Batch, n int, ask func(netip.AddrPort, netip.Addr) io.Closer) {
	mtu := d.r.o.MTU()
	var client netip.AddrPort
	var local packet.Addr
	var to io.Closer
	d.bulk.Store(b.Pass(n, &d.r.out, func(i int) superframe.Way {
		if c, l := b.Name(i).AddrPort(), b.Local(i); i == 0 || c != client || l != local {
			client, local = c, l
			at := netip.Addr{}
			if l != (packet.Addr{}) {
				at = l.Netip()
			}
			to = ask(c, at)
		}
		switch t := to.(type) {
		case *Exchange:
			return t.way(mtu)
		case io.Writer:
			b.Each(i, func(datagram []byte) { _, _ = t.Write(datagram) })
		}
		return superframe.Way{}
	}))
}

// Answer sends a datagram to a client, from a local address. It is for backends without an Exchange.
func (d *Door) Answer(datagram []byte, client netip.AddrPort, local netip.Addr) {
	if !d.acquire() {
		return
	}
	defer d.release()
	to, from := dgram.AddrFrom(client), packet.Addr{}
	if local.IsValid() {
		from = packet.AddrFrom(local)
	}
	d.count(dgram.Send(d.fd, &to, from, datagram, 0))
}

// count counts what was for a client and did not leave.
func (d *Door) count(errno unix.Errno) {
	if errno != 0 {
		d.r.lost.Add(1)
	}
}

// mostParts is the number of places of a superframe's data: the first packet and those that were coalesced with it.
const mostParts = 64

// send sends the datagrams of p to the client of x. The caller has acquired the Door.
func (d *Door) send(x *Exchange, p *packet.Packet) {
	if p.VNet.GSOType == packet.GSONone {
		// An IP packet may be longer than its datagram.
		d.count(dgram.Send(d.fd, &x.to, x.from, p.IP[p.Payload:p.L4+int(be.Uint16(p.IP[p.L4+4:]))], 0))
		return
	}
	if !d.noGSO.Load() && len(p.Tail) < mostParts {
		var parts [mostParts]unix.Iovec
		put := func(i int, data []byte) {
			parts[i].Base = unsafe.SliceData(data)
			parts[i].SetLen(len(data))
		}
		put(0, p.IP[p.Payload:])
		for i, t := range p.Tail {
			put(i+1, t)
		}
		switch errno := dgram.Sendv(d.fd, &x.to, x.from, parts[:1+len(p.Tail)], int(p.VNet.GSOSize)); errno {
		case unix.EIO:
			d.noGSO.Store(true) // the device has no checksum offload (udp(7), UDP_SEGMENT)
		case unix.EINVAL, unix.EMSGSIZE: // some segments may fit where the longest does not
		default:
			d.count(errno)
			return
		}
	}
	var cut packet.Segmenter
	cut.Reset(p, nil)
	one, _ := d.r.segments.Get().(*[]byte)
	if one == nil {
		one = new([]byte)
	}
	defer d.r.segments.Put(one)
	*one = slices.Grow((*one)[:0], cut.Size())[:cut.Size()]
	for n := cut.Next(*one); n > 0; n = cut.Next(*one) {
		d.count(dgram.Send(d.fd, &x.to, x.from, (*one)[p.Payload:n], 0))
	}
}
