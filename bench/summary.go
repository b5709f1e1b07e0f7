package bench

import "slices"

// Summarize makes the Row of what was measured more than once: the median of values, of which there is at least one, with
// the least and the largest. head says what they are of; its Baseline, if any, is compared by BaselineValue.
func Summarize(head Row, values []float64) Row {
	head.Value, head.Min, head.Max, head.N = median(values), slices.Min(values), slices.Max(values), len(values)
	if head.Baseline != "" {
		head.Ratio = ratio(head.Value, head.BaselineValue)
	}
	return head
}
