package nodeport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/memo"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/underway"
)

// Options are the settings of a Proxy. Dial, Door, Pick, Stays and NodeAddr are required.
type Options struct {
	// Listen opens sockets on the host; nil uses the kernel.
	Listen Listener
	// Dial connects inside the cluster, network "tcp" or "udp", from the client's own address if possible. A client
	// port of 0 means any port. For UDP it must not block.
	Dial func(ctx context.Context, network string, client, backend netip.AddrPort) (net.Conn, error)
	// Join carries a TCP connection from client to a backend without copying, until either end or ctx ends. It calls
	// answered, which does not block, with true when the backend has answered, or with false when it refuses or does
	// not answer, but not when the client goes before that. In the end it returns nil, and conn belongs to Join. If the
	// backend refuses at once, so that another one may be asked, it returns the client's connection, which conn is not
	// any longer, and true. If it cannot join the two, it returns conn and false at once, and Dial is used. Nil is the
	// same as a Join that never can.
	Join func(ctx context.Context, conn *net.TCPConn, client, backend netip.AddrPort, answered func(bool)) (left *net.TCPConn, refused bool)
	// Accept calls each, which does not block, for each connection that l accepts. fd is the connection's descriptor,
	// which does not block either and belongs to the one who is called. It takes over l, or returns nil if it cannot,
	// and nil is the same as an Accept that never can. Then the Proxy accepts by itself.
	Accept func(l net.Listener, each func(fd int, client netip.AddrPort)) Acceptor
	// Adopt is Join for what Accept has brought, and does not wait. It calls answered as Join does, and once, in the
	// end, ended with what Join would return. It takes over fd if it returns true. It may call both before it returns.
	Adopt func(fd int, client, backend netip.AddrPort, answered func(bool), ended func(left *net.TCPConn)) bool
	// Door makes a Door of a UDP socket, and takes it over.
	Door func(conn *net.UDPConn) (Door, error)
	// Pick and Stays are PickOnHost and StaysOnHost of the current Table.
	Pick  func(*packet.Tuple) packet.Choice
	Stays func(*packet.Tuple, packet.Choice) bool
	// Another is AnotherOnHost of the current Table. Nil knows no other backend.
	Another func(t *packet.Tuple, refused []uint64) packet.Choice
	// Begin is told of each conversation with a backend that Pick returned, and returns what is told how it goes on.
	// Nil means that nobody wants to know.
	Begin func(*packet.Tuple, packet.Choice) Use
	// Forbidden reports whether a client address cannot come from outside, because it belongs to a pod or a Service.
	// Where the PROXY protocol is spoken pods come, too, and backends are dialled as the node. Nil forbids none.
	Forbidden func(client netip.Addr) bool
	// NodeAddr returns this node's address of the same family as the given one. If it is invalid, the node has none,
	// and there are no sockets of that family.
	NodeAddr func(family netip.Addr) netip.Addr
	// IdleTimeout is the time without datagrams in either direction after which a UDP session ends; 0 means 120
	// seconds.
	IdleTimeout time.Duration
	// MaxSessions limits the UDP sessions of all sockets; 0 means 16384. Clients share them, so that no client loses a
	// session to one that has more.
	MaxSessions int
	// Sessions is of kind SessionsKind, and has the UDP sessions of the Proxy before, which go on, and of this one for
	// the next. Nil lets sessions end with the Proxy.
	Sessions *memo.Memo
	// MaxSockets limits the listening sockets; 0 means 12288, two protocols and families of 2768 node ports and more.
	// Sockets that are open stay; a port whose socket finds no place is a Problem.
	MaxSockets int
	// MaxConns limits the TCP connections to backends that Dial makes; 0 means 4096. No client gets more of them than
	// it leaves to others. Join has limits of its own.
	MaxConns int
	// MaxArrivals limits the accepted TCP connections that wait until a connection to a backend is opened for them; 0
	// means 1024. When there are more, the client with the most of them loses one.
	MaxArrivals int
	// Logger is told when a socket fails or works again. Nil discards messages.
	Logger *slog.Logger
}

const (
	// dialTimeout is how long a TCP client waits for its backend.
	dialTimeout = 10 * time.Second
	// retryMin and retryMax are the shortest and longest pause before another attempt to open a socket.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// Use is told of one conversation with a backend.
type Use interface {
	// Answered is called when the backend answers for the first time, Refused when it could not be connected to.
	Answered()
	Refused()
	// Resumed is called instead of Answered when the conversation goes on that a Proxy before had: nobody knows how
	// long its backend took.
	Resumed()
	// End is called once, at the end.
	End()
}

// unwatched is a Use of which nobody wants to know.
type unwatched struct{}

func (unwatched) Answered() {}
func (unwatched) Refused()  {}
func (unwatched) Resumed()  {}
func (unwatched) End()      {}

// PortSpec is a port to listen on.
type PortSpec struct {
	Owner    string     // "Service namespace/name" or "Pod namespace/name", for messages
	Addr     netip.Addr // an address of the host, or all of a family; the zero Addr is every address of the host
	Port     uint16
	Protocol packet.Proto // TCP or UDP
	// Proxy is the version of the PROXY protocol whose header begins each TCP connection to a backend; 0 means none.
	Proxy uint8
}

// Ports returns the node ports and hostPorts of a Table, for Set. A node port has a socket only in the families in
// which there is a backend. The socket is on loopback only if the backends are for clients inside the cluster.
func Ports(t *services.Table) []PortSpec { return PortsAt(t, nil) }

// PortsAt is Ports with node ports at the addresses of limits alone. HostPorts and load balancers are where they ask to
// be.
func PortsAt(t *services.Table, limits Limits) []PortSpec {
	var specs []PortSpec
	for _, p := range t.NodePorts() {
		for _, s := range sockets(p) {
			specs = append(specs, limits.of(s)...)
		}
	}
	for _, p := range t.HostPorts() {
		specs = append(specs, PortSpec{Owner: "Pod " + p.Pod, Addr: p.Addr, Port: p.Port, Protocol: p.Protocol})
	}
	for _, s := range t.Sockets() {
		specs = append(specs, PortSpec{Owner: "Service " + s.Service, Addr: s.Addr, Port: s.Port, Protocol: s.Protocol, Proxy: s.Proxy})
	}
	return specs
}

// sockets returns the sockets of one node port.
func sockets(p services.NodePort) []PortSpec {
	spec := PortSpec{Owner: "Service " + p.Service, Port: p.Port, Protocol: p.Protocol, Proxy: p.Proxy}
	if p.Protocol == packet.SCTP {
		return []PortSpec{spec} // Set reports SCTP as a Problem, whether or not there is a backend
	}
	var specs []PortSpec
	for _, f := range [...]struct {
		served        services.Served
		all, loopback netip.Addr
	}{
		{p.IPv4, netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		{p.IPv6, netip.IPv6Unspecified(), netip.IPv6Loopback()},
	} {
		switch f.served {
		case services.ServedAll:
			spec.Addr = f.all
		case services.ServedInside:
			spec.Addr = f.loopback
		default:
			continue
		}
		specs = append(specs, spec)
	}
	return specs
}

// Stats counts what a Proxy holds at the moment.
type Stats struct {
	Sockets, Conns, Sessions int64
}

// Proxy listens on the host. Its methods may be called concurrently.
type Proxy struct {
	opts   Options
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	setting sync.Mutex // held by Set and Close, also while sockets are opened

	mu       sync.Mutex // guards what follows
	servers  map[key]*server
	unserved []services.Problem     // ports that no socket can serve
	conns    map[io.Closer]struct{} // both ends of TCP connections, but for those that Adopt carries

	life   sync.Mutex // guards what follows, and wg.Go against the end; locked after mu, and by whoever accepts
	closed bool

	sockets  atomic.Int64
	adopted  atomic.Int64   // connections that Adopt carries
	dying    underway.Count // connections that neither Join nor Adopt carries, and that may outlive their listeners
	memory   *memory
	guests   *guests
	openings *openings
	dialled  *share.Limit[netip.Prefix, struct{}] // limits the connections that Dial makes
}

// key identifies one socket.
type key struct {
	network string
	local   netip.AddrPort
}

// New returns a Proxy that does not listen yet. Close releases everything.
func New(opts Options) *Proxy {
	if opts.Listen == nil {
		opts.Listen = new(kernel)
	}
	if opts.Join == nil {
		opts.Join = func(_ context.Context, conn *net.TCPConn, _, _ netip.AddrPort, _ func(bool)) (*net.TCPConn, bool) {
			return conn, false
		}
	}
	if opts.Accept == nil || opts.Adopt == nil {
		opts.Accept = func(net.Listener, func(int, netip.AddrPort)) Acceptor { return nil }
	}
	if opts.Another == nil {
		opts.Another = func(*packet.Tuple, []uint64) packet.Choice { return packet.Choice{} }
	}
	if opts.Begin == nil {
		opts.Begin = func(*packet.Tuple, packet.Choice) Use { return unwatched{} }
	}
	if opts.Forbidden == nil {
		opts.Forbidden = func(netip.Addr) bool { return false }
	}
	if opts.IdleTimeout == 0 {
		opts.IdleTimeout = 120 * time.Second
	}
	if opts.MaxSockets == 0 {
		opts.MaxSockets = 12288
	}
	if opts.MaxSessions == 0 {
		opts.MaxSessions = 16384
	}
	if opts.MaxConns == 0 {
		opts.MaxConns = 4096
	}
	if opts.MaxArrivals == 0 {
		opts.MaxArrivals = 1024
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{
		memory: newMemory(opts.Sessions),
		opts:   opts, servers: map[key]*server{}, conns: map[io.Closer]struct{}{}, guests: newGuests(opts.MaxSessions),
		openings: newOpenings(opts.MaxArrivals),
		dialled:  share.New[netip.Prefix, struct{}](share.Options[netip.Prefix]{Total: opts.MaxConns, Keep: true}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Set replaces the list of ports to listen on. It opens and closes sockets as needed and leaves the others alone. A
// port that cannot be opened is a Problem, and is tried again until it can; the other ports do not wait for it. Set
// returns the same as Problems.
func (p *Proxy) Set(ports []PortSpec) []services.Problem {
	p.setting.Lock()
	defer p.setting.Unlock()
	want, unserved := p.expand(ports)

	p.mu.Lock()
	if p.isClosed() {
		p.mu.Unlock()
		return nil
	}
	var surplus []*server
	for k, s := range p.servers {
		if spec, ok := want[k]; ok {
			s.setSpec(spec)
			delete(want, k)
			continue
		}
		surplus = append(surplus, s)
		delete(p.servers, k)
	}
	p.unserved = append(unserved, tooMany(want, p.opts.MaxSockets-len(p.servers))...)
	p.mu.Unlock()

	// If a port moves from all addresses to one, the new socket can only be bound after the old one is closed.
	for _, s := range surplus {
		s.release()
		s.cancel()
		<-s.done
		s.release() // it may have opened its socket meanwhile
	}
	for k, spec := range want {
		s := newServer(p, k, spec)
		socket, err := s.open()
		s.note(err)
		p.mu.Lock()
		p.servers[k] = s
		p.mu.Unlock()
		if u, ok := socket.(udpSocket); ok {
			s.resume(u)
		}
		p.wg.Go(func() { s.run(socket) })
	}
	p.memory.forgetRest()
	return p.Problems()
}

// tooMany leaves the first most sockets in want, by their addresses, and returns a Problem for each other one.
func tooMany(want map[key]PortSpec, most int) (problems []services.Problem) {
	if len(want) <= most {
		return nil
	}
	order := slices.SortedFunc(maps.Keys(want), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.local.Port(), b.local.Port()), cmp.Compare(a.network, b.network), a.local.Compare(b.local))
	})
	for _, k := range order[most:] {
		problems = append(problems, services.Problem{Object: want[k].Owner, Message: explain(want[k], protocolOf(k), errTooMany)})
		delete(want, k)
	}
	return problems
}

// errTooMany says that there is no descriptor for another socket.
var errTooMany = errors.New("the agent has descriptors for no more sockets")

func protocolOf(k key) string { return strings.ToUpper(k.network[:3]) }

// expand returns the sockets for ports.
func (p *Proxy) expand(ports []PortSpec) (map[key]PortSpec, []services.Problem) {
	want := make(map[key]PortSpec, 2*len(ports))
	var problems []services.Problem
	for _, spec := range ports {
		var network string
		switch spec.Protocol {
		case packet.TCP:
			network = "tcp"
		case packet.UDP:
			network = "udp"
		default:
			problems = append(problems, services.Problem{Object: spec.Owner, Message: fmt.Sprintf(
				"port %d is SCTP, which no host socket can pass on: pods reach it at every node's address, clients outside do not; they reach SCTP at a load balancer's address that the host routes into its host TAP", spec.Port)})
			continue
		}
		addrs := []netip.Addr{spec.Addr.Unmap()}
		if !spec.Addr.IsValid() {
			addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		}
		for _, a := range addrs {
			if !p.opts.NodeAddr(a).IsValid() {
				continue
			}
			version := "6"
			if a.Is4() {
				version = "4"
			}
			k := key{network + version, netip.AddrPortFrom(a, spec.Port)}
			if _, twice := want[k]; !twice {
				want[k] = spec
			}
		}
	}
	return want, problems
}

// Problems returns the ports that cannot be listened on at the moment, sorted. A port leaves the list as soon as it is
// open.
func (p *Proxy) Problems() []services.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	problems := slices.Clone(p.unserved)
	for _, s := range p.servers {
		if problem, bad := s.problem(); bad {
			problems = append(problems, problem)
		}
	}
	slices.SortFunc(problems, func(a, b services.Problem) int {
		return cmp.Or(cmp.Compare(a.Object, b.Object), cmp.Compare(a.Message, b.Message))
	})
	return slices.Compact(problems) // the two families of a port may have equal Problems
}

// Stats returns the counts of what is open.
func (p *Proxy) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Stats{Sockets: p.sockets.Load(), Conns: int64(len(p.conns)) + p.adopted.Load(), Sessions: int64(p.guests.limit.Stats().Held)}
}

// Shares returns how the UDP sessions, and the connections that Dial made, are shared out.
func (p *Proxy) Shares() (sessions, conns share.Stats) {
	return p.guests.limit.Stats(), p.dialled.Stats()
}

// Close closes all sockets, aborts all connections but those that Adopt carries, which may outlive the Proxy, and waits
// until all goroutines have ended. Set does nothing afterwards.
func (p *Proxy) Close() error {
	p.cancel()
	p.life.Lock()
	p.closed = true
	p.life.Unlock()
	p.mu.Lock()
	for c := range p.conns {
		abort(c)
	}
	p.mu.Unlock()
	p.setting.Lock()
	defer p.setting.Unlock()
	p.wg.Wait()
	return nil
}

func (p *Proxy) isClosed() bool {
	p.life.Lock()
	defer p.life.Unlock()
	return p.closed
}

// hold registers one end of a connection for Close. It returns false if the Proxy is closed already.
func (p *Proxy) hold(c io.Closer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isClosed() {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) release(c io.Closer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// flow is a client and its backend.
type flow struct {
	client, backend netip.AddrPort
	asked
}

// asked is what Pick was asked and what it chose.
type asked struct {
	tuple  packet.Tuple
	choice packet.Choice
}

// choose picks the backend for a client of a socket. It returns false if the client gets none.
func (p *Proxy) choose(client netip.AddrPort, at place, proto packet.Proto) (flow, bool) {
	f, ok := p.asking(client, at, proto)
	if !ok {
		return flow{}, false
	}
	f.choice = p.opts.Pick(&f.tuple)
	f.backend = f.choice.To.AddrPort()
	return f, f.choice.Kind == packet.Picked
}

// instead is choose for a flow whose backends have refused it.
func (p *Proxy) instead(f flow, refused []uint64) (flow, bool) {
	f.choice = p.opts.Another(&f.tuple, refused)
	f.backend = f.choice.To.AddrPort()
	return f, f.choice.Kind == packet.Picked
}

// asking returns what Pick is asked for a client of a socket, and as whom the client is dialled. It returns false if
// the client gets no backend.
func (p *Proxy) asking(client netip.AddrPort, at place, proto packet.Proto) (flow, bool) {
	inside := p.opts.Forbidden(client.Addr())
	if inside && at.proxy == 0 {
		return flow{}, false
	}
	f, local := flow{client: client}, at.local
	if local.Addr().IsUnspecified() {
		local = netip.AddrPortFrom(p.opts.NodeAddr(local.Addr()), local.Port())
	}
	if a := client.Addr(); a.IsLoopback() || a.IsLinkLocalUnicast() {
		f.client = netip.AddrPortFrom(p.opts.NodeAddr(a), 0)
	}
	f.tuple = packet.Tuple{
		Src: packet.AddrFrom(f.client.Addr()), SrcPort: client.Port(),
		Dst: packet.AddrFrom(local.Addr()), DstPort: local.Port(), Proto: proto,
	}
	if inside {
		f.client = netip.AddrPortFrom(p.opts.NodeAddr(client.Addr()), 0) // nobody but a pod speaks as the pod
	}
	return f, true
}
