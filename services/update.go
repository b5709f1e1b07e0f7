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
	next := &Table{config: c, State: t.State}
	d := t.compile(next)
	gone, come := d.gone, d.come
	next.states = t.states.with(gone, come)
	next.here = t.here.with(gone, come, func(u *unit) []frontKey { return u.here })
	next.anywhere = t.anywhere.with(gone, come, func(u *unit) []frontKey { return u.anywhere })
	next.faulty = t.faultyAfter(next, &d)
	if d.sameFronts && equalNodes(&t.config, &c) {
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

// difference is what differs between two Tables that follow one another.
type difference struct {
	gone, come []*unit
	// sameOrder is set when each unit has the index of the unit that it takes the place of; then fresh has the indexes
	// of the units come. sameFronts is set when the Services ask for the same frontends besides.
	sameOrder, sameFronts bool
	fresh                 []uint32
}

// compile fills in the units of next, which has its Config: those of t, and new ones for what has changed.
func (t *Table) compile(next *Table) (d difference) {
	if changed, ok := t.inPlace(&next.config); ok {
		return t.replace(next, changed)
	}
	c, old := &next.config, t.config.Services
	next.units = make([]*unit, len(c.Services))
	stays := make([]bool, len(t.units))
	known := t.knownUnits(c)
	at := placeOf(c)
	for i, s := range c.Services {
		if was := known(i); was >= 0 && equalServices(old[was], s) {
			next.units[i], stays[was] = t.units[was], true
			continue
		}
		next.units[i] = newUnit(s, at, t.Loads)
		d.come = append(d.come, next.units[i])
	}
	for i, u := range t.units {
		if !stays[i] {
			d.gone = append(d.gone, u)
		}
	}
	return d
}

// inPlace returns the indexes of the Services that c has in another form than t. ok is false when there are others, or
// in another order, or when the place is another one. It costs a comparison of two pointers for each Service that is
// the same.
func (t *Table) inPlace(c *Config) (changed []uint32, ok bool) {
	old := t.config.Services
	if len(old) == 0 || len(old) != len(c.Services) || placeOf(&t.config) != placeOf(c) {
		return nil, false
	}
	for i, s := range c.Services {
		if old[i] == s {
			continue
		}
		if compareServices(old[i], s) != 0 {
			return nil, false
		}
		changed = append(changed, uint32(i))
	}
	return changed, true
}

// replace fills in the units of next, whose Services are those of t but for the changed ones.
func (t *Table) replace(next *Table, changed []uint32) difference {
	d := difference{sameOrder: true, sameFronts: true}
	next.units = slices.Clone(t.units)
	at := placeOf(&next.config)
	for _, i := range changed {
		was, s := t.config.Services[i], next.config.Services[i]
		if equalServices(was, s) {
			continue
		}
		next.units[i] = newUnit(s, at, t.Loads)
		d.gone, d.come, d.fresh = append(d.gone, t.units[i]), append(d.come, next.units[i]), append(d.fresh, i)
		d.sameFronts = d.sameFronts && equalFronts(was, s)
	}
	return d
}

// faultyAfter returns the indexes of the units of next with problems.
func (t *Table) faultyAfter(next *Table, d *difference) (list []uint32) {
	if !d.sameOrder {
		for i, u := range next.units {
			if len(u.problems) > 0 {
				list = append(list, uint32(i))
			}
		}
		return list
	}
	for _, i := range t.faulty {
		if next.units[i] == t.units[i] {
			list = append(list, i)
		}
	}
	for _, i := range d.fresh {
		if len(next.units[i].problems) > 0 {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}

// knownUnits returns a function that returns the index in t of the Service number i of c, or -1 when there is none. It
// must be called with growing numbers. Units are reused only if the place is the same.
func (t *Table) knownUnits(c *Config) func(i int) int {
	if placeOf(&t.config) != placeOf(c) {
		return func(int) int { return -1 }
	}
	old := t.config.Services
	next := 0
	return func(i int) int {
		s := c.Services[i]
		for next < len(old) && old[next] != s && compareServices(old[next], s) < 0 {
			next++
		}
		if next < len(old) && (old[next] == s || compareServices(old[next], s) == 0) {
			next++
			return next - 1
		}
		return -1
	}
}

func compareServices(a, b *Service) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
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
			t.conflicts = append(t.conflicts, problemOf(s,
				"%s %d/%s belongs to Service %s/%s already; give one of them another address or port",
				where, f.key.port, protoName(f.key.proto), first.Namespace, first.Name))
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
	var out []Problem
	for _, i := range t.faulty {
		out = append(out, t.units[i].problems...)
	}
	// The sort is stable: a Service's own problems stay ahead of its conflicts.
	out = append(out, t.conflicts...)
	out = append(out, t.hosts.problems...)
	slices.SortStableFunc(out, func(a, b Problem) int { return cmp.Compare(a.Object, b.Object) })
	return out
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

// places counts how often the units list an endpoint. Successive Tables share the parts that are the same.
type places [256]map[frontKey]int32

func (p *places) has(k frontKey) bool { return p[uint8(k.hash())][k] > 0 }

// with returns p without the endpoints of the units in gone, and with those of the units in come; of lists them.
func (p *places) with(gone, come []*unit, of func(*unit) []frontKey) places {
	out := *p
	var mine [256]bool
	count := func(units []*unit, by int32) {
		for _, u := range units {
			for _, k := range of(u) {
				i := uint8(k.hash())
				if !mine[i] {
					mine[i], out[i] = true, maps.Clone(out[i])
					if out[i] == nil {
						out[i] = map[frontKey]int32{}
					}
				}
				if out[i][k] += by; out[i][k] == 0 {
					delete(out[i], k)
				}
			}
		}
	}
	count(gone, -1)
	count(come, 1)
	return out
}

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
