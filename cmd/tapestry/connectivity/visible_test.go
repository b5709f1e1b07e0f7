package connectivity

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/visible/visibletest"
)

// No control byte in the answers of pods reaches the terminal.
func TestHostile(t *testing.T) {
	var results []Result
	visibletest.Fill(&results)
	var out strings.Builder
	if err := printResults(&out, results); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "connectivity-test", out.String())
}
