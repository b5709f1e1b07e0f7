package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"tapestry.dev/tapestry/netstack/packet"
)

const egressDialTimeout = 20 * time.Second

// egressTCP dials the destination first and completes the pod's handshake only then, so that a refused connection is
// refused to the pod, too.
func (g *Gateway) egressTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	to := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
	if g.owns(packet.AddrFrom(to.Addr())) {
		r.Complete(true) // nobody listens there
		return
	}
	started := g.spawn(func() {
		ctx, cancel := context.WithTimeout(g.ctx, egressDialTimeout)
		host, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		cancel()
		if err != nil {
			r.Complete(true)
			return
		}
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq)
		if terr != nil {
			r.Complete(true)
			_ = host.Close()
			return
		}
		r.Complete(false)
		ep.SocketOptions().SetKeepAlive(true)
		splice(g.ctx, newConn(&wq, ep), host)
	})
	if !started {
		r.Complete(true)
	}
}

type closeWriter interface{ CloseWrite() error }

// splice copies between two connections, both ways, passing half-closes on, until both directions ended or ctx does. It
// closes both.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { _, _ = a.Close(), b.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		copyHalf(a, b)
	}()
	copyHalf(b, a)
	<-done
	_, _ = a.Close(), b.Close()
}

// copyHalf copies one direction. A failed copy ends the other direction as well: the bytes are lost.
func copyHalf(dst, src net.Conn) {
	var err error
	if c, ok := dst.(*conn); ok {
		_, err = c.ReadFrom(src)
	} else {
		buf := spliceBuffers.Get().(*spliceBuffer)
		defer spliceBuffers.Put(buf)
		// The wrappers hide ReadFrom and WriteTo, which would bring smaller buffers of their own.
		_, err = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf[:])
	}
	if cw, ok := dst.(closeWriter); ok && err == nil {
		_ = cw.CloseWrite()
		return
	}
	abort(dst)
	abort(src)
}

// abort closes so that the far end sees a reset, not a clean end of a stream that is not whole.
func abort(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}

// egressUDP opens a host socket for one conversation. The endpoint must be made here, in the stack's goroutine, so that
// the packets that follow find it.
func (g *Gateway) egressUDP(r *udp.ForwarderRequest) bool {
	id := r.ID()
	to := netip.AddrPortFrom(fromAddress(id.LocalAddress), id.LocalPort)
	if g.owns(packet.AddrFrom(to.Addr())) {
		return false // the stack answers port unreachable
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		return true
	}
	pod := gonet.NewUDPConn(&wq, ep)
	host, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil || !g.spawn(func() { g.relayUDP(pod, host, id) }) {
		_ = pod.Close()
		if err == nil {
			_ = host.Close()
		}
	}
	return true
}

// relayUDP carries one UDP conversation until it was idle for g.idle in both directions.
func (g *Gateway) relayUDP(pod, host net.Conn, id stack.TransportEndpointID) {
	stop := context.AfterFunc(g.ctx, func() { _, _ = pod.Close(), host.Close() })
	defer stop()
	last := newActivity(g.idle)
	done := make(chan struct{})
	go func() {
		defer close(done)
		relayDatagrams(host, pod, last)
		_ = host.Close()
	}()
	refused := relayDatagrams(pod, host, last)
	_ = pod.Close()
	<-done
	if refused {
		g.tellUnreachable(id)
	}
}

// relayDatagrams copies until src is idle or closed. It reports whether the far end refused (ICMP port unreachable).
func relayDatagrams(dst, src net.Conn, last *activity) (refused bool) {
	buf := make([]byte, 65535)
	for {
		_ = src.SetReadDeadline(last.deadline())
		n, err := src.Read(buf)
		switch {
		case err == nil:
			last.touch()
			if _, err := dst.Write(buf[:n]); err != nil && errors.Is(err, net.ErrClosed) {
				return false
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			if last.idle() {
				return false
			}
		default:
			return isRefused(err)
		}
	}
}

// activity is the time a conversation was last used, by either direction.
type activity struct {
	mu    sync.Mutex
	limit time.Duration
	last  time.Time
}

func newActivity(limit time.Duration) *activity { return &activity{limit: limit, last: time.Now()} }

func (a *activity) touch() {
	a.mu.Lock()
	a.last = time.Now()
	a.mu.Unlock()
}

func (a *activity) deadline() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last.Add(a.limit)
}

func (a *activity) idle() bool { return !time.Now().Before(a.deadline()) }
