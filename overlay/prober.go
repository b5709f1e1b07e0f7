package overlay

import (
	"bytes"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay/pathmtu"
	"tapestry.dev/tapestry/overlay/underlay"
)

const (
	lookIdle = 125 * time.Millisecond // between two looks at all peers
	lookBusy = 50 * time.Millisecond  // the same, while a handshake or a probe is under way
	lookSoon = 2 * time.Millisecond   // between two looks at sessions, while an answer to a handshake is handled
	pollIdle = 10 * time.Second       // between two readings of WireGuard's state

	// sessionLife is the age at which a session is taken for dead: WireGuard gives it up at 180 s (RejectAfterTime).
	sessionLife = 170 * time.Second

	// shakeTries is how many quick attempts for a handshake are made. After them WireGuard alone tries, every 5 s.
	shakeTries = 10
	// shakeAgain is the time after which traffic to a peer that did not answer starts quick attempts again.
	shakeAgain = time.Second
)

// shake is a series of attempts for a handshake.
type shake struct {
	active bool
	tries  int
	next   time.Time
	again  time.Time
}

// answer is one answered probe.
type answer struct {
	from  *peer
	path  int
	token uint16 // as echo.id
}

// maxAnswers bounds the answers that are kept between two looks, since a hostile peer may send many.
const maxAnswers = 1024

// answered notes an answer for the prober.
func (m *Mesh) answered(a answer) {
	m.answerMu.Lock()
	if len(m.answers) < maxAnswers {
		m.answers = append(m.answers, a)
	}
	m.answerMu.Unlock()
	m.kick()
}

// probe is the goroutine that begins and repeats handshakes, and probes paths.
func (m *Mesh) probe() {
	defer m.done.Done()
	timer := time.NewTimer(lookIdle)
	defer timer.Stop()
	r := rhythm{due: time.Now()}
	for {
		select {
		case <-m.stop:
			return
		case <-m.wakeProber:
			r.woken = true
		case <-m.responded:
		case <-timer.C:
		}
		now := time.Now()
		looks := r.looks(now, m.lookForSessions(now))
		if looks {
			r.looked(now, m.look(now))
		}
		if looks || r.beats(now) {
			r.beat = m.beatAll(now)
		}
		timer.Reset(r.wait(now))
	}
}

// rhythm says when the prober looks at all peers: when that is due, and before when something wakes it. Beats have a
// rhythm of their own while a peer is watched.
type rhythm struct {
	due   time.Time
	beat  time.Time // when the next beat is due; zero while no peer is watched
	woken bool
	soon  bool // an answer to a handshake is being handled
}

// looks reports whether to look now. soon says whether an answer to a handshake is being handled: a look that is not
// due waits until it was.
func (r *rhythm) looks(now time.Time, soon bool) bool {
	handled := r.soon && !soon
	r.woken, r.soon = r.woken || handled, soon
	return !now.Before(r.due) || r.woken && !soon
}

// looked notes a look at now, and whether it has found something under way.
func (r *rhythm) looked(now time.Time, busy bool) {
	r.woken, r.due = false, now.Add(lookIdle)
	if busy {
		r.due = now.Add(lookBusy)
	}
}

// beats reports whether a beat is due.
func (r *rhythm) beats(now time.Time) bool { return !r.beat.IsZero() && !now.Before(r.beat) }

// wait returns how long nothing is to be done from now on, unless something comes.
func (r *rhythm) wait(now time.Time) time.Duration {
	wait := r.due.Sub(now)
	if !r.beat.IsZero() {
		wait = min(wait, r.beat.Sub(now))
	}
	if r.soon {
		wait = min(wait, lookSoon)
	}
	return wait
}

// look goes over all peers; it reports whether something is under way.
func (m *Mesh) look(now time.Time) (busy bool) {
	m.takeAnswers(now)
	m.endPins(now)
	tab := m.table.Load()
	m.takeKnocks(tab)
	m.freeStuck()
	if m.pollDue(tab, now) {
		m.poll(tab, now)
	}
	for i, p := range tab.peers {
		if p.key.IsZero() {
			continue
		}
		if !p.choice.Are(tab.addrs[i]) {
			p.choice.Set(tab.addrs[i])
			clear(p.paths)
		}
		m.greet(p, &tab.cfgs[i], now)
		m.answerKnock(p, now)
		m.pursue(p, now)
		m.probePath(p, &tab.cfgs[i], now)
		m.chooseAddress(p, &tab.cfgs[i], now)
		busy = busy || p.shake.active || p.path.Active()
	}
	m.met.look(tab)
	return busy
}

func (m *Mesh) takeAnswers(now time.Time) {
	m.answerMu.Lock()
	got := m.answers
	m.answers = nil
	m.answerMu.Unlock()
	for _, a := range got {
		if a.from.path == nil {
			continue
		}
		a.from.confirmed.Store(now.UnixNano())
		a.from.doubts = doubts{}
		if a.token == 0 {
			a.from.path.Answer(a.path, now)
			a.from.choice.Round(true, now)
		} else if to, move := a.from.choice.Answer(a.token, now); move {
			m.move(a.from, to, now)
		}
	}
}

// freeStuck resets inflight when it was at its limit and did not change between two looks: WireGuard has then dropped
// packets by itself.
func (m *Mesh) freeStuck() {
	n := m.inflight.Load()
	if n >= inflightMax && n == m.lastInflight && m.inflight.CompareAndSwap(n, 0) {
		m.ring.wake()
	}
	m.lastInflight = n
}

func (m *Mesh) pollDue(tab *table, now time.Time) bool {
	// A peer may say without end that it moved.
	mayMove := now.Sub(m.read) >= lookIdle
	return now.Sub(m.polled) >= pollIdle ||
		slices.ContainsFunc(tab.peers, func(p *peer) bool { return p.pollDue(now) || mayMove && p.moved.Load() })
}

// pollDue reports whether WireGuard's state must be read for this peer. A knock alone is no reason before its patience
// ends: anybody who knows this node's key can knock in a peer's name, and reading costs as much as there are peers.
func (p *peer) pollDue(now time.Time) bool {
	return p.shake.active || p.tooBig.Load() || p.wantsSession() || p.knockEnds(now)
}

// wantsSession reports whether there is traffic for a peer without a session.
func (p *peer) wantsSession() bool { return !p.live.Load() && p.credit.Load() < stagedMax }

// poll reads WireGuard's state into the peers.
func (m *Mesh) poll(tab *table, now time.Time) {
	sessions, err := m.sessions()
	if err != nil {
		m.log.Warn("cannot read WireGuard's state", "err", err)
		return
	}
	slow := now.Sub(m.polled) >= pollIdle
	m.read = now
	if slow {
		m.polled = now
	}
	anyMoved := false
	for _, p := range tab.peers {
		s, ok := sessions[p.key]
		if !ok {
			continue
		}
		shook := false
		if s.handshake.After(p.shook) && p.path != nil {
			p.shook = s.handshake
			p.path.Recheck(now)
			shook = true
		}
		p.live.Store(p.shook.After(p.deaf) && now.Sub(p.shook) < sessionLife)
		p.moved.Store(false)
		moved := s.endpoint.IsValid() && p.pinned.IsZero() && (p.address.Load() == nil || *p.address.Load() != s.endpoint)
		if moved {
			m.at(p, s.endpoint, now)
			anyMoved = true
		}
		if shook {
			p.choice.Shook()
		}
		if p.path != nil && (slow || moved || p.tooBig.Swap(false)) {
			m.askKernel(p, now)
		}
	}
	if anyMoved {
		m.gate.SetPeers(m.places)
	}
}

// askKernel has p's path MTU follow what the kernel learned of the path.
func (m *Mesh) askKernel(p *peer, now time.Time) {
	p.asked = now
	a := p.address.Load()
	if m.bind == nil || a == nil {
		return
	}
	if mtu, ok := underlay.PathMTU(*a); ok {
		p.path.Told(mtu, now)
	}
	m.publish(p)
}

// publish stores p's path MTU where Mesh.MTU reads it.
func (m *Mesh) publish(p *peer) {
	v4 := false
	if a := p.address.Load(); a != nil {
		v4 = a.Addr().Is4()
	}
	mtu := int32(innerMTU(p.path.Current(), v4))
	if old := p.mtu.Swap(mtu); old != mtu {
		m.log.Info("path MTU changed", "peer", p.id, "mtu", mtu, "was", old)
	}
}

// greet begins a handshake with a new peer at once, so that after a restart the old session ends within a round trip
// and not by a time-out. To a peer that moved it sends a keepalive, so that the peer learns this node's address.
func (m *Mesh) greet(p *peer, cfg *Peer, now time.Time) {
	fresh := p.path == nil
	if fresh {
		p.path = pathmtu.New(m.o.UnderlayMTU, now)
	}
	if cfg.Endpoint == p.greeted {
		return
	}
	p.greeted = cfg.Endpoint
	if !cfg.Endpoint.IsValid() {
		return
	}
	if !fresh {
		p.path = pathmtu.New(m.o.UnderlayMTU, now)
	}
	m.at(p, cfg.Endpoint, now)
	m.askKernel(p, now)
	m.publish(p)
	if !p.live.Load() {
		p.shake = shake{active: true, next: now}
		if !m.o.Resumes {
			p.shake.next = now.Add(m.deference(p))
		}
	} else if wg := m.dev.LookupPeer(device.NoisePublicKey(p.key)); wg != nil {
		wg.SendKeepalive()
	}
}

// pursue repeats a handshake that has not succeeded yet.
func (m *Mesh) pursue(p *peer, now time.Time) {
	s := &p.shake
	if p.live.Load() {
		s.active = false
		p.credit.Store(stagedMax)
		return
	}
	if !s.active && p.wantsSession() && now.After(s.again) && p.address.Load() != nil {
		// WireGuard has asked already, when the packet came.
		*s = shake{active: true, next: now.Add(m.shakePause(p, 0))}
	}
	if p.credit.Load() < stagedMax {
		p.credit.Add(stagedGrant)
	}
	if !s.active || now.Before(s.next) {
		return
	}
	to := p.choice.Attempt(s.tries, now)
	s.tries++
	s.next = now.Add(m.shakePause(p, s.tries))
	s.again = now.Add(shakeAgain)
	s.active = s.tries < shakeTries
	if wg := m.dev.LookupPeer(device.NoisePublicKey(p.key)); wg != nil {
		if at := p.address.Load(); to.IsValid() && (at == nil || *at != to) {
			m.turnTo(p, wg, to, now)
		}
		// Without this WireGuard refuses another attempt within 5 s (RekeyTimeout).
		wg.ExpireCurrentKeypairs()
		_ = wg.SendHandshakeInitiation(false) // logged by WireGuard
	}
}

// deference returns how long this end waits before it sends a handshake initiation. When both ends initiate at once,
// each response undoes the other end's initiation, and there is no session, or a broken one. So the end with the larger
// key lets the other one go first. A Mesh that resumes does not wait with its first initiation, since all its peers
// wait for it; two that do so at the same time find out by a session that carries nothing (distrust).
func (m *Mesh) deference(p *peer) time.Duration {
	if bytes.Compare(m.own[:], p.key[:]) > 0 {
		return 75 * time.Millisecond
	}
	return 0
}

// shakePause returns the wait after the given number of attempts. It differs between the two ends, as deference does.
func (m *Mesh) shakePause(p *peer, tries int) time.Duration {
	return 250*time.Millisecond<<min(tries, 1) + 2*m.deference(p)
}

// probePath sends the probes that p's path MTU discovery asks for.
func (m *Mesh) probePath(p *peer, cfg *Peer, now time.Time) {
	own, theirs, ok := m.probeAddrs(cfg)
	if !ok || !p.live.Load() {
		return
	}
	sent, large, heard := p.sent.Load(), p.large.Load(), p.heard.Load()
	switch {
	case heard != p.sawHeard:
		p.quiet = 0
	case sent != p.sawSent:
		p.quiet++
	}
	silent := p.quiet >= 2
	// Small packets without an answer say nothing about sizes, but another address of the peer might answer.
	if large != p.sawLarge || silent && sent != p.sawSent && p.choice.Several() && p.path.Silent() == 0 {
		p.path.Suspect(silent, now)
	}
	if large != p.sawLarge && now.Sub(p.asked) >= lookIdle {
		m.askKernel(p, now) // a router may have said that they are too large
	}
	p.sawSent, p.sawLarge, p.sawHeard = sent, large, heard

	v4 := p.address.Load() != nil && p.address.Load().Addr().Is4()
	for _, size := range p.path.Step(now) {
		m.probeSeq++
		m.ring.control(echo{
			src: own, dst: theirs, size: innerMTU(size, v4), path: uint16(size), seq: m.probeSeq, cookie: m.cookie,
			moved: !p.pinned.IsZero(),
		})
	}
	m.publish(p)
	if cfg.Tapestry && p.path.Silent() > 0 && p.confirmed.Load() < p.shook.UnixNano() && p.doubts.may(now) {
		m.distrust(p, now)
	}
}

// distrust replaces a session that never carried an answer. WireGuard's workers handle an initiation and a response
// that cross on the way in parallel, and may end with keys that only one side has. WireGuard would notice after 15 s.
func (m *Mesh) distrust(p *peer, now time.Time) {
	p.deaf = now
	p.path.ForgetSilence()
	p.live.Store(false)
	p.shake = shake{active: true, next: now.Add(m.deference(p))}
}

// probeAddrs returns this node's and the peer's stack address, of a family that both have.
func (m *Mesh) probeAddrs(cfg *Peer) (own, theirs packet.Addr, ok bool) {
	for _, a := range m.stackAddrs {
		for _, b := range cfg.StackAddrs {
			if theirs = packet.AddrFrom(b); a.Is4() == theirs.Is4() {
				return a, theirs, true
			}
		}
	}
	return own, theirs, false
}
