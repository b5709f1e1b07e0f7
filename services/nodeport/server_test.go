package nodeport

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/test/freeport"
)

// lingering is a Door whose Serve ends some time before its socket is closed.
type lingering struct{ plainDoor }

func (d lingering) Close() error {
	_ = d.SetReadDeadline(time.Unix(1, 0)) // ends Serve
	time.Sleep(20 * time.Millisecond)
	return d.plainDoor.Close()
}

// A port that moves from all addresses of the host to one is opened there at once, however long the socket before takes
// to close.
func TestSocketIsClosedBeforeTheNext(t *testing.T) {
	_, p := newWorld(t, func(o *Options) {
		o.Door = func(c *net.UDPConn) (Door, error) {
			d, err := newPlainDoor(c)
			return lingering{d.(plainDoor)}, err
		}
	})
	s := spec(freeport.Of(t), packet.UDP)
	for _, at := range []string{"0.0.0.0", "127.0.0.1", "0.0.0.0"} {
		s.Addr = netip.MustParseAddr(at)
		if problems := p.Set([]PortSpec{s}); len(problems) > 0 {
			t.Fatalf("at %s: %v", at, problems)
		}
	}
}

// A session that has ended before it got its place gets none.
func TestEndedSessionHasNoPlace(t *testing.T) {
	g := newGuests(8)
	sess := &session{key: sessionKey{client: netip.MustParseAddrPort("192.0.2.9:7000")}}
	g.leave(sess)
	if lost := g.admit(sess); lost != nil || g.limit.Stats() != (share.Stats{}) {
		t.Errorf("admitted: %+v, lost %v", g.limit.Stats(), lost)
	}
}

// made returns a session of a client, with a place or without.
func made(client string) *session {
	return &session{key: sessionKey{client: netip.MustParseAddrPort(client)}}
}

// A flood of datagrams from made-up addresses takes its places from itself, and not from conversations.
func TestFloodTakesNoConversation(t *testing.T) {
	g := newGuests(8)
	var talking []*session
	for i := range 6 {
		s := made(fmt.Sprintf("192.0.2.%d:7000", 1+i))
		g.admit(s)
		s.heard.Store(true)
		g.touch(s)
		talking = append(talking, s)
	}
	heardNothing, silent := made("192.0.2.77:7000"), made("192.0.2.78:7000")
	g.admit(heardNothing)
	g.touch(heardNothing)
	g.admit(silent)
	silent.heard.Store(true) // but the client did not speak again
	for i := range 100 {
		g.admit(made(fmt.Sprintf("198.51.100.%d:7000", i)))
	}
	for _, s := range talking {
		if s.element == nil {
			t.Errorf("%s lost its session", s.key.client)
		}
		g.leave(s)
	}
	if heardNothing.element != nil || silent.element != nil {
		t.Error("who did not speak again has its session yet")
	}
	if n := g.strangers.Len(); n != 2 || g.known.Len() != 0 || g.limit.Stats().Held != 2 {
		t.Errorf("%d strangers and %d known are left, who hold %d", n, g.known.Len(), g.limit.Stats().Held)
	}
	// Where all are known, one of them makes place.
	for i := range 9 {
		s := made(fmt.Sprintf("203.0.113.%d:7000", i))
		g.admit(s)
		s.heard.Store(true)
		g.touch(s)
	}
	if g.strangers.Len() != 0 || g.known.Len() != 8 {
		t.Errorf("%d strangers and %d known are left", g.strangers.Len(), g.known.Len())
	}
}

// resumedUse counts what it is told.
type resumedUse struct{ answers, resumed int }

func (u *resumedUse) Answered() { u.answers++ }
func (u *resumedUse) Resumed()  { u.resumed++ }
func (u *resumedUse) Refused()  {}
func (u *resumedUse) End()      {}

// The first answer after a restart tells nothing of how long the backend took.
func TestResumedIsNotMeasured(t *testing.T) {
	u := new(resumedUse)
	w, p := newWorld(t, func(o *Options) {
		o.Begin = func(*packet.Tuple, packet.Choice) Use { return u }
		o.Sessions = sessionMemory(t, 4)()
	})
	w.choose(1, &net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 80})
	s := newServer(p, key{"udp4", netip.MustParseAddrPort("192.0.2.1:30000")}, spec(30000, packet.UDP))
	d := &exchangeDoor{}
	r := &remembered{sessionKey: sessionKey{netip.MustParseAddrPort("198.51.100.1:7"), netip.MustParseAddr("192.0.2.1")}, at: s.key, seen: 7, choice: w.picked}
	if !s.revive(udpSocket{d, new(sync.WaitGroup)}, r) {
		t.Fatal("the session does not go on")
	}
	d.heard(nil)
	if u.answers != 0 || u.resumed != 1 {
		t.Errorf("%d first answers and %d resumed sessions were told, want 0 and 1", u.answers, u.resumed)
	}
	s.drop(s.all()[0])
}

// The session of a client with a zone is not remembered, since it would come back as another client's.
func TestZonesAreNotRemembered(t *testing.T) {
	m := newMemory(sessionMemory(t, 4)())
	r := remembered{sessionKey: sessionKey{netip.MustParseAddrPort("[fe80::7%eth0]:5000"), netip.MustParseAddr("fe80::1")}, seen: 1}
	r.choice.To = packet.EndpointFrom(netip.MustParseAddrPort("[fd00::1]:80"))
	if slot := m.put(&r); slot != noSlot {
		t.Errorf("the session is remembered in slot %d", slot)
	}
}
