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
	// Client and Server are where the load generator and its server run. The zero Server means that it is there
	// already.
	Client, Server lab.Target
	// To is what the client reaches by it.
	To map[bench.Service]End
}

// End is an address that a client uses: Host is pod/NAME, service/NAME, node/NAME, or outside.
type End struct {
	Host string
	Port uint16
}

// topology is a Path that is open. Its namespaces and its server are the lab's.
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

// Open starts the path's server and hands the path out. It is good until the lab goes down; closing it does nothing.
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
		if service == bench.IPerf3 { // which nothing short can be asked; who reaches its neighbour reaches it
			continue
		}
		if err := l.await(ctx, t.client, service, target); err != nil {
			return nil, fmt.Errorf("path %s: %w", p.Name, err)
		}
	}
	return t, nil
}

// firstWords gives a Case that shows whether a service is there.
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

// await waits until a service answers. A lab that is ready has written down what there is; of ten thousand Services an
// agent needs some time to read it.
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
