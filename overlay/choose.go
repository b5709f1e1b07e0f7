package overlay

import (
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"tapestry.dev/tapestry/overlay/pathmtu"
)

// pinTime is for how long everything goes to a new address, whatever address the peer is heard from meanwhile. Packets
// that the peer sent from the old one before it noticed would bring WireGuard back there.
const pinTime = time.Second

// Lost says that a peer does not answer at an address at which it should.
type Lost struct {
	Name string // the peer's
	// Preferred is the first of the peer's addresses, and Used the one that answers instead. Both are invalid while the
	// preferred one is in use.
	Preferred, Used netip.AddrPort
	// Silent are all of its addresses that did not answer when they were asked last.
	Silent []netip.AddrPort
}

// Lost returns which peers do not answer where they should, by the order of Config.Peers.
func (m *Mesh) Lost() (list []Lost) {
	for _, p := range m.table.Load().peers {
		if l := p.lost.Load(); l != nil {
			list = append(list, *l)
		}
	}
	return list
}

// chooseAddress has the peer's other addresses probed when that is due.
func (m *Mesh) chooseAddress(p *peer, cfg *Peer, now time.Time) {
	if !p.choice.Several() {
		p.lost.Store(nil)
		return
	}
	if own, theirs, ok := m.probeAddrs(cfg); ok && p.live.Load() {
		if p.path.Silent() > 0 {
			p.choice.Round(false, now)
		}
		e := echo{src: own, dst: theirs, cookie: m.cookie, path: pathmtu.Small}
		for _, probe := range p.choice.Step(now) {
			to, err := m.div.ParseEndpoint(probe.To.String())
			if err != nil {
				continue
			}
			test := e
			test.size, test.id, test.to = innerMTU(pathmtu.Small, probe.To.Addr().Is4()), probe.Token, to
			test.back, test.back6 = true, probe.To.Addr().Is6()
			m.ring.control(test)
			// The peer roams to where the probe comes from. The next packet brings it back.
			e.size = test.size
			m.ring.control(e)
		}
	}
	m.noteLost(p, cfg)
}

// wayBack returns an address of a peer of a family, nil when it has none: where the answer to a probe goes that tries a
// candidate of that family. WireGuard would send it to where the peer is talked to, and the candidate would seem to
// work when only the way there does.
func (m *Mesh) wayBack(p *peer, is6 bool) conn.Endpoint {
	t := m.table.Load()
	i := slices.Index(t.peers, p)
	if i < 0 {
		return nil
	}
	for _, a := range t.addrs[i] {
		if a.Addr().Is6() == is6 {
			ep, err := m.div.ParseEndpoint(a.String())
			if err != nil {
				return nil
			}
			return ep
		}
	}
	return nil
}

// noteLost publishes which addresses of p are silent.
func (m *Mesh) noteLost(p *peer, cfg *Peer) {
	silent, was := p.choice.Silent(), p.lost.Load()
	if len(silent) == 0 {
		p.lost.Store(nil)
		return
	}
	now := &Lost{Name: cfg.Name, Silent: silent}
	if first := p.choice.Addrs()[0]; p.live.Load() && p.choice.Works() && silent[0] == first {
		now.Preferred, now.Used = first, *p.address.Load()
	}
	if was == nil || was.Preferred != now.Preferred || was.Used != now.Used || !slices.Equal(was.Silent, now.Silent) {
		p.lost.Store(now)
	}
}

// at notes that the peer is talked to at a, which has a path MTU of its own.
func (m *Mesh) at(p *peer, a netip.AddrPort, now time.Time) {
	p.address.Store(&a)
	p.choice.At(a, now)
	if !p.choice.Several() || !p.choice.Has(a) {
		return
	}
	if p.paths == nil {
		p.paths = make(map[netip.AddrPort]*pathmtu.Discovery)
	}
	if p.paths[a] == nil {
		p.paths[a] = pathmtu.New(m.o.UnderlayMTU, now)
	}
	p.path = p.paths[a]
	p.path.Resume(now)
}

// turnTo has WireGuard send to a until the peer is heard from elsewhere. It returns nil if that cannot be.
func (m *Mesh) turnTo(p *peer, wg *device.Peer, a netip.AddrPort, now time.Time) conn.Endpoint {
	ep, err := m.div.ParseEndpoint(a.String())
	if err != nil {
		m.log.Warn("cannot send to an address of a peer", "peer", p.id, "address", a, "err", err)
		return nil
	}
	wg.SetEndpointFromPacket(ep)
	m.at(p, a, now)
	m.askKernel(p, now)
	m.gate.SetPeers(m.places)
	return ep
}

// move has everything for p go to a, which has answered.
func (m *Mesh) move(p *peer, a netip.AddrPort, now time.Time) {
	wg := m.dev.LookupPeer(device.NoisePublicKey(p.key))
	if wg == nil {
		return
	}
	was := p.address.Load()
	m.log.Info("a peer is talked to at another of its addresses", "peer", p.id, "address", a, "was", was)
	m.unpin(p)
	if ep := m.turnTo(p, wg, a, now); ep != nil {
		from := p.choice.Addrs()
		if was != nil {
			from = append(from, *was)
		}
		m.div.pin(p, m.table.Load().ofAlone(p, from), ep)
		p.pinned = now.Add(pinTime)
		m.pinned = append(m.pinned, p)
	}
}

// endPins ends the pins whose time is over. Their peers may have been removed meanwhile.
func (m *Mesh) endPins(now time.Time) {
	for _, p := range m.pinned {
		if !now.Before(p.pinned) {
			m.unpin(p)
			p.moved.Store(true) // it is time to see where WireGuard sends
		}
	}
	m.pinned = slices.DeleteFunc(m.pinned, func(p *peer) bool { return p.pinned.IsZero() })
}

func (m *Mesh) unpin(p *peer) {
	m.div.unpin(p)
	p.pinned = time.Time{}
}
