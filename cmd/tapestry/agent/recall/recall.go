// Package recall reads the flow log of a node, and says who was at the ends of each flow. Records have addresses alone:
// names are found out when they are read, by the cluster's objects of that moment.
//
// It is the one way to read flows: the local API and whatever else shows them ask a Source.
//
//	r := source.Read(localapi.FlowQuery{Last: 20, Follow: true, Filter: ...})
//	for f, ok := r.Wait(ctx); ok; f, ok = r.Wait(ctx) {
//		... f, and r.Lost() so far
//	}
//
// A Reader costs the packet path nothing, however slow it is: what it did not read in time is lost to it, and counted.
package recall

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/kube/whois"
	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/packet"
)

// Options are what a Source needs. All are required.
type Options struct {
	// Node is the node's name.
	Node string
	Log  *flowlog.Log
	// Objects returns the cluster's objects, nil before they are known.
	Objects func() *kube.Objects
	// Network returns the node's network, nil before there is one.
	Network func() Network
}

// Network knows what numbers in records mean; *node.Node is one.
type Network interface {
	// Service returns the Service, "namespace/name", that clients reach at an address and port, "" for none. Inside is
	// set for clients that do not come by a host socket.
	Service(at packet.Endpoint, proto packet.Proto, inside bool) string
	// Rule describes a rule of a policy, as flowlog.Record.Rule has it.
	Rule(rule uint64) string
	// Peer returns the name of a node, as flowlog.Record.Peer has it, "" for none.
	Peer(id uint64) string
}

// Source reads flows. Its methods may be called concurrently.
type Source struct {
	o Options

	mu    sync.Mutex // guards the fields below
	objs  *kube.Objects
	book  *whois.Book
	next  time.Time // when another Book may be made
	clock func() time.Time
}

// New returns a Source.
func New(o Options) *Source { return &Source{o: o, clock: time.Now} }

// rest is how many times as long as it takes to make a Book there is no new one: so readers cost a twentieth of a
// processor at most, however large the cluster is and however fast it changes.
const rest = 20

// names returns who has which address.
func (s *Source) names() *whois.Book {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock()
	if objs := s.o.Objects(); s.book == nil || objs != s.objs && !now.Before(s.next) {
		s.objs, s.book = objs, whois.Of(objs)
		done := s.clock()
		s.next = done.Add(rest * done.Sub(now))
	}
	return s.book
}

// Read returns a Reader of what a query is for. It has looked through the whole log by then, for the last events.
func (s *Source) Read(q localapi.FlowQuery) *Reader {
	r := &Reader{source: s, query: q, log: s.o.Log.Read(s.o.Log.Stats().Capacity)}
	if q.Last <= 0 {
		r.log = s.o.Log.Read(0)
		return r
	}
	for {
		f, ok := r.read()
		if !ok {
			r.before = r.log.Lost() // nobody was to read that
			return r
		}
		if r.last = append(r.last, f); len(r.last) >= 2*q.Last { // rarely, so that an event is moved once
			r.last = append(r.last[:0], r.last[len(r.last)-q.Last:]...)
		}
	}
}

// Reader reads the events that a query is for, in order. One goroutine at a time may use it.
type Reader struct {
	source *Source
	query  localapi.FlowQuery
	log    *flowlog.Reader
	last   []localapi.Flow // those from before Read that are still to be returned, the last query.Last of them
	before uint64
	record flowlog.Record
}

var _ localapi.FlowReader = (*Reader)(nil)

// Next implements localapi.FlowReader.
func (r *Reader) Next() (localapi.Flow, bool) {
	if n := len(r.last); n > 0 {
		r.last = r.last[max(0, n-r.query.Last):]
		f := r.last[0]
		if r.last = r.last[1:]; len(r.last) == 0 {
			r.last = nil
		}
		return f, true
	}
	if !r.query.Follow {
		return localapi.Flow{}, false
	}
	return r.read()
}

// Wait implements localapi.FlowReader.
func (r *Reader) Wait(ctx context.Context) (localapi.Flow, bool) {
	for {
		if f, ok := r.Next(); ok || !r.query.Follow || !r.log.Wait(ctx, &r.record) {
			return f, ok
		}
		if f := r.source.resolve(&r.record); r.query.Filter.Match(&f) {
			return f, true
		}
	}
}

// Follows implements localapi.FlowReader.
func (r *Reader) Follows() bool { return r.query.Follow }

// Lost implements localapi.FlowReader.
func (r *Reader) Lost() uint64 { return r.log.Lost() - r.before }

// read returns the next event of the log that the query is for.
func (r *Reader) read() (localapi.Flow, bool) {
	for r.log.Next(&r.record) {
		if f := r.source.resolve(&r.record); r.query.Filter.Match(&f) {
			return f, true
		}
	}
	return localapi.Flow{}, false
}

// addrPort returns what is at neither end of a translated flow; zero if it is not another one than end.
func addrPort(e, end packet.Endpoint) netip.AddrPort {
	if e == end {
		return netip.AddrPort{}
	}
	return e.AddrPort()
}
