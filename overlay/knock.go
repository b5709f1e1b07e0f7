package overlay

import (
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// knockPatience is how long a peer may ask for a handshake before this end begins one. A handshake that works takes
	// a round trip; a peer that gets no answer asks again meanwhile.
	knockPatience = 700 * time.Millisecond
	// knockPatienceDown is the same while there is no session. Both ends may be about to begin a handshake then, and
	// those that cross destroy each other.
	knockPatienceDown = 5 * time.Second
	// maxKnocks bounds the knocks that are kept between two looks.
	maxKnocks = 256
)

// knock is an initiation of a handshake that came from an address.
type knock struct {
	from netip.AddrPort
	at   time.Time
}

// admitDatagram decides about a datagram that is not data, as Options.Admit of package underlay wants it, and notes
// initiations and responses for the prober.
func (m *Mesh) admitDatagram(msg []byte, from netip.AddrPort) (pass bool, answer []byte) {
	pass, answer = m.gate.Admit(msg, from)
	if pass && m.gate.Responds(msg) {
		m.noteResponse(from)
	}
	if pass && m.gate.Begins(msg) {
		m.answerMu.Lock()
		if len(m.knocks) < maxKnocks {
			m.knocks = append(m.knocks, knock{netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), time.Now()})
		}
		m.answerMu.Unlock()
	}
	return pass, answer
}

// takeKnocks notes which peers ask for a handshake.
func (m *Mesh) takeKnocks(tab *table) {
	m.answerMu.Lock()
	got := m.knocks
	m.knocks = nil
	m.answerMu.Unlock()
	for _, k := range got {
		for _, p := range tab.peers {
			if a := p.address.Load(); a != nil && *a == k.from && p.knocked.IsZero() {
				p.knocked = k.at
			}
		}
	}
}

// knockEnds reports whether a knock of the peer has waited for as long as WireGuard is given to answer it.
func (p *peer) knockEnds(now time.Time) bool {
	patience := knockPatience
	if !p.live.Load() {
		patience = knockPatienceDown
	}
	return !p.knocked.IsZero() && now.Sub(p.knocked) >= patience
}

// answerKnock begins a handshake with a peer that asks for one in vain, and reports whether it did. WireGuard ignores
// an initiation that is not newer than the last one, so a peer whose clock was set back can begin none, but it can
// answer ours, which depends on our clock. WireGuard would begin one after 15 s. Anybody who knows this node's key can
// knock in a peer's name: that costs a handshake every 5 s (RekeyTimeout) at most, and the session that there is goes
// on until the new one is there.
func (m *Mesh) answerKnock(p *peer, now time.Time) (begun bool) {
	switch {
	case p.knocked.IsZero():
	case !p.shook.Before(p.knocked): // it was answered
		p.knocked = time.Time{}
	case p.knockEnds(now):
		p.knocked = time.Time{}
		if wg := m.dev.LookupPeer(device.NoisePublicKey(p.key)); wg != nil {
			_ = wg.SendHandshakeInitiation(false) // logged by WireGuard
			return true
		}
	}
	return false
}

// doubts says when a session that carries no answer to a probe may be replaced. A peer may answer handshakes and no
// probes for as long as it likes, and every handshake costs both ends.
type doubts struct {
	count int       // of sessions in a row that were replaced
	until time.Time // when the next may be
}

const (
	// freeDoubts is how many sessions are replaced without a pause. Handshakes that cross are not rare on a busy
	// machine.
	freeDoubts = 4
	// mostDoubts bounds the pauses: 128 s, about the age at which WireGuard makes a new session anyway.
	mostDoubts = 7
)

// may reports whether a session may be replaced now, and counts it then.
func (d *doubts) may(now time.Time) bool {
	if now.Before(d.until) {
		return false
	}
	if d.count++; d.count > freeDoubts {
		d.until = now.Add(time.Second << min(d.count-freeDoubts, mostDoubts))
	}
	return true
}
