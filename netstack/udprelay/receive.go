package udprelay

import (
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/dgram"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/netstack/superframe"
)

// turn is how many calls are made for one socket before other sockets get their turn.
const turn = 4

// Ready implements poll.Handler. It passes one turn of what has arrived to the pod, and arms the socket again.
func (m *mapping) Ready(events uint32, buf []byte) []byte {
	if !m.acquire() {
		return buf
	}
	defer m.release()
	if events&poll.Fail != 0 {
		m.hearErrors()
	}
	rx := m.r.batches.Get()
	defer m.r.batches.Put(rx)
	for range turn {
		// Coalesced datagrams of one message fill a superframe by themselves and need not be copied.
		want := superframe.Width
		if m.bulk.Load() {
			want = 1
		}
		n, errno := rx.Receive(m.fd, m.pod.Addr.Is4(), want)
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

// deliver sends the n messages of b to the pod.
func (m *mapping) deliver(b *superframe.Batch, n int) {
	mtu := m.r.o.MTU()
	bulk := b.Pass(n, &m.r.out, func(i int) superframe.Way {
		c := m.from(b.Name(i))
		if c == nil {
			m.r.strange.Add(1)
			return superframe.Way{}
		}
		return superframe.Way{Header: &c.head, MTU: mtu}
	})
	m.bulk.Store(bulk)
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
