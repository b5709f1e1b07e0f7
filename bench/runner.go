package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/bench/process"
)

// Case is one kind of measurement, with the metrics that are read from it.
type Case struct {
	Name    string
	Service Service
	Command string // a command of the load generator: stream, rr, ...
	Options load.Options
	Metrics []Metric
}

// Sample is one measurement.
type Sample struct {
	load.Result
	// Busy is how long all of the machine's processors worked during the measurement.
	Busy time.Duration
}

// Metric is one figure of a Sample.
type Metric struct {
	Name string // appended to the name of the Case
	Unit string
	// Higher says that more is better.
	Higher bool
	Value  func(Sample) float64
}

// Plan is a run: Rounds times, every Case is measured on every Topology in turn that has its Service.
type Plan struct {
	Suite      string
	Topologies []Topology
	Cases      []Case
	// Baselines says by name which Topologies a Topology is compared with. Without an entry it is only shown.
	Baselines map[string][]string
	// Rounds is how many rounds count; 0 is DefaultRounds. One more round goes before them and does not count: in it
	// neighbours are resolved, tunnels shake hands, and caches and clocks warm up.
	Rounds int
	Spawn  process.Spawn // nil is process.Self
	// Failed is told about a failed measurement, and decides whether the run goes on without it; nil: the run ends.
	Failed func(topology string, err error) bool
	// Progress is told before every measurement; nil: nobody is told.
	Progress func(done, all int, topology, name string)
}

// DefaultRounds is enough for a meaningful median and extremes.
const DefaultRounds = 5

// WarmUp is the longest that a measurement of the first round, which does not count, takes.
const WarmUp = 500 * time.Millisecond

// Run carries the plan out. The Topologies stay the caller's. An error says which case failed on which Topology; Run
// then returns no rows.
func Run(ctx context.Context, p Plan) (rows []Row, err error) {
	if err := p.complete(); err != nil {
		return nil, err
	}
	for _, t := range p.Topologies {
		if t.Server() == nil {
			continue
		}
		for _, args := range p.servers(t) {
			server, _, err := process.Start(t.Server(), p.Spawn(args...))
			if err != nil {
				return nil, fmt.Errorf("bench: %s: %w", t.Name(), err)
			}
			defer func() { err = errors.Join(err, server.Close()) }()
		}
	}
	s := make(samples)
	steps := p.steps()
	done, all := 0, (p.Rounds+1)*len(steps)
	for round := range p.Rounds + 1 {
		for _, step := range steps {
			name := step.topology.Name()
			if p.Progress != nil {
				p.Progress(done, all, name, step.Case.Name)
			}
			if round == 0 {
				step.Options.Time = min(step.Options.Time, WarmUp)
			}
			done++
			sample, err := p.measure(ctx, step)
			if err != nil {
				err = fmt.Errorf("bench: %s: %s: %w", name, step.Case.Name, err)
				if ctx.Err() != nil || p.Failed == nil || !p.Failed(name, err) {
					return nil, err
				}
				continue
			}
			if round > 0 {
				s.add(name, step.Case, sample)
			}
		}
	}
	if p.Progress != nil {
		p.Progress(done, all, "", "")
	}
	return s.rows(p), nil
}

// step is a Case on a Topology.
type step struct {
	Case
	topology Topology
	target   netip.AddrPort
}

// steps returns the measurements of a round in their order.
func (p *Plan) steps() []step {
	var steps []step
	for _, c := range p.Cases {
		for _, t := range p.Topologies {
			if target, ok := t.Target(c.Service); ok {
				steps = append(steps, step{c, t, target})
			}
		}
	}
	return steps
}

// complete fills in the defaults, or returns an error that says what is wrong.
func (p *Plan) complete() error {
	if p.Rounds == 0 {
		p.Rounds = DefaultRounds
	}
	if p.Spawn == nil {
		p.Spawn = process.Self
	}
	p.Cases = slices.Clone(p.Cases)
	names := map[string]bool{}
	for _, t := range p.Topologies {
		if names[t.Name()] {
			return fmt.Errorf("bench: two topologies are called %s", t.Name())
		}
		names[t.Name()] = true
	}
	for subject, baselines := range p.Baselines {
		for _, baseline := range baselines {
			if names[subject] && !names[baseline] {
				return fmt.Errorf("bench: %s is to be compared with %s, which is not measured", subject, baseline)
			}
		}
	}
	for i := range p.Cases {
		o, err := p.Cases[i].Options.Complete()
		if err != nil {
			return fmt.Errorf("bench: case %s: %w", p.Cases[i].Name, err)
		}
		p.Cases[i].Options = o
	}
	if p.Rounds < 1 || len(p.steps()) == 0 {
		return errors.New("bench: expected at least one round, and a topology with a case for it")
	}
	return nil
}

// servers returns the commands of the servers that t needs.
func (p *Plan) servers(t Topology) [][]string {
	services := []Service{Load}
	_, reached := t.Target(IPerf3)
	if reached && slices.ContainsFunc(p.Cases, func(c Case) bool { return c.Service == IPerf3 }) {
		services = append(services, IPerf3)
	}
	var servers [][]string
	for _, s := range services {
		servers = append(servers, ServeArgs(s))
	}
	return servers
}

// ServeArgs returns the arguments of the server for a service: iperf3's for IPerf3, otherwise the load generator's own,
// which serves all other services. The server prints a line when it is ready, and ends when its standard input ends.
func ServeArgs(s Service) []string {
	port := func(n int) string { return fmt.Sprintf(":%d", n) }
	if s == IPerf3 {
		return []string{"iperf3-serve", "--until-eof", "--listen", port(IPerf3Port)}
	}
	return []string{"serve", "--until-eof", "--listen", port(LoadPort), "--http", port(HTTPPort)}
}

// measure runs a client process and measures how busy the machine is meanwhile.
func (p *Plan) measure(ctx context.Context, s step) (Sample, error) {
	if err := ctx.Err(); err != nil {
		return Sample{}, err
	}
	cmd := p.Spawn(append([]string{s.Command, s.target.String(), "--json"}, s.Options.Args()...)...)
	before, err := busyTime()
	if err != nil {
		return Sample{}, err
	}
	out, err := process.Output(ctx, s.topology.Client(), cmd)
	if err != nil {
		return Sample{}, err
	}
	after, err := busyTime()
	if err != nil {
		return Sample{}, err
	}
	sample := Sample{Busy: after - before}
	if err := json.Unmarshal(out, &sample.Result); err != nil {
		return Sample{}, fmt.Errorf("%s: expected a result in JSON, got %q", strings.Join(cmd.Args, " "), out)
	}
	return sample, nil
}
