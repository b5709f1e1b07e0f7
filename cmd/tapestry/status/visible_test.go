package status

import (
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/localapi"
	"tapestry.dev/tapestry/visible/visibletest"
)

// Whatever is written in names, problems and tables, no control byte gets to the terminal, as a table or as JSON.
func TestHostile(t *testing.T) {
	var r report
	visibletest.Fill(&r)
	r.Node.Updated = time.Now()
	r.Counters[0].Name = "tapestry_drops_total"
	for name, args := range map[string][]string{"status": nil, "status as JSON": {"-o", "json"}} {
		out, _ := run(t, r, args...) // the node is not ready
		visibletest.Check(t, name, out)
	}
	for _, table := range localapi.All {
		name, _ := table.Is()
		for _, format := range []string{"table", "json"} {
			out, err := run(t, r, "--table", name, "-o", format)
			if err != nil {
				t.Errorf("table %s: %v", name, err)
			}
			visibletest.Check(t, "table "+name+" as "+strings.ToUpper(format), out)
		}
	}
}
