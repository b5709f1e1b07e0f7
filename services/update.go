package services

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
)

// NewTable compiles c. The Table borrows c for its whole life, so c must not be changed. Parts of c with a problem
// have no effect, and the problems are returned; everything else takes effect. If two Services claim one frontend, the
// one with the lesser namespace and name gets it, so that all nodes agree.
func NewTable(c Config) (*Table, []Problem) { return (*Table)(nil).Update(c) }

// Update returns the same Table as NewTable(c), but reuses the parts of t that have not changed. The cost of a new
// endpoint then depends on its Service alone, apart from the comparison of the Configs. Update returns t itself when
// nothing has changed. t does not change, and may be nil.
func (t *Table) Update(c Config) (*Table, []Problem) {
	switch {
	case t == nil:
		t = &Table{State: NewState(nil)}
	case equalConfigs(&t.config, &c):
		return t, t.problems()
	}
	next := &Table{config: c, State: t.State, units: make([]*unit, len(c.Services))}
	sameFronts := len(t.units) > 0 && equalNodes(&t.config, &c) && len(t.units) == len(c.Services)
	var gone, come []*unit
	stays := make([]bool, len(t.units))
	known := t.knownUnits(&c)
	at := placeOf(&c)
	for i := range c.Services {
		s := c.Services[i]
		old := known(i)
		if old >= 0 && equalServices(t.config.Services[old], s) {
			next.units[i], stays[old] = t.units[old], true
		} else {
			next.units[i] = newUnit(s, at, t.Loads)
			come = append(come, next.units[i])
		}
		sameFronts = sameFronts && old == i && equalFronts(t.config.Services[i], s)
	}
	for i, u := range t.units {
		if !stays[i] {
			gone = append(gone, u)
		}
	}
	next.states = t.states.with(gone, come)
	next.here = t.here
	if slices.ContainsFunc(slices.Concat(gone, come), func(u *unit) bool { return len(u.here) > 0 }) {
		next.here = endpointsOf(next.units)
	}
	if sameFronts {
		next.addrs, next.fronts, next.index, next.conflicts, next.own, next.others = t.addrs, t.fronts, t.index, t.conflicts, t.own, t.others
	} else {
		next.claim()
	}
	if next.pods = t.pods; next.pods == nil || !equalLists(t.config.Pods, c.Pods, equalPods) {
		next.pods = podIDs(c.Pods)
	}
	next.hosts = next.hostPortsOf()
	t.Affinity.Forget(changedOf(gone, come))
	t.exchange(gone, come)
	t.Leaving.Change(standings(gone), standings(come))
	return next, next.problems()
}

// knownUnits returns a function that returns the index in t of the Service number i of c, or -1 when there is none.
// The function must be called with growing numbers. Units are reused only if the place is the same.
func (t *Table) knownUnits(c *Config) func(i int) int {
	if placeOf(&t.config) != placeOf(c) {
		return func(int) int { return -1 }
	}
	old := t.config.Services
	next := 0
	return func(i int) int {
		s := c.Services[i]
		for next < len(old) && compareServices(old[next], s) < 0 {
			next++
		}
		if next < len(old) && compareServices(old[next], s) == 0 {
			next++
			return next - 1
		}
		return -1
	}
}

func compareServices(a, b *Service) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// conflict is a frontend that a Service does not get because another Service has it.
type conflict struct {
	service uint32 // index into config.Services
	problem Problem
}

// claim assigns the frontends to the Services, and records the meaning of addresses.
func (t *Table) claim() {
	c := &t.config
	n := len(c.Services)
	t.addrs = make(map[packet.Addr]addrKind, n+len(c.NodeAddrs)+len(c.DNSAddrs))
	t.fronts = make([]front, 0, n+2*len(c.DNSAddrs))
	taken := make(map[frontKey]uint32, n)
	for _, a := range c.NodeAddrs {
		t.addr(a, node)
	}
	for _, a := range c.NoNodePorts {
		t.addr(a, portless)
	}
	// Cluster DNS takes precedence over a Service that has the same address.
	for _, a := range c.DNSAddrs {
		t.addr(a, dnsAddr)
		for _, proto := range [...]packet.Proto{packet.UDP, packet.TCP} {
			if k := addrKey(packet.AddrFrom(a), 53, proto); a.IsValid() && taken[k] == 0 {
				taken[k] = noService
				t.fronts = append(t.fronts, front{key: k, service: noService})
			}
		}
	}
	for _, a := range c.OwnAddrs {
		if a.IsValid() {
			t.own = append(t.own, packet.AddrFrom(a))
		}
	}
	t.others = map[packet.Addr]string{}
	for i, a := range c.NodeAddrs[:min(len(c.NodeAddrs), len(c.NodeNames))] {
		if name := c.NodeNames[i]; a.IsValid() && name != c.Node {
			t.others[packet.AddrFrom(a)] = name
		}
	}
	for _, i := range t.order() {
		t.claimFor(uint32(i), taken)
	}
	t.makeIndex()
}

// claimFor adds the frontends of one Service, except those that an earlier Service has. taken maps a frontend to 1 +
// the index of its Service.
func (t *Table) claimFor(i uint32, taken map[frontKey]uint32) {
	s := t.config.Services[i]
	for _, a := range s.ClusterIPs {
		t.addr(a, virtual)
	}
	for _, a := range s.ExternalIPs {
		t.addr(a, virtual)
		t.expose(a)
	}
	for _, f := range t.units[i].fronts {
		switch old := taken[f.key]; old {
		case 0:
			taken[f.key] = 1 + i
			f.service = i
			t.fronts = append(t.fronts, f)
		case noService, 1 + i:
		default:
			first, where := t.config.Services[old-1], "NodePort"
			if f.key.addr != (packet.Addr{}) {
				where = f.key.addr.Netip().String()
			}
			t.conflicts = append(t.conflicts, conflict{i, problemOf(s,
				"%s %d/%s belongs to Service %s/%s already; give one of them another address or port",
				where, f.key.port, protoName(f.key.proto), first.Namespace, first.Name)})
		}
	}
}

func (t *Table) addr(a netip.Addr, k addrKind) {
	if a.IsValid() && !a.IsUnspecified() {
		t.addrs[packet.AddrFrom(a)] |= k
	}
}

// order returns the indexes of the Services in the order in which they claim frontends.
func (t *Table) order() []int {
	ss := t.config.Services
	order := make([]int, len(ss))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return compareServices(ss[x], ss[y]) })
	return order
}

// problems returns the problems of all Services and hostPorts, sorted by object.
func (t *Table) problems() []Problem {
	conflicts := map[uint32][]Problem{}
	for _, c := range t.conflicts {
		conflicts[c.service] = append(conflicts[c.service], c.problem)
	}
	var out []Problem
	for i, u := range t.units {
		if len(u.problems) > 0 || len(conflicts[uint32(i)]) > 0 {
			out = append(append(out, u.problems...), conflicts[uint32(i)]...)
		}
	}
	out = append(out, t.hosts.problems...)
	slices.SortStableFunc(out, func(a, b Problem) int { return cmp.Compare(a.Object, b.Object) })
	return out
}

// endpointsOf returns the endpoints of all units on this node.
func endpointsOf(units []*unit) map[frontKey]struct{} {
	here := map[frontKey]struct{}{}
	for _, u := range units {
		for _, at := range u.here {
			here[at] = struct{}{}
		}
	}
	return here
}

func podIDs(pods []Pod) map[uint64]struct{} {
	ids := make(map[uint64]struct{}, len(pods))
	for i := range pods {
		if p := &pods[i]; p.ID != "" {
			for _, a := range p.Addrs {
				ids[podID(p.ID, a)] = struct{}{}
			}
		}
	}
	return ids
}

// states counts all backends. The index is the last byte of the backend's id, which depends only on the Service port
// and the target port, so the backends of a Service port are together. Successive Tables share the parts that are the
// same.
type states [256]map[uint64]tally

// tally counts how often the units list a backend, and how often as serving and as ready. Different Services count the
// same backend only if their ids collide, or if a Config lists a Service twice.
type tally struct{ all, serving, ready int32 }

func part(id uint64) int { return int(id & 0xff) }

func (s *states) of(id uint64) packet.BackendState {
	switch n := s[part(id)][id]; {
	case n.ready > 0:
		return packet.BackendReady
	case n.serving > 0:
		return packet.BackendServing
	case n.all > 0:
		return packet.BackendDraining
	}
	return packet.BackendGone
}

// with returns s without the states of the units in gone, and with the states of the units in come.
func (s *states) with(gone, come []*unit) states {
	out := *s
	var mine [256]bool
	size := 0
	for _, u := range come {
		size += len(u.states)
	}
	own := func(i int) map[uint64]tally {
		if !mine[i] {
			mine[i] = true
			if old := out[i]; old != nil {
				out[i] = maps.Clone(old)
			} else {
				out[i] = make(map[uint64]tally, size/(2*len(out)))
			}
		}
		return out[i]
	}
	count := func(units []*unit, by int32) {
		for _, u := range units {
			for _, st := range u.states {
				m := own(part(st.id))
				n := m[st.id]
				n.all += by
				switch st.is {
				case packet.BackendReady:
					n.ready += by
				case packet.BackendServing:
					n.serving += by
				}
				if m[st.id] = n; n.all == 0 {
					delete(m, st.id)
				}
			}
		}
	}
	count(gone, -1)
	count(come, 1)
	return out
}
