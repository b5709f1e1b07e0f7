package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"

	"tapestry.dev/tapestry/announce"
)

const (
	// retry is the pause in seconds between two attempts to reach a router, and after a session that it ended.
	retry = 5
	// mostReceived is how many prefixes of a family a router may send before its session ends. They are of no use here,
	// and take memory.
	mostReceived = 20_000
	// late is after how long without a session that is told.
	late = 15 * time.Second
	// established is the state of a session that there is.
	established = "established"
)

// told is what a router was told of a prefix.
type told struct {
	route announce.Route
	hop   netip.Addr // the next hop, unspecified for the address of the session
}

// speaker is the session with one router.
type speaker struct {
	peer     announce.Peer
	password string
	server   *server.BgpServer
	told     map[netip.Prefix]told
	paths    map[netip.Prefix]*apiutil.Path
	session  announce.Session
	missing  string // why some routes cannot be told, "" when all are
	flaps    flaps
	lost     atomic.Bool // the session is being ended, since BFD says that the router is lost
	unwatch  context.CancelFunc
}

// start begins a session. id is the router ID of the node, an IPv4 address that no other speaker has.
func start(ctx context.Context, p announce.Peer, password string, id netip.Addr, log *slog.Logger) (*speaker, error) {
	level := new(slog.LevelVar)
	level.Set(slog.LevelError)
	s := &speaker{
		peer: p, password: password, told: map[netip.Prefix]told{}, paths: map[netip.Prefix]*apiutil.Path{},
		server:  server.NewBgpServer(server.LoggerOption(log.With("peer", p.Name), level)),
		session: announce.Session{Peer: p.Name, Address: p.Address, ASN: p.ASN, State: "idle", Since: time.Now()},
	}
	go s.server.Serve()
	ctx, s.unwatch = context.WithCancel(ctx)
	err := s.server.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{Asn: p.MyASN, RouterId: id.String(), ListenPort: -1}})
	if err == nil {
		err = s.refuseRoutes(ctx)
	}
	if err == nil {
		err = s.watch(ctx)
	}
	if err == nil {
		err = s.server.AddPeer(ctx, &api.AddPeerRequest{Peer: neighbour(p, password)})
	}
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// watch notes when the session begins and ends, until ctx is done. Who looks now and then would miss short sessions.
func (s *speaker) watch(ctx context.Context) error {
	return s.server.WatchEvent(ctx, server.WatchEventMessageCallbacks{OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
		if e.Type != apiutil.PEER_EVENT_STATE {
			return
		}
		if e.Peer.State.SessionState == bgp.BGP_FSM_ESTABLISHED {
			s.lost.Store(false)
			s.flaps.begin(time.Now())
			return
		}
		why := whyOf(e.Peer.State.DisconnectReason)
		if s.lost.Load() {
			why = "BFD says that the router is lost"
		}
		s.flaps.end(why, time.Now())
	}}, server.WatchPeer())
}

// refuseRoutes has the speaker use no routes but its own.
func (s *speaker) refuseRoutes(ctx context.Context) error {
	own := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name: "own", Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL}, Actions: &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: own}); err != nil {
		return err
	}
	return s.server.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_POLICY_DIRECTION_IMPORT, Policies: []*api.Policy{own}, DefaultAction: api.RouteAction_ROUTE_ACTION_REJECT,
	}})
}

// neighbour returns a router as GoBGP knows it.
func neighbour(p announce.Peer, password string) *api.Peer {
	n := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.Addr().String(), PeerAsn: p.ASN, AuthPassword: password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: retry, IdleHoldTimeAfterReset: retry, HoldTime: uint64(p.HoldTime), KeepaliveInterval: uint64(max(1, p.HoldTime/3)),
		}},
		Transport: &api.Transport{RemotePort: uint32(p.Address.Port())},
	}
	if p.Source.IsValid() {
		n.Transport.LocalAddress = p.Source.String()
	}
	if p.Multihop > 0 {
		n.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(p.Multihop)}
	}
	if p.GracefulRestart > 0 {
		n.GracefulRestart = &api.GracefulRestart{Enabled: true, RestartTime: uint32(p.GracefulRestart), DeferralTime: retry, LocalRestarting: true}
	}
	for _, afi := range []api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		family := &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}
		n.AfiSafis = append(n.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family, Enabled: true},
			PrefixLimits:      &api.PrefixLimit{Family: family, MaxPrefixes: mostReceived, ShutdownThresholdPct: 100},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: p.GracefulRestart > 0}},
		})
	}
	return n
}

// lose ends a session that there is, and begins another one as after any that ends. The router is told, if it is
// reached. When the session has ended by itself since it was looked at, the next one is ended.
func (s *speaker) lose(ctx context.Context, now time.Time) error {
	if !s.flaps.state(now).up {
		return nil
	}
	s.lost.Store(true)
	return s.server.ResetPeer(ctx, &api.ResetPeerRequest{Address: s.peer.Address.Addr().String(), Communication: "BFD is down"})
}

// stop ends the session, and with it all routes. The router is told.
func (s *speaker) stop() {
	s.unwatch()
	s.server.Stop()
}

// tell brings the router to routes. nodeAddrs are the node's addresses, for next hops.
func (s *speaker) tell(routes []announce.Route, nodeAddrs []netip.Addr) error {
	wanted := map[netip.Prefix]told{}
	s.missing = ""
	for _, r := range routes {
		if r.Peer != s.peer.Name {
			continue
		}
		hop, ok := s.nextHop(r.Prefix, nodeAddrs)
		if !ok {
			s.missing = fmt.Sprintf("%s is not announced: the node has no address of its family to send its packets to", r.Prefix)
			continue
		}
		wanted[r.Prefix] = told{r, hop}
	}
	for prefix := range s.told {
		if _, keep := wanted[prefix]; !keep {
			if err := s.server.DeletePath(apiutil.DeletePathRequest{Paths: []*apiutil.Path{s.paths[prefix]}}); err != nil {
				return fmt.Errorf("withdraw %s: %w", prefix, err)
			}
			delete(s.told, prefix)
			delete(s.paths, prefix)
		}
	}
	for prefix, now := range wanted {
		if old, is := s.told[prefix]; is && same(&old, &now) {
			continue
		}
		path, err := s.path(&now)
		if err != nil {
			return fmt.Errorf("announce %s: %w", prefix, err)
		}
		got, err := s.server.AddPath(apiutil.AddPathRequest{Paths: []*apiutil.Path{path}})
		if err == nil && len(got) > 0 {
			err = got[0].Error
		}
		if err != nil {
			return fmt.Errorf("announce %s: %w", prefix, err)
		}
		s.told[prefix], s.paths[prefix] = now, path
	}
	s.session.Routes = len(s.told)
	return nil
}

// same reports whether a router would see no difference.
func same(a, b *told) bool {
	p, q := a.route.LocalPref, b.route.LocalPref
	if (p == nil) != (q == nil) || p != nil && *p != *q {
		return false
	}
	return a.hop == b.hop && slices.Equal(a.route.Communities, b.route.Communities)
}

// nextHop returns where packets for a prefix are to be sent; unspecified for the address of the session.
func (s *speaker) nextHop(p netip.Prefix, nodeAddrs []netip.Addr) (netip.Addr, bool) {
	if p.Addr().Is4() == s.peer.Address.Addr().Is4() {
		if p.Addr().Is4() {
			return netip.IPv4Unspecified(), true
		}
		return netip.IPv6Unspecified(), true
	}
	for _, a := range nodeAddrs {
		if a.Is4() == p.Addr().Is4() {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// path returns a route as GoBGP knows it.
func (s *speaker) path(t *told) (*apiutil.Path, error) {
	r, hop := &t.route, t.hop
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, err
	}
	family, attrs := bgp.RF_IPv4_UC, []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(bgp.BGP_ORIGIN_ATTR_TYPE_IGP)}
	if r.Prefix.Addr().Is6() {
		family = bgp.RF_IPv6_UC
		reach, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, reach)
	} else {
		next, err := bgp.NewPathAttributeNextHop(hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, next)
	}
	if r.LocalPref != nil && s.peer.ASN == s.peer.MyASN {
		attrs = append(attrs, bgp.NewPathAttributeLocalPref(*r.LocalPref))
	}
	plain, large := communities(r.Communities)
	if len(plain) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(plain))
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs}, nil
}

// communities reads what the agent has checked.
func communities(texts []string) (plain []uint32, large []*bgp.LargeCommunity) {
	for _, text := range texts {
		var n []uint32
		for part := range strings.SplitSeq(text, ":") {
			x, _ := strconv.ParseUint(part, 10, 32)
			n = append(n, uint32(x))
		}
		switch len(n) {
		case 2:
			plain = append(plain, n[0]<<16|n[1]&0xffff)
		case 3:
			large = append(large, bgp.NewLargeCommunity(n[0], n[1], n[2]))
		}
	}
	return plain, large
}

// state returns how the session is.
func (s *speaker) state(ctx context.Context, now time.Time) announce.Session {
	_ = s.server.ListPeer(ctx, &api.ListPeerRequest{EnableAdvertised: true}, func(p *api.Peer) {
		state := strings.ToLower(strings.TrimPrefix(p.GetState().GetSessionState().String(), "SESSION_STATE_"))
		seen := s.flaps.state(now)
		if !seen.up && state == established { // since a moment
			state = "openconfirm"
		}
		if !seen.since.IsZero() {
			s.session.Since = seen.since
		}
		s.session.State, s.session.Received, s.session.Ups = state, 0, seen.ups
		for _, f := range p.GetAfiSafis() {
			s.session.Received += int(f.GetState().GetReceived())
		}
		s.session.Problem = s.problem(state == established, seen.why, now)
	})
	return s.session
}

// problem says what is wrong with the session; "" when nothing is. why is not "" while sessions end again and again.
// The text stays the same for as long as the fault does: another one would be another Event, and another write to the
// Node.
func (s *speaker) problem(up bool, why string, now time.Time) string {
	if !up && now.Sub(s.session.Since) >= late {
		text := fmt.Sprintf("there has been no session with the router at %s (AS %d) for more than %s", s.peer.Address, s.peer.ASN, late)
		if s.password != "" {
			return text + ": see that it knows this node, and has the same password"
		}
		return text + ": see that it knows this node, and asks for no password"
	}
	if why != "" {
		return fmt.Sprintf("the session with the router at %s (AS %d) has ended %d times and more within %s of its beginning, and its routes come and go: %s, so see what the router says of it",
			s.peer.Address, s.peer.ASN, mostFlaps, short, why)
	}
	if up {
		return s.missing
	}
	return ""
}
