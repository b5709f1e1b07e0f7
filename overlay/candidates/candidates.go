// Package candidates decides at which of its addresses a peer is talked to. A node has addresses of both families, and
// the path to one of them may be broken while the path to another works. It is pure: a Choice has no clock and sends
// nothing by itself.
//
//   - Candidates are in order of preference. The present address is where the peer is talked to; it may be none of
//     them, since WireGuard follows a peer to wherever its datagrams come from.
//   - An address is silent when a whole round of probes to it had no answer. While the present address is silent, one
//     probe at a time goes to each other candidate, and traffic moves to the first that answers. Traffic never moves to
//     an address that has not answered: what looks like a broken path may be a peer that was busy.
//   - The pauses between these probes grow to slowest, so that a peer that is silent everywhere is not bothered.
//   - A candidate that was left, and that is preferred to the present one, is probed every patience. After sure answers
//     in a row traffic returns to it. A candidate that was left again soon after waits longer each time.
//   - Only who left a candidate returns to it. The two ends may prefer different families, and would pull at each other
//     otherwise.
//
// A peer with fewer than two candidates is as without this package: it stays where it is.
package candidates

import (
	"net/netip"
	"slices"
	"time"
)

// Most is how many candidates a Choice takes at most.
const Most = 4

const (
	quickest = 250 * time.Millisecond // between two probes of a candidate while the present address is silent
	slowest  = 10 * time.Second       // the longest of these pauses, which double
	patience = 30 * time.Second       // before a candidate that was left is probed, and between these probes
	proof    = time.Second            // between two probes of a candidate that answered, and how long an answer may take
	sure     = 3                      // answers in a row that bring traffic back

	// calm is how long a candidate must have been in use again for its next failure to count as the first.
	calm = 10 * time.Minute
	// mostFailures bounds by how much patience grows: 30 s << 5 is 16 minutes.
	mostFailures = 5
	// ownAttempts is how many attempts for a handshake go to the present address before the others have theirs.
	ownAttempts = 2
)

// candidate is one address of the peer, and what is known of the path to it.
type candidate struct {
	addr  netip.AddrPort
	token uint16 // marks probes to it; never 0

	silent   bool // it did not answer when it was asked last
	asked    bool // a probe is under way
	answers  int  // in a row, since it was left
	due      time.Time
	returned time.Time // when traffic returned to it last
	failures int       // how often it was left soon after that
}

// Choice is the state for one peer. It is for one goroutine at a time.
type Choice struct {
	all    []candidate
	tokens uint16
	at     netip.AddrPort
	silent bool // the present address is
	pause  time.Duration
	// elsewhere is the last present address that was no candidate.
	elsewhere netip.AddrPort
}

// Probe is a probe to be sent to an address. Token comes back with its answer.
type Probe struct {
	To    netip.AddrPort
	Token uint16
}

// Set makes addrs the candidates, in order of preference; those beyond Most are left out. What is known of candidates
// that stay is kept.
func (c *Choice) Set(addrs []netip.AddrPort) {
	old := c.all
	c.all = nil
	for _, a := range addrs {
		if !a.IsValid() || len(c.all) == Most || slices.ContainsFunc(c.all, func(x candidate) bool { return x.addr == a }) {
			continue
		}
		if i := slices.IndexFunc(old, func(x candidate) bool { return x.addr == a }); i >= 0 {
			c.all = append(c.all, old[i])
			continue
		}
		c.tokens = max(c.tokens+1, 1)
		c.all = append(c.all, candidate{addr: a, token: c.tokens})
	}
}

// Several reports whether there is anything to choose.
func (c *Choice) Several() bool { return len(c.all) > 1 }

// Has reports whether a is a candidate.
func (c *Choice) Has(a netip.AddrPort) bool { return c.index(a) < len(c.all) }

// Are reports whether addrs are the candidates, as Set would take them.
func (c *Choice) Are(addrs []netip.AddrPort) bool {
	return slices.EqualFunc(c.all, addrs[:min(len(addrs), Most)], func(x candidate, a netip.AddrPort) bool { return x.addr == a })
}

// Addrs returns the candidates in order.
func (c *Choice) Addrs() (list []netip.AddrPort) {
	for i := range c.all {
		list = append(list, c.all[i].addr)
	}
	return list
}

// Silent returns the candidates that did not answer when they were asked last, in order; none when there is no choice.
func (c *Choice) Silent() (list []netip.AddrPort) {
	for i := range c.all {
		if c.all[i].silent && c.Several() {
			list = append(list, c.all[i].addr)
		}
	}
	return list
}

// Works reports whether the present address answers, as far as is known.
func (c *Choice) Works() bool { return !c.silent }

// index returns the index of a candidate; an address that is none comes after all of them.
func (c *Choice) index(a netip.AddrPort) int {
	if i := slices.IndexFunc(c.all, func(x candidate) bool { return x.addr == a }); i >= 0 {
		return i
	}
	return len(c.all)
}

// At notes that the peer is talked to at addr.
func (c *Choice) At(addr netip.AddrPort, now time.Time) {
	if addr == c.at {
		return
	}
	if c.silent {
		c.leave(c.index(c.at), now)
	}
	c.at, c.silent = addr, false
	if !c.Has(addr) {
		c.elsewhere = addr
	}
}

// Round notes whether the last round of probes to the present address was answered.
func (c *Choice) Round(answered bool, now time.Time) {
	i := c.index(c.at)
	switch {
	case answered:
		c.silent = false
		c.works(i)
	case !c.silent:
		c.silent, c.pause = true, quickest
		for k := range c.all {
			c.all[k].asked, c.all[k].answers, c.all[k].due = false, 0, now
		}
		if i < len(c.all) {
			c.all[i].silent = true
		}
	}
}

// works notes that the i-th candidate answers. While nothing did, the less preferred ones were silent for a reason that
// says nothing of their paths.
func (c *Choice) works(i int) {
	for k := i; k < len(c.all); k++ {
		c.all[k].silent = false
	}
}

// Step returns the probes to send now.
func (c *Choice) Step(now time.Time) (list []Probe) {
	if !c.Several() {
		return nil
	}
	at, pause := c.index(c.at), c.pause
	for i := range c.all {
		x := &c.all[i]
		if i == at || now.Before(x.due) {
			continue
		}
		switch {
		case c.silent:
			x.silent = x.silent || x.asked
			x.due = now.Add(c.pause)
			pause = min(2*c.pause, slowest)
		case i < at && (x.silent || x.answers > 0):
			if x.asked {
				x.asked, x.silent, x.answers = false, true, 0
				x.due = now.Add(x.patience())
				continue
			}
			x.due = now.Add(proof)
		default:
			continue
		}
		x.asked = true
		list = append(list, Probe{x.addr, x.token})
	}
	c.pause = pause
	return list
}

func (x *candidate) patience() time.Duration { return patience << min(x.failures, mostFailures) }

// Answer notes that the probe with a token was answered. When traffic is to move to its candidate, Answer returns the
// address, which is then the present one.
func (c *Choice) Answer(token uint16, now time.Time) (to netip.AddrPort, move bool) {
	i := slices.IndexFunc(c.all, func(x candidate) bool { return x.token == token && x.asked })
	at := c.index(c.at)
	if i < 0 || i == at {
		return to, false
	}
	x := &c.all[i]
	x.asked, x.silent = false, false
	if !c.silent {
		if i > at {
			return to, false
		}
		if x.answers++; x.answers < sure {
			x.due = now.Add(proof)
			return to, false
		}
		x.returned = now
	}
	x.answers = 0
	c.At(x.addr, now)
	c.works(i)
	return x.addr, true
}

// leave notes that traffic leaves the i-th candidate because it is silent.
func (c *Choice) leave(i int, now time.Time) {
	if i < len(c.all) {
		x := &c.all[i]
		if x.failures++; x.returned.IsZero() || now.Sub(x.returned) >= calm {
			x.failures = 0
		}
	}
	for k := range c.all {
		c.all[k].due = now.Add(c.all[k].patience())
	}
}

// Attempt returns where the attempt for a handshake with the given number goes, counted from 0 since there was an
// answer; invalid when there is no choice. The attempts before have had no answer. The caller must call At.
func (c *Choice) Attempt(number int, now time.Time) netip.AddrPort {
	if !c.Several() {
		return netip.AddrPort{}
	}
	i := c.index(c.at)
	if number < ownAttempts {
		if c.silent || !c.at.IsValid() {
			return c.all[0].addr
		}
		return c.at
	}
	if i < len(c.all) {
		// Perhaps the peer has only just started: this is looked into soon.
		c.all[i].silent, c.all[i].due = true, now.Add(proof)
	}
	if i++; i == len(c.all) && c.elsewhere.IsValid() {
		return c.elsewhere // the peer was heard from there
	}
	if i >= len(c.all) {
		i = 0
	}
	return c.all[i].addr
}

// Shook notes that a handshake came about while the peer is talked to at the present address.
func (c *Choice) Shook() {
	c.silent = false
	c.works(c.index(c.at))
}
