package tcprelay

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// behindTime is how long it is known who was behind a host socket that is closed. A server may accept a connection
	// after its client has ended it, as long as it was in the server's queue.
	behindTime = time.Minute
	// mostBehind bounds the closed sockets of which that is known.
	mostBehind = 1 << 14
)

// behind says which pods are behind host sockets that are connected to the host itself. A server there sees an address
// of the host as its client. The zero value is ready.
type behind struct {
	mu    sync.RWMutex // guards the rest
	pods  map[netip.AddrPort]*pretence
	ended []*pretence // in the order in which they ended
}

// pretence is a pod behind a host socket.
type pretence struct {
	at   netip.AddrPort // the socket's own address
	pod  netip.Addr
	over time.Time // when the socket was closed; zero while it is open
}

// connect is connect for a pod's connection. Towards the host itself it is noted who connects, before anybody can ask:
// the socket does not block, so the lock is held for no longer than two system calls take.
func (c *conn) connect() (fd int, err error) {
	to := packet.Endpoint{Addr: c.key.Dst, Port: c.key.DstPort}
	if !c.r.o.Host(to.Addr) {
		return connect(to, c.head)
	}
	b := &c.r.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	if fd, err = connect(to, c.head); err == nil {
		p := b.add(fd, c.key.Src)
		c.mu.Lock()
		c.pretence = p
		c.mu.Unlock()
	}
	return fd, err
}

// recognize notes who is behind a socket that the Relay before has connected.
func (c *conn) recognize(fd int) {
	if c.joined || !c.r.o.Host(c.key.Dst) {
		return
	}
	b := &c.r.behind
	b.mu.Lock()
	defer b.mu.Unlock()
	c.pretence = b.add(fd, c.key.Src)
}

// add notes who is behind a socket; it returns nil where the socket has no address. The caller holds mu.
func (b *behind) add(fd int, pod packet.Addr) *pretence {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil
	}
	p := &pretence{pod: pod.Netip()}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		p.at = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		p.at = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return nil
	}
	if b.pods == nil {
		b.pods = map[netip.AddrPort]*pretence{}
	}
	b.pods[p.at] = p
	b.tidy(time.Now())
	return p
}

// end notes that a socket is closed. p may be nil, or closed already.
func (b *behind) end(p *pretence) {
	if p == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !p.over.IsZero() {
		return
	}
	p.over = time.Now()
	b.ended = append(b.ended, p)
	b.tidy(p.over)
}

// tidy forgets sockets that were closed long ago, and the oldest ones of too many. The caller holds mu.
func (b *behind) tidy(now time.Time) {
	for len(b.ended) > 0 && (len(b.ended) > mostBehind || now.Sub(b.ended[0].over) > behindTime) {
		if p := b.ended[0]; b.pods[p.at] == p {
			delete(b.pods, p.at)
		}
		b.ended[0] = nil
		b.ended = b.ended[1:]
	}
}

// Behind returns the pod whose connection to the host itself comes from an address and port of the host, and false
// where it is no pod's. It also knows that of a connection that ended within the last minute.
func (r *Relay) Behind(at netip.AddrPort) (pod netip.Addr, ok bool) {
	r.behind.mu.RLock()
	defer r.behind.mu.RUnlock()
	p := r.behind.pods[netip.AddrPortFrom(at.Addr().Unmap().WithZone(""), at.Port())]
	if p == nil || !p.over.IsZero() && time.Since(p.over) > behindTime {
		return pod, false
	}
	return p.pod, true
}
