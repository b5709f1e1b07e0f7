package udprelay

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const (
	// width is how many messages one call takes. Each may be 64 KiB of datagrams that the kernel coalesced.
	width = 16
	// turn is how many calls are made for one conversation before others get theirs.
	turn = 4
	// slot is room for the largest message, with the headers before it.
	slot = maxHead + 1<<16
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// sizeControl has room for the control message of UDP_GRO, padded as CMSG_SPACE pads.
type sizeControl struct {
	hdr  unix.Cmsghdr
	size int32
	_    [4]byte
}

// receiver is the memory of one turn.
type receiver struct {
	msgs [width]mmsghdr
	iovs [width]unix.Iovec
	ctls [width]sizeControl
	// slots take the messages of a call; of each, only pages that datagrams filled are backed by memory.
	slots []byte
	whole []byte // for a datagram to be cut into fragments, and one of these
}

func (r *Relay) receiver() *receiver {
	r.spare.Lock()
	defer r.spare.Unlock()
	if n := len(r.spare.receivers); n > 0 {
		rx := r.spare.receivers[n-1]
		r.spare.receivers = r.spare.receivers[:n-1]
		return rx
	}
	return &receiver{slots: make([]byte, width*slot)}
}

func (r *Relay) putBack(rx *receiver) {
	r.spare.Lock()
	r.spare.receivers = append(r.spare.receivers, rx)
	r.spare.Unlock()
}

// Ready implements poll.Handler: it brings to the pod what arrived, for a turn, and arms the socket again.
func (c *conversation) Ready(_ uint32, buf []byte) []byte {
	if !c.acquire() {
		return buf
	}
	defer c.release()
	rx := c.r.receiver()
	defer c.r.putBack(rx)
	for range turn {
		// One message of coalesced datagrams fills a superframe by itself, and need not be copied.
		want := width
		if c.bulk.Load() {
			want = 1
		}
		n, errno := rx.receive(c.fd, c.head.len(), want)
		switch errno {
		case 0:
			c.touch()
			c.deliver(rx, n)
		case unix.ECONNREFUSED:
			c.tellRefused()
			continue
		case unix.EAGAIN:
		default:
			continue // another ICMP error; what does not fit is told when it is sent again
		}
		if n < want {
			break
		}
	}
	if w := c.watch.Load(); w != nil {
		w.Arm(poll.In)
	}
	return buf
}

// receive takes up to want messages, each into its slot from at on.
func (rx *receiver) receive(fd, at, want int) (int, unix.Errno) {
	for i := range rx.msgs[:want] {
		room := rx.slot(i)[at:]
		rx.iovs[i].Base = unsafe.SliceData(room)
		rx.iovs[i].SetLen(len(room))
		m := &rx.msgs[i]
		m.Iov = &rx.iovs[i]
		m.SetIovlen(1)
		m.Control = (*byte)(unsafe.Pointer(&rx.ctls[i]))
		m.SetControllen(int(unsafe.Sizeof(rx.ctls[i])))
	}
	// Raw, as in sendmsg.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&rx.msgs[0])), uintptr(want), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func (rx *receiver) slot(i int) []byte { return rx.slots[i*slot : (i+1)*slot] }

// size is the length of each datagram of message i, which is n bytes long, but for the last.
func (rx *receiver) size(i, n int) int {
	c := &rx.ctls[i]
	if int(rx.msgs[i].Controllen) >= unix.CmsgLen(4) && c.hdr.Level == unix.SOL_UDP && c.hdr.Type == unix.UDP_GRO && c.size > 0 {
		return int(c.size)
	}
	return n
}

// run is a superframe that comes to be in a slot: n bytes of datagrams of size bytes each, but for the last. begun says that there is
// one: a datagram may be empty.
type run struct {
	slot, n, size int
	begun         bool
}

// joins reports whether a message of n bytes, in datagrams of size, may follow within room.
func (r *run) joins(n, size, room int) bool {
	if !r.begun || n == 0 || r.size == 0 || r.n%r.size != 0 || r.n+n > room || (r.n+n-1)/r.size >= maxSegments {
		return false
	}
	return size == r.size || n == size && n < r.size
}

// deliver sends the n messages of rx to the pod.
func (c *conversation) deliver(rx *receiver, n int) {
	head, mtu := c.head.len(), c.r.o.MTU()
	var r run
	for i := range n {
		length := int(rx.msgs[i].n)
		size := rx.size(i, length)
		if i == 0 {
			c.bulk.Store(length > size)
		}
		switch {
		case r.joins(length, size, maxIP-head):
			copy(rx.slot(r.slot)[head+r.n:], rx.slot(i)[head:head+length])
			r.n += length
		case head+min(size, length) > mtu:
			c.flush(rx, &r)
			c.cut(rx, rx.slot(i)[head:head+length], size)
		default:
			c.flush(rx, &r)
			r = run{i, length, size, true}
		}
	}
	c.flush(rx, &r)
}

// flush sends a run, if there is one, and ends it.
func (c *conversation) flush(rx *receiver, r *run) {
	if r.begun {
		ip := rx.slot(r.slot)[:c.head.len()+r.n]
		c.r.o.Send(ip, c.head.put(ip, r.size))
	}
	*r = run{}
}

// cut sends datagrams of size bytes that do not fit the pods' MTU, in fragments.
func (c *conversation) cut(rx *receiver, data []byte, size int) {
	if rx.whole == nil {
		rx.whole = make([]byte, 2*slot)
	}
	for len(data) > 0 {
		n := min(size, len(data))
		c.head.fragments(data[:n], c.r.o.MTU(), c.r.fragID.Add(1), rx.whole, func(ip []byte) { c.r.o.Send(ip, packet.VNetHdr{}) })
		data = data[n:]
	}
}
