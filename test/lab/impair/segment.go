package impair

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

// Options are the options of Insert.
type Options struct {
	// Namespace has the underlay's bridge; nil means the caller's namespace.
	Namespace *tap.Namespace
	// Port is the interface of that bridge that leads to node A.
	Port string
	// A and B are the Ethernet addresses of the two nodes on the underlay.
	A, B packet.MAC
	// Config is the first configuration; Set changes it.
	Config Config
}

// Stats counts the frames between the two nodes in one direction since Insert.
type Stats struct {
	Passed, Reordered, Lost, Overflowed, TooBig, Duplicated uint64
}

// Segment is a piece of the underlay in userspace. Its methods may be called concurrently.
type Segment struct {
	ns     *tap.Namespace
	a, b   packet.MAC
	bridge string // the port's bridge while the Segment is in place
	inner  string // the Segment's TAP in it; the other TAP is in the underlay's bridge
	outer  string
	engine atomic.Pointer[Engine]
	start  time.Time
	sides  [2]side // by the direction that begins there
	done   sync.WaitGroup
	once   sync.Once
	err    error // of Remove
}

// side is one end of the Segment, where the frames of one direction come in.
type side struct {
	dev      *tap.Device
	from, to packet.MAC
	queue    *queue // leads to the other side's dev
	stats    struct{ passed, reordered, lost, overflowed, tooBig, duplicated atomic.Uint64 }
	frag     []byte
}

// insertion keeps two Segments from choosing the same names.
var insertion sync.Mutex

// Insert puts a Segment between the port and its bridge. Frames that are under way at that moment may be lost.
func Insert(o Options) (*Segment, error) {
	if err := o.Config.check(); err != nil {
		return nil, fmt.Errorf("impair: %w", err)
	}
	insertion.Lock()
	defer insertion.Unlock()
	s := &Segment{ns: o.Namespace, a: o.A, b: o.B, start: time.Now()}
	s.engine.Store(NewEngine(o.Config))
	if err := s.insert(o.Port); err != nil {
		return nil, fmt.Errorf("impair %s: %w", o.Port, errors.Join(err, s.tearDown()))
	}
	return s, nil
}

func (s *Segment) insert(port string) error {
	underlay, mtu, err := s.place(port)
	if err != nil {
		return err
	}
	if err := tap.NewBridge(s.ns, s.bridge, mtu); err != nil {
		return err
	}
	inner, err := s.newDevice(s.inner, s.bridge, mtu)
	if err != nil {
		return err
	}
	s.sides[AToB].dev, s.sides[AToB].from, s.sides[AToB].to = inner, s.a, s.b
	outer, err := s.newDevice(s.outer, underlay, mtu)
	if err != nil {
		return err
	}
	s.sides[BToA].dev, s.sides[BToA].from, s.sides[BToA].to = outer, s.b, s.a

	for d := range s.sides {
		side, out := &s.sides[d], s.sides[1-d].dev
		side.frag = make([]byte, packet.MaxFrame)
		side.queue = newQueue(func(frame []byte) { _ = out.Write(frame) }) // a wire reports no errors
		s.done.Go(func() { side.queue.run(s.start) })
		s.done.Go(func() { s.run(Direction(d)) })
	}
	return tap.SetBridge(s.ns, port, s.bridge)
}

// place finds the port's bridge and MTU, and free names for the Segment's own interfaces.
func (s *Segment) place(port string) (underlay string, mtu int, err error) {
	err = s.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(port)
		if err != nil {
			return err
		}
		if link.Attrs().MasterIndex == 0 {
			return errors.New("it must be a port of the underlay's bridge")
		}
		br, err := h.LinkByIndex(link.Attrs().MasterIndex)
		if err != nil {
			return err
		}
		underlay, mtu = br.Attrs().Name, link.Attrs().MTU
		for n := 0; ; n++ {
			name := fmt.Sprintf("imp%d", n)
			if _, err := h.LinkByName(name); err != nil {
				if errors.As(err, &netlink.LinkNotFoundError{}) {
					s.bridge, s.inner, s.outer = name, name+"a", name+"b"
					return nil
				}
				return err
			}
		}
	})
	return underlay, mtu, err
}

func (s *Segment) withNetlink(f func(*netlink.Handle) error) error {
	h, err := s.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	return f(h)
}

func (s *Segment) newDevice(name, bridge string, mtu int) (*tap.Device, error) {
	f, err := tap.Create(s.ns, tap.Config{Name: name, MTU: mtu, Owner: -1, TxQueueLen: 4 * tap.DefaultTxQueueLen})
	if err != nil {
		return nil, err
	}
	dev, err := tap.NewDevice(f, tap.Options{Disable: tap.AllOffloads})
	if err != nil {
		f.Close()
		return nil, err
	}
	if err := tap.SetBridge(s.ns, name, bridge); err != nil {
		dev.Close()
		return nil, err
	}
	return dev, nil
}

// Set changes the configuration for the next frames, and starts the random numbers again from the seed.
func (s *Segment) Set(c Config) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("impair: %w", err)
	}
	s.engine.Store(NewEngine(c))
	return nil
}

// Config returns the configuration of the last Insert or Set.
func (s *Segment) Config() Config { return s.engine.Load().cfg }

// Stats returns the counts of one direction.
func (s *Segment) Stats(d Direction) Stats {
	c := &s.sides[d].stats
	return Stats{
		Passed: c.passed.Load(), Reordered: c.reordered.Load(), Lost: c.lost.Load(),
		Overflowed: c.overflowed.Load(), TooBig: c.tooBig.Load(), Duplicated: c.duplicated.Load(),
	}
}

// Remove restores the direct path and waits until the Segment has ended. Frames that it held back are lost.
func (s *Segment) Remove() error {
	s.once.Do(func() {
		insertion.Lock()
		defer insertion.Unlock()
		if s.err = s.tearDown(); s.err != nil {
			s.err = fmt.Errorf("remove impairment %s: %w", s.bridge, s.err)
		}
	})
	return s.err
}

func (s *Segment) tearDown() error {
	if s.bridge == "" {
		return nil // Insert made nothing
	}
	err := s.restore()
	for d := range s.sides {
		side := &s.sides[d]
		if side.dev != nil {
			side.dev.Close()
		}
		if side.queue != nil {
			side.queue.close()
		}
	}
	s.done.Wait()
	// The TAPs vanish by themselves, since nobody holds their descriptors any more.
	return errors.Join(err, s.withNetlink(func(h *netlink.Handle) error {
		br, err := h.LinkByName(s.bridge)
		if err != nil {
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				return nil
			}
			return err
		}
		return h.LinkDel(br)
	}))
}

// restore moves the interface behind the Segment, which is the port or another Segment's TAP, to the bridge in front.
// That may be another bridge than before, since Segments may have been removed meanwhile.
func (s *Segment) restore() error {
	return s.withNetlink(func(h *netlink.Handle) error {
		outer, err := h.LinkByName(s.outer)
		if err != nil {
			if errors.As(err, &netlink.LinkNotFoundError{}) {
				return nil // Insert failed before this point
			}
			return err
		}
		br, err := h.LinkByName(s.bridge)
		if err != nil {
			return err
		}
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if a := l.Attrs(); a.MasterIndex == br.Attrs().Index && a.Name != s.inner {
				err = errors.Join(err, h.LinkSetMasterByIndex(l, outer.Attrs().MasterIndex))
			}
		}
		return err
	})
}

// run carries the frames of one direction.
func (s *Segment) run(d Direction) {
	side, out := &s.sides[d], s.sides[1-d].dev
	// An error means that somebody deleted the TAP: the path is cut, and Remove repairs it.
	_ = side.dev.Run(func(frame []byte) []byte {
		e := s.engine.Load()
		if len(frame) < packet.HeadLen || !side.matches(frame) || !e.cfg.concerns(frame) {
			_ = out.Write(frame)
			return frame
		}
		if mtu := e.cfg.MTU; mtu != 0 && len(frame)-packet.HeadLen > mtu && isIP(frame) {
			s.fit(e, d, frame)
		} else {
			s.pass(e, d, frame)
		}
		return frame
	}, nil)

}

func (s *side) matches(frame []byte) bool {
	eth := frame[packet.VNetHdrLen:]
	return packet.MAC(eth[:6]) == s.to && packet.MAC(eth[6:12]) == s.from
}

func etherType(frame []byte) uint16 {
	return uint16(frame[packet.HeadLen-2])<<8 | uint16(frame[packet.HeadLen-1])
}

func isIP(frame []byte) bool {
	t := etherType(frame)
	return t == packet.EtherIPv4 || t == packet.EtherIPv6
}

// concerns reports whether a frame is of the family that is impaired.
func (c *Config) concerns(frame []byte) bool {
	switch c.Family {
	case 4:
		return etherType(frame) == packet.EtherIPv4
	case 6:
		return etherType(frame) == packet.EtherIPv6
	}
	return true
}

// pass carries out the engine's decision about a frame. frame is borrowed.
func (s *Segment) pass(e *Engine, d Direction, frame []byte) {
	side := &s.sides[d]
	v := e.Decide(d, time.Since(s.start), len(frame)-packet.VNetHdrLen)
	switch v.Outcome {
	case Lost:
		side.stats.lost.Add(1)
		return
	case Overflowed:
		side.stats.overflowed.Add(1)
		return
	case Reordered:
		side.stats.reordered.Add(1)
	case Passed:
		side.stats.passed.Add(1)
	}
	side.stats.duplicated.Add(uint64(v.Copies - 1))
	for range v.Copies {
		if !side.queue.push(v.At, frame) {
			side.stats.overflowed.Add(1)
		}
	}
}

// fit does what a router does with a packet larger than the MTU of the next wire.
func (s *Segment) fit(e *Engine, d Direction, frame []byte) {
	side := &s.sides[d]
	var p packet.Packet
	if p.ParseIP(frame[packet.HeadLen:]) != packet.Good {
		side.stats.tooBig.Add(1)
		return
	}
	if len(p.IP) <= e.cfg.MTU { // the frame was only padded
		s.pass(e, d, frame)
		return
	}
	if !p.DontFragment {
		out := make([]byte, packet.HeadLen+e.cfg.MTU)
		copy(out, frame[:packet.HeadLen])
		clear(out[:packet.VNetHdrLen])
		p.Fragment(e.cfg.MTU, side.frag, func(ip []byte) {
			n := copy(out[packet.HeadLen:], ip)
			s.pass(e, d, out[:packet.HeadLen+n])
		})
		return
	}
	side.stats.tooBig.Add(1)
	if !e.cfg.ICMP {
		return
	}
	answer := make([]byte, packet.HeadLen+1280)
	n := packet.PutICMPError(answer[packet.HeadLen:], &p, packet.TooBig, p.Tuple.Dst, e.cfg.MTU)
	if n == 0 {
		return
	}
	eth := answer[packet.VNetHdrLen:]
	copy(eth, side.from[:])
	copy(eth[6:], side.to[:])
	copy(eth[12:14], frame[packet.HeadLen-2:])
	_ = side.dev.Write(answer[:packet.HeadLen+n])
}
