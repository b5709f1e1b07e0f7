// Package healthcheck tells load balancers whether this node has endpoints of a Service whose external traffic policy
// is Local (Service.spec.healthCheckNodePort). Its answers have the same format as kube-proxy's.
package healthcheck

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/share/conns"
)

// Options are the settings of a Server.
type Options struct {
	// Listen opens the socket for a port at an address of the host, or at all of them for the zero Addr; nil uses the
	// kernel.
	Listen func(at netip.Addr, port uint16) (net.Listener, error)
	// Healthy reports whether this node takes new connections at all; required.
	Healthy func() bool
	// MaxSockets limits the sockets that listen, one for each port at each address, and MaxConns the connections to all
	// of them together; 0 means 2,768 sockets, as many as there are node ports, and 256 connections.
	MaxSockets, MaxConns int
	// Logger is told when a port cannot be opened. Nil discards messages.
	Logger *slog.Logger
}

// retryPause is the time after which a port that could not be opened is tried again.
const retryPause = 5 * time.Second

// requestTime limits the time of a request, so that no client holds a connection open for longer.
const requestTime = 5 * time.Second

// Server answers load balancers. Its methods may be called concurrently.
type Server struct {
	opts  Options
	conns conns.Conns

	setting sync.Mutex // held by Set, Close and retry; guards checks, at and again
	checks  []services.HealthCheck
	at      []netip.Addr // where ports are opened
	again   *time.Timer  // runs retry; set when a port could not be opened

	mu     sync.Mutex // guards what follows
	ports  map[place]*port
	failed map[place]services.Problem
	closed bool
	wg     sync.WaitGroup
}

// place is where a socket listens: at an address of the host, or at all of them for the zero Addr.
type place struct {
	at   netip.Addr
	port uint16
}

func (p place) compare(q place) int { return cmp.Or(cmp.Compare(p.port, q.port), p.at.Compare(q.at)) }

// port is a port that is listened on at one place.
type port struct {
	http  http.Server
	check services.HealthCheck // guarded by Server.mu
}

// New returns a Server that does not listen yet. Close releases everything.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Listen == nil {
		o.Listen = listen
	}
	o.MaxSockets = cmp.Or(o.MaxSockets, 2768)
	return &Server{opts: o, conns: conns.New(cmp.Or(o.MaxConns, 256), nil), ports: map[place]*port{}, failed: map[place]services.Problem{}}
}

// listen opens a socket of the kernel. One at all addresses of a family takes none of the other.
func listen(at netip.Addr, port uint16) (net.Listener, error) {
	switch {
	case !at.IsValid():
		return net.Listen("tcp", ":"+strconv.Itoa(int(port)))
	case at.Is4():
		return net.Listen("tcp4", netip.AddrPortFrom(at, port).String())
	}
	return net.Listen("tcp6", netip.AddrPortFrom(at, port).String())
}

// Set replaces the list of checks that are answered, and the addresses of the host at which they are; nil stands for
// all addresses. A port that cannot be opened at one of them is a Problem, is open at the others, and is tried again
// until it can. If two Services have one port, the first gets it. Set returns the same as Problems.
func (s *Server) Set(checks []services.HealthCheck, at []netip.Addr) []services.Problem {
	s.setting.Lock()
	defer s.setting.Unlock()
	if at == nil {
		at = []netip.Addr{{}}
	}
	s.checks, s.at = checks, slices.Clone(at)
	s.apply()
	return s.Problems()
}

// retry tries again to open the ports that failed.
func (s *Server) retry() {
	s.setting.Lock()
	defer s.setting.Unlock()
	s.apply()
}

// apply opens and closes ports as s.checks needs them. The caller holds setting.
func (s *Server) apply() {
	want := map[place]services.HealthCheck{}
	for _, c := range s.checks {
		for _, at := range s.at {
			if _, taken := want[place{at, c.Port}]; !taken {
				want[place{at, c.Port}] = c
			}
		}
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	var surplus []*port
	for n, p := range s.ports {
		if c, ok := want[n]; ok {
			p.check = c
			delete(want, n)
			continue
		}
		surplus = append(surplus, p)
		delete(s.ports, n)
	}
	before := s.failed
	s.failed = map[place]services.Problem{}
	s.mu.Unlock()
	for _, p := range surplus {
		_ = p.http.Close()
	}
	for _, n := range slices.SortedFunc(maps.Keys(want), place.compare) {
		if err := s.opens(n, want[n]); err != nil {
			s.note(n, want[n], err, before)
		}
	}
	if s.again != nil {
		s.again.Stop()
	}
	if len(s.Problems()) > 0 {
		s.again = time.AfterFunc(retryPause, s.retry)
	}
}

func (s *Server) note(n place, c services.HealthCheck, err error, before map[place]services.Problem) {
	where := ""
	if n.at.IsValid() {
		where = " at " + n.at.String()
	}
	p := services.Problem{Object: "Service " + c.Namespace + "/" + c.Name, Message: fmt.Sprintf(
		"healthCheckNodePort %d cannot be opened on this host%s, so that load balancers take the node for unhealthy: %v; "+
			"free the port; until then it is tried again", n.port, where, err)}
	s.mu.Lock()
	s.failed[n] = p
	s.mu.Unlock()
	if _, known := before[n]; !known {
		s.opts.Logger.Warn("cannot open a healthCheckNodePort", "service", c.Namespace+"/"+c.Name, "err", err)
	}
}

// errTooMany says that there is no descriptor for another port. A port that is open keeps its place.
var errTooMany = errors.New("the agent has no descriptors for more of them; raise its limit of open files (LimitNOFILE of the container runtime)")

// opens opens the socket of a port at one place.
func (s *Server) opens(n place, c services.HealthCheck) error {
	s.mu.Lock()
	full := len(s.ports) >= s.opts.MaxSockets
	s.mu.Unlock()
	if full {
		return errTooMany
	}
	l, err := s.opts.Listen(n.at, n.port)
	if err != nil {
		return err
	}
	p := &port{check: c}
	p.http = http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.answer(w, p) }),
		ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: requestTime,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	s.mu.Lock()
	s.ports[n] = p
	s.mu.Unlock()
	s.wg.Go(func() {
		if err := p.http.Serve(s.conns.Over(l)); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.opts.Logger.Warn("a healthCheckNodePort is no longer served", "addr", l.Addr(), "err", err)
		}
	})
	return nil
}

// reply has the fields of kube-proxy's answers, which load balancers and people read.
type reply struct {
	Service struct {
		Namespace string `json:"namespace"`
		Name      string `json:"name"`
	} `json:"service"`
	LocalEndpoints      int  `json:"localEndpoints"`
	ServiceProxyHealthy bool `json:"serviceProxyHealthy"`
}

func (s *Server) answer(w http.ResponseWriter, p *port) {
	s.mu.Lock()
	c := p.check
	s.mu.Unlock()
	var r reply
	r.Service.Namespace, r.Service.Name, r.LocalEndpoints = c.Namespace, c.Name, c.Local
	r.ServiceProxyHealthy = s.opts.Healthy()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Load-Balancing-Endpoint-Weight", strconv.Itoa(c.Local))
	if c.Local == 0 || !r.ServiceProxyHealthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(r) // if the client is gone, nobody needs the answer
}

// Problems returns the ports that cannot be opened at the moment, sorted.
func (s *Server) Problems() []services.Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []services.Problem
	for _, p := range s.failed {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b services.Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	return list
}

// Close closes all ports and waits until all goroutines have ended. Set does nothing afterwards.
func (s *Server) Close() error {
	s.setting.Lock()
	defer s.setting.Unlock()
	if s.again != nil {
		s.again.Stop()
	}
	s.mu.Lock()
	s.closed = true
	ports := s.ports
	s.ports = nil
	s.mu.Unlock()
	for _, p := range ports {
		_ = p.http.Close()
	}
	s.wg.Wait()
	return nil
}
