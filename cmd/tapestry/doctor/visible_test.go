package doctor

import (
	"strings"
	"testing"

	"tapestry.dev/tapestry/cmd/output"
	"tapestry.dev/tapestry/visible/visibletest"
)

// No control byte in the text of an agent, an API server or the kernel's rules reaches the terminal.
func TestHostile(t *testing.T) {
	var f Facts
	visibletest.Fill(&f)
	for _, c := range []struct {
		name   string
		change func()
	}{
		{"with everything wrong", func() {}},
		{"with an API server", func() { f.API.Error, f.TUN.Error = "", "" }},
		{"without its Nodes", func() { f.API.Keys = nil }},
		{"without peers' keys", func() { f.Agent.Peers[0].PublicKey = "" }},
		{"with rules that we see", func() { f.Rules.Error = "" }},
		{"without an agent", func() { f.Agent = nil }},
	} {
		c.change()
		findings := Diagnose(&f)
		var out strings.Builder
		if err := printFindings(&out, findings); err != nil {
			t.Fatal(err)
		}
		visibletest.Check(t, "doctor "+c.name, out.String())
		out.Reset()
		if err := output.Write(&out, "json", findings, nil); err != nil {
			t.Fatal(err)
		}
		visibletest.Check(t, "doctor as JSON, "+c.name, out.String())
	}
}
