package bgp

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/announce/ask"
	"tapestry.dev/tapestry/announce/bfd"
	"tapestry.dev/tapestry/localapi"
)

const (
	// lookEvery is the pause between two looks at sessions and passwords, and between two reports to the agent.
	lookEvery = time.Second
	// patience is for how long routes stay when the agent does not answer: an update of the agent takes less, and a
	// node without an agent has nobody who carries what is sent to it.
	patience = 10 * time.Second
)

// Options are the settings of Run. All are required but Passwords.
type Options struct {
	// Node is the name of this node, Agent the agent's socket for announcers.
	Node, Agent string
	// Passwords is a directory with a file for each password; "" for none.
	Passwords string
	Log       *slog.Logger
}

// Run announces what the agent says until ctx is done.
func Run(ctx context.Context, o Options) {
	a := &announcer{o: o, client: &localapi.Client{Path: o.Agent}, speakers: map[string]*speaker{}, faults: map[string]string{}, bfd: bfd.New()}
	(&ask.Loop{
		State: localapi.RouteState, Client: a.client, Log: o.Log, Fetch: a.fetch,
		Each: func(away time.Duration) { a.each(ctx, away) },
	}).Run(ctx)
	for _, s := range a.speakers {
		// Without a word the router keeps the routes for as long as it promised.
		if s.peer.GracefulRestart == 0 {
			s.stop()
		}
	}
	a.bfd.Close()
}

// announcer is the state of Run.
type announcer struct {
	o        Options
	client   *localapi.Client
	speakers map[string]*speaker
	faults   map[string]string // by peer: why it has no speaker
	bfd      *bfd.Monitor
	peers    []announce.Peer
	routes   []announce.Route
	addrs    []netip.Addr // the node's
	looked   time.Time
	// withdrawn is set while the agent is away for so long that nothing is announced.
	withdrawn bool
}

func (a *announcer) fetch(ctx context.Context, s announce.State) error {
	peers, err := localapi.BGPPeers.Ask(ctx, a.client)
	if err != nil {
		return err
	}
	routes, err := localapi.Routes.Ask(ctx, a.client)
	if err != nil {
		return err
	}
	a.peers, a.routes, a.addrs, a.looked = peers, routes, s.NodeAddrs, time.Time{}
	return nil
}

// each is called after every question to the agent.
func (a *announcer) each(ctx context.Context, away time.Duration) {
	if lost := away > patience; lost != a.withdrawn {
		a.withdrawn, a.looked = lost, time.Time{}
		if lost {
			a.o.Log.Warn("all routes are withdrawn, since the agent does not answer")
		}
	}
	now := time.Now()
	for _, router := range a.bfd.Lost(ctx, now) {
		a.lose(ctx, router)
		a.looked = time.Time{} // it is told at once
	}
	if now.Sub(a.looked) < lookEvery {
		return
	}
	a.looked = now
	a.set(ctx)
	a.bfd.Set(ctx, bfd.Wanted(a.peers), now)
	a.report(ctx, now)
}

// lose ends the sessions with a router that BFD says is lost. Others of the same router, without BFD, stay.
func (a *announcer) lose(ctx context.Context, router netip.Addr) {
	for name, s := range a.speakers {
		if s.peer.Address.Addr() != router || s.peer.BFD == (announce.BFD{}) {
			continue
		}
		a.o.Log.Warn("BFD says that the router is lost", "peer", name, "address", router)
		if err := s.lose(ctx, time.Now()); err != nil {
			a.o.Log.Error("the session with a router that BFD says is lost goes on", "peer", name, "err", err)
		}
	}
}

// set brings the speakers to what the agent says.
func (a *announcer) set(ctx context.Context) {
	clear(a.faults)
	routes := a.routes
	if a.withdrawn {
		routes = nil
	}
	for name, s := range a.speakers {
		i := slices.IndexFunc(a.peers, func(p announce.Peer) bool { return p.Name == name })
		if i >= 0 && a.peers[i] == s.peer {
			if password, err := a.password(&s.peer); err == nil && password == s.password {
				continue
			}
		}
		s.stop()
		delete(a.speakers, name)
	}
	for _, p := range a.peers {
		if a.speakers[p.Name] == nil {
			password, err := a.password(&p)
			var s *speaker
			if err == nil {
				s, err = start(ctx, p, password, a.id(), a.o.Log)
			}
			if err != nil {
				a.faults[p.Name] = err.Error()
				continue
			}
			a.speakers[p.Name] = s
		}
		if err := a.speakers[p.Name].tell(routes, a.addrs); err != nil {
			a.faults[p.Name] = err.Error()
		}
	}
}

// id returns the node's router ID: its IPv4 address, or a number that follows from its name.
func (a *announcer) id() netip.Addr {
	for _, addr := range a.addrs {
		if addr.Is4() {
			return addr
		}
	}
	h := fnv.New32a()
	h.Write([]byte(a.o.Node))
	b := h.Sum(nil)
	return netip.AddrFrom4([4]byte{b[0] | 1, b[1], b[2], b[3] | 1})
}

// password returns the password for a router, without the line break that ends many files.
func (a *announcer) password(p *announce.Peer) (string, error) {
	if p.PasswordKey == "" {
		return "", nil
	}
	text, err := os.ReadFile(filepath.Join(a.o.Passwords, filepath.Base(p.PasswordKey)))
	if a.o.Passwords == "" || err != nil {
		return "", fmt.Errorf("there is no password %q: put it under this key into the Secret that the announcer mounts (%w)", p.PasswordKey, err)
	}
	const most = 80 // TCP_MD5SIG_MAXKEYLEN
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" || len(password) > most {
		return "", fmt.Errorf("the password %q has %d bytes: expected 1 to %d", p.PasswordKey, len(password), most)
	}
	return password, nil
}

// report tells the agent how the sessions are.
func (a *announcer) report(ctx context.Context, now time.Time) {
	list := make([]announce.Session, 0, len(a.peers))
	for _, p := range a.peers {
		s := announce.Session{Peer: p.Name, Address: p.Address, ASN: p.ASN, State: "idle"}
		if sp := a.speakers[p.Name]; sp != nil {
			s = sp.state(ctx, now)
		}
		if fault := a.faults[p.Name]; fault != "" {
			s.Problem = fault
		}
		if p.BFD != (announce.BFD{}) {
			state, problem := a.bfd.Of(p.Address.Addr(), now)
			s.BFD = string(state)
			if s.Problem == "" {
				s.Problem = problem
			}
		}
		list = append(list, s)
	}
	within, cancel := context.WithTimeout(ctx, lookEvery/2)
	defer cancel()
	// The loop that asks the agent tells when it does not answer.
	_ = localapi.Sessions.Tell(within, a.client, list)
}
