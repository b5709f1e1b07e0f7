package link

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/announce/ask"
	"tapestry.dev/tapestry/localapi"
)

// lookEvery is the pause between two looks at the host's interfaces, and between two reports to the agent.
const lookEvery = time.Second

// Options are the settings of Run. All are required.
type Options struct {
	// Node is the name of this node, Agent the socket of its agent's local API.
	Node, Agent string
	Log         *slog.Logger
}

// Run announces what the agent says until ctx is done.
func Run(ctx context.Context, o Options) error {
	a := &announcer{o: o, speaker: NewSpeaker(), ports: map[string]*ether{}, client: &localapi.Client{Path: o.Agent}}
	if err := a.canOpen(); err != nil {
		return err
	}
	defer a.close()
	reports, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); a.report(reports) }()
	(&ask.Loop{State: localapi.LinkState, Client: a.client, Fetch: a.fetch, Each: a.each, Log: o.Log}).Run(ctx)
	stop()
	<-done
	return nil
}

// announcer is the state of Run. Only its loop uses it, apart from speaker and broken.
type announcer struct {
	o       Options
	client  *localapi.Client
	speaker *Speaker
	ports   map[string]*ether
	broken  atomic.Bool // some Port has ended by itself

	nodeAddrs []netip.Addr
	turns     []announce.Turn
	looked    time.Time
	withdrawn bool // because the agent is away
}

// canOpen returns an error when this process may not open the sockets that it needs.
func (a *announcer) canOpen() error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return nil // a host without it; what cannot be opened is told later
	}
	e := openPort(*lo, a.o.Node, a.speaker, func() {}, a.o.Log)
	defer e.Close()
	if err := e.Hear(netip.IPv4Unspecified()); errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: give this container the capability NET_RAW", err)
	}
	return nil
}

func (a *announcer) close() {
	for _, p := range a.ports {
		p.Close()
	}
}

func (a *announcer) fetch(ctx context.Context, s announce.State) error {
	turns, err := localapi.Turns.Ask(ctx, a.client)
	if err != nil {
		return err
	}
	a.nodeAddrs, a.turns, a.withdrawn = s.NodeAddrs, turns, false
	a.look(time.Now())
	a.speaker.Set(turns, a.on, time.Now())
	return nil
}

// each is called after every question to the agent.
func (a *announcer) each(away time.Duration) {
	now := time.Now()
	switch {
	case away > announce.Patience && !a.withdrawn:
		// Other nodes take the addresses over at this moment.
		a.o.Log.Warn("nothing is announced, since the agent does not answer")
		a.withdrawn = true
		a.speaker.Set(nil, a.on, now)
	case away == 0 && a.withdrawn:
		a.withdrawn = false
		a.speaker.Set(a.turns, a.on, now)
	}
	if now.Sub(a.looked) >= lookEvery || a.broken.Load() {
		a.look(now)
		if !a.withdrawn {
			a.speaker.Set(a.turns, a.on, now)
		}
	}
	a.speaker.Step(now)
}

// look has the Ports follow the host's interfaces.
func (a *announcer) look(now time.Time) {
	a.looked = now
	ended := a.broken.Swap(false)
	all, err := net.Interfaces()
	if err != nil {
		a.o.Log.Warn("cannot list the host's interfaces", "err", err)
		return
	}
	names := a.wanted(all)
	for name, p := range a.ports {
		i := slices.IndexFunc(all, func(x net.Interface) bool { return x.Name == name })
		if i >= 0 && slices.Contains(names, name) && !ended && all[i].Index == p.ifi.Index && slices.Equal(all[i].HardwareAddr, p.ifi.HardwareAddr) {
			continue
		}
		a.speaker.SetPort(name, nil)
		p.Close()
		delete(a.ports, name)
	}
	for _, ifi := range all {
		if a.ports[ifi.Name] == nil && slices.Contains(names, ifi.Name) {
			p := openPort(ifi, a.o.Node, a.speaker, func() { a.broken.Store(true) }, a.o.Log)
			a.ports[ifi.Name] = p
			a.speaker.SetPort(ifi.Name, p)
		}
	}
}

// wanted returns the names of those interfaces on which this node is to announce something, and can.
func (a *announcer) wanted(all []net.Interface) (names []string) {
	for _, ifi := range all {
		usable := len(ifi.HardwareAddr) == 6 && ifi.Flags&net.FlagUp != 0 && ifi.Flags&(net.FlagLoopback|net.FlagPointToPoint) == 0
		if usable && slices.ContainsFunc(a.turns, func(t announce.Turn) bool { return t.Mine && a.matches(&t, &ifi) }) {
			names = append(names, ifi.Name)
		}
	}
	return names
}

// matches reports whether an address is announced on an interface.
func (a *announcer) matches(t *announce.Turn, ifi *net.Interface) bool {
	if len(t.Interfaces) == 0 {
		return a.hasNodeAddr(ifi)
	}
	return slices.ContainsFunc(t.Interfaces, func(name string) bool {
		prefix, any := strings.CutSuffix(name, "*")
		return name == ifi.Name || any && strings.HasPrefix(ifi.Name, prefix)
	})
}

func (a *announcer) hasNodeAddr(ifi *net.Interface) bool {
	addrs, err := ifi.Addrs()
	if err != nil {
		return false // it has just gone
	}
	return slices.ContainsFunc(addrs, func(x net.Addr) bool {
		p, err := netip.ParsePrefix(x.String())
		return err == nil && slices.Contains(a.nodeAddrs, p.Addr())
	})
}

// on returns the names of the interfaces on which an address is announced. One that no interface matches is claimed on
// an interface that does not exist, so that it is told.
func (a *announcer) on(t *announce.Turn) (names []string) {
	for name, p := range a.ports {
		if a.matches(t, &p.ifi) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		names = append(names, cmp.Or(strings.Join(t.Interfaces, ","), "the interface with the node's address"))
	}
	return names
}

// report tells the agent how it goes until ctx is done.
func (a *announcer) report(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		within, cancel := context.WithTimeout(ctx, lookEvery)
		// The loop that asks the agent tells when it does not answer.
		_ = localapi.Claims.Tell(within, a.client, a.speaker.Claims())
		cancel()
	}
}
