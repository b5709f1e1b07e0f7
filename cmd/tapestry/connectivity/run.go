package connectivity

import (
	"context"
	"sync"
	"time"
)

const (
	// atOnce is how many questions are asked at the same time. Each is a process in a pod.
	atOnce = 4
	// tries and pause give every node time to learn of objects that were just made.
	tries = 3
	pause = time.Second
	// askTime is how long one question may take.
	askTime = 30 * time.Second
)

// Result is the result of a Check.
type Result struct {
	Group   string `json:"group"`
	From    string `json:"from"`
	Name    string `json:"name"`
	Problem string `json:"problem,omitempty"` // "" if there is none
	Tries   int    `json:"tries"`
}

// Exec runs this program with args in a pod.
type Exec func(ctx context.Context, pod string, args ...string) (stdout string, err error)

// Run runs all checks and returns the results in the same order.
func Run(ctx context.Context, exec Exec, checks []Check) []Result {
	results := make([]Result, len(checks))
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, c := range checks {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			results[i] = run(ctx, exec, c)
		})
	}
	wg.Wait()
	return results
}

func run(ctx context.Context, exec Exec, c Check) Result {
	r := Result{Group: c.Group, From: c.From, Name: c.Name}
	for r.Tries < tries {
		if r.Tries > 0 {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return r
			}
		}
		r.Tries++
		once, cancel := context.WithTimeout(ctx, askTime)
		stdout, err := exec(once, c.From, c.Args...)
		cancel()
		if err != nil {
			r.Problem = err.Error()
			continue
		}
		if r.Problem = c.Judge(stdout); r.Problem == "" {
			break
		}
	}
	return r
}

// Failed counts the results with a problem.
func Failed(results []Result) int {
	n := 0
	for _, r := range results {
		if r.Problem != "" {
			n++
		}
	}
	return n
}
