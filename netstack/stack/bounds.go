package stack

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/netstack/udprelay"
	"tapestry.dev/tapestry/share"
)

// shares are how many descriptors of the process each kind of host socket may have that somebody else asks for. What is
// left, a third at least, is the node's own: TAPs, listeners, DNS, Ingress, the API.
type shares struct{ tcp, udp, pings, dials int }

func sharesOf(descriptors uint64) shares {
	n := int(min(descriptors, 1<<21))
	return shares{
		tcp:   max(1, n*3/8),
		udp:   max(1, min(n/8, 16384)), // their ports come from the host's range of some 28,000
		pings: max(1, min(n/64, 1024)),
		dials: max(2, min(n/8, maxDials)), // each has a client's socket beside it
	}
}

// descriptors is how many the process may have.
func descriptors() uint64 {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 1024
	}
	return lim.Cur
}

const (
	// maxDials bounds the stack's connections to pods that it opened for clients, however many descriptors there are.
	maxDials = 4096
	// roomyDials of them have the stack's buffers, which grow to 4 MiB each way with what flows; the others have
	// slimBuffer bytes each way: 64 KiB are 500 Mbit/s at a millisecond.
	roomyDials = 64
	slimBuffer = 64 << 10
)

// dials share out the stack's connections, and the memory that they take, among clients' networks. They cannot be taken
// away.
type dials struct {
	all, roomy *share.Limit[packet.Addr, struct{}]
}

func newDials(most int) dials {
	limit := func(total int) *share.Limit[packet.Addr, struct{}] {
		return share.New[packet.Addr, struct{}](share.Options[packet.Addr]{Total: total, Keep: true})
	}
	return dials{limit(most), limit(min(most, roomyDials))}
}

// dialClaim is what one connection holds.
type dialClaim struct {
	of         *dials // nil: nothing
	all, roomy share.Claim[packet.Addr, struct{}]
}

// ErrTooMany says that a client's network has as many connections as it may have.
var ErrTooMany = errors.New("the client has too many connections")

// acquire charges a connection to its client, and makes its buffers those that it may have.
func (d *dials) acquire(c *dialClaim, client netip.Addr, ep tcpip.Endpoint) error {
	owner := tcprelay.Network(packet.AddrFrom(client))
	if _, ok := d.all.Acquire(&c.all, owner); !ok {
		return ErrTooMany
	}
	c.of = d
	if _, ok := d.roomy.Acquire(&c.roomy, owner); !ok {
		ep.SocketOptions().SetReceiveBufferSize(slimBuffer, true)
		ep.SocketOptions().SetSendBufferSize(slimBuffer, true)
	}
	return nil
}

func (c *dialClaim) release() {
	if c.of != nil {
		c.of.all.Release(&c.all)
		c.of.roomy.Release(&c.roomy)
	}
}

// Stats tell who has how much of what is shared out.
type Stats struct {
	TCP   tcprelay.Stats
	UDP   udprelay.Stats
	Pings share.Stats
	// Pieces are packets of which not all fragments are there.
	Pieces share.Stats
	// Dials are the stack's connections for clients.
	Dials share.Stats
}

// Stats tells the state and the counters.
func (s *Stack) Stats() Stats {
	return Stats{s.relay.Stats(), s.udp.Stats(), s.pings.Stats(), s.pieces.Stats(), s.dials.all.Stats()}
}
