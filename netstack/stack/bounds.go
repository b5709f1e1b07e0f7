package stack

import (
	"cmp"
	"errors"
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/netstack/udprelay"
	"tapestry.dev/tapestry/share"
)

// Shares holds how many of each kind a Stack may have on behalf of pods and clients: host sockets for TCP, UDP and
// echoes, each of which is a descriptor, and connections to pods that Dial opens for clients. 0 stands for a number
// that fits a process with some 10,000 descriptors.
type Shares struct{ TCP, UDP, Pings, Dials int }

func (s Shares) orDefaults() Shares {
	return Shares{cmp.Or(s.TCP, 4096), cmp.Or(s.UDP, 1024), cmp.Or(s.Pings, 128), cmp.Or(s.Dials, 1024)}
}

const (
	// roomyDials of these connections, and as many of the node's own, which are those of Ingress most of all, have the
	// stack's own buffers, which grow with the traffic to 4 MiB in each direction. The others have slimBuffer bytes in
	// each direction: 64 KiB allow 500 Mbit/s at a round trip of a millisecond.
	roomyDials = 64
	slimBuffer = 64 << 10
)

// dials divides the stack's connections, and the memory that they take, among clients' networks. They cannot be taken
// back.
type dials struct {
	all, roomy *share.Limit[packet.Addr, struct{}]
	own        *atomic.Int32 // roomy connections of the node itself
}

func newDials(most int) dials {
	most = max(2, most) // one owner gets at most half
	limit := func(total int) *share.Limit[packet.Addr, struct{}] {
		return share.New[packet.Addr, struct{}](share.Options[packet.Addr]{Total: total, Keep: true})
	}
	return dials{limit(most), limit(min(most, roomyDials)), new(atomic.Int32)}
}

// dialClaim is the share of one connection.
type dialClaim struct {
	of         *dials // nil: nothing
	all, roomy share.Claim[packet.Addr, struct{}]
	own        atomic.Pointer[atomic.Int32] // where a roomy connection of the node itself is counted
}

// ErrTooMany says that a client's network may have no more connections.
var ErrTooMany = errors.New("the client has too many connections")

// acquire charges a connection to its client, and shrinks its buffers if the client may have no more large ones.
func (d *dials) acquire(c *dialClaim, client netip.Addr, ep tcpip.Endpoint) error {
	owner := tcprelay.Network(packet.AddrFrom(client))
	if _, ok := d.all.Acquire(&c.all, owner); !ok {
		return ErrTooMany
	}
	c.of = d
	if _, ok := d.roomy.Acquire(&c.roomy, owner); !ok {
		slim(ep)
	}
	return nil
}

// acquireOwn counts a connection of the node itself, and shrinks its buffers if there are enough with large ones.
func (d *dials) acquireOwn(c *dialClaim, ep tcpip.Endpoint) {
	if d.own.Add(1) > roomyDials {
		d.own.Add(-1)
		slim(ep)
		return
	}
	c.own.Store(d.own)
}

func slim(ep tcpip.Endpoint) {
	ep.SocketOptions().SetReceiveBufferSize(slimBuffer, true)
	ep.SocketOptions().SetSendBufferSize(slimBuffer, true)
}

func (c *dialClaim) release() {
	if own := c.own.Swap(nil); own != nil {
		own.Add(-1)
	}
	if c.of != nil {
		c.of.all.Release(&c.all)
		c.of.roomy.Release(&c.roomy)
	}
}

// Stats holds the use of everything that is shared.
type Stats struct {
	TCP   tcprelay.Stats
	UDP   udprelay.Stats
	Pings share.Stats
	// Pieces counts packets of which some fragments are missing.
	Pieces share.Stats
	// Dials counts the stack's connections for clients.
	Dials share.Stats
	// Lost counts messages for UDP clients of host sockets that did not leave.
	Lost uint64
}

// Stats returns the current use and the counters.
func (s *Stack) Stats() Stats {
	return Stats{s.relay.Stats(), s.udp.Stats(), s.pings.Stats(), s.pieces.Stats(), s.dials.all.Stats(), s.clients.Lost()}
}
