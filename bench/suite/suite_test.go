package suite

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
)

// names returns each suite of a choice as "suite: subjects / cases".
func names(suites []Suite) []string {
	var out []string
	for _, s := range suites {
		var subjects []string
		for _, t := range s.Subjects {
			subjects = append(subjects, t.Name)
		}
		out = append(out, s.Name+": "+strings.Join(subjects, " ")+" / "+strings.Join(s.Cases, " "))
	}
	return out
}

func TestSelect(t *testing.T) {
	all := []Suite{
		{Name: "one", Subjects: []Subject{{Name: "a"}, {Name: "b"}}, Cases: []string{"x", "y"}, Programs: []string{"p"}},
		{Name: "two", Subjects: []Subject{{Name: "b"}, {Name: "c"}}, Cases: []string{"y", "z"}},
		{Name: "alone", alone: func(context.Context, Options) ([]bench.Row, error) { return nil, nil }},
	}
	for _, tt := range []struct {
		what  string
		s     Selection
		want  []string
		fails string
	}{
		{what: "everything", want: []string{"one: a b / x y", "two: b c / y z", "alone:  / "}},
		{what: "a suite", s: Selection{Suites: []string{"two"}}, want: []string{"two: b c / y z"}},
		{what: "order stays", s: Selection{Suites: []string{"two", "one"}}, want: []string{"one: a b / x y", "two: b c / y z"}},
		{what: "a subject of both", s: Selection{Subjects: []string{"b"}}, want: []string{"one: b / x y", "two: b / y z"}},
		{what: "a subject of one", s: Selection{Subjects: []string{"c"}}, want: []string{"two: c / y z"}},
		{what: "a case of one", s: Selection{Cases: []string{"x"}}, want: []string{"one: a b / x"}},
		{what: "with programs", s: Selection{Suites: []string{"one"}, Programs: true}, want: []string{"one: a b / x y p"}},
		{what: "a program by name", s: Selection{Cases: []string{"p"}}, want: []string{"one: a b / p"}},
		{what: "unknown suite", s: Selection{Suites: []string{"three"}}, fails: `suite "three": expected one of one, two, alone`},
		{what: "unknown subject", s: Selection{Subjects: []string{"a", "d"}}, fails: `--subject "d": expected one of a, b, c`},
		{what: "a subject of another suite", s: Selection{Suites: []string{"one"}, Subjects: []string{"c"}}, fails: `--subject "c": expected one of a, b`},
		{what: "unknown case", s: Selection{Cases: []string{"w"}}, fails: `--case "w": expected one of x, y, p, z`},
		{what: "a case of a whole", s: Selection{Suites: []string{"alone"}, Cases: []string{"x"}}, fails: "measured as a whole"},
		{what: "nothing in common", s: Selection{Subjects: []string{"a"}, Cases: []string{"z"}}, fails: "no suite has both"},
	} {
		got, err := tt.s.Select(all)
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: got %v, want %s", tt.what, err, tt.fails)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, names(got)); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tt.what, err, diff)
		}
	}
	if diff := cmp.Diff([]string{"one: a b / x y", "two: b c / y z", "alone:  / "}, names(all)); diff != "" {
		t.Errorf("the choice changed what it chose from (-want +got):\n%s", diff)
	}
}

// The definitions of the suites are consistent.
func TestAll(t *testing.T) {
	all := All()
	var whole time.Duration
	for i, s := range all {
		if slices.ContainsFunc(all[:i], func(o Suite) bool { return o.Name == s.Name }) || s.About == "" || s.Time <= 0 || (len(s.Cases) == 0) != (s.alone != nil) {
			t.Errorf("suite %s: there are two, or it lacks a line, a time or something to measure", s.Name)
		}
		whole += s.Estimate(0, 0)
		compared := 0
		for j, subject := range s.Subjects {
			if slices.ContainsFunc(s.Subjects[:j], func(o Subject) bool { return o.Name == subject.Name }) {
				t.Errorf("suite %s: two subjects are called %s", s.Name, subject.Name)
			}
			compared += len(s.baselines[subject.Name])
		}
		known := 0
		for _, baselines := range s.baselines {
			for _, b := range baselines {
				if slices.ContainsFunc(s.Subjects, func(t Subject) bool { return t.Name == b }) {
					known++
				}
			}
		}
		all := 0
		for _, baselines := range s.baselines {
			all += len(baselines)
		}
		if compared != all || known != all {
			t.Errorf("suite %s: of %d comparisons %d are of its subjects and %d with them", s.Name, all, compared, known)
		}
	}
	if whole > 12*time.Minute {
		t.Errorf("all suites take about %v, want at most 12 minutes", whole)
	}
}

func TestEstimate(t *testing.T) {
	s := Suite{Subjects: make([]Subject, 2), Cases: []string{"a", "b", "c"}, Time: 100 * time.Millisecond}
	if got, want := s.Estimate(0, 0), perSuite+2*perSubject+6*6*(perMeasurement+100*time.Millisecond); got != want {
		t.Errorf("five rounds: %v, want %v", got, want)
	}
	s.Programs = []string{"c"}
	if got, want := s.Estimate(1, 0), perSuite+2*perSubject+2*(6*perMeasurement+400*time.Millisecond+2*time.Second); got != want {
		t.Errorf("a program: %v, want %v", got, want)
	}
	s.Programs = nil
	alone := Suite{Time: 50 * time.Second, alone: func(context.Context, Options) ([]bench.Row, error) { return nil, nil }}
	if got, want := alone.Estimate(2, time.Minute), 20*time.Second; got != want {
		t.Errorf("two rounds of a whole: %v, want %v", got, want)
	}
	// The warm-up is no longer than WarmUp.
	if got, want := s.Estimate(1, time.Minute), perSuite+2*perSubject+6*(2*perMeasurement+time.Minute+bench.WarmUp); got != want {
		t.Errorf("one long round: %v, want %v", got, want)
	}
}

// failing returns a suite whose subject cannot be brought up.
func failing(ours bool) Suite {
	return Suite{
		Name: "failing", Cases: []string{"tcp rr"}, Time: time.Millisecond, cases: bench.TCPCases,
		Subjects: []Subject{{Name: "peer", Ours: ours, open: func(context.Context, *site) (bench.Topology, error) {
			return nil, errors.New("peer is not installed")
		}}},
	}
}

func TestWhatCannotBeBroughtUp(t *testing.T) {
	var told []string
	notice := func(s string) { told = append(told, s) }
	rows, err := Run(t.Context(), []Suite{failing(false), failing(false)}, Options{Notice: notice})
	if err != nil || rows != nil || !slices.Equal(told, []string{"peer is left out: peer is not installed"}) {
		t.Errorf("a baseline: %v, %v, told %q; want it to be told once", rows, err, told)
	}
	told = nil
	if _, err := Run(t.Context(), []Suite{failing(false)}, Options{Notice: notice, Required: []string{"peer"}}); err == nil || told != nil {
		t.Errorf("a baseline that is asked for: %v, told %q; want an error", err, told)
	}
	if _, err := Run(t.Context(), []Suite{failing(true)}, Options{}); err == nil || !strings.HasPrefix(err.Error(), "suite failing: ") {
		t.Errorf("ours: %v, want an error", err)
	}
}

// A run that fails later returns the rows that it has.
func TestRunKeepsRows(t *testing.T) {
	good := Suite{Name: "good", alone: func(context.Context, Options) ([]bench.Row, error) {
		return []bench.Row{{Suite: "good"}}, nil
	}}
	rows, err := Run(t.Context(), []Suite{good, failing(true), good}, Options{})
	if err == nil || len(rows) != 1 {
		t.Errorf("got %v, %v; want the first suite's row and an error", rows, err)
	}
}

func TestList(t *testing.T) {
	suite := Suite{
		Name: "one", About: "the first", Cases: []string{"x"}, Programs: []string{"y"},
		Subjects: []Subject{
			{Name: "a", Ours: true}, {Name: "b", Ours: true},
			{Name: "c", try: func(process.Spawn) error { return nil }},
			{Name: "d", try: func(process.Spawn) error { return errors.New("d is not installed: install it") }},
		},
	}
	alone := Suite{Name: "alone", About: "a whole", alone: func(context.Context, Options) ([]bench.Row, error) { return nil, nil }}
	var b strings.Builder
	if err := List(&b, []Suite{suite, suite, alone}, nil); err != nil {
		t.Fatal(err)
	}
	one := "one: the first\n  ours: a, b\n  others: c, d\n  cases: x\n  with --programs: y\n"
	want := one + one + "alone: a whole\nmissing:\n  d: d is not installed: install it\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}
