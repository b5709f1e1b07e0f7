package services

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
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
	out, in := differing(gone, come)
	next.states = t.states.with(out, in)
	next.here = t.here.with(out, in, func(p *piece) []frontKey { return p.here })
	next.anywhere = t.anywhere.with(out, in, func(p *piece) []frontKey { return p.anywhere })
	next.faulty = t.faultyAfter(next, &d)
	if d.sameFronts && equalNodes(&t.config, &c) {
		next.frontends = t.frontends
	} else {
		next.claim()
	}
	if next.pods = t.pods; next.pods == nil || !equalLists(t.config.Pods, c.Pods, equalPods) {
		next.pods = podIDs(c.Pods)
	}
	next.hosts = next.hostPortsOf()
	t.Affinity.Forget(changedOf(&t.states, &next.states, slices.Concat(out, in)))
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
	units := make([]*unit, c.Services.Len())
	stays := make([]bool, t.units.Len())
	known := t.knownUnits(c)
	at := placeOf(c)
	for i, s := range c.Services.All() {
		was := known(s)
		if was >= 0 && equalServices(old.At(was), s) {
			units[i], stays[was] = t.units.At(was), true
			continue
		}
		var before *unit
		if was >= 0 && equalFronts(old.At(was), s) {
			before = t.units.At(was)
		}
		units[i] = newUnit(s, at, t.Loads, before)
		d.come = append(d.come, units[i])
	}
	for i, u := range t.units.All() {
		if !stays[i] {
			d.gone = append(d.gone, u)
		}
	}
	next.units = roll.From(units)
	return d
}

// inPlace returns the indexes of the Services that c has in another form than t. ok is false when there are others, or
// in another order, or when the place is another one.
func (t *Table) inPlace(c *Config) (changed []int, ok bool) {
	old := t.config.Services
	if old.Len() == 0 || placeOf(&t.config) != placeOf(c) {
		return nil, false
	}
	changed, ok = roll.Replaced(old, c.Services)
	return changed, ok && !slices.ContainsFunc(changed, func(i int) bool { return compareServices(old.At(i), c.Services.At(i)) != 0 })
}

// replace fills in the units of next, whose Services are those of t but for the changed ones.
func (t *Table) replace(next *Table, changed []int) difference {
	d := difference{sameOrder: true, sameFronts: true}
	at := placeOf(&next.config)
	var edits []roll.Edit[*unit]
	for _, i := range changed {
		was, s := t.config.Services.At(i), next.config.Services.At(i)
		if equalServices(was, s) {
			continue
		}
		alike := equalFronts(was, s)
		var before *unit
		if alike {
			before = t.units.At(i)
		}
		u := newUnit(s, at, t.Loads, before)
		edits = append(edits, roll.Edit[*unit]{At: i, To: u})
		d.gone, d.come, d.fresh = append(d.gone, t.units.At(i)), append(d.come, u), append(d.fresh, uint32(i))
		d.sameFronts = d.sameFronts && alike
	}
	next.units = t.units.With(edits...)
	return d
}

// faultyAfter returns the indexes of the units of next with problems.
func (t *Table) faultyAfter(next *Table, d *difference) (list []uint32) {
	if !d.sameOrder {
		for i, u := range next.units.All() {
			if len(u.problems) > 0 {
				list = append(list, uint32(i))
			}
		}
		return list
	}
	for _, i := range t.faulty {
		if next.units.At(int(i)) == t.units.At(int(i)) {
			list = append(list, i)
		}
	}
	for _, i := range d.fresh {
		if len(next.units.At(int(i)).problems) > 0 {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}

// knownUnits returns a function that returns the index in t of a Service of c, or -1 when there is none. It must be
// called in their order. Units are reused only if the place is the same.
func (t *Table) knownUnits(c *Config) func(*Service) int {
	if placeOf(&t.config) != placeOf(c) {
		return func(*Service) int { return -1 }
	}
	old := t.config.Services
	next := 0
	return func(s *Service) int {
		for next < old.Len() && old.At(next) != s && compareServices(old.At(next), s) < 0 {
			next++
		}
		if next < old.Len() && (old.At(next) == s || compareServices(old.At(next), s) == 0) {
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
	n := c.Services.Len()
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
	slices.Sort(t.checked)
	t.makeIndex()
}

// claimFor adds the frontends of one Service, except those that an earlier Service has. taken maps a frontend to 1 +
// the index of its Service.
func (t *Table) claimFor(i uint32, taken map[frontKey]uint32) {
	s := t.config.Services.At(int(i))
	if s.HealthCheckNodePort != 0 {
		t.checked = append(t.checked, i)
	}
	for _, a := range s.ClusterIPs {
		t.addr(a, virtual)
	}
	for _, a := range s.ExternalIPs {
		t.addr(a, virtual)
		t.expose(a)
	}
	for _, f := range t.units.At(int(i)).fronts {
		switch old := taken[f.key]; old {
		case 0:
			taken[f.key] = 1 + i
			f.service = i
			t.add(f)
		case noService, 1 + i:
		default:
			first, where := t.config.Services.At(int(old-1)), "NodePort"
			if f.key.addr != (packet.Addr{}) {
				where = f.key.addr.Netip().String()
			}
			t.conflicts = append(t.conflicts, problemOf(s,
				"%s %d/%s belongs to Service %s/%s already; give one of them another address or port",
				where, f.key.port, protoName(f.key.proto), first.Namespace, first.Name))
		}
	}
}

// add adds a frontend of a Service.
func (t *Table) add(f front) {
	n := uint32(len(t.fronts))
	t.fronts = append(t.fronts, f)
	switch {
	case f.key.addr == (packet.Addr{}):
		t.nodePorts = append(t.nodePorts, n)
	case t.isOwn(&f.key.addr):
		t.atOwn = append(t.atOwn, n)
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
	order := make([]int, ss.Len())
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return compareServices(ss.At(x), ss.At(y)) })
	return order
}

// problems returns the problems of all Services and hostPorts, sorted by object.
func (t *Table) problems() []Problem {
	var out []Problem
	for _, i := range t.faulty {
		out = append(out, t.units.At(int(i)).problems...)
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

// states counts all backends, by their ids.
type states struct{ roll.Map[uint64, tally] }

// places counts how often the units list an endpoint.
type places struct{ roll.Map[frontKey, int32] }

func (p *places) has(k frontKey) bool {
	n, _ := p.Get(k.hash(), k)
	return n > 0
}

// with returns p without the endpoints of the pieces in gone, and with those of the pieces in come; of lists them.
func (p *places) with(gone, come []*piece, of func(*piece) []frontKey) places {
	e := p.Edit()
	for k, by := range net(gone, come, of) {
		h := k.hash()
		n, _ := e.Get(h, k)
		if n += by; n == 0 {
			e.Delete(h, k)
		} else {
			e.Set(h, k, n)
		}
	}
	return places{e.Done()}
}

// tally counts how often the units list a backend, and how often as serving, as ready and as sticky. Different Services
// count the same backend only if their ids collide, or if a Config lists a Service twice.
type tally struct{ all, serving, ready, sticky int32 }

// sticky reports whether clients may have sessions with a backend.
func (s *states) sticky(id uint64) bool {
	n, _ := s.Get(finish(id), id)
	return n.sticky > 0
}

func (s *states) of(id uint64) packet.BackendState {
	var n tally
	n, _ = s.Get(finish(id), id)
	switch {
	case n.ready > 0:
		return packet.BackendReady
	case n.serving > 0:
		return packet.BackendServing
	case n.all > 0:
		return packet.BackendDraining
	}
	return packet.BackendGone
}

// with returns s without the states of the pieces in gone, and with those of the pieces in come.
func (s *states) with(gone, come []*piece) states {
	e := s.Edit()
	for st, by := range net(gone, come, func(p *piece) []state { return p.states }) {
		h := finish(st.id)
		n, _ := e.Get(h, st.id)
		n.all += by
		switch st.is {
		case packet.BackendReady:
			n.ready += by
		case packet.BackendServing:
			n.serving += by
		}
		if st.sticky {
			n.sticky += by
		}
		if n.all == 0 {
			e.Delete(h, st.id)
		} else {
			e.Set(h, st.id, n)
		}
	}
	return states{e.Done()}
}

// net yields what the pieces in come list, as of says, with how much more often they list it than those in gone. What
// both list as often is left out, which is most when one endpoint of many changes.
func net[T comparable](gone, come []*piece, of func(*piece) []T) iter.Seq2[T, int32] {
	return func(yield func(T, int32) bool) {
		by := map[T]int32{}
		for _, p := range come {
			for _, x := range of(p) {
				if len(gone) > 0 {
					by[x]++
				} else if !yield(x, 1) {
					return
				}
			}
		}
		for _, p := range gone {
			for _, x := range of(p) {
				by[x]--
			}
		}
		for x, n := range by {
			if n != 0 && !yield(x, n) {
				return
			}
		}
	}
}
