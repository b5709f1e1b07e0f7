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

// keeping holds the connections that were dialled to pods. If such a connection is joined with a host socket, a pod's
// keep-alive probe is meant for the far end of that socket. The probe is held back from the stack, which would answer
// it, until the far end has answered.
type keeping struct {
	n     atomic.Int32
	mu    sync.RWMutex
	conns map[packet.Tuple]*kept // by the tuple of the pod's packets
}

// kept is one connection. A nil *kept is valid: joined and release then do nothing.
type kept struct {
	s     *Stack
	tuple packet.Tuple
	next  atomic.Uint32 // the sequence number that is expected next from the pod

	mu      sync.Mutex      // guards what follows
	raw     syscall.RawConn // the host socket; nil while there is none
	asked   alive.Question
	running bool         // wait is running
	probe   *buffer.View // the pod's probe
}

// keep adds a connection that is bound and about to connect to remote. It returns errPortInUse when the relay has one
// with the same addresses and ports, which would get the pod's segments.
func (s *Stack) keep(ep tcpip.Endpoint, remote tcpip.FullAddress) (*kept, error) {
	local, terr := ep.GetLocalAddress()
	if terr != nil {
		return nil, errors.New(terr.String())
	}
	pod, us := toEndpoint(remote), toEndpoint(local)
	k := &kept{s: s, tuple: packet.Tuple{Src: pod.Addr, SrcPort: pod.Port, Dst: us.Addr, DstPort: us.Port, Proto: packet.TCP}}
	s.keeping.add(k)
	if s.carried(&k.tuple) { // asked when k is known, as Join asks then (tcprelay.Options.Taken)
		k.release()
		return nil, errPortInUse
	}
	return k, nil
}

func (ks *keeping) add(k *kept) {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if ks.conns == nil {
		ks.conns = map[packet.Tuple]*kept{}
	}
	if ks.conns[k.tuple] == nil { // a second connection with the same addresses and ports is about to fail
		ks.conns[k.tuple] = k
	}
	ks.n.Store(int32(len(ks.conns)))
}

// has reports whether there is a connection, or is about to be, in which the pod's packets have this tuple.
func (ks *keeping) has(t *packet.Tuple) bool {
	ks.mu.RLock()
	defer ks.mu.RUnlock()
	return ks.conns[*t] != nil
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

// joined records the host socket with which the connection is joined.
func (k *kept) joined(raw syscall.RawConn) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.raw = raw
}

// hold inspects a pod's segment. It holds back a probe that the far end has to answer, and reports whether it did.
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

// ask passes the pod's probe on to the far end. It returns false when the stack may answer.
func (k *kept) ask(p *packet.Packet) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	answered := false
	if k.raw == nil || k.raw.Control(func(fd uintptr) { answered = k.asked.Ask(int(fd), time.Now()) }) != nil || answered {
		return false
	}
	if k.running {
		return true // the probe that is held already suffices
	}
	k.probe, k.running = flatten(p), true
	if !k.s.spawn(k.wait) {
		k.done()
	}
	return true
}

// wait waits for the far end's answer and then has the stack answer the pod.
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

// look checks whether the far end has answered. If so, it returns the probe. If not yet, it returns how long to wait
// before the next look. If no answer is expected any more, it returns neither.
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

// done forgets the question and the probe. The caller holds mu.
func (k *kept) done() {
	if k.probe != nil {
		k.probe.Release()
	}
	k.probe, k.running, k.asked = nil, false, alive.Question{}
}

// A pod that is gone without closing its connection is detected by keep-alive probes, as package tcprelay does for pods
// of this node.
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
