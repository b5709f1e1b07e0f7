package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/labs"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/bench/programs"
)

// Options are the options of Run. Zero fields have defaults.
type Options struct {
	Rounds int           // of every measurement; 0 is bench.DefaultRounds
	Time   time.Duration // of one measurement; 0 is the suite's
	Spawn  process.Spawn // nil is process.Self
	// Required lists the baselines and cases, by name, whose absence is an error. Other baselines and cases are left
	// out when they cannot be measured.
	Required []string
	// Notice is told, in a sentence, what is left out; nil: nobody is told.
	Notice func(string)
	// Progress is told before every measurement and, with all = 0, what is being brought up; nil: nobody is told.
	Progress func(suite string, done, all int, topology, name string)
}

// Run carries suites out one after the other. A suite's labs are up only while it runs, since idle labs take processor
// time as well. On an error Run returns the rows of the suites before it.
func Run(ctx context.Context, suites []Suite, o Options) ([]bench.Row, error) {
	var rows []bench.Row
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int, string, string) {}
	}
	told := map[string]bool{}
	tell := func(name string, why error) {
		if !told[name] {
			told[name] = true
			o.Notice(fmt.Sprintf("%s is left out: %v", name, why))
		}
	}
	for _, s := range suites {
		measure := s.alone
		if measure == nil {
			measure = func(ctx context.Context, o Options) ([]bench.Row, error) { return s.run(ctx, o, tell) }
		}
		more, err := measure(ctx, o)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("suite %s: %w", s.Name, err)
		}
	}
	return rows, nil
}

// run measures the suite's subjects. It calls tell for each subject and case that is left out.
func (s Suite) run(ctx context.Context, o Options, tell func(name string, why error)) (rows []bench.Row, err error) {
	length := o.Time
	if length == 0 {
		length = s.Time
	}
	cases, err := s.plan(length, o, tell)
	if err != nil {
		return nil, err
	}
	at := &site{spawn: o.Spawn, services: map[bench.Service]bool{}, labs: map[string]*labs.Lab{}}
	for _, c := range cases {
		at.services[c.Service] = true
	}
	if at.spawn == nil {
		at.spawn = process.Self
	}
	defer func() { err = errors.Join(err, at.close(context.WithoutCancel(ctx))) }()
	for _, subject := range s.Subjects {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		o.Progress(s.Name, 0, 0, subject.Name, "")
		topology, err := subject.open(ctx, at)
		if err == nil {
			at.topologies = append(at.topologies, topology)
			if topology.Name() != subject.Name {
				return nil, fmt.Errorf("subject %s calls itself %s", subject.Name, topology.Name())
			}
		}
		switch {
		case err == nil:
		case subject.Ours || ctx.Err() != nil || slices.Contains(o.Required, subject.Name):
			return nil, err
		default:
			tell(subject.Name, err)
		}
	}
	plan := bench.Plan{
		Suite: s.Name, Topologies: at.topologies, Rounds: o.Rounds, Spawn: o.Spawn,
		Cases: cases, Baselines: present(s.baselines, at.topologies),
	}
	if len(plan.Topologies) == 0 || len(plan.Cases) == 0 {
		return nil, nil
	}
	plan.Progress = func(done, all int, topology, name string) { o.Progress(s.Name, done, all, topology, name) }
	// A failure of a baseline is shown as fewer rounds. A failure of ours is an error.
	plan.Failed = func(topology string, err error) bool {
		theirs := !slices.ContainsFunc(s.Subjects, func(t Subject) bool { return t.Ours && t.Name == topology })
		if theirs {
			o.Notice(err.Error())
		}
		return theirs && !slices.Contains(o.Required, topology)
	}
	return bench.Run(ctx, plan)
}

// plan returns the suite's cases, without those whose programs are not installed.
func (s Suite) plan(length time.Duration, o Options, tell func(name string, why error)) ([]bench.Case, error) {
	var out []bench.Case
	for _, c := range s.all(length) {
		if !slices.Contains(s.Cases, c.Name) {
			continue
		}
		if slices.Contains(s.Programs, c.Name) {
			program := programOf(c)
			if _, err := programs.Find(program); err != nil {
				if slices.Contains(o.Required, c.Name) {
					return nil, err
				}
				tell(program, err)
				continue
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// all returns all cases of the suite.
func (s Suite) all(length time.Duration) []bench.Case {
	all := s.cases(length)
	if s.programs != nil {
		all = append(all, s.programs(length)...)
	}
	return all
}

// programOf returns the program that measures a case: the first word of the case's command.
func programOf(c bench.Case) string {
	program, _, _ := strings.Cut(c.Command, "-")
	return program
}

// present keeps the comparisons with topologies that are there.
func present(baselines map[string][]string, topologies []bench.Topology) map[string][]string {
	out := map[string][]string{}
	for subject, names := range baselines {
		out[subject] = slices.DeleteFunc(slices.Clone(names), func(name string) bool {
			return !slices.ContainsFunc(topologies, func(t bench.Topology) bool { return t.Name() == name })
		})
	}
	return out
}

// site has what is up while a suite is measured.
type site struct {
	spawn      process.Spawn
	services   map[bench.Service]bool // that are measured
	labs       map[string]*labs.Lab
	topologies []bench.Topology
}

// lab returns the lab of that name, and brings it up first if it is not up.
func (s *site) lab(ctx context.Context, spec labs.Spec) (*labs.Lab, error) {
	if l, ok := s.labs[spec.Name]; ok {
		return l, nil
	}
	l, err := labs.Up(ctx, spec, s.spawn)
	if err != nil {
		return nil, err
	}
	s.labs[spec.Name] = l
	return l, nil
}

func (s *site) close(ctx context.Context) error {
	var errs []error
	for _, t := range slices.Backward(s.topologies) {
		errs = append(errs, t.Close())
	}
	for _, l := range s.labs {
		errs = append(errs, l.Down(ctx))
	}
	return errors.Join(errs...)
}
