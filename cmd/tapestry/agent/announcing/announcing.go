// Package announcing is the agent's side of what is announced to the network outside: it tells the announcers of this
// node what to announce, tells other nodes whether this one could, and keeps what the announcers say of their work.
package announcing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/counter"
	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/overlay"
)

// Kind is a way to announce addresses.
type Kind string

// The kinds of announcers.
const (
	L2  Kind = "l2"
	BGP Kind = "bgp"
)

// away is after how long without a question an announcer is told to be missing.
const away = 10 * time.Second

// Node is the node, as far as it matters here; *node.Node is one.
type Node interface {
	AnswerBeats(until time.Time)
	Beats() []overlay.Beat
	PassOver(nodes map[string]bool)
	Askers(since time.Time) map[string]bool
}

// Options are the settings of an Announcing. All but Users are required.
type Options struct {
	// Node returns the node; nil before the first snapshot of the cluster is in force.
	Node func() Node
	// Plan returns what is to be announced. It is called only when there is a node.
	Plan func() *announce.Plan
	// NodeAddrs returns the node's addresses. It is called only when there is a node.
	NodeAddrs func() []netip.Addr
	// Name is this node's.
	Name string
	// Kinds are the announcers that this node is to have.
	Kinds []Kind
	// Users may be the announcer of a kind; none means all that may connect.
	Users map[Kind][]uint32
	// Unfit says why the node should be sent nothing, or "".
	Unfit func() string
}

// Announcing is safe for concurrent use.
type Announcing struct {
	o     Options
	begun time.Time

	mu sync.Mutex
	// mu guards the rest.
	asked      map[Kind]time.Time
	records    announce.Records
	passing    bool // a node rests
	seen       seen
	turns      []announce.Turn // those that follow from seen
	links      uint64          // counts the changes of turns
	peers      []announce.Peer
	routes     []announce.Route
	changes    uint64 // counts those of peers and routes
	claims     []announce.Claim
	sessions   []announce.Session
	gateways   map[netip.Addr]string // as the node was told; nil before that
	claimsAt   time.Time
	sessionsAt time.Time
}

// New returns an Announcing.
func New(o Options) *Announcing {
	// An announcer that outlives an agent must not take the next one's number for the last one's.
	return &Announcing{o: o, begun: time.Now(), asked: map[Kind]time.Time{}, links: rand.Uint64() >> 1, changes: rand.Uint64() >> 1}
}

// errEarly is what announcers are told before there is a node. They go on as they did for a while.
var errEarly = errors.New("the agent does not know the cluster yet")

// Shown returns the tables that people ask for.
func (a *Announcing) Shown() []localapi.Source { return append(a.linkTables(), a.routerTables()...) }

func (a *Announcing) linkTables() []localapi.Source {
	return []localapi.Source{
		localapi.Turns.From(func(context.Context) ([]announce.Turn, error) { t, _, err := a.look(time.Now()); return t, err }),
		localapi.Claims.From(func(context.Context) ([]announce.Claim, error) { c, _ := a.said(); return c, nil }),
	}
}

func (a *Announcing) routerTables() []localapi.Source {
	return []localapi.Source{
		localapi.Routes.From(func(context.Context) ([]announce.Route, error) { _, r, _, err := a.bgp(); return r, err }),
		localapi.Sessions.From(func(context.Context) ([]announce.Session, error) { _, s := a.said(); return s, nil }),
	}
}

// Server returns the server of the socket of announcers: what they ask, and where they say how it goes. Each has the
// tables of its kind alone: one that talks to routers must not have this node count as one that answers by ARP.
func (a *Announcing) Server(o localapi.Options) *localapi.Server {
	s := &localapi.Server{Node: func(context.Context) localapi.Node { return localapi.Node{Name: a.o.Name} }, Options: o, Told: a.told()}
	for _, t := range append(a.linkTables(), localapi.LinkState.From(func(context.Context) ([]announce.State, error) { return a.linkState(time.Now()) })) {
		s.Tables = append(s.Tables, t.For(a.o.Users[L2]...))
	}
	for _, t := range append(a.routerTables(),
		localapi.RouteState.From(func(context.Context) ([]announce.State, error) { return a.routeState(time.Now()) }),
		localapi.BGPPeers.From(func(context.Context) ([]announce.Peer, error) { p, _, _, err := a.bgp(); return p, err }),
	) {
		s.Tables = append(s.Tables, t.For(a.o.Users[BGP]...))
	}
	return s
}

func (a *Announcing) told() []localapi.Sink {
	return []localapi.Sink{
		localapi.Claims.To(func(list []announce.Claim) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.claims, a.claimsAt = list, time.Now()
		}).For(a.o.Users[L2]...),
		localapi.Sessions.To(func(list []announce.Session) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.sessions, a.sessionsAt = list, time.Now()
		}).For(a.o.Users[BGP]...),
	}
}

// said returns what the announcers said last, if that is not old.
func (a *Announcing) said() ([]announce.Claim, []announce.Session) {
	a.mu.Lock()
	defer a.mu.Unlock()
	claims, sessions := a.claims, a.sessions
	if time.Since(a.claimsAt) > away {
		claims = nil
	}
	if time.Since(a.sessionsAt) > away {
		sessions = nil
	}
	return claims, sessions
}

// linkState is asked by the announcer of ARP and NDP alone. While it asks, this node can announce.
func (a *Announcing) linkState(now time.Time) ([]announce.State, error) {
	_, generation, err := a.look(now)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	a.asked[L2] = now
	a.mu.Unlock()
	if a.o.Unfit() == "" {
		a.o.Node().AnswerBeats(now.Add(announce.Asked))
	}
	return []announce.State{{Generation: generation, NodeAddrs: a.o.NodeAddrs()}}, nil
}

// seen is all that turns follow from.
type seen struct {
	plan  *announce.Plan
	heard announce.Answers
	self  announce.Self
}

// look returns whose turn it is now. It is asked many times a second, of thousands of addresses, and finds them anew
// only when something has changed.
func (a *Announcing) look(now time.Time) ([]announce.Turn, uint64, error) {
	node := a.o.Node()
	if node == nil {
		return nil, 0, errEarly
	}
	s := seen{plan: a.o.Plan(), self: announce.Self{Fit: a.o.Unfit() == "", Askers: node.Askers(now.Add(-announce.Patience))}}
	a.mu.Lock()
	defer a.mu.Unlock()
	s.heard = a.heardLocked(node, s.plan, now)
	if s.plan == a.seen.plan && s.self.Fit == a.seen.self.Fit && maps.Equal(s.self.Askers, a.seen.self.Askers) && maps.Equal(s.heard, a.seen.heard) {
		return a.turns, a.links, nil
	}
	a.seen = s
	turns := s.plan.Turns(s.heard, s.self)
	if !slices.EqualFunc(turns, a.turns, same) {
		a.links++
	}
	a.turns = turns
	return a.turns, a.links, nil
}

// heardLocked returns what other nodes have answered, sees which of them rest, and tells them. Nobody rests for a node
// that could not announce in its place.
func (a *Announcing) heardLocked(node Node, plan *announce.Plan, now time.Time) announce.Answers {
	heard := announce.Heard(beatsOf(node), now)
	able := a.o.Unfit() == "" && now.Sub(a.asked[L2]) < announce.Asked
	a.records.Look(heard, func(other string) bool { return able && plan.MayRest(other) }, now)
	resting := map[string]bool{}
	for other, answer := range heard {
		if answer.Rests {
			resting[other] = true
		}
	}
	if a.passing || len(resting) > 0 {
		node.PassOver(resting)
		a.passing = len(resting) > 0
	}
	return heard
}

func beatsOf(node Node) (list []announce.Beat) {
	for _, b := range node.Beats() {
		list = append(list, announce.Beat{Node: b.Name, Since: b.Since, Answered: b.Answered})
	}
	return list
}

func same(a, b announce.Turn) bool {
	return a.Addr == b.Addr && a.Egress == b.Egress && a.Announcer == b.Announcer && slices.Equal(a.Silent, b.Silent) && slices.Equal(a.Resting, b.Resting) &&
		slices.Equal(a.Services, b.Services) && slices.Equal(a.Interfaces, b.Interfaces)
}

func (a *Announcing) routeState(now time.Time) ([]announce.State, error) {
	_, _, generation, err := a.bgp()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked[BGP] = now
	return []announce.State{{Generation: generation, NodeAddrs: a.o.NodeAddrs()}}, nil
}

// bgp returns the routers of this node, and what they are to be told. A node that is not fit tells them nothing.
func (a *Announcing) bgp() ([]announce.Peer, []announce.Route, uint64, error) {
	if a.o.Node() == nil {
		return nil, nil, 0, errEarly
	}
	plan := a.o.Plan()
	routes := plan.Routes
	if a.o.Unfit() != "" {
		routes = nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(plan.Peers, a.peers) || !kube.Same(routes, a.routes) && !slices.EqualFunc(routes, a.routes, announce.Route.Equal) {
		a.changes++
		a.peers, a.routes = plan.Peers, routes
	}
	return a.peers, a.routes, a.changes, nil
}

// Working returns the announcers of this node that have asked lately what to announce, sorted.
func (a *Announcing) Working() (kinds []Kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for kind, last := range a.asked {
		if time.Since(last) <= away {
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// Problems returns what is wrong with announcements on this node.
func (a *Announcing) Problems() (list []kube.Problem) {
	if a.o.Node() == nil {
		return nil
	}
	add := func(ref kube.Ref, text string) *kube.Problem {
		list = append(list, kube.Problem{Severity: kube.Error, Object: ref, Message: fmt.Sprintf("on node %s: %s", a.o.Name, text)})
		return &list[len(list)-1]
	}
	plan := a.o.Plan()
	claims, sessions := a.said()
	for _, c := range claims {
		if c.Problem == "" {
			continue
		}
		egress := plan.Egress()
		if i := slices.IndexFunc(egress, func(l announce.Link) bool { return l.Addr == c.Addr }); i >= 0 {
			add(kube.Ref{Kind: "EgressAddress", Name: egress[i].Egress}, c.Problem)
		}
		for _, s := range c.Services {
			ns, name, _ := strings.Cut(s, "/")
			add(kube.Ref{Kind: "Service", Namespace: ns, Name: name}, c.Problem)
		}
	}
	for _, s := range sessions {
		if s.Problem != "" {
			add(kube.Ref{Kind: "BGPPeer", Name: s.Peer}, s.Problem).Reason = kube.SessionFault
		}
	}
	for _, t := range a.lacking() {
		add(kube.Ref{Kind: "EgressAddress", Name: t.Egress}, fmt.Sprintf("its pods do not reach anything outside from %s, since none of the nodes that can be its gateway answers (%s): they need the announcer of ARP and NDP", t.Addr, strings.Join(t.Silent, ", ")))
	}
	for kind, wanted := range map[Kind]int{L2: len(plan.Links), BGP: len(plan.Peers)} {
		a.mu.Lock()
		last := a.asked[kind]
		a.mu.Unlock()
		if last.IsZero() {
			last = a.begun
		}
		if wanted > 0 && slices.Contains(a.o.Kinds, kind) && time.Since(last) > away {
			list = append(list, kube.Problem{Severity: kube.Error, Object: kube.Ref{Kind: "Node", Name: a.o.Name}, Message: fmt.Sprintf(
				"the announcer tapestry-%s does not ask the agent what to announce, so this node announces nothing by it: look at its log", kind)})
		}
	}
	slices.SortFunc(list, func(p, q kube.Problem) int { return strings.Compare(p.String(), q.String()) })
	return list
}

// Watch calls changed when Problems returns something else, until ctx is done.
func (a *Announcing) Watch(ctx context.Context, changed func()) {
	const pause = time.Second
	tick := time.NewTicker(pause)
	defer tick.Stop()
	var last []kube.Problem
	for {
		if now := a.Problems(); !slices.Equal(now, last) {
			last = now
			changed()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Counters returns what is counted of announcements.
func (a *Announcing) Counters() counter.List {
	if len(a.o.Kinds) == 0 {
		return nil
	}
	claims, sessions := a.said()
	states := map[string]int{string(announce.Waiting): 0, string(announce.Announced): 0, string(announce.Conflict): 0, string(announce.Failed): 0}
	for _, c := range claims {
		states[string(c.State)]++
	}
	up := counter.Counter{Name: "tapestry_bgp_session_up", Help: "1 for each BGP session that is established, else 0.", Kind: counter.Gauge, Labels: []string{"peer"}}
	told := counter.Counter{Name: "tapestry_bgp_routes", Help: "Prefixes that a router was told.", Kind: counter.Gauge, Labels: []string{"peer"}}
	ups := counter.Counter{Name: "tapestry_bgp_sessions_established_total", Help: "How often a BGP session was established.", Kind: counter.Total, Labels: []string{"peer"}}
	bfd := counter.Counter{Name: "tapestry_bgp_bfd_up", Help: "1 for each router with which BFD is up, 0 for others that are to speak it.", Kind: counter.Gauge, Labels: []string{"peer"}}
	for _, s := range sessions {
		n := 0.0
		if s.State == "established" {
			n = 1
		}
		switch s.BFD {
		case "":
		case "up":
			bfd.Values = append(bfd.Values, counter.Value{Labels: []string{s.Peer}, N: 1})
		default:
			bfd.Values = append(bfd.Values, counter.Value{Labels: []string{s.Peer}})
		}
		up.Values = append(up.Values, counter.Value{Labels: []string{s.Peer}, N: n})
		told.Values = append(told.Values, counter.Value{Labels: []string{s.Peer}, N: float64(s.Routes)})
		ups.Values = append(ups.Values, counter.Value{Labels: []string{s.Peer}, N: float64(s.Ups)})
	}
	return counter.List{
		counter.By(counter.Gauge, "tapestry_l2_addresses", "Addresses that this node is to announce by ARP and NDP, by what its announcer does about them.", "state", states),
		up, told, ups, bfd,
	}
}
