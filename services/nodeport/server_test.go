package nodeport

import (
	"net"
	"net/netip"
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
