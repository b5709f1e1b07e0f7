package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// Case is one kind of measurement with what is read off its Result.
type Case struct {
	Name    string
	Command string // stream, rr or crr
	Options Options
	Metrics []Metric
}

// Metric is one figure of a Result.
type Metric struct {
	Name string // appended to the Case's
	Unit string
	// Higher says that more is better.
	Higher bool
	Value  func(Result) float64
}

// Cases are the usual ones, each measurement taking d.
func Cases(d time.Duration) []Case {
	gigabits := []Metric{{Unit: "Gbit/s", Higher: true, Value: func(r Result) float64 { return r.BitsPerSecond / 1e9 }}}
	micros := func(ns int64) float64 { return float64(ns) / 1e3 }
	times := []Metric{
		{Name: " p50", Unit: "us", Value: func(r Result) float64 { return micros(r.Latency.P50) }},
		{Name: " p99", Unit: "us", Value: func(r Result) float64 { return micros(r.Latency.P99) }},
	}
	rate := []Metric{{Unit: "1/s", Higher: true, Value: func(r Result) float64 { return r.PerSecond }}}
	return []Case{
		{"tcp stream x1", "stream", Options{Streams: 1, Time: d, Direction: Up}, gigabits},
		{"tcp stream x4", "stream", Options{Streams: 4, Time: d, Direction: Up}, gigabits},
		{"tcp rr", "rr", Options{Streams: 1, Time: d}, times},
		{"tcp crr", "crr", Options{Streams: 1, Time: d}, rate},
	}
}

// Plan is a run: every Case on every Topology, in turn, Rounds times.
type Plan struct {
	Suite      string
	Topologies []Topology
	Cases      []Case
	// Baselines says by name which Topology another one is compared with; those that are not in it are only shown.
	Baselines map[string]string
	// Rounds that count; 0 is 5. One more, which does not, goes before: neighbours get resolved, tunnels shake hands,
	// caches and clocks warm up.
	Rounds int
	Spawn  Spawn // nil is Self
	// Progress is told before every measurement; nil: nobody is.
	Progress func(done, all int, topology, name string)
}

// warmUp is the longest a measurement of the round before the first takes.
const warmUp = 500 * time.Millisecond

// port of the server processes.
const port = 5201

// Run carries the plan out. The Topologies stay the caller's. On an error, which says what failed where, there are no rows.
func Run(ctx context.Context, p Plan) (rows []Row, err error) {
	if p.Rounds == 0 {
		p.Rounds = 5
	}
	if p.Spawn == nil {
		p.Spawn = Self
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	for _, t := range p.Topologies {
		server, err := p.serve(t)
		if err != nil {
			return nil, fmt.Errorf("bench: %s: %w", t.Name(), err)
		}
		defer func() { err = errors.Join(err, server.Close()) }()
	}
	s := newSamples(p)
	all, done := (p.Rounds+1)*len(p.Cases)*len(p.Topologies), 0
	for round := range p.Rounds + 1 {
		for _, c := range p.Cases {
			for _, t := range p.Topologies {
				if p.Progress != nil {
					p.Progress(done, all, t.Name(), c.Name)
				}
				o := c.Options
				if round == 0 {
					o.Time = min(o.Time, warmUp)
				}
				r, err := p.measure(ctx, t, c.Command, o)
				if err != nil {
					return nil, fmt.Errorf("bench: %s: %s: %w", t.Name(), c.Name, err)
				}
				if round > 0 {
					s.add(t.Name(), c, r)
				}
				done++
			}
		}
	}
	return s.rows(p), nil
}

func (p *Plan) check() error {
	p.Cases = slices.Clone(p.Cases)
	names := map[string]bool{}
	for _, t := range p.Topologies {
		if names[t.Name()] {
			return fmt.Errorf("bench: two topologies are called %s", t.Name())
		}
		names[t.Name()] = true
	}
	for subject, baseline := range p.Baselines {
		if names[subject] && !names[baseline] {
			return fmt.Errorf("bench: %s is to be compared with %s, which is not measured", subject, baseline)
		}
	}
	for i := range p.Cases {
		o, err := p.Cases[i].Options.check()
		if err != nil {
			return fmt.Errorf("bench: case %s: %w", p.Cases[i].Name, err)
		}
		p.Cases[i].Options = o
	}
	if p.Rounds < 1 || len(p.Topologies) == 0 || len(p.Cases) == 0 {
		return errors.New("bench: expected at least one round, topology and case")
	}
	return nil
}

// serve starts the server of t.
func (p *Plan) serve(t Topology) (*process, error) {
	server, _, err := start(t.Server(), p.Spawn("serve", "--listen", fmt.Sprintf(":%d", port), "--until-eof"))
	return server, err
}

// measure runs a client process in t.
func (p *Plan) measure(ctx context.Context, t Topology, command string, o Options) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	addr := net.JoinHostPort(t.Addr().String(), fmt.Sprint(port))
	cmd := p.Spawn(append([]string{command, addr, "--json"}, o.args()...)...)
	out, err := output(ctx, t.Client(), cmd)
	if err != nil {
		return Result{}, err
	}
	var r Result
	if err := json.Unmarshal(out, &r); err != nil {
		return Result{}, fmt.Errorf("%s: expected a result in JSON, got %q", strings.Join(cmd.Args, " "), out)
	}
	return r, nil
}
