// Package suite says what 'tapestry-lab bench' measures, and carries it out. For each suite it lists Tapestry's paths,
// the baselines beside them, and the cases.
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
	// Subjects are measured in turn. Ours come first.
	Subjects []Subject
	// Cases lists the names of what is measured for each subject. Programs lists the cases that programs of others
	// measure, for at least a second each. They run only on request.
	Cases, Programs []string
	// Time is the default length of one measurement.
	Time time.Duration

	cases     func(time.Duration) []bench.Case
	programs  func(time.Duration) []bench.Case
	baselines map[string][]string // what each subject is compared with, by name
	setUp     time.Duration       // beyond what every suite takes
	// alone measures a suite without clients and servers. The suite has no subjects, cases or baselines, and Time is
	// how long the whole suite takes with the default number of rounds.
	alone func(context.Context, Options) ([]bench.Row, error)
}

// Subject is something to measure.
type Subject struct {
	Name string
	// Ours is set for paths of Tapestry, and not for baselines.
	Ours bool

	open func(context.Context, *site) (bench.Topology, error)
	// try fails when programs that the subject needs are not installed; nil: it needs none of others.
	try func(process.Spawn) error
}

// Selection is what a caller chooses from All, by name. Empty lists mean everything. Suites without subjects and cases
// of their own are measured only when Subjects and Cases are empty.
type Selection struct {
	Suites, Subjects, Cases []string
	// Programs adds the cases of other programs. It matters only when Cases is empty.
	Programs bool
}

// Select narrows the suites down. It leaves out a suite without any chosen subject or case. A name that no suite knows
// is an error.
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

// unique returns names with the first of equal names only.
func unique(names []string) []string {
	var out []string
	for _, n := range names {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// What a run takes beyond its measurements, roughly: starting processes for each measurement, making topologies for
// each subject, bringing up a lab.
const (
	perMeasurement = 50 * time.Millisecond
	perSubject     = 200 * time.Millisecond
	perSuite       = 2 * time.Second
)

// Estimate returns about how long the suite takes. Zero arguments mean its defaults.
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
		if slices.Contains(s.Programs, c) { // which measure whole seconds only
			each, first = max(length, time.Second), time.Second
		}
		round += each + perMeasurement
		warmUp += first + perMeasurement
	}
	subjects := time.Duration(len(s.Subjects))
	return s.setUp + perSuite + subjects*(perSubject+warmUp+round*time.Duration(rounds))
}
