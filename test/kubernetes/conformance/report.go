package conformance

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Report is the result of the selected tests.
type Report struct {
	Tests []Test
	// Took is the time of the whole run.
	Took time.Duration
}

// A Test is a selected test.
type Test struct {
	Name    string
	Outcome Outcome
	Took    time.Duration
	// Why is the reason for a skip or a failure, in one line.
	Why string
}

// Outcome says how a test ended.
type Outcome string

const (
	Passed Outcome = "pass"
	Failed Outcome = "FAIL"
	// Skipped is the outcome of a test that decided itself not to run.
	Skipped Outcome = "skip"
)

// junit is ginkgo's report. It has all tests of the suite, selected or not, and the steps around them.
type junit struct {
	Suites []struct {
		Cases []junitCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type junitCase struct {
	Name    string       `xml:"name,attr"`
	Status  string       `xml:"status,attr"`
	Seconds float64      `xml:"time,attr"`
	Failure *junitReason `xml:"failure"`
	Error   *junitReason `xml:"error"`
	Skipped *junitReason `xml:"skipped"`
}

type junitReason struct {
	Message string `xml:"message,attr"`
}

func read(path string) (Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Report{}, err
	}
	return parse(text)
}

func parse(text []byte) (Report, error) {
	var in junit
	if err := xml.Unmarshal(text, &in); err != nil {
		return Report{}, err
	}
	var r Report
	for _, s := range in.Suites {
		for _, c := range s.Cases {
			if t, ok := c.test(); ok {
				r.Tests = append(r.Tests, t)
			}
		}
	}
	slices.SortFunc(r.Tests, func(a, b Test) int { return cmp.Compare(a.Name, b.Name) })
	return r, nil
}

// labels matches what ginkgo appends to a name that already contains it.
var labels = regexp.MustCompile(` \[sig-[^\[\]]*\]$`)

// test returns false for a test that was not selected. Steps around the tests count only when they failed.
func (c junitCase) test() (Test, bool) {
	name, isTest := strings.CutPrefix(c.Name, "[It] ")
	name = labels.ReplaceAllString(name, "")
	t := Test{Name: name, Outcome: Passed, Took: time.Duration(c.Seconds * float64(time.Second))}
	switch {
	case c.Failure != nil:
		t.Outcome, t.Why = Failed, c.Failure.line()
	case c.Error != nil:
		t.Outcome, t.Why = Failed, c.Error.line()
	case c.Skipped != nil:
		// A test that was not selected has no reason: its message is "skipped", without " - REASON".
		reason, ok := strings.CutPrefix(c.Skipped.Message, "skipped - ")
		if !ok {
			return t, false
		}
		t.Outcome, t.Why = Skipped, reason
	case c.Status != "passed":
		return t, false
	}
	return t, isTest || t.Outcome == Failed
}

func (r *junitReason) line() string { return strings.Join(strings.Fields(r.Message), " ") }

func (r Report) count(o Outcome) int {
	n := 0
	for _, t := range r.Tests {
		if t.Outcome == o {
			n++
		}
	}
	return n
}

// String returns a line for each test, and one for all.
func (r Report) String() string {
	var b strings.Builder
	var sum time.Duration
	for _, t := range r.Tests {
		sum += t.Took
		fmt.Fprintf(&b, "%s %7.1f s  %s\n", t.Outcome, t.Took.Seconds(), t.Name)
		if t.Why != "" {
			fmt.Fprintf(&b, "                %.300s\n", t.Why)
		}
	}
	fmt.Fprintf(&b, "%d passed, %d failed, %d skipped themselves, in %.0f s (%.0f s of tests)\n",
		r.count(Passed), r.count(Failed), r.count(Skipped), r.Took.Seconds(), sum.Seconds())
	return b.String()
}

// Err returns nil if the run was good: all selected tests have passed, and no test was left out that must run.
func (r Report) Err(run Run) error {
	if n := r.count(Failed); n > 0 {
		return fmt.Errorf("%d of %d tests failed", n, len(r.Tests))
	}
	passed := r.count(Passed)
	switch {
	case passed == 0:
		return fmt.Errorf("no test ran: none matches %s", run.Focus)
	case run.Focus == Network && passed < NetworkCount:
		return fmt.Errorf("%d tests passed, of %d that there are", passed, NetworkCount)
	}
	return nil
}
