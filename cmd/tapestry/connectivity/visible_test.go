package connectivity

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/visible/visibletest"
)

// What pods answered is shown, and no control byte of it gets to the terminal.
func TestHostile(t *testing.T) {
	var results []Result
	visibletest.Fill(&results)
	var out strings.Builder
	if err := printResults(&out, results); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "connectivity-test", out.String())
}
