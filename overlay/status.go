package overlay

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// PeerStatus is the state of one peer, as Status returns it.
type PeerStatus struct {
	ID   uint64
	Name string
	// PublicKey is zero for a peer that has not announced one.
	PublicKey PublicKey
	// Endpoint is the address the peer was last heard from, or else the configured one; invalid when there is neither.
	Endpoint netip.AddrPort
	// Silent are addresses of the peer that did not answer when they were asked last.
	Silent []netip.AddrPort
	// HandshakeAge is the time since the last handshake; negative when there was none.
	HandshakeAge time.Duration
	// AnswerAge is the time since a probe was last answered through the tunnel; negative when none was, as with a peer
	// that has no stack address.
	AnswerAge time.Duration
	// ReceivedBytes and SentBytes count WireGuard payload and overhead.
	ReceivedBytes, SentBytes uint64
	// MTU is the largest inner packet in bytes that goes in one piece.
	MTU int
}

// Stats counts packets of all peers since New.
type Stats struct {
	// SentPackets and SentBytes count IP packets given to WireGuard, ReceivedPackets and ReceivedBytes those given to
	// Receive. Probes are not counted.
	SentPackets, SentBytes, ReceivedPackets, ReceivedBytes uint64
	// SentPartial counts those of SentPackets whose checksum was left partial.
	SentPartial uint64
	// CutPackets counts IPv6 packets that were cut because their path carries less than IPv6's least MTU. Their pieces
	// are among SentPackets.
	CutPackets uint64
	// DropNoPeer counts packets to an unknown peer or to one without a key.
	DropNoPeer uint64
	// DropNoSession counts packets beyond the first few for a peer that does not answer handshakes.
	DropNoSession uint64
	// DropTooBig counts datagrams that did not fit the path, and packets too large for any path.
	DropTooBig uint64
	// DropSpoofed counts received packets whose source is in no peer's prefixes.
	DropSpoofed uint64
	// DropForbidden counts datagrams from a pod range or from an address that Options.Forbidden names.
	DropForbidden uint64
	// DropHandshakes counts handshake messages that came too often, and AskedProof those of them that were answered
	// with a cookie.
	DropHandshakes, AskedProof uint64
	// SendErrors counts datagrams that the kernel refused for another reason than their size.
	SendErrors uint64
}

// Stats returns the counts so far.
func (m *Mesh) Stats() Stats {
	c := &m.stats
	s := Stats{
		SentPackets: c.sent.Load(), SentBytes: c.sentBytes.Load(), SentPartial: c.sentPartial.Load(), CutPackets: c.cut.Load(),
		ReceivedPackets: c.received.Load(), ReceivedBytes: c.receivedBytes.Load(),
		DropNoPeer: c.noPeer.Load(), DropNoSession: c.noSession.Load(), DropTooBig: c.tooBig.Load(),
		DropSpoofed: c.spoofed.Load(),
	}
	g := m.gate.Stats()
	s.DropHandshakes, s.AskedProof = g.Refused, g.Asked
	if m.bind != nil {
		b := m.bind.Counters()
		s.DropForbidden, s.SendErrors = b.Forbidden, b.Failed
	}
	return s
}

// Status returns the state of all peers, sorted by name.
func (m *Mesh) Status() []PeerStatus {
	tab := m.table.Load()
	sessions, err := m.sessions()
	if err != nil {
		sessions = nil
	}
	now := time.Now()
	all := make([]PeerStatus, 0, len(tab.peers))
	for i, p := range tab.peers {
		s := sessions[p.key]
		age := time.Duration(-1)
		if !s.handshake.IsZero() {
			age = max(0, now.Sub(s.handshake))
		}
		answered := time.Duration(-1)
		if at := p.confirmed.Load(); at != 0 {
			answered = max(0, now.Sub(time.Unix(0, at)))
		}
		var silent []netip.AddrPort
		if l := p.lost.Load(); l != nil {
			silent = l.Silent
		}
		all = append(all, PeerStatus{
			ID: p.id, Name: tab.cfgs[i].Name, PublicKey: p.key, Endpoint: s.endpoint, Silent: silent, HandshakeAge: age, AnswerAge: answered,
			ReceivedBytes: s.rx, SentBytes: s.tx, MTU: int(p.mtu.Load()),
		})
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}
