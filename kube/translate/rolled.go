package translate

import (
	"slices"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
)

// rolled is a memo for a list of which usually a few inputs change and none come or go. That costs what has changed,
// and not what there is. The zero value remembers nothing.
type rolled[K, R comparable] struct {
	inputs  roll.List[K]
	results roll.List[R]
	remarks []remark // sorted by input
}

// each is memo.each; stale holds indexes of inputs.
func (m *rolled[K, R]) each(inputs roll.List[K], compare func(a, b K) int, stale []int, say *kube.Report, work func(K, *kube.Report) R) roll.List[R] {
	if len(stale) > 0 || !m.inputs.Same(inputs) {
		*m = m.next(inputs, compare, stale, work)
	}
	for i := range m.remarks {
		say.Problems = append(say.Problems, m.remarks[i].problems...)
	}
	return m.results
}

func (m *rolled[K, R]) next(inputs roll.List[K], compare func(a, b K) int, stale []int, work func(K, *kube.Report) R) rolled[K, R] {
	changed, ok := roll.Renewed(m.inputs, inputs, compare)
	if !ok {
		var names []K
		for _, i := range stale {
			names = append(names, inputs.At(i))
		}
		whole := memo[K, R]{m.inputs.Slice(), m.results.Slice(), m.remarks}
		whole = whole.next(inputs.Slice(), compare, names, work)
		return rolled[K, R]{inputs, asInputs(inputs, roll.From(whole.results)), whole.remarks}
	}
	anew := slices.Concat(changed, stale)
	slices.Sort(anew)
	again := memo[K, R]{remarks: slices.Clone(m.remarks)}
	var say kube.Report
	var edits []roll.Edit[R]
	for _, i := range slices.Compact(anew) {
		edits = append(edits, roll.Edit[R]{At: i, To: work(inputs.At(i), &say)})
		again.remark(i, say.Problems)
		say.Problems = nil
	}
	results := m.results.With(edits...)
	if last, same := any(m.results).(roll.List[K]); same && last.Same(m.inputs) {
		results = asInputs(inputs, results)
	}
	return rolled[K, R]{inputs, results, again.remarks}
}

// asInputs returns the inputs themselves when each is its own result, so that there is one list, and results otherwise.
func asInputs[K, R comparable](inputs roll.List[K], results roll.List[R]) roll.List[R] {
	list, alike := any(inputs).(roll.List[R])
	if !alike {
		return results
	}
	if differ, ok := roll.Replaced(list, results); !ok || len(differ) > 0 {
		return results
	}
	return list
}

// somewhere is a list with gaps, without them. It remembers where the gaps are. The zero value is an empty list.
type somewhere[T comparable] struct {
	list, without roll.List[T]
	gaps          []int // the indexes in list of the elements that are the zero value
}

// of returns list without the elements that are the zero value.
func (s *somewhere[T]) of(list roll.List[T]) roll.List[T] {
	var none T
	changed, ok := roll.Replaced(s.list, list)
	moved := func(i int) bool { return (s.list.At(i) == none) != (list.At(i) == none) }
	switch {
	case !ok || slices.ContainsFunc(changed, moved):
		*s = somewhere[T]{list: list}
		var kept []T
		for i, x := range list.All() {
			if x == none {
				s.gaps = append(s.gaps, i)
			} else {
				kept = append(kept, x)
			}
		}
		if s.without = list; len(s.gaps) > 0 {
			s.without = roll.From(kept)
		}
	case len(s.gaps) == 0:
		s.list, s.without = list, list
	default:
		var edits []roll.Edit[T]
		for _, i := range changed {
			before, gap := slices.BinarySearch(s.gaps, i)
			if !gap {
				edits = append(edits, roll.Edit[T]{At: i - before, To: list.At(i)})
			}
		}
		s.list, s.without = list, s.without.With(edits...)
	}
	return s.without
}

// rollOf is a slice as a List: one List for as long as the slice is the same. The zero value is an empty slice.
type rollOf[T comparable] struct {
	slice []T
	list  roll.List[T]
}

func (r *rollOf[T]) of(slice []T) roll.List[T] {
	if !kube.Same(r.slice, slice) {
		r.slice, r.list = slice, roll.From(slice)
	}
	return r.list
}
