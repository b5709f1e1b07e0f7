package scale

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/test/product"
)

// Options are the options of the suites. The zero value is a full run.
type Options struct {
	// Rounds is how many rounds each figure is measured in; 0 is 5.
	Rounds int
	// Services lists the numbers of Services to load; an empty list is 100, 1,000 and 10,000. Each Service has
	// Endpoints endpoints; 0 is 10.
	Services  []int
	Endpoints int
	// Changes is how many changes of an object each round makes, over which the quantiles are taken; 0 is 100.
	Changes int
	// Flows is how many flows a table is filled with; 0 is 1,000,000.
	Flows int
	// Pods and Peers are how many of them the suite "memory" adds to an agent; 0 is 50 and 1,000.
	Pods, Peers int
	// Watch is how long an idle agent is watched for its processor time; 0 is 5 s.
	Watch time.Duration
	// Agent makes the command of an agent with these arguments; nil runs the executable of product.Find with "agent"
	// before them.
	Agent func(args ...string) *exec.Cmd
	// Progress is told what is about to be measured; nil: nobody is told.
	Progress func(what string)
}

func (o Options) complete() (Options, error) {
	if o.Rounds == 0 {
		o.Rounds = 5
	}
	if o.Services == nil {
		o.Services = []int{100, 1_000, 10_000}
	}
	for _, d := range []struct {
		value   *int
		initial int
	}{{&o.Endpoints, 10}, {&o.Changes, 100}, {&o.Flows, 1_000_000}, {&o.Pods, 50}, {&o.Peers, 1_000}} {
		if *d.value == 0 {
			*d.value = d.initial
		}
	}
	if o.Watch == 0 {
		o.Watch = 5 * time.Second
	}
	if o.Agent == nil {
		exe, err := product.Find("")
		if err != nil {
			return o, err
		}
		o.Agent = func(args ...string) *exec.Cmd { return exec.Command(exe, append([]string{"agent"}, args...)...) }
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return o, nil
}

// Run measures the suite "scale". The process must be root of a user namespace that owns its network namespace; see
// package userns.
func Run(ctx context.Context, o Options) ([]bench.Row, error) {
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("scale: %w", err)
	}
	f := newFigures("scale")
	for _, part := range []struct {
		name   string // a count is added
		counts []int
		run    func(ctx context.Context, o Options, count int, name string, f *figures) error
	}{
		{"load %d x " + strconv.Itoa(o.Endpoints), o.Services, load},
		{"change among %d x " + strconv.Itoa(o.Endpoints), o.Services, change},
		{"%d flows", []int{o.Flows}, fill},
	} {
		for _, count := range part.counts {
			name := fmt.Sprintf(part.name, count)
			o.Progress(name)
			if err := part.run(ctx, o, count, name, f); err != nil {
				return nil, fmt.Errorf("scale: %s: %w", name, err)
			}
		}
	}
	return f.rows(), nil
}

// figures gathers what the rounds measure. Each figure stands where it came first.
type figures struct {
	suite  string
	heads  []bench.Row
	values map[bench.Row][]float64
}

func newFigures(suite string) *figures {
	return &figures{suite: suite, values: map[bench.Row][]float64{}}
}

func (f *figures) add(name, subject, unit string, value float64) {
	head := bench.Row{Suite: f.suite, Case: name, Subject: subject, Unit: unit}
	if _, known := f.values[head]; !known {
		f.heads = append(f.heads, head)
	}
	f.values[head] = append(f.values[head], value)
}

func (f *figures) rows() []bench.Row {
	var rows []bench.Row
	for _, head := range f.heads {
		rows = append(rows, bench.Summarize(head, f.values[head]))
	}
	return rows
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1e3 }
