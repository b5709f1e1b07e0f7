package overlay

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// After a restart no peer can be written to before there is a session with it. WireGuard keeps a few packets until
// then, and the others are lost, as many as pods have sent while nobody read their TAPs. So a node that starts meets
// its peers before it hears its pods.

const (
	// soonTime is how long WireGuard may take to handle a response on a busy machine.
	soonTime = 30 * time.Millisecond
	// maxResponses bounds the responses that are kept between two looks.
	maxResponses = 256
)

// meeting is about the first sessions with all peers.
type meeting struct {
	begun atomic.Bool // there are peers
	once  sync.Once
	over  chan struct{}
}

func newMeeting() meeting { return meeting{over: make(chan struct{})} }

func (m *meeting) begin() { m.begun.Store(true) }

// look ends the meeting when there is a session with every peer that can be reached.
func (m *meeting) look(tab *table) {
	if !m.begun.Load() {
		return
	}
	for i, p := range tab.peers {
		if !p.key.IsZero() && tab.cfgs[i].Endpoint.IsValid() && !p.live.Load() {
			return
		}
	}
	m.once.Do(func() { close(m.over) })
}

// Meet waits until this Mesh has had sessions with all peers whose endpoints are known, at once when it had them, and
// for limit at most, since a peer may be down.
func (m *Mesh) Meet(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-m.met.over:
	case <-timer.C:
	case <-m.stop:
	}
}

// noteResponse notes that an answer to a handshake came from an address, and tells the prober: WireGuard does not tell
// when there is a session. Anybody who knows this node's key can send such answers, so they are no reason to look at
// all peers.
func (m *Mesh) noteResponse(from netip.AddrPort) {
	m.answerMu.Lock()
	defer m.answerMu.Unlock()
	if from = unmapped(from); len(m.responses) < maxResponses && !slices.Contains(m.responses, from) {
		m.responses = append(m.responses, from)
		select {
		case m.responded <- struct{}{}:
		default:
		}
	}
}

// lookForSessions looks at nothing but sessions, if a peer has just answered a handshake of this node's. It reports
// whether answers are still being handled. Looks at peers count how long those are silent, so they do not come as
// often.
func (m *Mesh) lookForSessions(now time.Time) (soon bool) {
	tab := m.table.Load()
	m.takeResponses(tab, now)
	awaited := func(p *peer) bool { return p.shake.active && !p.live.Load() && now.Before(p.soon) }
	if !slices.ContainsFunc(tab.peers, awaited) {
		return false
	}
	m.poll(tab, now)
	m.met.look(tab)
	return slices.ContainsFunc(tab.peers, awaited)
}

// takeResponses notes which peers have answered handshakes that this node has begun.
func (m *Mesh) takeResponses(tab *table, now time.Time) {
	m.answerMu.Lock()
	got := m.responses
	m.responses = nil
	m.answerMu.Unlock()
	for _, from := range got {
		for i, p := range tab.peers {
			if p.shake.active && slices.Contains(tab.addrs[i], from) {
				p.soon = now.Add(soonTime)
			}
		}
	}
}
