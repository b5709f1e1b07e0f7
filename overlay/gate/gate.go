// Package gate keeps floods of handshakes from WireGuard.
//
// A handshake costs its receiver a multiplication on an elliptic curve, 50 to 100 us, before the receiver knows who
// sent it, and anybody who knows the node's public key can send one. WireGuard asks for proof of the sender's address
// (a cookie) only when its queue is long; until then handshakes keep the processors busy. So handshakes pass a gate
// first, which charges them to the address that they come from. Each address of a peer has a rate of its own. All other
// addresses share a rate, and no address may use it alone. A handshake above these rates needs proof: the gate answers
// it with a cookie, which costs 8 us and is limited, too.
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
	// All rates are per second. peerRate is how many handshakes pass from each address of a peer, and strangerRate from
	// each other address. peerCookies and strangerCookies are how many are answered with a cookie. peerCookies is large
	// because somebody may send in a peer's name: the peer's own handshakes pass once one of its tries gets a cookie.
	peerRate, strangerRate       = 20, 20
	peerCookies, strangerCookies = 2000, 20
	// strangersRate is for all addresses of strangers together, without proof; provenRate is for all handshakes with
	// proof of their address.
	strangersRate, provenRate = 200, 1000
	// strangerBuckets is how many rates there are for addresses of strangers. A hash assigns an address to one of them.
	strangerBuckets = 256
)

// rate allows a number of messages a second, and at once as many as in half a second. One goroutine at a time uses it.
type rate struct {
	each time.Duration // the time between two messages at this rate
	paid time.Duration // the messages that passed have used the rate up to this time
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

// charges are the rates of one address.
type charges struct{ pass, cookies rate }

// Gate decides which handshakes reach WireGuard. One goroutine at a time may call Admit, any number the other methods.
type Gate struct {
	checker device.CookieChecker
	now     func() time.Duration // never less than a second, so that every rate begins unused
	seed    maphash.Seed
	mu      sync.Mutex // guards changes of peers
	peers   atomic.Pointer[map[netip.Addr]*charges]

	strangers, proven rate
	each              [strangerBuckets]charges

	refused, asked atomic.Uint64
}

// New makes the Gate of the node whose public key is own.
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

// SetPeers makes the addresses that where returns those of peers. Addresses that were peers' already keep their rates.
// where is called with a lock held, so that the last call of SetPeers sets the newest addresses.
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

// Begins reports whether a message that was admitted asks for a handshake with this node, as far as can be told
// without computing it.
func (g *Gate) Begins(msg []byte) bool {
	return len(msg) == device.MessageInitiationSize && msg[0] == initiationMessage && g.checker.CheckMAC1(msg)
}

// Responds reports whether a message that was admitted looks like the answer to a handshake that this node began, as
// far as can be told without computing it.
func (g *Gate) Responds(msg []byte) bool {
	return len(msg) == device.MessageResponseSize && msg[0] == responseMessage && g.checker.CheckMAC1(msg)
}

// Stats counts handshake messages since New.
type Stats struct {
	// Refused is how many messages did not reach WireGuard, and Asked how many of them were answered with a cookie.
	Refused, Asked uint64
}

// Stats returns the counts so far.
func (g *Gate) Stats() Stats {
	asked := g.asked.Load()
	return Stats{Refused: g.refused.Load() + asked, Asked: asked}
}

// Types of handshake messages, and where their parts are, in bytes (WireGuard paper, 5.4).
const (
	initiationMessage, responseMessage, cookieMessage = 1, 2, 3

	senderAt, macLen = 4, 16
	cookieReplyLen   = 64
)

// Admit reports whether a message that is not data may pass to WireGuard. For one that may not, answer is the datagram
// to send back, nil for none. Admit does not keep msg; answer belongs to the caller.
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

// prove admits msg when it holds proof that the sender receives at its address. Without proof it returns a request for
// one (a cookie), as far as the rates allow. msg is an initiation or a response.
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

// stranger returns the rates of an address that is no peer's. All IPv6 addresses of one /64 have the same rates, since
// a subscriber has at least a /64.
func (g *Gate) stranger(a netip.Addr) *charges {
	if a.Is6() {
		p, _ := a.WithZone("").Prefix(64)
		a = p.Addr()
	}
	return &g.each[maphash.Comparable(g.seed, a)%strangerBuckets]
}
