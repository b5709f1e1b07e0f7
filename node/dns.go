package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"tapestry.dev/tapestry/services/dns"
	"tapestry.dev/tapestry/share/descriptors"
)

// dnsPort is the port of cluster DNS.
const dnsPort = 53

// resolvers serve cluster DNS on the stack's addresses. One goroutine at a time changes them.
type resolvers struct {
	node      *Node
	upstreams []netip.AddrPort
	known     bool // upstreams are set
	server    *dns.Server
	running   map[netip.Addr]context.CancelFunc // they end with the Node's context, too
}

func makeResolvers(n *Node) (part, error) {
	r := &resolvers{node: n, running: map[netip.Addr]context.CancelFunc{}}
	r.server = dns.New(dns.Options{
		Choices:   n.held.DNS,
		Serves:    func(namespace, name string, a netip.Addr) bool { return n.table.Load().Serves(namespace, name, a) },
		Owner:     func(a netip.Addr) netip.Addr { return n.path.Owner(a) },
		Upstreams: func() []netip.AddrPort { return r.upstreams },
		Dial:      new(net.Dialer).DialContext,
		Logger:    n.log,
		Answered:  n.recorder.answered(),

		MaxForwards: n.held.Descriptors.Of(descriptors.Questions),
	})
	n.resolver = r.server
	p := quiet
	p.set = r.set
	p.counters = r.server.Counters
	p.drainLast = func(ctx context.Context) {
		n.path.Stack().Shun()
		if left := r.server.Drain(ctx); left > 0 {
			n.log.Warn("connections to cluster DNS were cut", "connections", left)
		}
	}
	return p, nil
}

// set listens on exactly the addresses that c names. No query is answered before the upstreams are known.
func (r *resolvers) set(c *Config) error {
	r.server.Set(c.DNS)
	if !r.known {
		var err error
		if r.upstreams, err = r.node.held.Upstreams(); err != nil {
			return err
		}
		r.known = true
	}
	want := map[netip.Addr]bool{}
	var errs []error
	for _, addr := range c.Netstack.LocalAddrs {
		want[addr] = true
		if r.running[addr] == nil {
			errs = append(errs, r.listen(addr))
		}
	}
	for addr, stop := range r.running {
		if !want[addr] {
			stop()
			delete(r.running, addr)
		}
	}
	return errors.Join(errs...)
}

func (r *resolvers) listen(addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, dnsPort)
	stack := r.node.path.Stack()
	pc, err := stack.ListenPacket(at)
	if err != nil {
		return fmt.Errorf("cluster DNS on %s: %w", at, err)
	}
	l, err := stack.Listen(at)
	if err != nil {
		_ = pc.Close()
		return fmt.Errorf("cluster DNS on %s: %w", at, err)
	}
	ctx, stop := context.WithCancel(r.node.ctx)
	r.running[addr] = stop
	go func() {
		if err := r.server.Serve(ctx, pc, l); err != nil && ctx.Err() == nil {
			r.node.log.Error("cluster DNS stopped", "addr", at, "err", err)
		}
	}()
	return nil
}
