package translate

import (
	"cmp"
	"reflect"
	"slices"

	"tapestry.dev/tapestry/kube"
)

// memo remembers what followed from inputs, by their identity, and what was said about them. An input is a pointer to
// what never changes, or a comparable value with such pointers in it. The zero value remembers nothing.
type memo[K comparable, R any] struct {
	inputs  []K
	results []R
	remarks []remark // sorted by input
}

// remark is what was said about one input.
type remark struct {
	input    int // its index
	problems []kube.Problem
}

// each gives what every one of a sorted list of inputs comes to, in their order: what work says of those that were
// not there last time and of those that are stale, and of the others what it said then. The list stale is a part of
// inputs in any order. The result belongs to the memo and must not be changed; when nothing comes to anything else
// it is that of last time.
func (m *memo[K, R]) each(inputs []K, compare func(a, b K) int, stale []K, say *kube.Report, work func(K, *kube.Report) R) []R {
	if len(stale) > 0 || !kube.Same(m.inputs, inputs) {
		*m = m.next(inputs, compare, stale, work)
	}
	for i := range m.remarks {
		say.Problems = append(say.Problems, m.remarks[i].problems...)
	}
	return m.results
}

// next gives the memo of the next inputs.
func (m *memo[K, R]) next(inputs []K, compare func(a, b K) int, stale []K, work func(K, *kube.Report) R) memo[K, R] {
	next := memo[K, R]{inputs: inputs}
	if len(inputs) == 0 {
		return next // no list is nil, whatever was there before
	}
	var anew []int // indexes of inputs
	for _, k := range stale {
		i, _ := slices.BinarySearchFunc(inputs, k, compare)
		anew = append(anew, i)
	}
	var runs []run
	remarks := m.remarks
	walk(m.inputs, inputs, compare, func(old, now, n int) {
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

// run is n inputs one after the other, from index old on in the last list, from now on in the next one.
type run struct{ old, now, n int }

// merged gives the results of the next inputs: those of last time for the runs, and fresh ones for the inputs at the
// indexes anew. It makes no list where there is one already: that of last time, or that of the inputs where each
// comes to itself.
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

// identical reports whether two results are one and the same thing.
func identical[R any](a, b R) bool {
	return reflect.TypeFor[R]().Kind() == reflect.Pointer && any(a) == any(b)
}

// kept gives result, or the equal one that an input of the same name came to last time: what follows from one that only
// looks new need not be worked out again. It is called by the work of the memo itself.
func (m *memo[K, R]) kept(input K, compare func(a, b K) int, result R) R {
	i, known := slices.BinarySearchFunc(m.inputs, input, compare)
	if known && reflect.DeepEqual(m.results[i], result) {
		return m.results[i]
	}
	return result
}

// remark has it that these problems, and no others, were said about the input of that index.
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

// once gives what a single input comes to.
func (m *memo[K, R]) once(input K, say *kube.Report, work func(*kube.Report) R) R {
	list := []K{input}
	if len(m.inputs) == 1 && m.inputs[0] == input {
		list = m.inputs
	}
	alike := func(K, K) int { return 0 }
	return m.each(list, alike, nil, say, func(_ K, say *kube.Report) R { return work(say) })[0]
}

// groups has the members of a sorted list by what they have to do with, kept from one snapshot to the next. The zero
// value is empty.
type groups[K, T comparable] struct {
	list []T
	of   map[K][]T // each in the order of the list; replaced, not changed
}

// set brings the groups up to date with list, whose members belong to the groups that keys yields. It gives the
// groups that have changed, as they were; none the first time, when all members are new.
func (g *groups[K, T]) set(list []T, compare func(a, b T) int, keys func(T, func(K))) map[K][]T {
	if kube.Same(g.list, list) && g.of != nil {
		return nil
	}
	var were map[K][]T
	if g.of == nil {
		g.of = make(map[K][]T, len(list))
	} else {
		were = map[K][]T{}
	}
	edit := func(x T, f func(group []T, at int) []T) {
		keys(x, func(k K) {
			group := g.of[k]
			if _, known := were[k]; !known && were != nil {
				were[k] = group
			}
			at, _ := slices.BinarySearchFunc(group, x, compare)
			if group = f(slices.Clone(group), at); len(group) > 0 {
				g.of[k] = group
			} else {
				delete(g.of, k)
			}
		})
	}
	walk(g.list, list, compare, func(old, now, _ int) {
		switch {
		case now < 0:
			gone := g.list[old]
			edit(gone, func(group []T, _ int) []T { return slices.DeleteFunc(group, func(x T) bool { return x == gone }) })
		case old < 0:
			edit(list[now], func(group []T, at int) []T { return slices.Insert(group, at, list[now]) })
		}
	})
	g.list = list
	return were
}

// walk goes along two sorted lists and visits the runs of n members that are in both, with the index of the first in
// either, and each of the others, with -1 as its index in the list that does not have it. Members are the same when
// they are identical.
func walk[T comparable](old, now []T, compare func(a, b T) int, visit func(old, now, n int)) {
	for i, j := 0, 0; i < len(old) || j < len(now); {
		n := 0
		for i+n < len(old) && j+n < len(now) && old[i+n] == now[j+n] {
			n++
		}
		switch {
		case n > 0:
			visit(i, j, n)
			i, j = i+n, j+n
		case j == len(now) || i < len(old) && compare(old[i], now[j]) <= 0:
			visit(i, -1, 1)
			i++
		default:
			visit(-1, j, 1)
			j++
		}
	}
}

// list is the identity of a list.
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
