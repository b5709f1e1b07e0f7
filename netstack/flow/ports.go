package flow

import "tapestry.dev/tapestry/netstack/packet"

// Ports that tell the flows of many clients apart can be used up: those of one address of this node towards one
// backend, by whoever begins that many flows. So the last of them go by the rule of all that is scarce.

// freePort looks for a port for e.Reply once more, and for a flow that gives up its own. e has the slot i. A flow gives
// way if its client has many more flows than e's client, or its owner than e's owner, or if it is cheap, as unanswered
// ones are. It stays if its owner has fewer flows than e's owner. freePort reports whether it has set a port in e.Reply
// that is free now.
func (t *Table) freePort(i uint32, e *Entry) bool {
	mine, few := t.owned.Of(i)
	ports, v, best := portSearch{proto: e.Orig.Proto}, victim{now: t.now.Load()}, packet.Tuple{}
	var hit Hit
	for reply := e.Reply; ports.next(&reply); {
		if s, _, _ := t.get(&reply, &hit); s == nil {
			e.Reply = reply
			return true
		}
		slot := hit.Ref & (maxSlots - 1)
		charge, many := t.owned.Of(slot)
		if charge < mine {
			continue
		}
		// Pods of one node may count as one client, since that is a whole /64 of IPv6.
		more := max(0, int(crowd(many))-int(crowd(few)), int(crowd(charge))-int(crowd(mine)))
		if v.consider(t, slot, uint32(more)); v.found && v.slot == slot {
			best = reply
		}
	}
	if !v.found || !v.cheap() && v.crowd == 0 || !v.evict(t, &t.forPort) {
		return false
	}
	e.Reply = best
	return true
}
