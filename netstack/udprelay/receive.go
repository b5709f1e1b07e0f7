package udprelay

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

const (
	// width is how many messages one call reads at most. Each may be 64 KiB of datagrams that the kernel has coalesced.
	width = 16
	// turn is how many calls are made for one socket before other sockets get their turn.
	turn = 4
	// slot is the size of the largest message with the headers before it.
	slot = maxHead + 1<<16
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	n uint32
	_ [4]byte
}

// receiver is the memory of one turn.
type receiver struct {
	msgs  [width]mmsghdr
	iovs  [width]unix.Iovec
	ctls  [width]dgram.Control
	names [width]dgram.Addr // senders of the messages
	// slots receive the messages of a call. Only those pages that datagrams have filled are backed by memory.
	slots []byte
	whole []byte // room for a datagram that is cut into fragments, and for one fragment
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

// Ready implements poll.Handler. It passes one turn of what has arrived to the pod, and arms the socket again.
func (m *mapping) Ready(events uint32, buf []byte) []byte {
	if !m.acquire() {
		return buf
	}
	defer m.release()
	if events&poll.Fail != 0 {
		m.hearErrors()
	}
	rx := m.r.receiver()
	defer m.r.putBack(rx)
	for range turn {
		// Coalesced datagrams of one message fill a superframe by themselves and need not be copied.
		want := width
		if m.bulk.Load() {
			want = 1
		}
		n, errno := rx.receive(m.fd, headLen(m.pod.Addr.Is4()), want)
		switch errno {
		case 0:
			m.deliver(rx, n)
		case unix.EAGAIN:
		default:
			m.hearErrors()
			continue
		}
		if n < want {
			break
		}
	}
	if w := m.watch.Load(); w != nil {
		w.Arm(poll.In)
	}
	return buf
}

// receive reads up to want messages. Each is written to its slot from offset at on.
func (rx *receiver) receive(fd, at, want int) (int, unix.Errno) {
	for i := range rx.msgs[:want] {
		room := rx.slot(i)[at:]
		rx.iovs[i].Base = unsafe.SliceData(room)
		rx.iovs[i].SetLen(len(room))
		m := &rx.msgs[i]
		rx.names[i].From(&m.Msghdr)
		m.Iov = &rx.iovs[i]
		m.SetIovlen(1)
		rx.ctls[i].For(&m.Msghdr)
	}
	// Raw, as in sendmsg.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&rx.msgs[0])), uintptr(want), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func (rx *receiver) slot(i int) []byte { return rx.slots[i*slot : (i+1)*slot] }

// message returns message i as a run without its conversation.
func (rx *receiver) message(i int) run {
	came, size := rx.ctls[i].Read(&rx.msgs[i].Msghdr)
	n := int(rx.msgs[i].n)
	if size <= 0 {
		size = n
	}
	return run{slot: i, n: n, size: size, came: came}
}

// run is a message, or a superframe that is being collected in the message's slot: n bytes of datagrams of one
// conversation, of size bytes each, where the last may be shorter. If of is nil, there is no run.
type run struct {
	of            *conversation
	slot, n, size int
	came          dgram.Head // what the datagrams' own IP headers said
}

// joins reports whether m may be appended to the run, of room bytes at most.
func (r *run) joins(m *run, room int) bool {
	n, size := m.n, m.size
	if r.of != m.of || r.came != m.came || n == 0 || r.size == 0 || r.n%r.size != 0 || r.n+n > room ||
		(r.n+n-1)/r.size >= maxSegments {
		return false
	}
	return size == r.size || n == size && n < r.size
}

// deliver sends the n messages of rx to the pod.
func (m *mapping) deliver(rx *receiver, n int) {
	head, mtu := headLen(m.pod.Addr.Is4()), m.r.o.MTU()
	var r run
	for i := range n {
		msg := rx.message(i)
		if msg.of = m.from(&rx.names[i]); msg.of == nil {
			m.r.strange.Add(1)
			continue
		}
		if i == 0 {
			m.bulk.Store(msg.n > msg.size)
		}
		switch {
		case r.joins(&msg, maxIP-head):
			copy(rx.slot(r.slot)[head+r.n:], rx.slot(i)[head:head+msg.n])
			r.n += msg.n
		case head+min(msg.size, msg.n) > mtu:
			m.flush(rx, &r)
			msg.cut(rx)
		default:
			m.flush(rx, &r)
			r = msg
		}
	}
	m.flush(rx, &r)
}

// from returns the conversation of messages from an address, or nil. Only an address and port that the pod has sent to
// may send to it (RFC 4787 5, address and port dependent filtering).
func (m *mapping) from(name *dgram.Addr) *conversation {
	e, ok := name.Endpoint()
	if !ok {
		return nil
	}
	t := m.tuple(e)
	c := m.r.table.find(&t)
	if c == nil || c.m != m {
		return nil
	}
	c.touch()
	return c
}

// flush sends the run, if there is one, and clears it.
func (m *mapping) flush(rx *receiver, r *run) {
	if r.of != nil {
		h := &r.of.head
		ip := rx.slot(r.slot)[:h.len()+r.n]
		m.r.o.Send(ip, h.put(ip, r.size, r.came))
	}
	*r = run{}
}

// cut sends datagrams that do not fit the pods' MTU in fragments.
func (m *run) cut(rx *receiver) {
	h, r := &m.of.head, m.of.m.r
	if rx.whole == nil {
		rx.whole = make([]byte, 2*slot)
	}
	for data := rx.slot(m.slot)[h.len():][:m.n]; len(data) > 0; {
		n := min(m.size, len(data))
		c := cut{r.o.MTU(), r.fragID.Add(1), m.came}
		h.fragments(data[:n], c, rx.whole, func(ip []byte) { r.o.Send(ip, packet.VNetHdr{}) })
		data = data[n:]
	}
}
