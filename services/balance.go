package services

import (
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
)

// methodOf returns the method by which backends of s are chosen.
func methodOf(s *Service) balance.Method {
	if s.Affinity > 0 {
		return balance.Hash // a session is placed where every node would place it
	}
	return s.Balance
}

// pick returns the backend for the first packet of a flow. The set must not be empty.
func (s *set) pick(tuple *packet.Tuple) *backend {
	if s.picker != nil {
		return &s.backends[s.picker.Pick()]
	}
	return s.winner(flowHash(tuple))
}

// hold gives the sets their Pickers, and holds the Loads that these need. It holds those of all backends, since one
// that is not ready has connections, too.
func (b *unitBuilder) hold() {
	m := methodOf(b.s)
	if m.Stateless() {
		return
	}
	var known map[uint64]*balance.Load
	if m.Counts() {
		b.held = make([]uint64, 0, len(b.states))
		for _, s := range b.states {
			b.held = append(b.held, s.id)
		}
		known = b.loads.Hold(b.held)
	}
	for i := range b.sets {
		b.choose(&b.sets[i], func(id uint64) *balance.Load { return known[id] })
	}
}

// choose gives a set its Picker.
func (b *unitBuilder) choose(s *set, load func(id uint64) *balance.Load) {
	m := methodOf(b.s)
	if len(s.backends) == 0 || m.Stateless() {
		return
	}
	var loads []*balance.Load
	if m.Counts() {
		loads = make([]*balance.Load, len(s.backends))
		for i := range s.backends {
			if loads[i] = load(s.backends[i].id); loads[i] == nil {
				loads[i] = new(balance.Load) // for the time until the next Table
			}
		}
	}
	s.picker = b.loads.New(m, len(s.backends), loads)
}

// exchange releases the Loads of the units gone, and marks as new the backends that the units come may choose and the
// units gone might not. In the first Table of a process no backend is new: it may have been there for long.
func (t *Table) exchange(gone, come []*unit) {
	if t.units.Len() > 0 {
		var before map[uint64]struct{}
		for _, u := range come {
			if u.held == nil {
				continue
			}
			if before == nil {
				before = choices(gone)
			}
			for id := range choices([]*unit{u}) {
				if _, was := before[id]; !was {
					t.Loads.Find(id).Come(t.Loads.Now())
				}
			}
		}
	}
	for _, u := range gone {
		if u.held != nil {
			t.Loads.Release(u.held)
		}
	}
}

// choices returns the backends in the sets of units.
func choices(units []*unit) map[uint64]struct{} {
	ids := map[uint64]struct{}{}
	for _, u := range units {
		for i := range u.sets {
			for _, b := range u.sets[i].backends {
				ids[b.id] = struct{}{}
			}
		}
	}
	return ids
}

// Method returns how the endpoints of a Service port are to be chosen by callers that make connections themselves.
func (t *Table) Method(p ServicePort) balance.Method {
	if _, s := t.service(p.Namespace, p.Name); s != nil {
		return s.Balance
	}
	return balance.Hash
}

// ServiceAt returns the Service to whose frontend the tuple's destination leads, nil if it leads to none.
func (t *Table) ServiceAt(tuple *packet.Tuple) *Service { return t.serviceOf(t.at(tuple)) }

// ServiceOnHost is ServiceAt for a client of a socket on this host.
func (t *Table) ServiceOnHost(tuple *packet.Tuple) *Service { return t.serviceOf(t.atOnHost(tuple)) }

func (t *Table) serviceOf(l lead) *Service {
	if l.front == nil || l.front.service == noService {
		return nil
	}
	return t.config.Services.At(int(l.front.service))
}
