package conformance

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	const text = `<?xml version="1.0"?>
<testsuites tests="5"><testsuite name="suite">
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="1.5"></testcase>
<testcase name="[It] [sig-network] b" status="failed" time="2.25"><failure message="expected&#xA;more" type="failed">long</failure></testcase>
<testcase name="[It] [sig-network] a [sig-network, Conformance]" status="passed" time="1"></testcase>
<testcase name="[It] [sig-network] c" status="skipped" time="0.1"><skipped message="skipped - needs a cloud"></skipped></testcase>
<testcase name="[It] [sig-apps] d" status="skipped" time="0"><skipped message="skipped"></skipped></testcase>
<testcase name="[SynchronizedAfterSuite]" status="panicked" time="1"><error message="nil" type="panicked"></error></testcase>
</testsuite></testsuites>`
	r, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	const want = `FAIL     1.0 s  [SynchronizedAfterSuite]
                nil
pass     1.0 s  [sig-network] a
FAIL     2.2 s  [sig-network] b
                expected more
skip     0.1 s  [sig-network] c
                needs a cloud
1 passed, 2 failed, 1 skipped themselves, in 0 s (4 s of tests)
`
	if got := r.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestErr(t *testing.T) {
	tests := func(n int, o Outcome) []Test {
		var all []Test
		for range n {
			all = append(all, Test{Outcome: o})
		}
		return all
	}
	for _, c := range []struct {
		name  string
		tests []Test
		focus string
		want  string // part of the error; "" for none
	}{
		{"all", tests(NetworkCount, Passed), Network, ""},
		{"one missing", tests(NetworkCount-1, Passed), Network, "of 45"},
		{"one failed", append(tests(NetworkCount, Passed), Test{Outcome: Failed}), Network, "1 of 46"},
		{"none", nil, "x", "no test ran"},
		{"only skipped", tests(2, Skipped), "x", "no test ran"},
		{"some", tests(2, Passed), "x", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Report{Tests: c.tests}.Err(Run{Focus: c.focus})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}
