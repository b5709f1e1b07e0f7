package bfd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/server"

	"tapestry.dev/tapestry/announce"
)

const (
	// Port is where packets come in (RFC 5881, section 4).
	Port = 3784
	// asn and id are the server's, and told nobody.
	asn = 64512
	id  = "0.0.0.1"
	// patience is how long GoBGP may take to begin or end a session, which takes it a moment.
	patience = 2 * time.Second
)

// Monitor has the sessions of a node. One goroutine may use it.
type Monitor struct {
	server  *server.BgpServer // nil while there is no session
	watched map[netip.Addr]*watch
	fault   string // why there is no server, or a session is missing; "" when neither is so
}

// New returns a Monitor without sessions. It must be closed.
func New() *Monitor { return &Monitor{watched: map[netip.Addr]*watch{}} }

// Set has sessions with these routers, and no others. What fails is told by Of, and tried again by the next Set.
func (m *Monitor) Set(ctx context.Context, want map[netip.Addr]announce.BFD, now time.Time) {
	m.fault = ""
	if err := m.set(ctx, want, now); err != nil {
		m.fault = err.Error()
	}
}

func (m *Monitor) set(ctx context.Context, want map[netip.Addr]announce.BFD, now time.Time) error {
	end, begin := steps(m.watched, want)
	for _, addr := range end {
		if err := m.end(ctx, addr); err != nil {
			return err
		}
	}
	if len(want) == 0 {
		m.Close()
	}
	for _, addr := range begin {
		if err := m.begin(ctx, addr, want[addr], now); err != nil {
			return err
		}
	}
	return nil
}

// open starts the server.
func (m *Monitor) open(ctx context.Context) error {
	// The server's own socket shares the port with others that want to, and the kernel gives packets to one of them.
	probe, err := net.ListenPacket("udp", ":"+strconv.Itoa(Port))
	if err != nil {
		return fmt.Errorf("BFD needs UDP port %d of this node: end what has it, or remove spec.bfd (%w)", Port, err)
	}
	_ = probe.Close()
	// It says each second what cannot be sent, which the state of the session says as well.
	s := server.NewBgpServer(server.LoggerOption(slog.New(slog.DiscardHandler), nil))
	go s.Serve()
	if err := s.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: asn, RouterId: id, ListenPort: -1}}); err != nil {
		s.Stop()
		return fmt.Errorf("start BFD: %w", err)
	}
	m.server = s
	return nil
}

// begin begins a session.
func (m *Monitor) begin(ctx context.Context, router netip.Addr, times announce.BFD, now time.Time) error {
	if m.server == nil {
		if err := m.open(ctx); err != nil {
			return err
		}
	}
	const us = 1000 // in a millisecond
	n := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: router.String(), PeerAsn: asn, AdminDown: true},
		Bfd: &api.BfdPeerConfig{
			Enabled: true, DesiredMinimumTxInterval: uint32(times.Transmit) * us, RequiredMinimumReceive: uint32(times.Receive) * us,
			DetectionMultiplier: uint32(times.Multiplier),
		},
	}
	if err := m.server.AddPeer(ctx, &api.AddPeerRequest{Peer: n}); err != nil {
		return fmt.Errorf("begin the BFD session with %s: %w", router, err)
	}
	m.watched[router] = &watch{times: times, state: Down, down: now}
	return m.await(ctx, router, true)
}

// end ends a session.
func (m *Monitor) end(ctx context.Context, router netip.Addr) error {
	if err := m.server.DeletePeer(ctx, &api.DeletePeerRequest{Address: router.String()}); err != nil {
		return fmt.Errorf("end the BFD session with %s: %w", router, err)
	}
	delete(m.watched, router)
	return m.await(ctx, router, false)
}

// await waits until GoBGP has begun or ended a session. Sessions are begun and ended one after another: one that is
// just being lost waits for GoBGP's server, its end waits for the session, and a server that has been told of two more
// changes meanwhile waits for the end. Nobody would go on.
func (m *Monitor) await(ctx context.Context, router netip.Addr, there bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		if _, is := m.states(ctx)[router]; is == there {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("GoBGP does not begin or end the BFD session with %s", router)
		case <-time.After(time.Millisecond):
		}
	}
}

// states returns how all sessions are.
func (m *Monitor) states(ctx context.Context) map[netip.Addr]State {
	list := map[netip.Addr]State{}
	m.server.ListBfdPeer(ctx, func(at string, p *api.BfdPeerState) {
		state := Down
		switch p.GetSessionState() {
		case api.BfdSessionState_BFD_SESSION_STATE_UP:
			state = Up
		case api.BfdSessionState_BFD_SESSION_STATE_INIT:
			state = Init
		}
		if addr, err := netip.ParseAddr(at); err == nil {
			list[addr] = state
		}
	})
	return list
}

// Lost looks at all sessions, and returns the routers of those that were up at the last look and are not any longer.
func (m *Monitor) Lost(ctx context.Context, now time.Time) []netip.Addr {
	if m.server == nil {
		return nil
	}
	return see(m.watched, m.states(ctx), now)
}

// Of returns how the session with a router was at the last look, and what is wrong with it, as a sentence: "" when
// nothing is.
func (m *Monitor) Of(router netip.Addr, now time.Time) (State, string) {
	w := m.watched[router]
	if w == nil {
		return Down, m.fault
	}
	return w.state, w.problem(router, now)
}

// Close ends all sessions, and gives the port free. The Monitor can be used again. GoBGP says no word to routers, which
// take this node for lost.
func (m *Monitor) Close() {
	if m.server == nil {
		return
	}
	for router := range m.watched {
		_ = m.end(context.Background(), router) // one at a time, and the rest by Stop
	}
	m.server.Stop()
	m.server, m.watched = nil, map[netip.Addr]*watch{}
}
