package gate

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// stopped returns a Gate whose clock stands still until the test moves it.
func stopped(own [32]byte) (g *Gate, clock *time.Duration) {
	g, clock = New(own), new(time.Duration)
	*clock = time.Second
	g.now = func() time.Duration { return *clock }
	return g, clock
}

// passed sends msg n times from an address and returns how many pass.
func (g *Gate) passed(n int, from string, msg []byte) (passed int) {
	for range n {
		if pass, _ := g.Admit(msg, netip.MustParseAddrPort(from)); pass {
			passed++
		}
	}
	return passed
}

// apart returns n addresses of strangers that share no rate with one another.
func (g *Gate) apart(n int) (all []string) {
	used := map[*charges]bool{}
	for a := netip.MustParseAddr("203.0.113.1"); len(all) < n; a = a.Next() {
		if who := g.stranger(a); !used[who] {
			used[who] = true
			all = append(all, netip.AddrPortFrom(a, 7).String())
		}
	}
	return all
}

func initiation() []byte {
	msg := make([]byte, device.MessageInitiationSize)
	msg[0], msg[4] = initiationMessage, 77
	return msg
}

func TestGateCharges(t *testing.T) {
	g, clock := stopped([32]byte{1})
	peer, msg := netip.MustParseAddr("192.0.2.1"), initiation()
	g.SetPeers(func() []netip.Addr { return []netip.Addr{peer} })
	// One address cannot use the rate of all strangers.
	if n := g.passed(1000, "203.0.113.1:1", msg); n != strangerRate/2 {
		t.Errorf("%d of a stranger's pass at once", n)
	}
	if n := g.passed(1000, "203.0.113.1:2", msg); n != 0 {
		t.Errorf("%d more pass from another port", n)
	}
	// All strangers together do not use the peer's rate.
	all := 0
	for i := range byte(250) {
		all += g.passed(10, netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, i}), 1).String(), msg)
	}
	if most := strangersRate / 2; all > most || all < most-strangerRate {
		t.Errorf("%d of all strangers pass at once, want up to %d", all, most)
	}
	if n := g.passed(100, "[::ffff:192.0.2.1]:51820", msg); n != peerRate/2 {
		t.Errorf("%d of the peer's pass", n)
	}
	*clock += time.Second / 10
	if n := g.passed(100, "192.0.2.1:51820", msg); n != peerRate/10 {
		t.Errorf("%d of the peer's pass after a tenth of a second", n)
	}
	if n := g.passed(100, "203.0.113.1:1", msg); n != strangerRate/10 {
		t.Errorf("%d of a stranger's pass after a tenth of a second", n)
	}
	// A peer's rate does not begin anew when another peer comes.
	g.SetPeers(func() []netip.Addr { return []netip.Addr{peer, netip.MustParseAddr("192.0.2.2")} })
	if n := g.passed(100, "192.0.2.1:51820", msg); n != 0 {
		t.Errorf("%d pass because another peer came", n)
	}
	// The addresses of one IPv6 network share a rate.
	if n := g.passed(100, "[2001:db8::1]:1", msg) + g.passed(100, "[2001:db8::2]:1", msg); n > strangerRate/2 {
		t.Errorf("%d of one network pass", n)
	}
}

// A sender above its rate is asked for proof of its address, and passes with it. The proof is WireGuard's own (paper,
// 5.4.7).
func TestGateProof(t *testing.T) {
	key := [32]byte{2}
	g, _ := stopped(key)
	var peer device.CookieGenerator
	peer.Init(key)
	strangers := g.apart(5)
	from := strangers[0]
	msg := initiation()
	g.passed(strangerRate/2, strangers[4], msg)
	if pass, answer := g.Admit(msg, netip.MustParseAddrPort(strangers[4])); pass || answer != nil {
		t.Fatalf("without the first MAC: passes %v, answer %x", pass, answer)
	}
	peer.AddMacs(msg)
	g.passed(strangerRate/2, from, msg)
	pass, answer := g.Admit(msg, netip.MustParseAddrPort(from))
	if pass || len(answer) != device.MessageCookieReplySize || answer[0] != cookieMessage || binary.LittleEndian.Uint32(answer[4:]) != 77 {
		t.Fatalf("passes %v, answer %x", pass, answer)
	}
	var reply device.MessageCookieReply
	if err := binary.Read(bytes.NewReader(answer), binary.LittleEndian, &reply); err != nil {
		t.Fatal(err)
	}
	if !peer.ConsumeReply(&reply) {
		t.Fatal("the answer is no cookie")
	}
	peer.AddMacs(msg)
	if pass, _ := g.Admit(msg, netip.MustParseAddrPort(from)); !pass {
		t.Error("a handshake with proof does not pass")
	}
	if pass, _ := g.Admit(msg, netip.MustParseAddrPort(strangers[1])); !pass {
		t.Error("a stranger's first does not pass")
	}
	g.passed(100, strangers[2], msg)
	if pass, _ := g.Admit(msg, netip.MustParseAddrPort(strangers[2])); pass {
		t.Error("a proof is good for another address")
	}
	if n := g.passed(5000, from, msg); n > provenRate {
		t.Errorf("%d with proof pass at once", n)
	}
	other := append([]byte{cookieMessage, 0, 0, 0}, make([]byte, 60)...)
	g.passed(100, strangers[3], other)
	if pass, answer := g.Admit(other, netip.MustParseAddrPort(strangers[3])); pass || answer != nil {
		t.Errorf("a flood of cookies: passes %v, answer %x", pass, answer)
	}
}
