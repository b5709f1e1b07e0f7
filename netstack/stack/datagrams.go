package stack

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// udpConn is a connected UDP socket of the stack whose reader need not hold a buffer while nothing comes.
type udpConn struct {
	*gonet.UDPConn
	ep    tcpip.Endpoint
	queue *waiter.Queue
	entry waiter.Entry
	ready chan struct{} // something may have come
	timer *time.Timer   // of WaitRead

	closing sync.Once
	closed  chan struct{}
}

// readable is what ends the wait of a reader.
const readable = waiter.ReadableEvents | waiter.EventErr | waiter.EventHUp

// dialUDP connects from one address to another.
func (s *Stack) dialUDP(local, remote tcpip.FullAddress, to netip.Addr) (net.Conn, error) {
	c := &udpConn{queue: new(waiter.Queue), closed: make(chan struct{}), timer: time.NewTimer(time.Hour)}
	ep, terr := s.stack.NewEndpoint(udp.ProtocolNumber, protocolOf(to), c.queue)
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	c.ep = ep
	if terr = ep.Bind(local); terr == nil {
		terr = ep.Connect(remote)
	}
	if terr != nil {
		ep.Close()
		return nil, toError(terr)
	}
	c.UDPConn = gonet.NewUDPConn(c.queue, ep)
	c.entry, c.ready = waiter.NewChannelEntry(readable)
	c.queue.EventRegister(&c.entry)
	return c, nil
}

// WaitRead waits until Read has something to give, and until a time at the latest, after which it is an
// os.ErrDeadlineExceeded. Only one goroutine may wait.
func (c *udpConn) WaitRead(until time.Time) error {
	if c.ep.Readiness(readable) != 0 {
		return nil
	}
	c.timer.Reset(time.Until(until))
	for {
		select {
		case <-c.ready:
			if c.ep.Readiness(readable) != 0 {
				return nil
			}
		case <-c.timer.C:
			return os.ErrDeadlineExceeded
		case <-c.closed:
			return net.ErrClosed
		}
	}
}

// Close implements net.Conn.
func (c *udpConn) Close() error {
	c.closing.Do(func() {
		close(c.closed)
		c.queue.EventUnregister(&c.entry)
		c.timer.Stop()
	})
	return c.UDPConn.Close()
}
