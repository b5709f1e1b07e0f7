package stack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"

	"tapestry.dev/tapestry/netstack/alive"
	"tapestry.dev/tapestry/netstack/packet"
)

// keeping knows the connections that were dialled to pods. A pod's keep-alive probe on one that is joined with a host
// socket is for whoever is behind that one: it is held back from the stack, which would answer it, until the far end
// has.
type keeping struct {
	n     atomic.Int32
	mu    sync.RWMutex
	conns map[packet.Tuple]*kept // by what the pod sends
}

// kept is one connection. All its methods do nothing for nil.
type kept struct {
	s     *Stack
	tuple packet.Tuple
	next  atomic.Uint32 // the sequence number that is expected from the pod

	mu      sync.Mutex      // guards what follows
	raw     syscall.RawConn // of the host socket; nil while there is none
	asked   alive.Question
	running bool         // answers are looked for
	probe   *buffer.View // the pod's
}

// keep enters a connection that is bound and about to connect to remote.
func (s *Stack) keep(ep tcpip.Endpoint, remote tcpip.FullAddress) (*kept, error) {
	local, terr := ep.GetLocalAddress()
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	pod, us := toEndpoint(remote), toEndpoint(local)
	k := &kept{s: s, tuple: packet.Tuple{Src: pod.Addr, SrcPort: pod.Port, Dst: us.Addr, DstPort: us.Port, Proto: packet.TCP}}
	s.keeping.mu.Lock()
	defer s.keeping.mu.Unlock()
	if s.keeping.conns == nil {
		s.keeping.conns = map[packet.Tuple]*kept{}
	}
	if s.keeping.conns[k.tuple] == nil { // a second one with the same addresses and ports is about to fail
		s.keeping.conns[k.tuple] = k
	}
	s.keeping.n.Store(int32(len(s.keeping.conns)))
	return k, nil
}

func toEndpoint(a tcpip.FullAddress) packet.Endpoint {
	return packet.EndpointFrom(netip.AddrPortFrom(fromAddress(a.Addr), a.Port))
}

func (k *kept) release() {
	if k == nil {
		return
	}
	s := k.s
	s.keeping.mu.Lock()
	defer s.keeping.mu.Unlock()
	if s.keeping.conns[k.tuple] == k {
		delete(s.keeping.conns, k.tuple)
	}
	s.keeping.n.Store(int32(len(s.keeping.conns)))
}

// joined says which host socket the connection is joined with.
func (k *kept) joined(raw syscall.RawConn) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.raw = raw
}

// hold looks at a pod's segment. It keeps one that is a probe to be answered by somebody else, and reports whether it
// did.
func (ks *keeping) hold(s *Stack, p *packet.Packet) bool {
	if ks.n.Load() == 0 || p.Tuple.Proto != packet.TCP || p.Frag != packet.NoFrag {
		return false
	}
	ks.mu.RLock()
	k := ks.conns[p.Tuple]
	ks.mu.RUnlock()
	if k == nil {
		return false
	}
	seq, n := binary.BigEndian.Uint32(p.IP[p.L4+4:]), uint32(p.Len()-p.Payload)
	next := k.next.Load()
	switch {
	case p.TCPFlags&packet.SYN != 0:
		k.next.Store(seq + 1 + n)
		return false
	case p.TCPFlags == packet.ACK && n == 0 && seq == next-1:
		return k.ask(p)
	}
	if p.TCPFlags&packet.FIN != 0 {
		n++
	}
	if int32(seq+n-next) > 0 {
		k.next.Store(seq + n)
	}
	return false
}

// ask asks the far end what the pod asks. It is false when the stack may answer.
func (k *kept) ask(p *packet.Packet) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	answered := false
	if k.raw == nil || k.raw.Control(func(fd uintptr) { answered = k.asked.Ask(int(fd), time.Now()) }) != nil || answered {
		return false
	}
	if k.running {
		return true // the one that is held will do
	}
	k.probe, k.running = flatten(p), true
	if !k.s.spawn(k.wait) {
		k.done()
	}
	return true
}

// wait waits for the far end's answer, and then has the stack answer the pod.
func (k *kept) wait() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-k.s.ctx.Done():
		}
		probe, pause := k.look()
		switch {
		case probe != nil:
			k.s.receive(probe)
			return
		case pause == 0:
			return
		}
		timer.Reset(pause)
	}
}

// look looks for the far end's answer. It gives the probe when it is to be answered, or how long to wait before the
// next look, or nothing when there is none to wait for.
func (k *kept) look() (probe *buffer.View, pause time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	answered := false
	err := k.raw.Control(func(fd uintptr) { answered = k.asked.Look(int(fd), time.Now()) })
	switch {
	case answered:
		probe, k.probe = k.probe, nil
	case err == nil && k.asked.Open() && k.s.ctx.Err() == nil:
		return nil, k.asked.Pause()
	}
	k.done()
	return probe, 0
}

// done forgets what was asked. The caller holds mu.
func (k *kept) done() {
	if k.probe != nil {
		k.probe.Release()
	}
	k.probe, k.running, k.asked = nil, false, alive.Question{}
}

// How a pod is found out that is gone without a word: what the relay does for those of this node.
const (
	podIdle   = 30 * time.Second
	podProbes = 4
)

func keepAlive(ep tcpip.Endpoint) tcpip.Error {
	idle, interval := tcpip.KeepaliveIdleOption(podIdle), tcpip.KeepaliveIntervalOption(podIdle)
	if err := ep.SetSockOpt(&idle); err != nil {
		return err
	}
	if err := ep.SetSockOpt(&interval); err != nil {
		return err
	}
	if err := ep.SetSockOptInt(tcpip.KeepaliveCountOption, podProbes); err != nil {
		return err
	}
	ep.SocketOptions().SetKeepAlive(true)
	return nil
}
