package overlay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// Whoever has met its peers can send them more than WireGuard keeps for a peer without a session.
func TestMeet(t *testing.T) {
	sock, err := OpenSocket(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	useSocket := func(o *Options) { o.Socket = sock }
	a, b := startNode(t, 1, useSocket), startNode(t, 2, nil)
	a.set(b.as(b.loopback()))
	b.set(a.as(a.loopback()))
	b.awaitSession(1)
	for restart := range 3 {
		// WireGuard ignores an initiation that comes less than 50 ms after another one.
		await.Until(t, "another handshake is allowed", func() bool { return b.Status()[0].HandshakeAge > 4*device.HandshakeInitationRate })
		a.Close()
		b.forget()
		a.start(1, func(o *Options) { o.Socket, o.Resumes = sock, true })
		a.set(b.as(b.loopback()))
		a.Meet(await.Patience)
		a.Meet(await.Patience) // at once
		for range 2 * stagedMax {
			a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 100, 1000), 2, nil)
		}
		await.Until(t, "all packets", func() bool { return len(b.received(1)) == 2*stagedMax })
		if lost := a.Stats().DropNoSession; lost > 0 {
			t.Errorf("restart %d: %d packets are lost", restart, lost)
		}
	}
}

// A peer that is down is waited for as long as is said, one that nobody can reach is not waited for, and nobody waits
// for a Mesh that closes.
func TestMeetNobody(t *testing.T) {
	a, b := startNode(t, 1, nil), startNode(t, 2, nil)
	a.set(Peer{ID: 3, Name: "c", PublicKey: NewPrivateKey().Public(), Prefixes: podCIDRs(3)}) // without an endpoint
	a.Meet(await.Patience)

	b.set(Peer{ID: 1, Name: "a", PublicKey: NewPrivateKey().Public(), Endpoint: a.loopback(), Prefixes: podCIDRs(1)})
	b.Meet(time.Millisecond)
	select {
	case <-b.met.over:
		t.Error("it has met somebody who has another key")
	default:
	}
	waits := make(chan struct{})
	go func() { defer close(waits); b.Meet(await.Patience) }()
	b.Close()
	<-waits
}

// A Mesh that resumes does not let the other end go first. A response to a handshake that nobody has begun wakes
// nobody.
func TestResumes(t *testing.T) {
	a := startNode(t, 1, nil)
	a.Close() // its prober would take what comes
	key := NewPrivateKey().Public()
	for bytes.Compare(a.own[:], key[:]) < 0 {
		key = NewPrivateKey().Public()
	}
	now := time.Now()
	cfg := Peer{PublicKey: key, Endpoint: netip.MustParseAddrPort("127.0.0.1:9")}
	for _, resumes := range []bool{false, true} {
		p := &peer{key: key}
		a.o.Resumes = resumes
		a.greet(p, &cfg, now)
		if after := p.shake.next.Sub(now); (after == 0) != resumes || !p.shake.active {
			t.Errorf("resumes %v: the first initiation is sent after %v", resumes, after)
		}
	}

	strangers := make([]byte, device.MessageResponseSize)
	strangers[0] = device.MessageResponseType
	response := bytes.Clone(strangers)
	var to device.CookieGenerator
	to.Init(device.NoisePublicKey(a.own))
	to.AddMacs(response)
	for _, c := range []struct {
		what  string
		begun bool
		msg   []byte
		soon  bool
	}{
		{"a response", true, response, true},
		{"a response to nothing", false, response, false},
		{"no response", true, response[1:], false},
		{"a response of who does not know this node", true, strangers, false},
	} {
		for len(a.wakeProber) > 0 {
			<-a.wakeProber
		}
		p := &peer{key: key}
		p.shake.active = c.begun
		a.admitDatagram(c.msg, cfg.Endpoint)
		a.takeResponses(newTable([]*peer{p}, []Peer{cfg}), now)
		if got := !p.soon.IsZero(); got != c.soon {
			t.Errorf("%s: a session is expected: %v", c.what, got)
		}
		if len(a.wakeProber) > 0 {
			t.Errorf("%s: all peers are looked at", c.what)
		}
	}
}

// Answers to handshakes are seen to at once, and all peers are looked at no more often for them.
func TestRhythm(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }
	r := rhythm{due: at(0)}
	for _, step := range []struct {
		ms          int
		woken, soon bool
		busy        bool // what the look finds
		looks       bool
		wait        int
	}{
		{0, false, false, false, true, 125},    // the first
		{1, false, false, false, false, 124},   // an answer that nobody has waited for
		{60, false, false, false, false, 65},   // another one
		{61, true, false, false, true, 125},    // something else wakes the prober
		{186, false, false, true, true, 50},    // it is due
		{200, false, true, false, false, 2},    // an answer is being handled
		{202, true, true, false, false, 2},     // meanwhile something wakes the prober
		{203, false, true, false, false, 2},    // still
		{205, false, false, false, true, 125},  // it was handled
		{210, false, true, false, false, 2},    // another one
		{212, false, false, true, true, 50},    // it was handled
		{220, false, true, false, false, 2},    // one that takes long
		{261, false, true, false, false, 1},    // it will be due first
		{262, false, true, true, true, 2},      // it is due
		{290, false, false, false, true, 125},  // it was handled
		{291, false, false, false, false, 124}, // nothing
	} {
		r.woken = r.woken || step.woken
		if r.beats(at(step.ms)) {
			t.Errorf("at %d ms: a beat is due while no peer is watched", step.ms)
		}
		looks := r.looks(at(step.ms), step.soon)
		if looks {
			r.looked(at(step.ms), step.busy)
		}
		if wait := r.wait(at(step.ms)); looks != step.looks || wait != time.Duration(step.wait)*time.Millisecond {
			t.Errorf("at %d ms: looks %v, then waits %s, want %v and %d ms", step.ms, looks, wait, step.looks, step.wait)
		}
	}
	r = rhythm{due: at(125), beat: at(50)}
	if wait := r.wait(at(0)); wait != 50*time.Millisecond || r.beats(at(49)) || !r.beats(at(50)) || r.looks(at(50), false) {
		t.Errorf("with a beat due after 50 ms the prober waits %s, and looks at all peers then", wait)
	}
	r.beat = at(150)
	if wait := r.wait(at(100)); wait != 25*time.Millisecond {
		t.Errorf("with a look due before the beat the prober waits %s", wait)
	}
}
