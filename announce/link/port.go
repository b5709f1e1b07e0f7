package link

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/ethernet"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ether is a Port on an Ethernet interface. Each family has a socket of its own, opened when there is an address of it.
type ether struct {
	ifi     net.Interface
	speech  speech
	speaker *Speaker
	log     *slog.Logger
	broken  func() // called when a socket can be read no longer

	mu sync.Mutex
	// mu guards the rest.
	arp, ndp *packet.Conn
	groups   *ipv6.PacketConn // a member of the groups at which addresses are asked for
	members  map[netip.Addr]int
	readers  sync.WaitGroup
	closed   bool
}

var _ Port = (*ether)(nil)

// openPort opens a Port on an interface. It opens no socket yet.
func openPort(ifi net.Interface, node string, speaker *Speaker, broken func(), log *slog.Logger) *ether {
	return &ether{ifi: ifi, speech: speech{mac: ifi.HardwareAddr, mark: mark(node)}, speaker: speaker, broken: broken, log: log, members: map[netip.Addr]int{}}
}

// ofThis lets frames pass that are the interface's own. A packet socket also gets those of VLANs that lie on the
// interface, which are other networks: an address there is another address, whoever has it. The kernel calls such a
// frame one of the VLAN's interface, or, where there is none, one for another host.
func ofThis(ifi *net.Interface) []bpf.Instruction {
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(ifi.Index), SkipTrue: 2},
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OTHERHOST, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
}

// onlyARP lets ARP of the interface's own network pass.
func onlyARP(ifi *net.Interface) ([]bpf.RawInstruction, error) {
	return bpf.Assemble(append(ofThis(ifi), bpf.RetConstant{Val: 1514}))
}

// onlyNDP lets solicitations and advertisements of the interface's own network pass, and of them what they need at
// most.
func onlyNDP(ifi *net.Interface) ([]bpf.RawInstruction, error) {
	return bpf.Assemble(append(ofThis(ifi),
		bpf.LoadAbsolute{Off: headerLen + 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: icmp6, SkipTrue: 4},
		bpf.LoadAbsolute{Off: headerLen + ip6Len, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(ipv6.ICMPTypeNeighborSolicitation), SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(ipv6.ICMPTypeNeighborAdvertisement), SkipTrue: 1},
		bpf.RetConstant{Val: 1514},
		bpf.RetConstant{Val: 0},
	))
}

// Hear implements Port.
func (e *ether) Hear(a netip.Addr) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return net.ErrClosed
	}
	if a.Is4() {
		if e.arp != nil {
			return nil
		}
		filter, err := onlyARP(&e.ifi)
		if err != nil {
			return err
		}
		c, err := packet.Listen(&e.ifi, packet.Raw, int(ethernet.EtherTypeARP), &packet.Config{Filter: filter})
		if err != nil {
			return fmt.Errorf("open a socket for ARP, which takes NET_RAW: %w", err)
		}
		e.arp = c
		e.read(c, e.speech.parseARP)
		return nil
	}
	if e.ndp == nil {
		filter, err := onlyNDP(&e.ifi)
		if err != nil {
			return err
		}
		c, err := packet.Listen(&e.ifi, packet.Raw, int(ethernet.EtherTypeIPv6), &packet.Config{Filter: filter})
		if err != nil {
			return fmt.Errorf("open a socket for NDP, which takes NET_RAW: %w", err)
		}
		e.ndp = c
		e.read(c, e.speech.parseNDP)
	}
	return e.join(solicitedNode(a))
}

// join becomes a member of a group. The kernel tells switches and routers by MLD, which a packet socket would not.
func (e *ether) join(group netip.Addr) error {
	if e.members[group] > 0 {
		e.members[group]++
		return nil
	}
	if e.groups == nil {
		c, err := net.ListenPacket("udp6", "[::1]:0") // nothing is received by it
		if err != nil {
			return fmt.Errorf("open a socket for multicast groups: %w", err)
		}
		e.groups = ipv6.NewPacketConn(c)
	}
	if err := e.groups.JoinGroup(&e.ifi, &net.UDPAddr{IP: group.AsSlice()}); err != nil {
		return fmt.Errorf("join the group %s: %w", group, err)
	}
	e.members[group] = 1
	return nil
}

// Ignore implements Port.
func (e *ether) Ignore(a netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	group := solicitedNode(a)
	if a.Is4() || e.members[group] == 0 {
		return
	}
	if e.members[group]--; e.members[group] == 0 {
		delete(e.members, group)
		_ = e.groups.LeaveGroup(&e.ifi, &net.UDPAddr{IP: group.AsSlice()}) // an interface that is gone has no groups
	}
}

// Announce implements Port.
func (e *ether) Announce(a netip.Addr) error {
	frames, err := e.speech.announcement(a)
	for i := 0; i < len(frames) && err == nil; i++ {
		err = e.send(a, frames[i])
	}
	return err
}

// Probe implements Port.
func (e *ether) Probe(a netip.Addr) error {
	f, err := e.speech.probe(a)
	if err != nil {
		return err
	}
	return e.send(a, f)
}

func (e *ether) send(a netip.Addr, frame []byte) error {
	e.mu.Lock()
	c := e.ndp
	if a.Is4() {
		c = e.arp
	}
	e.mu.Unlock()
	if c == nil {
		return errors.New("there is no socket")
	}
	_, err := c.WriteTo(frame, &packet.Addr{HardwareAddr: net.HardwareAddr(frame[:6])})
	return err
}

// read begins to read a socket.
func (e *ether) read(c *packet.Conn, parse func([]byte) (heard, bool)) {
	e.readers.Add(1)
	go func() {
		defer e.readers.Done()
		buf := make([]byte, 1514)
		var a askers
		for {
			n, _, err := c.ReadFrom(buf)
			if err != nil {
				e.mu.Lock()
				closed := e.closed
				e.mu.Unlock()
				if !closed {
					e.log.Warn("an interface can be read no longer", "interface", e.ifi.Name, "err", err)
					e.broken()
				}
				return
			}
			if h, ok := parse(buf[:n]); ok {
				e.hear(&a, &h, time.Now())
			}
		}
	}()
}

// hear answers a question, and notes who says that he has an address.
func (e *ether) hear(a *askers, h *heard, now time.Time) {
	own := bytes.Equal(h.from, e.speech.mac)
	if h.by != "" && !own {
		e.speaker.Overhear(h.addr, e.ifi.Name, h.by, now)
	}
	switch {
	case !h.asks && (own || h.by != ""):
	case !h.asks:
		e.speaker.Conflict(h.addr, e.ifi.Name, h.from, now)
	case e.answers(a, h, now):
		if f, err := e.speech.answer(h); err == nil {
			_ = e.send(h.addr, f) // whoever asked asks again
		}
	}
}

// answers reports whether a question is answered.
func (e *ether) answers(a *askers, h *heard, now time.Time) bool {
	return e.speaker.Answers(h.addr, e.ifi.Name) && a.may(h.from, h.addr, now)
}

// Close implements Port.
func (e *ether) Close() {
	e.mu.Lock()
	e.closed = true
	for _, c := range []*packet.Conn{e.arp, e.ndp} {
		if c != nil {
			_ = c.Close()
		}
	}
	if e.groups != nil {
		_ = e.groups.Close()
	}
	e.mu.Unlock()
	e.readers.Wait()
}
