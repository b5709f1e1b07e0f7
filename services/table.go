package services

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/balance"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/roll"
	"tapestry.dev/tapestry/services/affinity"
	"tapestry.dev/tapestry/services/leaving"
)

// Table is a compiled Config. It never changes, except for what flows change, its State, and for some sets of backends,
// which it makes on demand. All methods may be called concurrently. Backend allocates nothing,
// and Pick allocates nothing apart from these sets and from sessions. The data that flows need contains few pointers,
// so that a large Table costs the garbage collector little.
type Table struct {
	config Config
	// units.At(i) is config.Services.At(i), compiled.
	units roll.List[*unit]
	frontends

	states states
	here   places // all units' here
	// anywhere is all units' anywhere.
	anywhere places
	// faulty are the indexes of the units with problems, in order.
	faulty []uint32
	pods   map[uint64]struct{} // podID of every Pod that has an ID
	hosts  hostPorts
	// atNodes maps atNode to *set: the sets of backends on other nodes that were needed so far.
	atNodes sync.Map

	State // shared by all Tables that follow one another
}

// frontends is what follows from the addresses of nodes and from what Services ask for, whatever their endpoints are.
// Tables share it until one of these changes.
type frontends struct {
	addrs  map[packet.Addr]addrKind
	fronts []front
	// index finds fronts: open addressing with linear probing, at most half full. 0 is an empty slot; any other value
	// is 1 + an index into fronts.
	index     []uint32
	conflicts []Problem // frontends that a Service does not get because another Service has them
	own       []packet.Addr
	others    map[packet.Addr]string // addresses of the other nodes, and their names
	// nodePorts are the indexes of the fronts that are node ports, atOwn of those at addresses in own, and checked of
	// the Services with a HealthCheckNodePort.
	nodePorts, atOwn, checked []uint32
}

// State is what Tables that follow one another share, because it changes with the flows.
type State struct {
	// Affinity remembers clients with session affinity.
	Affinity *affinity.Memory
	// Loads has the load of the backends of Services that ask for it.
	Loads *balance.Loads
	// Leaving has the endpoints of this node, and those that have just left.
	Leaving *leaving.Memory
}

// NewState returns a State that knows nothing yet. owner is affinity.New's.
func NewState(owner func(client netip.Addr) netip.Prefix) State {
	return State{Affinity: affinity.New(owner), Loads: new(balance.Loads), Leaving: leaving.New(nil)}
}

// Empty returns a Table of an empty Config. It and all Tables that are made of it by Update share s.
func Empty(s State) *Table {
	t := &Table{State: s}
	t.claim()
	return t
}

// addrKind says what is known of an address. It is a set of bits.
type addrKind uint8

const (
	virtual  addrKind = 1 << iota // ClusterIP or ExternalIP: nothing but frontends
	node                          // a node's address: has NodePorts, and the node handles all other ports
	dnsAddr                       // cluster DNS
	exposed                       // ExternalIP
	portless                      // a node's address without NodePorts
)

// frontKey identifies a frontend. A NodePort is kept once per family, under the unspecified address, and not once per
// node.
type frontKey struct {
	addr  packet.Addr
	port  uint16
	proto packet.Proto
	is4   uint8 // 1: IPv4, when addr is unspecified; 2: for host sockets alone; fills a gap, which makes == cheap
}

func addrKey(addr packet.Addr, port uint16, proto packet.Proto) frontKey {
	return frontKey{addr: addr, port: port, proto: proto}
}

func nodePortKey(is4 bool, port uint16, proto packet.Proto) frontKey {
	k := frontKey{port: port, proto: proto}
	if is4 {
		k.is4 = 1
	}
	return k
}

// socketKey returns the key of a frontend that only clients of host sockets use.
func socketKey(addr packet.Addr, port uint16, proto packet.Proto) frontKey {
	return frontKey{addr: addr, port: port, proto: proto, is4: 2}
}

// front is a frontend.
type front struct {
	key frontKey
	// set serves clients outside the cluster, inside serves clients within it (see Config.ClusterCIDRs). For
	// ClusterIPs both are the same. They are indexes into the sets of the Service's unit.
	set, inside uint32
	service     uint32 // index into config.Services and units, or noService
	port        uint16 // index into the Service's Ports
	affinity    bool
	guarded     bool // only for the Service's SourceRanges
}

// noService marks a frontend that the node answers itself.
const noService = ^uint32(0)

// set is a set of backends to choose from, or the answer to clients when there is none.
type set struct {
	backends []backend       // sorted by id; nil where there is a tree
	slots    []uint32        // Maglev table: indexes into backends; nil: rendezvous
	tree     *tree           // of more than maglevMax backends that are chosen by hash
	picker   *balance.Picker // nil: by hash
	empty    packet.ChoiceKind
	ending   bool // the backends terminate, and are chosen since none is ready
}

type backend struct {
	id uint64
	to packet.Endpoint
}

// Pick chooses the backend for the first packet of a flow. Unless the Service says otherwise (Service.Balance), the
// choice depends only on the Table, the tuple's source address, its ports and its protocol, so that it is the same
// after the flow table is lost. With session affinity it is the backend of the client's session, which the call renews;
// a client without a session gets one, whose backend depends on the Table and the source address.
func (t *Table) Pick(tuple *packet.Tuple) packet.Choice {
	l := t.at(tuple)
	return t.pick(&l, tuple)
}

func (t *Table) pick(l *lead, tuple *packet.Tuple) packet.Choice {
	switch {
	case l.front != nil:
		return t.choose(l.front, tuple)
	case l.pod.id != 0:
		return packet.Choice{Kind: packet.Picked, Backend: l.pod.id, To: l.pod.to}
	case l.kind&dnsAddr != 0 && (tuple.Proto == packet.ICMPv4 || tuple.Proto == packet.ICMPv6):
		return packet.Choice{Kind: packet.ToStack}
	case l.kind&node != 0:
		return packet.Choice{Kind: packet.NotFrontend}
	case l.kind != 0 || addressing.Contains(t.config.ServiceCIDRs, tuple.Dst.Netip()):
		return packet.Choice{Kind: packet.UnknownPort}
	}
	return packet.Choice{Kind: packet.NotFrontend}
}

// lead says where a destination leads: to a frontend, to the pod of a hostPort, or to neither.
type lead struct {
	front *front
	pod   backend  // id is 0: no hostPort
	kind  addrKind // of the address, if there is no frontend at the address itself; 0: unknown
}

// at returns where the tuple's destination leads packets. The first to have it is a frontend at the address itself, at
// this node's own addresses a hostPort, and at any node's a node port.
func (t *Table) at(tuple *packet.Tuple) (l lead) {
	if l.front = t.find(addrKey(tuple.Dst, tuple.DstPort, tuple.Proto)); l.front != nil {
		return l
	}
	if l.kind = t.addrs[tuple.Dst]; l.kind&node == 0 {
		return l
	}
	if len(t.hosts.fronts) > 0 && t.isOwn(&tuple.Dst) {
		if l.pod = t.hosts.at(tuple); l.pod.id != 0 {
			return l
		}
	}
	if l.kind&portless == 0 {
		l.front = t.find(nodePortKey(tuple.Dst.Is4(), tuple.DstPort, tuple.Proto))
	}
	return l
}

// Backend returns the present state of a backend that Pick returned with the address at, perhaps on another node or
// before a restart. A pod to which no Service port leads any longer is draining while it lives. So is a backend that is
// known by its address alone, since nobody but itself can tell that it is gone.
func (t *Table) Backend(id uint64, at packet.Addr) packet.BackendState {
	if s := t.states.of(id); s != packet.BackendGone {
		return s
	}
	if _, served := t.hosts.ids[id]; served {
		return packet.BackendReady
	}
	if _, lives := t.pods[id&podMask]; lives || id&podMask == addrID(at) {
		return packet.BackendDraining
	}
	return packet.BackendGone
}

// Leads reports whether the tuple's destination still leads to the Service port for which Pick returned the backend.
// port is the backend's target port. The backend itself may be gone.
func (t *Table) Leads(tuple *packet.Tuple, backend uint64, port uint16) bool {
	l := t.at(tuple)
	return t.stays(&l, backend, port) || l.front == nil && t.steers(tuple, backend, port)
}

// stays reports whether l is of the Service port or hostPort that the backend was chosen for.
func (t *Table) stays(l *lead, backend uint64, port uint16) bool {
	switch {
	case l.front == nil:
		return l.pod.id != 0 && l.pod.id == backend
	case l.front.service == noService:
		return false
	}
	s := t.config.Services.At(int(l.front.service))
	return backend&^podMask == backendID(0, portID(s, &s.Ports[l.front.port]), port)
}

// IsEndpoint reports whether a Service has an endpoint at that address and port, ready or not. It knows only endpoints
// on this node, also those that have just left their Services, and endpoints without a node.
func (t *Table) IsEndpoint(to packet.Endpoint, proto packet.Proto) bool {
	if k := addrKey(to.Addr, to.Port, proto); t.here.has(k) || t.anywhere.has(k) {
		return true
	}
	return len(t.Leaving.Leaving(leaving.Key{Endpoint: to, Proto: proto})) > 0
}

// Services returns the Services of the Config.
func (t *Table) Services() roll.List[*Service] { return t.config.Services }

func (t *Table) find(k frontKey) *front {
	mask := uint64(len(t.index) - 1)
	for i := k.hash() & mask; ; i = (i + 1) & mask {
		n := t.index[i]
		if n == 0 {
			return nil
		}
		if f := &t.fronts[n-1]; f.key == k {
			return f
		}
	}
}

// secrets make the hashes of keys differ in every process. Users write the addresses of endpoints, and could choose
// thousands with one hash otherwise, each of which would then be compared with all others.
var secrets = [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()}

func (k *frontKey) hash() uint64 {
	hi := binary.LittleEndian.Uint64(k.addr[:8])
	lo := binary.LittleEndian.Uint64(k.addr[8:])
	rest := uint64(k.port)<<16 | uint64(k.proto)<<8 | uint64(k.is4)
	return finish(mix(mix(hi^secrets[0], lo^secrets[1])^rest, secrets[2]|1))
}

// makeIndex builds the index. All fronts must be there.
func (t *Table) makeIndex() {
	t.index = make([]uint32, 1<<bits.Len(uint(2*len(t.fronts))))
	mask := uint64(len(t.index) - 1)
	for n := range t.fronts {
		i := t.fronts[n].key.hash() & mask
		for t.index[i] != 0 {
			i = (i + 1) & mask
		}
		t.index[i] = uint32(n + 1)
	}
}

func (t *Table) choose(f *front, tuple *packet.Tuple) packet.Choice {
	if f.service == noService {
		return packet.Choice{Kind: packet.ToStack}
	}
	if t.excludes(f, tuple) {
		return packet.Choice{Kind: packet.DropSource}
	}
	s, there := t.setOf(f, tuple)
	if s.size() == 0 {
		return packet.Choice{Kind: s.empty}
	}
	var b *backend
	if f.affinity {
		b = t.remembered(f, s, there, &tuple.Src)
	} else {
		b = s.pick(tuple)
	}
	return packet.Choice{Kind: packet.Picked, Backend: b.id, To: b.to, Counted: t.units.At(int(f.service)).held != nil}
}

// excludes reports whether the SourceRanges of a frontend's Service leave the tuple's client out.
func (t *Table) excludes(f *front, tuple *packet.Tuple) bool {
	return f.guarded && !addressing.Contains(t.config.Services.At(int(f.service)).SourceRanges, tuple.Src.Netip())
}

// setOf returns the backends that a frontend of a Service has for the tuple's client. there is the node at whose
// address a client in the cluster asks for that node's own endpoints, else "".
func (t *Table) setOf(f *front, tuple *packet.Tuple) (s *set, there string) {
	s = &t.units.At(int(f.service)).sets[f.set]
	if f.inside != f.set && t.fromInside(&tuple.Src) {
		s = &t.units.At(int(f.service)).sets[f.inside]
		if name, other := t.others[tuple.Dst]; other && s.size() > 0 {
			s, there = t.setAt(f, name, tuple.Dst.Is4()), name
		}
	}
	return s, there
}

// atNode identifies a set of backends on another node.
type atNode struct {
	front *front
	node  string
}

// setAt returns the backends that another node would offer external clients at its addresses of that family. Clients
// in the cluster use them at that node's addresses. Few clients need such a set, so it is made on demand.
func (t *Table) setAt(f *front, node string, is4 bool) *set {
	k := atNode{f, node}
	if s, ok := t.atNodes.Load(k); ok {
		return s.(*set)
	}
	svc := t.config.Services.At(int(f.service))
	p := &svc.Ports[f.port]
	b := unitBuilder{unit: new(unit), s: svc, loads: t.Loads}
	s := b.set(Select(svc, p, Scope{Node: node, Family: familyOf(is4)}), portID(svc, p), packet.DropLocal)
	b.choose(&s, t.Loads.Find)
	made, _ := t.atNodes.LoadOrStore(k, &s)
	return made.(*set)
}

// size returns the number of backends.
func (s *set) size() int {
	if s.tree != nil {
		return s.tree.size()
	}
	return len(s.backends)
}

// at returns backend number i, in the order of their ids.
func (s *set) at(i int) *backend {
	if s.tree != nil {
		return s.tree.at(i)
	}
	return &s.backends[i]
}

// search returns the number of the first backend whose id is not less, and whether it has that id.
func (s *set) search(id uint64) (i int, found bool) {
	if s.tree != nil {
		return s.tree.search(id)
	}
	return slices.BinarySearchFunc(s.backends, id, func(b backend, id uint64) int { return cmp.Compare(b.id, id) })
}

// winner returns the backend for a hash. The set must not be empty.
func (s *set) winner(h uint64) *backend {
	if s.tree != nil {
		return s.tree.winner(h)
	}
	bs := s.backends
	if len(s.slots) != 0 {
		return &bs[s.slots[uint32(finish(h)%uint64(len(s.slots)))]]
	}
	best, most := 0, score(h, bs[0].id)
	for i := 1; i < len(bs); i++ {
		if w := score(h, bs[i].id); w > most {
			best, most = i, w
		}
	}
	return &bs[best]
}

// fromInside reports whether a client is a pod or this node itself.
func (t *Table) fromInside(src *packet.Addr) bool {
	return t.isOwn(src) || addressing.Contains(t.config.ClusterCIDRs, src.Netip())
}
