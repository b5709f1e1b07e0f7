package link

import (
	"net"
	"net/netip"
	"time"
)

const (
	// period is the time for which questions are counted. A host asks once a second, three times at most (RFC 4861,
	// MAX_MULTICAST_SOLICIT and RETRANS_TIMER; Linux does the same for ARP).
	period = time.Second
	// perPeriod is how many questions of one machine for one address are answered in a period.
	perPeriod = 4
	// mostCounted is how many pairs of a machine and an address are counted. Whoever forges Ethernet addresses fills
	// it, and is answered from then on as if there were no limit: so nobody else loses an answer.
	mostCounted = 8192
)

// asker is a machine and the address that it asks for.
type asker struct {
	mac  [6]byte
	addr netip.Addr
}

// askers counts questions, so that a machine that floods them is not answered. An answer takes several times as long as
// reading the question, and while answers are written, questions of others are lost in a full socket. It is not safe
// for concurrent use. The zero value has counted nothing.
type askers struct {
	since  time.Time
	counts map[asker]uint8
}

// may reports whether a question is answered.
func (a *askers) may(who net.HardwareAddr, addr netip.Addr, now time.Time) bool {
	if len(who) != len(asker{}.mac) {
		return false
	}
	if a.counts == nil || now.Sub(a.since) >= period || now.Before(a.since) {
		if a.counts == nil || len(a.counts) > 64 {
			a.counts = map[asker]uint8{} // the memory of a flood is given back
		}
		clear(a.counts)
		a.since = now
	}
	k := asker{[6]byte(who), addr}
	n, known := a.counts[k]
	switch {
	case n >= perPeriod:
		return false
	case known || len(a.counts) < mostCounted:
		a.counts[k] = n + 1
	}
	return true
}
