package udprelay

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
	"tapestry.dev/tapestry/share"
)

// mapping is the host socket of one address and port of a pod, whomever the pod talks to from there.
type mapping struct {
	r     *Relay
	pod   packet.Endpoint
	fd    int
	watch atomic.Pointer[poll.Watch] // a stale event may call Ready before it is there
	claim share.Claim[packet.Addr, *mapping]

	users atomic.Int32 // being in use by the relay is one; whoever makes it zero closes fd
	df    atomic.Bool  // the socket sets Don't Fragment
	bulk  atomic.Bool  // the kernel coalesced what came last

	// Guarded by Relay.mu.
	talks []*conversation
	gone  bool // it has ended
}

// open opens the socket, in the use of the caller.
func (m *mapping) open() error {
	fd, err := listen(m.pod.Addr.Is4())
	if err != nil {
		return err
	}
	m.fd = fd
	m.users.Store(1)
	// For nothing at first: the handler needs the Watch.
	w, err := m.r.o.Poller.Add(fd, m, 0)
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	m.watch.Store(w)
	w.Arm(poll.In)
	return nil
}

// listen opens a host socket on a port of its own, of all the host's addresses: the kernel takes the one that the route to each
// destination has.
func listen(is4 bool) (fd int, err error) {
	type option struct{ level, name int }
	family, any := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{})
	needed := []option{{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}, {unix.IPPROTO_IPV6, unix.IPV6_RECVERR}}
	if is4 {
		family, any = unix.AF_INET, &unix.SockaddrInet4{}
		needed = []option{{unix.IPPROTO_IP, unix.IP_RECVERR}}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	for _, o := range needed {
		if err = unix.SetsockoptInt(fd, o.level, o.name, 1); err != nil {
			_ = unix.Close(fd)
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if err = unix.Bind(fd, any); err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	// Kernels before 5.0 have no UDP_GRO: datagrams come one by one.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	return fd, nil
}

// acquire keeps the socket open until release. It is false when the mapping ended.
func (m *mapping) acquire() bool {
	for {
		n := m.users.Load()
		if n == 0 {
			return false
		}
		if m.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (m *mapping) release() {
	if m.users.Add(-1) == 0 {
		m.watch.Load().Close()
		_ = unix.Close(m.fd)
	}
}

// setDF makes the socket set Don't Fragment, and refuse what does not fit, or do as the host does.
func (m *mapping) setDF(on bool) {
	mode := unix.IP_PMTUDISC_WANT
	if on {
		mode = unix.IP_PMTUDISC_DO
	}
	level, opt := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	if m.pod.Addr.Is4() {
		level, opt = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	}
	_ = unix.SetsockoptInt(m.fd, level, opt, mode)
	m.df.Store(on)
}

// tuple is that of what the pod sends from here to e.
func (m *mapping) tuple(e packet.Endpoint) packet.Tuple {
	return packet.Tuple{Src: m.pod.Addr, SrcPort: m.pod.Port, Dst: e.Addr, DstPort: e.Port, Proto: packet.UDP}
}
