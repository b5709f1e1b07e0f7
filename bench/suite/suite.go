// Package suite says what 'tapestry-lab bench' measures, and carries it out: for each suite, which paths of ours,
// beside which baselines, with which cases.
package suite

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
)

// Suite is a set of measurements that are shown together.
type Suite struct {
	Name string
	// About is a line for people.
	About string
	// Subjects are measured in turn. They are ours first.
	Subjects []Subject
	// Cases are the names of what is measured of each. Those of Programs are measured by programs of others, for at
	// least a second each, which only who asks for them gets.
	Cases, Programs []string
	// Time is how long one measurement takes when nobody says otherwise.
	Time time.Duration

	cases     func(time.Duration) []bench.Case
	programs  func(time.Duration) []bench.Case
	baselines map[string][]string // what each subject is compared with, by name
	setUp     time.Duration       // what it takes to bring up beyond the usual
	// alone measures a suite that is not of clients and servers. It has no subjects, cases or baselines, and Time is
	// how long the whole takes with the default number of rounds.
	alone func(context.Context, Options) ([]bench.Row, error)
}

// Subject is something to measure.
type Subject struct {
	Name string
	// Ours is set for paths of Tapestry, not for what they are compared with.
	Ours bool

	open func(context.Context, *site) (bench.Topology, error)
	// try fails when the programs that it needs are not installed; nil: it needs none of others.
	try func(process.Spawn) error
}

// Selection is what a caller wants of All, by name. Empty lists mean everything; suites without subjects and cases of
// their own are measured only then.
type Selection struct {
	Suites, Subjects, Cases []string
	// Programs asks for the cases of other programs, too, where Cases does not say what is wanted.
	Programs bool
}

// Select narrows the suites down. A suite without any subject or case that is wanted is left out; a name that no suite
// knows is an error.
func (s Selection) Select(all []Suite) ([]Suite, error) {
	var chosen []Suite
	var names, subjects, cases []string
	for _, suite := range all {
		names = append(names, suite.Name)
		if !wanted(s.Suites, suite.Name) {
			continue
		}
		for _, subject := range suite.Subjects {
			subjects = append(subjects, subject.Name)
		}
		if s.Programs || len(s.Cases) > 0 {
			suite.Cases = slices.Concat(suite.Cases, suite.Programs)
		}
		cases = append(cases, suite.Cases...)
		suite.Subjects = slices.DeleteFunc(slices.Clone(suite.Subjects), func(t Subject) bool { return !wanted(s.Subjects, t.Name) })
		suite.Cases = slices.DeleteFunc(slices.Clone(suite.Cases), func(c string) bool { return !wanted(s.Cases, c) })
		whole := suite.alone != nil && len(s.Subjects)+len(s.Cases) == 0
		if whole || len(suite.Subjects) > 0 && len(suite.Cases) > 0 {
			chosen = append(chosen, suite)
		}
	}
	for _, of := range []struct {
		what          string
		wanted, known []string
	}{{"suite", s.Suites, names}, {"--subject", s.Subjects, subjects}, {"--case", s.Cases, cases}} {
		for _, name := range of.wanted {
			switch {
			case len(of.known) == 0:
				return nil, fmt.Errorf("%s %q: the suite has nothing to choose from, it is measured as a whole", of.what, name)
			case !slices.Contains(of.known, name):
				return nil, fmt.Errorf("%s %q: expected one of %s", of.what, name, strings.Join(unique(of.known), ", "))
			}
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no suite has both a subject of %s and a case of %s", strings.Join(s.Subjects, ", "), strings.Join(s.Cases, ", "))
	}
	return chosen, nil
}

func wanted(list []string, name string) bool { return len(list) == 0 || slices.Contains(list, name) }

// unique keeps the first of equal names.
func unique(names []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// What a run takes beyond its measurements, roughly: processes to start for each, topologies for each subject, a lab.
const (
	perMeasurement = 50 * time.Millisecond
	perSubject     = 200 * time.Millisecond
	perSuite       = 2 * time.Second
)

// Estimate is about how long the suite takes; zero arguments mean its defaults.
func (s Suite) Estimate(rounds int, length time.Duration) time.Duration {
	if rounds == 0 {
		rounds = bench.DefaultRounds
	}
	if s.alone != nil {
		return s.Time * time.Duration(rounds) / bench.DefaultRounds
	}
	if length == 0 {
		length = s.Time
	}
	var round, warmUp time.Duration
	for _, c := range s.Cases {
		each, first := length, min(length, bench.WarmUp)
		if slices.Contains(s.Programs, c) { // they know whole seconds only
			each, first = max(length, time.Second), time.Second
		}
		round += each + perMeasurement
		warmUp += first + perMeasurement
	}
	subjects := time.Duration(len(s.Subjects))
	return s.setUp + perSuite + subjects*(perSubject+warmUp+round*time.Duration(rounds))
}
