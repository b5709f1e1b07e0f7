package labs

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/lab"
)

// Path is a way through a lab.
type Path struct {
	Name string
	// Client and Server are where the load generator and its server run. With a zero Server the lab has a server
	// already.
	Client, Server lab.Target
	// To lists what the client reaches over the path.
	To map[bench.Service]End
}

// End is an address that a client uses. Host is pod/NAME, service/NAME, node/NAME,
// balancer/NAME, or outside.
type End struct {
	Host string
	Port uint16
}

// topology is an open Path. Its namespaces and its server belong to the lab.
type topology struct {
	name    string
	client  *tap.Namespace
	targets map[bench.Service]netip.AddrPort
}

var _ bench.Topology = (*topology)(nil)

func (t *topology) Name() string           { return t.name }
func (t *topology) Client() *tap.Namespace { return t.client }
func (t *topology) Server() *tap.Namespace { return nil }
func (t *topology) Close() error           { return nil }

func (t *topology) Target(s bench.Service) (netip.AddrPort, bool) {
	target, ok := t.targets[s]
	return target, ok
}

// Open starts the path's server and returns the path. The path works until the lab goes down; closing it does nothing.
func (l *Lab) Open(ctx context.Context, p Path) (bench.Topology, error) {
	t := &topology{name: p.Name, targets: map[bench.Service]netip.AddrPort{}}
	for service, end := range p.To {
		addr, ok := l.addrs[end.Host]
		if !ok {
			return nil, fmt.Errorf("path %s: the lab has no %s", p.Name, end.Host)
		}
		t.targets[service] = netip.AddrPortFrom(addr, end.Port)
	}
	var err error
	if t.client, err = l.namespace(ctx, p.Client); err != nil {
		return nil, fmt.Errorf("path %s: %w", p.Name, err)
	}
	for service, target := range t.targets {
		if p.Server != (lab.Target{}) {
			if err := l.serve(ctx, p.Server, service); err != nil {
				return nil, fmt.Errorf("path %s: %w", p.Name, err)
			}
		}
		if service == bench.IPerf3 { // no short case asks iperf3; the load generator beside it is asked
			continue
		}
		if err := l.await(ctx, t.client, service, target); err != nil {
			return nil, fmt.Errorf("path %s: %w", p.Name, err)
		}
	}
	return t, nil
}

// firstWords returns a short Case that shows whether a service answers.
func firstWords(s bench.Service) (bench.Case, error) {
	const short = time.Millisecond
	all := slices.Concat(bench.TCPCases(short), bench.HTTPCases(short), bench.DNSCases(short))
	i := slices.IndexFunc(all, func(c bench.Case) bool { return c.Service == s })
	if i < 0 {
		return bench.Case{}, fmt.Errorf("no case has the service %s", s)
	}
	var err error
	all[i].Options, err = all[i].Options.Complete()
	return all[i], err
}

// await waits until a service answers. A lab is ready when its manifests are written, and an agent needs some time to
// read ten thousand Services.
func (l *Lab) await(ctx context.Context, client *tap.Namespace, s bench.Service, target netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	words, err := firstWords(s)
	if err != nil {
		return err
	}
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		_, err := process.Output(ctx, client, l.spawn(append([]string{words.Command, target.String()}, words.Options.Args()...)...))
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s at %v did not answer within %v: %w", s, target, readyTime, err)
		case <-again.C:
		}
	}
}
