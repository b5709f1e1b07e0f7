package bench

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tableRows returns rows of two suites, with everything that a line can hold.
func tableRows() []Row {
	row := func(suite, figure, subject string, value float64, unit string) Row {
		return Row{Suite: suite, Case: figure, Subject: subject, Value: value, Unit: unit, Min: value / 2, Max: value * 2, N: 5}
	}
	against := func(r Row, baseline string, ratio float64) Row {
		r.Baseline, r.Ratio, r.BaselineValue = baseline, ratio, r.Value/ratio
		return r
	}
	return []Row{
		against(row("pod", "stream", "ours", 8.871, "Gbit/s"), "loop", 0.86),
		against(row("pod", "stream", "ours", 8.871, "Gbit/s"), "bridge", 0.4321),
		row("pod", "stream", "bridge", 20.53, "Gbit/s"),
		against(row("pod", "stream cpu", "ours", 0.25, "s/Gbit"), "bridge", 2),
		row("pod", "stream cpu", "bridge", 0.125, "s/Gbit"),
		against(row("pod", "rr p50", "ours", 80, "us"), "bridge", 2),
		row("pod", "rr p90", "ours", 90, "us"),
		row("pod", "rr p99", "ours", 99, "us"),
		row("pod", "rr p99.9", "ours", 1999, "us"),
		row("dns", "lookup p99", "ours", 7, "us"),
	}
}

func TestWriteTable(t *testing.T) {
	var b bytes.Buffer
	if err := WriteTable(&b, tableRows()); err != nil {
		t.Fatal(err)
	}
	want := `
pod
  case    subject  median  unit    min - max    cpu          p90   p99   p99.9  n  of baseline
  stream  ours     8.87    Gbit/s  4.44 - 17.7  0.25 s/Gbit                     5  0.86 of loop, 0.43 of bridge
          bridge   20.5    Gbit/s  10.3 - 41.1  0.12 s/Gbit                     5
  rr p50  ours     80.0    us      40.0 - 160                90.0  99.0  1999   5  2.00 of bridge

dns
  case        subject  median  unit  min - max    n  of baseline
  lookup p99  ours     7.00    us    3.50 - 14.0  5
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// No row gets lost in the lines.
func TestLinesKeepEverything(t *testing.T) {
	rows := tableRows()
	kept := 0
	for _, l := range Lines(rows) {
		kept += max(1, len(l.Against)) + len(l.Beside)
		for suffix, r := range l.Beside {
			if !strings.HasSuffix(r.Case, suffix) || r.Subject != l.Subject || r.Suite != l.Suite {
				t.Errorf("beside %s of %s stands %s of %s", l.Case, l.Subject, r.Case, r.Subject)
			}
		}
	}
	// A cost that is compared stands beside another figure without its comparison. The row itself is there as well.
	if kept != len(rows) {
		t.Errorf("%d of %d rows are in the lines", kept, len(rows))
	}
	if got := Lines(nil); got != nil {
		t.Errorf("no rows make %v", got)
	}
}
