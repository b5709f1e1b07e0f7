package link

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/announce"
)

const (
	// handover is how long an address is asked for before it is announced, so that a living node that had it notices
	// first: two beats, or a question of its announcer.
	handover = 250 * time.Millisecond
	// probeEvery is the pause between two probes meanwhile.
	probeEvery = 120 * time.Millisecond
	// rest is for how long an address is left alone after somebody else was heard to have it. retry is the pause
	// between two probes then.
	rest  = 30 * time.Second
	retry = 10 * time.Second
	// settle is how long after another node has announced an address it is announced again, if it is still this node's;
	// again is the least time between two such announcements.
	settle = time.Second
	again  = 10 * time.Second
)

// repeats are the pauses between announcements of one address.
var repeats = [...]time.Duration{100 * time.Millisecond, 400 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second}

// Port is one interface, on which addresses of either family are announced.
type Port interface {
	// Hear and Ignore begin and end the receiving of questions for an address.
	Hear(netip.Addr) error
	Ignore(netip.Addr)
	// Announce says that this interface has the address.
	Announce(netip.Addr) error
	// Probe asks whether anybody has it.
	Probe(netip.Addr) error
	// Close ends the Port.
	Close()
}

// place is an address on an interface.
type place struct {
	addr netip.Addr
	on   string
}

// claim is what is done about a place.
type claim struct {
	announce.Claim
	next   time.Time // when something is sent next; zero for nothing
	ends   time.Time // of Waiting and Conflict
	said   int       // announcements so far
	doubt  time.Time // when it is announced again, because another node announced it; zero for no such need
	sure   time.Time // when that was done last
	heard  bool      // Port.Hear succeeded
	origin string    // what is wrong with the Port, "" for nothing
}

// Speaker knows what is announced on which interface. Its methods may be called concurrently.
type Speaker struct {
	mu     sync.Mutex
	ports  map[string]Port
	turns  map[netip.Addr]announce.Turn // the last ones
	claims map[place]*claim
}

// NewSpeaker returns a Speaker that announces nothing.
func NewSpeaker() *Speaker {
	return &Speaker{ports: map[string]Port{}, turns: map[netip.Addr]announce.Turn{}, claims: map[place]*claim{}}
}

// SetPort has an interface be used by that Port from now on, or no longer when port is nil. It does not close the Port
// that was there.
func (s *Speaker) SetPort(name string, port Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, name)
	if port != nil {
		s.ports[name] = port
	}
	for p, c := range s.claims {
		if p.on == name { // it is announced anew
			c.heard, c.said = false, 0
			c.next = time.Now()
		}
	}
}

// Set says whose turn it is, and on which interfaces this node announces an address.
func (s *Speaker) Set(turns []announce.Turn, on func(*announce.Turn) []string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[place]bool{}
	next := make(map[netip.Addr]announce.Turn, len(turns))
	for i := range turns {
		t := &turns[i]
		next[t.Addr] = *t
		if !t.Mine {
			continue
		}
		for _, name := range on(t) {
			p := place{t.Addr, name}
			wanted[p] = true
			if c := s.claims[p]; c != nil {
				c.Services = t.Services
				// A node that rests may announce the address all the same, as one of an earlier version does, and
				// clients go there. When it is gone they have to hear of this one again.
				if c.State == announce.Announced && slices.ContainsFunc(s.turns[t.Addr].Resting, func(node string) bool { return slices.Contains(t.Silent, node) && !slices.Contains(t.Resting, node) }) {
					c.said, c.next = 0, now
				}
				continue
			}
			c := &claim{Claim: announce.Claim{Addr: t.Addr, Interface: name, State: announce.Waiting, Since: now, Services: t.Services}, next: now, ends: now.Add(handover)}
			if before := s.turns[t.Addr].Announcer; before != "" && slices.Contains(t.Silent, before) {
				c.State = announce.Announced // who had it is dead: nobody has to notice
			}
			s.claims[p] = c
		}
	}
	s.turns = next
	for p, c := range s.claims {
		if wanted[p] {
			continue
		}
		if port := s.ports[p.on]; port != nil && c.heard {
			if c.State == announce.Announced && s.turns[p.addr].Announcer != "" {
				// Whoever has the address now may have been out of reach, and not know that clients come here since.
				// Overhear has it announced again. A probe changes nothing else for anybody; one that is lost leaves
				// clients to their caches.
				_ = port.Probe(p.addr)
			}
			port.Ignore(p.addr)
		}
		delete(s.claims, p)
	}
}

// Step does what is due.
func (s *Speaker) Step(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, c := range s.claims {
		s.step(p, c, now)
	}
}

func (s *Speaker) step(p place, c *claim, now time.Time) {
	port := s.ports[p.on]
	if port == nil {
		c.origin = "this node has no such interface, or it cannot be used"
		return
	}
	c.origin = ""
	if !c.heard {
		if err := port.Hear(p.addr); err != nil {
			c.origin = err.Error()
			return
		}
		c.heard = true
	}
	if c.State != announce.Announced && !now.Before(c.ends) {
		c.State, c.Since, c.said, c.next, c.Problem = announce.Announced, now, 0, now, ""
	}
	var err error
	if c.State == announce.Announced && !c.doubt.IsZero() && !now.Before(c.doubt) {
		c.doubt, c.sure = time.Time{}, now
		if err = port.Announce(p.addr); err != nil {
			c.origin, c.doubt = err.Error(), now.Add(time.Second)
			return
		}
	}
	if c.next.IsZero() || now.Before(c.next) {
		return
	}
	switch c.State {
	case announce.Waiting:
		err = port.Probe(p.addr)
		c.next = now.Add(probeEvery)
	case announce.Conflict:
		err = port.Probe(p.addr)
		c.next = now.Add(retry)
	default:
		err = port.Announce(p.addr)
		c.next = time.Time{}
		if c.said < len(repeats) {
			c.next = now.Add(repeats[c.said])
		}
		c.said++
	}
	if err != nil {
		c.origin, c.next = err.Error(), now.Add(time.Second)
	}
}

// Answers reports whether this node answers for an address on an interface.
func (s *Speaker) Answers(addr netip.Addr, on string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[place{addr, on}]
	return c != nil && c.State == announce.Announced
}

// Conflict notes that somebody who is no announcer of the cluster says that he has an address.
func (s *Speaker) Conflict(addr netip.Addr, on string, who net.HardwareAddr, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[place{addr, on}]
	if c == nil {
		return
	}
	c.ends = now.Add(rest)
	if c.State == announce.Conflict {
		return // that it is he who was heard first is told, and no other text for each machine that says so
	}
	c.State, c.Since, c.next, c.doubt = announce.Conflict, now, now.Add(retry), time.Time{}
	c.Problem = fmt.Sprintf("%s is answered for by %s on %s, which is no node of this cluster, and is not announced there: take the address from that machine, or out of the AddressPool",
		addr, who, on)
}

// Overhear notes that another node of the cluster announces an address, or asks who has it, as a node does that gives
// it up. It may have taken the address for a moment, and clients that heard it go on asking it. So this node announces
// the address again, if it is still its own by then, but not against a node that comes first and does not answer: when
// two cannot reach each other, the first has the last word.
func (s *Speaker) Overhear(addr netip.Addr, on, by string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.claims[place{addr, on}]
	if c == nil || c.State != announce.Announced || !c.doubt.IsZero() {
		return
	}
	if slices.ContainsFunc(s.turns[addr].Silent, func(node string) bool { return number(node) == by }) {
		return
	}
	c.doubt = now.Add(settle)
	if soonest := c.sure.Add(again); c.doubt.Before(soonest) {
		c.doubt = soonest
	}
}

// Claims returns what is done about each address, sorted.
func (s *Speaker) Claims() []announce.Claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]announce.Claim, 0, len(s.claims))
	for _, c := range s.claims {
		out := c.Claim
		if c.origin != "" {
			out.State, out.Problem = announce.Failed, fmt.Sprintf("%s cannot be announced on %s: %s", out.Addr, out.Interface, c.origin)
		}
		list = append(list, out)
	}
	slices.SortFunc(list, func(a, b announce.Claim) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Interface, b.Interface))
	})
	return list
}
