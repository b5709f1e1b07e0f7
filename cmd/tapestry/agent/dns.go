package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/services/dns"
)

// resolvers are the DNS servers on the gateway's addresses; one goroutine changes them.
type resolvers struct {
	server  *dns.Server
	running map[netip.Addr]context.CancelFunc
}

// set listens on port 53 of exactly these addresses.
func (r *resolvers) set(ctx context.Context, a *agent, addrs []netip.Addr) error {
	if r.server == nil {
		upstreams, err := a.upstreams()
		if err != nil {
			return err
		}
		r.running = map[netip.Addr]context.CancelFunc{}
		r.server = dns.New(dns.Options{
			Table:     func() *services.Table { return a.table.Load() },
			Upstreams: func() []netip.AddrPort { return upstreams },
			Dial:      (&net.Dialer{}).DialContext,
			Logger:    a.log,
		})
	}
	want := map[netip.Addr]bool{}
	var errs []error
	for _, addr := range addrs {
		want[addr] = true
		if r.running[addr] == nil {
			errs = append(errs, r.listen(ctx, a, addr))
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

func (r *resolvers) listen(ctx context.Context, a *agent, addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, 53)
	pc, err := a.node.Gateway().ListenPacket(at)
	if err != nil {
		return fmt.Errorf("cluster DNS on %s: %w", at, err)
	}
	l, err := a.node.Gateway().Listen(at)
	if err != nil {
		_ = pc.Close()
		return fmt.Errorf("cluster DNS on %s: %w", at, err)
	}
	ctx, stop := context.WithCancel(ctx)
	r.running[addr] = stop
	go func() {
		if err := r.server.Serve(ctx, pc, l); err != nil && ctx.Err() == nil {
			a.log.Error("cluster DNS stopped", "addr", at, "err", err)
		}
	}()
	return nil
}

func (r *resolvers) close() {
	for _, stop := range r.running {
		stop()
	}
}

// upstreams are the servers for names outside of the cluster.
func (a *agent) upstreams() ([]netip.AddrPort, error) {
	if len(a.dnsUpstreams) == 0 {
		return dns.ResolvConf("/etc/resolv.conf")
	}
	var out []netip.AddrPort
	for _, s := range a.dnsUpstreams {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			ip, err := netip.ParseAddr(s)
			if err != nil {
				return nil, fmt.Errorf("--dns-upstream %q: expected an address, with or without a port", s)
			}
			ap = netip.AddrPortFrom(ip, 53)
		}
		out = append(out, ap)
	}
	return out, nil
}
