package hubble

import (
	"context"
	"slices"
	"time"

	"tapestry.dev/tapestry/hubble/rpc"
)

// Source has events of flows.
type Source interface {
	// Read returns a Reader that begins with all events that are still there; without past, with those to come.
	Read(past bool) Reader
	// Stats says how many events there have been, and how many are kept at most.
	Stats() (seen, most uint64)
}

// Reader reads events in the order of their times. One goroutine uses it.
type Reader interface {
	// Next returns the next event, which is the caller's; false if there is none at the moment.
	Next() (Flow, bool)
	// Wait is Next, but waits until ctx ends.
	Wait(ctx context.Context) (Flow, bool)
	// Lost returns how many events were overwritten before they could be read.
	Lost() uint64
}

// Limits of a Server.
const (
	MostCalls       = 32
	MostConnections = 64
)

// Options are what a Server needs. All are required.
type Options struct {
	Source Source
	// Node is the node's name, Address where it is reached, Version that of the agent.
	Node, Address, Version string
}

// Server answers as an observer.Observer.
type Server struct {
	o       Options
	started time.Time
}

// NewServer makes a Server.
func NewServer(o Options) *Server { return &Server{o: o, started: time.Now()} }

// Handler returns what serves the procedures.
func (s *Server) Handler() *rpc.Handler {
	return rpc.NewHandler(map[string]rpc.Method{
		"/grpc.health.v1.Health/Check":     s.check,
		"/observer.Observer/GetFlows":      s.getFlows,
		"/observer.Observer/GetNodes":      s.getNodes,
		"/observer.Observer/GetNamespaces": s.getNamespaces,
		"/observer.Observer/ServerStatus":  s.serverStatus,
	}, MostCalls)
}

// check answers grpc.health.v1.HealthCheckRequest: this process serves, or is not there.
func (s *Server) check(_ context.Context, request []byte, out *rpc.Stream) error {
	const serving, serviceUnknown = 1, 3
	all, err := fields(request)
	if err != nil {
		return err
	}
	status := uint64(serving)
	for _, f := range all {
		if service := string(f.bytes); f.n == 1 && !slices.Contains([]string{"", "hubble.server.Observer", "observer.Observer"}, service) {
			status = serviceUnknown
		}
	}
	var m message
	m.number(1, status)
	return out.Send(m)
}

// kept returns how many events are kept at the moment.
func (s *Server) kept() (kept, most, seen uint64) {
	seen, most = s.o.Source.Stats()
	return min(seen, most), most, seen
}

func (s *Server) serverStatus(_ context.Context, _ []byte, out *rpc.Stream) error {
	kept, most, seen := s.kept()
	up := time.Since(s.started)
	var m message
	m.number(1, kept)
	m.number(2, most)
	m.number(3, seen)
	m.number(4, uint64(up))
	m.wrapped(5, 1)
	m.wrapped(6, 0)
	m.text(8, s.o.Version)
	m.float(9, float64(seen)/max(1, up.Seconds()))
	return out.Send(m)
}

func (s *Server) getNodes(_ context.Context, _ []byte, out *rpc.Stream) error {
	const connected = 1
	kept, most, seen := s.kept()
	var m message
	m.inside(1, func(m *message) {
		m.text(1, s.o.Node)
		m.text(2, s.o.Version)
		m.text(3, s.o.Address)
		m.number(4, connected)
		m.number(6, uint64(time.Since(s.started)))
		m.number(7, kept)
		m.number(8, most)
		m.number(9, seen)
	})
	return out.Send(m)
}

// getNamespaces tells the namespaces of the events that are kept.
func (s *Server) getNamespaces(ctx context.Context, _ []byte, out *rpc.Stream) error {
	there := map[string]bool{}
	r := s.o.Source.Read(true)
	for n, most := uint64(0), s.most(); n < most && ctx.Err() == nil; n++ {
		f, ok := r.Next()
		if !ok {
			break
		}
		for _, e := range []*End{&f.Source, &f.Destination} {
			if e.Namespace != "" {
				there[e.Namespace] = true
			}
		}
	}
	var list []string
	for name := range there {
		list = append(list, name)
	}
	slices.Sort(list)
	var m message
	for _, name := range list {
		m.inside(1, func(m *message) { m.text(2, name) })
	}
	return out.Send(m)
}

// most is how many events a Reader of all that are kept has to read, so that it does not race with those that come.
func (s *Server) most() uint64 {
	_, most := s.o.Source.Stats()
	return most
}
