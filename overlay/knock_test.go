package overlay

import (
	"bytes"
	"reflect"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
)

// sawFuture makes d's WireGuard believe that the last initiation of a peer was sent in a far future, as after the
// peer's clock was set back: it ignores all further ones. The last handshake becomes one of a minute ago, since two of
// one end are never closer than 5 s.
func (d *node) sawFuture(peer uint64) {
	d.t.Helper()
	wg := d.dev.LookupPeer(device.NoisePublicKey(d.table.Load().byID[peer].key))
	handshake := reflect.ValueOf(wg).Elem().FieldByName("handshake")
	mutex := (*sync.RWMutex)(unsafe.Pointer(handshake.FieldByName("mutex").UnsafeAddr()))
	last := (*tai64n.Timestamp)(unsafe.Pointer(handshake.FieldByName("lastTimestamp").UnsafeAddr()))
	sent := (*time.Time)(unsafe.Pointer(handshake.FieldByName("lastSentHandshake").UnsafeAddr()))
	mutex.Lock()
	defer mutex.Unlock()
	*sent = time.Now().Add(-time.Minute)
	copy(last[:], bytes.Repeat([]byte{0xff}, len(last)))
}

// TestClockSetBack: a node restarts after its clock was set back, so that its peers ignore the handshakes that it
// begins. They begin them instead.
func TestClockSetBack(t *testing.T) {
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
	a.awaitSession(2)
	a.Close()
	b.sawFuture(1)
	began := time.Now()
	a.start(1, useSocket)
	a.set(b.as(b.loopback()))
	await.Until(t, "packets to the peer", func() bool {
		a.Send(frame(t, packet.UDP, pod4(1, 5), pod4(2, 5), 100, 1000), 2, nil)
		return len(b.received(1)) > 0
	})
	// WireGuard alone begins a handshake when nothing has come for 15 s.
	if stall := time.Since(began); stall > 12*time.Second {
		t.Errorf("no packets for %v after the restart", stall)
	}
	t.Logf("packets after %v", time.Since(began).Round(time.Millisecond))
}

// TestKnocks: of the initiations that come, only those that are addressed to this node, from where a peer is, and
// without an answer make the node begin a handshake.
func TestKnocks(t *testing.T) {
	a, b := pair(t, nil)
	a.awaitSession(2)
	var msg [device.MessageInitiationSize]byte
	msg[0] = 1
	if pass, _ := a.admitDatagram(msg[:], b.loopback()); !pass || a.gate.Begins(msg[:]) {
		t.Errorf("without the first MAC, it passes: %v, and is an initiation", pass)
	}
	var to device.CookieGenerator
	to.Init(device.NoisePublicKey(a.own))
	to.AddMacs(msg[:])
	if !a.gate.Begins(msg[:]) || a.gate.Begins(msg[:100]) {
		t.Error("what is an initiation is not told from what is none")
	}
	shook := time.Now()
	for _, c := range []struct {
		what    string
		knocked time.Time
		at      time.Time
		live    bool
		waits   bool
		begins  bool
	}{
		{"none", time.Time{}, shook, true, false, false},
		{"answered", shook.Add(-time.Millisecond), shook, true, false, false},
		{"too early to tell", shook.Add(time.Second), shook.Add(time.Second + knockPatience/2), true, true, false},
		{"in vain", shook.Add(time.Second), shook.Add(time.Second + knockPatience), true, false, true},
		{"without a session", shook.Add(time.Second), shook.Add(time.Second + knockPatience), false, true, false},
		{"long in vain", shook.Add(time.Second), shook.Add(time.Second + knockPatienceDown), false, false, true},
	} {
		q := &peer{key: b.own, shook: shook, knocked: c.knocked}
		q.live.Store(c.live)
		q.credit.Store(stagedMax) // no packet waits for a session
		if due := q.pollDue(c.at); due != c.begins {
			t.Errorf("%s: WireGuard's state is read for it: %v", c.what, due)
		}
		if begins := a.answerKnock(q, c.at); begins != c.begins {
			t.Errorf("%s: it begins a handshake: %v", c.what, begins)
		}
		if waits := !q.knocked.IsZero(); waits != c.waits {
			t.Errorf("%s: it waits on: %v", c.what, waits)
		}
	}
}

// TestDoubts: sessions with a peer that never answers a probe are replaced at once at first, and then ever more rarely.
func TestDoubts(t *testing.T) {
	var d doubts
	begun := time.Unix(0, 0)
	var at []time.Duration
	for now := begun; now.Before(begun.Add(time.Hour)); now = now.Add(lookIdle) {
		if d.may(now) {
			at = append(at, now.Sub(begun))
		}
	}
	if len(at) < 20 || len(at) > 40 {
		t.Errorf("%d handshakes in an hour: %v", len(at), at)
	}
	if at[freeDoubts] > time.Second {
		t.Errorf("the first are at %v", at[:freeDoubts+1])
	}
}
