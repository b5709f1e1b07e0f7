// Package gate keeps floods of handshakes from WireGuard.
//
// A handshake costs its receiver an elliptic curve's multiplication, 50 to 100 us, before anything is known of who
// sends it, and anybody who knows the node's public key can ask for one. WireGuard asks for proof of the sender's
// address (a cookie) only when its queue is long; until then the processors are busy with nothing else. So handshakes
// come through a gate first, where they are charged to whoever sends them: the address of a peer has a rate of its own,
// all others together another, which no address may have alone. What exceeds them needs proof; it is answered with a
// cookie, which costs 8 us and is limited, too.
package gate

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// peerRate is for each address of a peer, and strangerRate for each other one; peerCookies and strangerCookies are for
	// answers. Somebody may send in a peer's name: its own handshakes come through when one of its many tries gets a
	// cookie.
	peerRate, strangerRate       = 20, 20
	peerCookies, strangerCookies = 2000, 20
	// strangersRate and provenRate are for all others together, without and with proof of their address.
	strangersRate, provenRate = 200, 1000
	// strangerBuckets is how many rates there are for other addresses, which share them by chance.
	strangerBuckets = 256
)

// rate lets through so many a second, and as many as in half of one at once. It is used by one goroutine at a time.
type rate struct {
	each time.Duration // what one costs
	paid time.Duration // until when is paid for what came through
}

func perSecond(n int) rate { return rate{each: time.Second / time.Duration(n)} }

func (r *rate) allow(now time.Duration) bool {
	next := max(r.paid, now-time.Second/2) + r.each
	if next > now {
		return false
	}
	r.paid = next
	return true
}

// charges are the rates of an address.
type charges struct{ pass, cookies rate }

// Gate decides which handshakes WireGuard gets to see. Admit is called by one goroutine at a time, the others by any.
type Gate struct {
	checker device.CookieChecker
	now     func() time.Duration // since some time more than a second ago
	seed    maphash.Seed
	mu      sync.Mutex // guards changes of peers
	peers   atomic.Pointer[map[netip.Addr]*charges]

	strangers, proven rate
	each              [strangerBuckets]charges

	refused, asked atomic.Uint64
}

// New makes the Gate of the node with that public key.
func New(own [32]byte) *Gate {
	start := time.Now().Add(-time.Second)
	g := &Gate{
		now: func() time.Duration { return time.Since(start) }, seed: maphash.MakeSeed(), strangers: perSecond(strangersRate), proven: perSecond(provenRate),
	}
	for i := range g.each {
		g.each[i] = charges{perSecond(strangerRate), perSecond(strangerCookies)}
	}
	g.peers.Store(&map[netip.Addr]*charges{})
	g.checker.Init(device.NoisePublicKey(own))
	return g
}

// SetPeers has where tell where peers are, or may be.
func (g *Gate) SetPeers(where func() []netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	old, now := *g.peers.Load(), map[netip.Addr]*charges{}
	for _, a := range where() {
		a = a.Unmap()
		r := old[a]
		if r == nil {
			r = &charges{perSecond(peerRate), perSecond(peerCookies)}
		}
		now[a] = r
	}
	g.peers.Store(&now)
}

// Stats are counters since New.
type Stats struct {
	// Refused is how many messages WireGuard did not get to see, and Asked how many of them were answered with a cookie.
	Refused, Asked uint64
}

// Stats gives the counts so far.
func (g *Gate) Stats() Stats {
	asked := g.asked.Load()
	return Stats{Refused: g.refused.Load() + asked, Asked: asked}
}

// Messages of handshakes, by type, and where their parts are (WireGuard paper, 5.4).
const (
	initiationMessage, responseMessage, cookieMessage = 1, 2, 3

	senderAt, macLen = 4, 16
	cookieReplyLen   = 64
)

// Admit decides about a message that is no data. One that WireGuard does not get to see may be answered. Both are
// borrowed.
func (g *Gate) Admit(msg []byte, from netip.AddrPort) (pass bool, answer []byte) {
	now, addr := g.now(), from.Addr().Unmap()
	who, known := (*g.peers.Load())[addr]
	if !known {
		who = g.stranger(addr)
	}
	if who.pass.allow(now) && (known || g.strangers.allow(now)) {
		return true, nil
	}
	if n := len(msg); n == device.MessageInitiationSize && msg[0] == initiationMessage || n == device.MessageResponseSize && msg[0] == responseMessage {
		return g.prove(who, msg, from, now)
	}
	g.refused.Add(1)
	return false, nil
}

// prove looks for a proof that the sender gets what is sent to its address, and asks for one where there is none.
func (g *Gate) prove(who *charges, msg []byte, from netip.AddrPort, now time.Duration) (pass bool, answer []byte) {
	source, _ := from.MarshalBinary()
	if [macLen]byte(msg[len(msg)-macLen:]) != [macLen]byte{} && g.checker.CheckMAC2(msg, source) {
		if g.proven.allow(now) {
			return true, nil
		}
	} else if who.cookies.allow(now) && g.checker.CheckMAC1(msg) {
		g.asked.Add(1)
		reply, err := g.checker.CreateReply(msg, binary.LittleEndian.Uint32(msg[senderAt:]), source)
		if err != nil {
			return false, nil
		}
		answer = binary.LittleEndian.AppendUint32(make([]byte, 0, cookieReplyLen), cookieMessage)
		answer = binary.LittleEndian.AppendUint32(answer, reply.Receiver)
		return false, append(append(answer, reply.Nonce[:]...), reply.Cookie[:]...)
	}
	g.refused.Add(1)
	return false, nil
}

// stranger is what an address has, or of the 64 bits of one that a subscriber has at least.
func (g *Gate) stranger(a netip.Addr) *charges {
	if a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		a = p.Addr()
	}
	return &g.each[maphash.Comparable(g.seed, a)%strangerBuckets]
}
