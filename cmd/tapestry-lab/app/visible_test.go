package app

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/test/lab"
	"tapestry.dev/tapestry/visible/visibletest"
)

// No control byte in the names and texts of objects and processes reaches the terminal.
func TestHostile(t *testing.T) {
	var st lab.Status
	visibletest.Fill(&st)
	var out strings.Builder
	if err := printStatus(&out, &st); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "ps", out.String())
	out.Reset()
	if err := output.JSON(&out, &st); err != nil {
		t.Fatal(err)
	}
	visibletest.Check(t, "ps as JSON", out.String())
	var r result
	visibletest.Fill(&r)
	r.Name = "step"
	out.Reset()
	(&plainView{&out}).end(r)
	visibletest.Check(t, "demo", out.String())
}
