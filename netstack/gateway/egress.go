package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"tapestry.dev/tapestry/netstack/packet"
)

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
