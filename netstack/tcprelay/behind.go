package tcprelay

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// behindTime is how long it is known who was behind a host socket that is closed. A server may ask while the reset,
	// which tells it of that, is on its way.
	behindTime = time.Minute
	// mostBehind bounds the closed sockets of which that is known.
	mostBehind = 1 << 14
)

// behind says which pods are behind host sockets that are connected to the host itself. A server there sees an address
// of the host as its client. The zero value is ready.
//
// The next Relay is told nothing of sockets that are closed. A server asks when it has read something, and then looks
// whether its client has reset the connection. The Relay resets what it closes before the server does, and the kernel
// what the process has open when it is killed (resetAtExit). So only clients with an open socket are answered.
type behind struct {
	mu    sync.RWMutex // guards the rest; not held over system calls
	pods  map[seen]*pretence
	ended []*pretence // in the order in which they ended
}

// seen is a connection as its server sees it. A port of the host is shared by connections to different servers.
type seen struct{ client, at packet.Endpoint }

// pretence is a pod behind a host socket.
type pretence struct {
	seen
	pod  packet.Addr
	over time.Time // when the socket was closed; zero while it is open
}

// connect makes the socket of a pod's connection, and begins to connect it. Where a server of the host may ask, it is
// noted who connects, before the pod can be told that the connection is open.
func (c *conn) connect() (fd int, err error) {
	if fd, err = connect(packet.Endpoint{Addr: c.key.Dst, Port: c.key.DstPort}, c.head); err == nil {
		c.recognize(fd)
	}
	return fd, err
}

// recognize notes who is behind a socket of which a server of the host may ask. The Relay before has connected it, or
// connect has.
func (c *conn) recognize(fd int) {
	to := packet.Endpoint{Addr: c.key.Dst, Port: c.key.DstPort}
	if c.joined || !c.r.o.Asks(to) {
		return
	}
	client, ok := nameOf(fd)
	if !ok {
		return // it has been reset
	}
	resetAtExit(fd, true)
	p := &pretence{seen: seen{client, to}, pod: c.key.Src}
	c.r.behind.add(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pretence = p
}

// nameOf returns a socket's own address and port, and false where it has none.
func nameOf(fd int) (e packet.Endpoint, ok bool) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return e, false
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return packet.Endpoint{Addr: packet.AddrFrom(netip.AddrFrom4(a.Addr)), Port: uint16(a.Port)}, a.Port != 0
	case *unix.SockaddrInet6:
		return packet.Endpoint{Addr: a.Addr, Port: uint16(a.Port)}, a.Port != 0
	}
	return e, false
}

// resetAtExit chooses what the far end of a socket hears when its last descriptor is closed by the end of a process,
// however that ends: a reset, or an end as after a whole stream (socket(7), SO_LINGER). The next process may be the one
// that accepts the connection, and would not know the pod.
func resetAtExit(fd int, resets bool) {
	l := unix.Linger{}
	if resets {
		l.Onoff = 1
	}
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l)
}

func (b *behind) add(p *pretence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pods == nil {
		b.pods = map[seen]*pretence{}
	}
	b.pods[p.seen] = p
	b.tidy(time.Now())
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
		if p := b.ended[0]; b.pods[p.seen] == p {
			delete(b.pods, p.seen)
		}
		b.ended[0] = nil
		b.ended = b.ended[1:]
	}
}

// Behind returns the pod whose connection a server of the host sees come from client to at, and false where it is no
// pod's. The server must have read something of it. Behind also knows that of a connection that ended within the last
// minute.
func (r *Relay) Behind(client, at netip.AddrPort) (pod netip.Addr, ok bool) {
	r.behind.mu.RLock()
	defer r.behind.mu.RUnlock()
	p := r.behind.pods[seen{packet.EndpointFrom(client), packet.EndpointFrom(at)}]
	if p == nil || !p.over.IsZero() && time.Since(p.over) > behindTime {
		return pod, false
	}
	return p.pod.Netip(), true
}
