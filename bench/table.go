package bench

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Line is a line of the table: one figure of one case and subject, with the figures that stand beside it.
type Line struct {
	Row
	// Beside has figures of the same measurements, by the suffix of their name: CostName and LossName beside a
	// throughput or rate, the other quantiles beside P50.
	Beside map[string]Row
	// Against has the comparisons, one row for each baseline. It is empty without baselines.
	Against []Row
}

// The suffixes of a case's figures.
const (
	CostName  = " cpu"
	LossName  = " loss"
	RateName  = " rate"
	P50, P90  = " p50", " p90"
	P99, P999 = " p99", " p99.9"
)

// bases says beside which figure of its case a figure with this suffix stands: the first of them that the case has.
var bases = []struct {
	suffix string
	bases  []string
}{{CostName, []string{"", RateName}}, {LossName, []string{""}}, {P90, []string{P50}}, {P99, []string{P50}}, {P999, []string{P50}}}

// lineKey identifies a line.
type lineKey struct{ suite, figure, subject string }

// beside finds the line that a figure stands beside, and returns the figure's suffix.
func beside(at map[lineKey]int, r Row) (i int, suffix string, ok bool) {
	for _, of := range bases {
		name, has := strings.CutSuffix(r.Case, of.suffix)
		if !has {
			continue
		}
		for _, base := range of.bases {
			if i, ok := at[lineKey{r.Suite, name + base, r.Subject}]; ok {
				return i, of.suffix, true
			}
		}
	}
	return 0, "", false
}

// Lines makes lines of rows, in their order.
func Lines(rows []Row) []Line {
	var lines []Line
	at := map[lineKey]int{}
	for _, r := range rows {
		if i, ok := at[lineKey{r.Suite, r.Case, r.Subject}]; ok {
			lines[i].Against = append(lines[i].Against, r)
			continue
		}
		if i, suffix, ok := beside(at, r); ok {
			lines[i].Beside[suffix] = r
			continue
		}
		at[lineKey{r.Suite, r.Case, r.Subject}] = len(lines)
		l := Line{Row: r, Beside: map[string]Row{}}
		if r.Baseline != "" {
			l.Against = []Row{r}
		}
		lines = append(lines, l)
	}
	return lines
}

// WriteTable prints rows for people: a heading for each suite, and a line for each subject of a case. A line has the
// cost beside a throughput, the quantiles side by side, and last the ratios with their baselines.
func WriteTable(w io.Writer, rows []Row) error {
	lines := Lines(rows)
	for len(lines) > 0 {
		suite := lines[0].Suite
		n := slices.IndexFunc(lines, func(l Line) bool { return l.Suite != suite })
		if n < 0 {
			n = len(lines)
		}
		fmt.Fprintf(w, "\n%s\n", suite)
		if err := writeSuite(w, lines[:n]); err != nil {
			return err
		}
		lines = lines[n:]
	}
	return nil
}

// besides lists the columns for figures that stand beside another. Only suites with such a figure have its column.
var besides = []struct{ suffix, title string }{{CostName, "cpu"}, {LossName, "loss"}, {P90, "p90"}, {P99, "p99"}, {P999, "p99.9"}}

func writeSuite(w io.Writer, lines []Line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	columns := slices.DeleteFunc(slices.Clone(besides), func(c struct{ suffix, title string }) bool {
		return !slices.ContainsFunc(lines, func(l Line) bool { _, ok := l.Beside[c.suffix]; return ok })
	})
	cells := []string{"  case", "subject", "median", "unit", "min - max"}
	for _, c := range columns {
		cells = append(cells, c.title)
	}
	row := func(cells ...string) { fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t")) }
	row(append(cells, "n", "of baseline")...)
	last := ""
	for _, l := range lines {
		name := l.Case
		if name == last {
			name = ""
		}
		last = l.Case
		cells := []string{"  " + name, l.Subject, Short(l.Value), l.Unit, Short(l.Min) + " - " + Short(l.Max)}
		for _, c := range columns {
			cell := ""
			if r, ok := l.Beside[c.suffix]; ok {
				if cell = Short(r.Value); r.Unit != l.Unit {
					cell += " " + r.Unit
				}
			}
			cells = append(cells, cell)
		}
		var against []string
		for _, r := range l.Against {
			against = append(against, fmt.Sprintf("%.2f of %s", r.Ratio, r.Baseline))
		}
		row(append(cells, strconv.Itoa(l.N), strings.Join(against, ", "))...)
	}
	return t.Flush()
}

// Short formats a figure with what a reader can use: three significant digits, more only before the point.
func Short(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}
