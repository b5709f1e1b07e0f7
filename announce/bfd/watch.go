package bfd

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"tapestry.dev/tapestry/announce"
)

// late is after how long without a session that is told.
const late = 15 * time.Second

// State is how a session is, as RFC 5880, section 6.2, names it.
type State string

// The states of a session. AdminDown of a router is Down here, since GoBGP does not tell the two apart.
const (
	Down State = "down" // nothing is heard of the router, or it says that nothing is heard of this node
	Init State = "init" // the router is heard, and has not yet heard this node
	Up   State = "up"
)

// Wanted returns with which routers there is to be a session. Two nodes have one session, also where they have several
// of BGP, at several ports: of their times the shorter ones count.
func Wanted(peers []announce.Peer) map[netip.Addr]announce.BFD {
	want := map[netip.Addr]announce.BFD{}
	for _, p := range peers {
		if p.BFD == (announce.BFD{}) {
			continue
		}
		b, addr := p.BFD, p.Address.Addr()
		if other, is := want[addr]; is {
			b.Transmit, b.Receive, b.Multiplier = min(b.Transmit, other.Transmit), min(b.Receive, other.Receive), min(b.Multiplier, other.Multiplier)
		}
		want[addr] = b
	}
	return want
}

// steps returns which sessions have to end and to begin, in order. One with other times is a new one.
func steps(have map[netip.Addr]*watch, want map[netip.Addr]announce.BFD) (end, begin []netip.Addr) {
	for addr, w := range have {
		if times, is := want[addr]; !is || times != w.times {
			end = append(end, addr)
		}
	}
	for addr, times := range want {
		if w := have[addr]; w == nil || times != w.times {
			begin = append(begin, addr)
		}
	}
	slices.SortFunc(end, netip.Addr.Compare)
	slices.SortFunc(begin, netip.Addr.Compare)
	return end, begin
}

// watch is what is known of a session.
type watch struct {
	times announce.BFD
	state State
	down  time.Time // since when it is not up; zero while it is
}

// see takes in how the session is now, and reports whether the router has been lost.
func (w *watch) see(state State, now time.Time) (lost bool) {
	lost = w.state == Up && state != Up
	w.state = state
	switch {
	case state == Up:
		w.down = time.Time{}
	case w.down.IsZero():
		w.down = now
	}
	return lost
}

// see takes in how all sessions are now, and returns the routers that have been lost, in order. A session that is not
// there is down.
func see(have map[netip.Addr]*watch, states map[netip.Addr]State, now time.Time) (lost []netip.Addr) {
	for _, addr := range slices.SortedFunc(maps.Keys(have), netip.Addr.Compare) {
		state := states[addr]
		if state == "" {
			state = Down
		}
		if have[addr].see(state, now) {
			lost = append(lost, addr)
		}
	}
	return lost
}

// problem says what is wrong with the session with a router; "" when nothing is. The text stays the same for as long as
// the fault does: another one would be another Event, and another write to the Node.
func (w *watch) problem(router netip.Addr, now time.Time) string {
	if w.down.IsZero() || now.Sub(w.down) < late {
		return ""
	}
	return fmt.Sprintf("there has been no BFD session with the router at %s for more than %s, so that its loss is noticed by the hold time alone: "+
		"see that it speaks BFD with this node on the same link, and that UDP to port %d is let through, or remove spec.bfd", router, late, Port)
}
