package translate

import (
	"cmp"
	"reflect"
	"slices"

	"tapestry.dev/tapestry/kube"
	"tapestry.dev/tapestry/roll"
)

// memo remembers the results of inputs, and the problems reported of them. It identifies an input by pointer, so an
// input is a pointer to something that never changes, or a comparable value that contains such pointers. The zero
// value remembers nothing.
type memo[K comparable, R any] struct {
	inputs  []K
	results []R
	remarks []remark // sorted by input
}

// remark holds the problems of one input.
type remark struct {
	input    int // its index in inputs
	problems []kube.Problem
}

// each returns the results of a sorted list of inputs, in the same order. It calls work for the inputs that are new
// since the last call and for those in stale, and repeats the result and the problems of the others. stale is a part
// of inputs, in any order. The memo owns the list of results, which must not be changed. When no result has changed,
// the list is the same slice as last time.
func (m *memo[K, R]) each(inputs []K, compare func(a, b K) int, stale []K, say *kube.Report, work func(K, *kube.Report) R) []R {
	if len(stale) > 0 || !kube.Same(m.inputs, inputs) {
		*m = m.next(inputs, compare, stale, work)
	}
	for i := range m.remarks {
		say.Problems = append(say.Problems, m.remarks[i].problems...)
	}
	return m.results
}

// next returns the memo for the next inputs.
func (m *memo[K, R]) next(inputs []K, compare func(a, b K) int, stale []K, work func(K, *kube.Report) R) memo[K, R] {
	next := memo[K, R]{inputs: inputs}
	if len(inputs) == 0 {
		return next // the results of no inputs are nil, whatever was there before
	}
	var anew []int // indexes of inputs
	for _, k := range stale {
		i, _ := slices.BinarySearchFunc(inputs, k, compare)
		anew = append(anew, i)
	}
	var runs []run
	remarks := m.remarks
	roll.Walk(m.inputs, inputs, compare, func(old, now, n int) {
		switch {
		case old < 0:
			anew = append(anew, now)
		case now >= 0:
			runs = append(runs, run{old, now, n})
			for ; len(remarks) > 0 && remarks[0].input < old+n; remarks = remarks[1:] {
				if r := remarks[0]; r.input >= old {
					next.remarks = append(next.remarks, remark{now + r.input - old, r.problems})
				}
			}
		}
	})
	slices.Sort(anew)
	anew = slices.Compact(anew)
	fresh := make([]R, len(anew))
	var say kube.Report
	for n, i := range anew {
		fresh[n] = work(inputs[i], &say)
		next.remark(i, say.Problems)
		say.Problems = nil
	}
	next.results = m.merged(inputs, runs, anew, fresh)
	return next
}

// run stands for n consecutive inputs that were there last time too: old is the index of the first in the last list,
// now its index in the next one.
type run struct{ old, now, n int }

// merged returns the results of the next inputs: last time's for the runs, and the fresh ones for the inputs at the
// indexes in anew. It makes no new list when an existing one is equal: the list of last time, or that of the inputs
// when each input is its own result.
func (m *memo[K, R]) merged(inputs []K, runs []run, anew []int, fresh []R) []R {
	asLast := len(m.inputs) == len(inputs) && !slices.ContainsFunc(runs, func(r run) bool { return r.old != r.now })
	for n, i := range anew {
		asLast = asLast && identical(fresh[n], m.results[i])
	}
	if asLast {
		return m.results
	}
	if last, ok := any(m.results).([]K); ok {
		fresh, _ := any(fresh).([]K)
		itself := !slices.ContainsFunc(runs, func(r run) bool { return !slices.Equal(last[r.old:r.old+r.n], inputs[r.now:r.now+r.n]) })
		for n, i := range anew {
			itself = itself && fresh[n] == inputs[i]
		}
		if itself {
			list, _ := any(inputs).([]R)
			return list
		}
	}
	list := make([]R, len(inputs))
	for _, r := range runs {
		copy(list[r.now:r.now+r.n], m.results[r.old:])
	}
	for n, i := range anew {
		list[i] = fresh[n]
	}
	return list
}

// identical reports whether two results are the same pointer.
func identical[R any](a, b R) bool {
	return reflect.TypeFor[R]().Kind() == reflect.Pointer && any(a) == any(b)
}

// kept returns the last result of an input with the same name when it equals result, and result otherwise. So nothing
// is computed anew from an object that changed only where nobody looks. The memo's own work function calls it.
func (m *memo[K, R]) kept(input K, compare func(a, b K) int, result R) R {
	i, known := slices.BinarySearchFunc(m.inputs, input, compare)
	if known && reflect.DeepEqual(m.results[i], result) {
		return m.results[i]
	}
	return result
}

// remark sets the problems of the input with that index.
func (m *memo[K, R]) remark(input int, problems []kube.Problem) {
	i, known := slices.BinarySearchFunc(m.remarks, input, func(r remark, input int) int { return cmp.Compare(r.input, input) })
	switch {
	case known && len(problems) > 0:
		m.remarks[i].problems = problems
	case known:
		m.remarks = slices.Delete(m.remarks, i, i+1)
	case len(problems) > 0:
		m.remarks = slices.Insert(m.remarks, i, remark{input, problems})
	}
}

// once returns the result of a single input.
func (m *memo[K, R]) once(input K, say *kube.Report, work func(*kube.Report) R) R {
	list := []K{input}
	if len(m.inputs) == 1 && m.inputs[0] == input {
		list = m.inputs
	}
	alike := func(K, K) int { return 0 }
	return m.each(list, alike, nil, say, func(_ K, say *kube.Report) R { return work(say) })[0]
}

// groups sorts the members of a list into groups by key, and keeps them from one snapshot to the next. The zero value
// is empty.
type groups[K, T comparable] struct {
	list []T
	of   map[K][]T // each in the order of list; replaced, never changed in place
}

// set replaces the list. Its members belong to the groups whose keys the function keys yields. It returns the groups
// that have changed, with their former members; it returns none the first time, when all members are new.
func (g *groups[K, T]) set(list []T, compare func(a, b T) int, keys func(T, func(K))) map[K][]T {
	if kube.Same(g.list, list) && g.of != nil {
		return nil
	}
	var gone, come []T
	roll.Walk(g.list, list, compare, func(old, now, _ int) {
		switch {
		case now < 0:
			gone = append(gone, g.list[old])
		case old < 0:
			come = append(come, list[now])
		}
	})
	g.list = list
	return g.change(gone, come, compare, keys)
}

// change is set for a list that others keep: it takes the members that are gone and those that have come, sorted.
func (g *groups[K, T]) change(gone, come []T, compare func(a, b T) int, keys func(T, func(K))) map[K][]T {
	var were map[K][]T
	if g.of == nil {
		g.of = make(map[K][]T, len(come))
	} else {
		were = map[K][]T{}
	}
	edit := func(x T, f func(group []T, at int) []T) {
		keys(x, func(k K) {
			group := g.of[k]
			if _, known := were[k]; !known && were != nil {
				were[k] = group
				group = slices.Clone(group) // once: after that the group is this call's own
			}
			at, _ := slices.BinarySearchFunc(group, x, compare)
			if group = f(group, at); len(group) > 0 {
				g.of[k] = group
			} else {
				delete(g.of, k)
			}
		})
	}
	for _, x := range gone {
		edit(x, func(group []T, at int) []T { return slices.Delete(group, at, at+1) })
	}
	for _, x := range come {
		edit(x, func(group []T, at int) []T { return slices.Insert(group, at, x) })
	}
	return were
}

// list is the identity of a slice.
type list[T any] struct {
	first *T
	n     int
}

func identity[T any](l []T) list[T] {
	if len(l) == 0 {
		return list[T]{}
	}
	return list[T]{&l[0], len(l)}
}
