package bench

import (
	"encoding/csv"
	"encoding/json"
	"io"
	"slices"
	"strconv"
)

// Row is one line of a run's table: one figure of one subject.
type Row struct {
	Suite   string `json:"suite"`
	Case    string `json:"case"`
	Subject string `json:"subject"`
	// Value is the median of N rounds; Min and Max are the extremes.
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Higher says that more is better.
	Higher bool `json:"higher_is_better"`
	// Ratio is Value over BaselineValue, which is the median of the Baseline's rounds in the same run. Without a
	// Baseline all three are zero.
	Baseline      string  `json:"baseline"`
	BaselineValue float64 `json:"baseline_value"`
	Ratio         float64 `json:"ratio"`
	Min           float64 `json:"min"`
	Max           float64 `json:"max"`
	N             int     `json:"n"`
}

// samples has the figures of each round of a run.
type samples map[sampleKey][]float64

type sampleKey struct{ topology, figure string }

func (s samples) add(topology string, c Case, sample Sample) {
	for _, m := range c.Metrics {
		k := sampleKey{topology, c.Name + m.Name}
		s[k] = append(s[k], m.Value(sample))
	}
}

// rows returns the rows in the plan's order, all rows of a figure together.
func (s samples) rows(p Plan) []Row {
	var rows []Row
	for _, c := range p.Cases {
		for _, m := range c.Metrics {
			for _, t := range p.Topologies {
				rows = append(rows, s.compare(p, t.Name(), c.Name+m.Name, m)...)
			}
		}
	}
	return rows
}

// compare returns a row for each of the subject's baselines that has the figure, or one row without a baseline. It
// returns no rows when the subject itself does not have the figure.
func (s samples) compare(p Plan, subject, figure string, m Metric) []Row {
	v := s[sampleKey{subject, figure}]
	if len(v) == 0 {
		return nil
	}
	head := Row{Suite: p.Suite, Case: figure, Subject: subject, Unit: m.Unit, Higher: m.Higher}
	var rows []Row
	for _, b := range p.Baselines[subject] {
		if of, ok := s[sampleKey{b, figure}]; ok {
			head.Baseline, head.BaselineValue = b, median(of)
			rows = append(rows, Summarize(head, v))
		}
	}
	if rows == nil {
		return []Row{Summarize(head, v)}
	}
	return rows
}

// Summarize makes the Row of several measurements: the median of values (at least one), the least and the largest. head
// says what they measure. If it has a Baseline, the Row is compared with BaselineValue.
func Summarize(head Row, values []float64) Row {
	head.Value, head.Min, head.Max, head.N = median(values), slices.Min(values), slices.Max(values), len(values)
	if head.Baseline != "" {
		head.Ratio = ratio(head.Value, head.BaselineValue)
	}
	return head
}

// median returns the median of at least one value. For an even number of values it is the mean of the middle two.
func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// ratio returns 0 when there is nothing to compare with, since JSON has no infinity.
func ratio(value, baseline float64) float64 {
	if baseline == 0 {
		return 0
	}
	return value / baseline
}

// WriteJSON writes each row as an object on a line of its own.
func WriteJSON(w io.Writer, rows []Row) error {
	e := json.NewEncoder(w)
	for _, r := range rows {
		if err := e.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// WriteCSV writes a header and a line for each row, with the names of WriteJSON.
func WriteCSV(w io.Writer, rows []Row) error {
	c := csv.NewWriter(w)
	c.Write([]string{"suite", "case", "subject", "value", "unit", "higher_is_better", "baseline", "baseline_value", "ratio", "min", "max", "n"})
	f := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	for _, r := range rows {
		c.Write([]string{
			r.Suite, r.Case, r.Subject, f(r.Value), r.Unit, strconv.FormatBool(r.Higher),
			r.Baseline, f(r.BaselineValue), f(r.Ratio), f(r.Min), f(r.Max), strconv.Itoa(r.N),
		})
	}
	c.Flush()
	return c.Error()
}
