package announcing

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"tapestry.dev/tapestry/announce"
)

// leadEvery is the time between two looks at who is the gateway of egress addresses. An announcer may notice AskEvery
// after the beats do, so that to look more often would have pods' packets at the next gateway before it is one.
const leadEvery = 2 * announce.AskEvery

// Lead calls set with the nodes by which egress addresses leave when they change, until ctx is done. The gateway of an
// address is its announcer, so it moves as fast as the address does.
func (a *Announcing) Lead(ctx context.Context, set func(map[netip.Addr]string)) {
	tick := time.NewTicker(leadEvery)
	defer tick.Stop()
	for {
		a.lead(time.Now(), set)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lead tells what has changed. An address keeps the gateway that it had, or is left out, while it is not known
// whether the next one answers: an agent that has just started would send what it knows by one that is not there.
func (a *Announcing) lead(now time.Time, set func(map[netip.Addr]string)) {
	node := a.o.Node()
	if node == nil {
		return
	}
	turns := a.turnsOfEgress(node, now)
	gateways := make(map[netip.Addr]string, len(turns))
	a.mu.Lock()
	for _, t := range turns {
		was, settled := a.gateways[t.Addr]
		switch early := t.Expected || t.Mine && a.asked[L2].IsZero(); {
		case !early:
			gateways[t.Addr] = t.Announcer
		case settled:
			gateways[t.Addr] = was
		}
	}
	known := a.gateways != nil && maps.Equal(a.gateways, gateways)
	a.gateways = gateways
	a.mu.Unlock()
	if !known {
		set(gateways)
	}
}

// turnsOfEgress returns whose turn it is for each egress address.
func (a *Announcing) turnsOfEgress(node Node, now time.Time) []announce.Turn {
	whole := a.o.Plan()
	plan := *whole
	if plan.Links = plan.Egress(); len(plan.Links) == 0 {
		return nil
	}
	a.mu.Lock()
	heard := a.heardLocked(node, whole, now)
	a.mu.Unlock()
	return plan.Turns(heard, announce.Self{Fit: a.announces(now)})
}

// announces reports whether this node announces addresses by ARP and NDP, as other nodes take it: its beats tell them
// for announce.Asked that it was asked, and they believe that for announce.Patience. An agent that has just started is
// given the time to be asked.
func (a *Announcing) announces(now time.Time) bool {
	a.mu.Lock()
	asked := a.asked[L2]
	a.mu.Unlock()
	if asked.IsZero() {
		return a.o.Unfit() == "" && slices.Contains(a.o.Kinds, L2) && now.Sub(a.begun) < announce.Patience
	}
	return a.o.Unfit() == "" && now.Sub(asked) < announce.Asked+announce.Patience
}

// lacking returns the turns of the addresses from which pods of this node leave and that have no gateway.
func (a *Announcing) lacking() (list []announce.Turn) {
	used := map[netip.Addr]bool{}
	for _, l := range a.o.Plan().Egress() {
		used[l.Addr] = l.Used
	}
	for _, t := range a.turnsOfEgress(a.o.Node(), time.Now()) {
		if t.Announcer == "" && used[t.Addr] {
			list = append(list, t)
		}
	}
	return list
}
