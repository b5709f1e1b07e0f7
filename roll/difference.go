package roll

import "slices"

// Walk goes along two sorted lists in parallel. It visits every run of n members that are in both lists, with the index
// of the first of them in each list. It visits each of the other members alone, with -1 as its index in the list that
// lacks it. Members are equal when they are identical (==).
func Walk[T comparable](old, now []T, compare func(a, b T) int, visit func(old, now, n int)) {
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

// Renewed is Replaced where each element that differs compares equal to the one that was there. It returns false when
// there are other changes.
func Renewed[T comparable](old, now List[T], compare func(a, b T) int) ([]int, bool) {
	changed, ok := Replaced(old, now)
	return changed, ok && !slices.ContainsFunc(changed, func(i int) bool { return compare(old.At(i), now.At(i)) != 0 })
}

// Difference returns the members that old has and now has not, and the other way around. Both must be sorted.
func Difference[T comparable](old, now List[T], compare func(a, b T) int) (gone, come []T) {
	if changed, ok := Renewed(old, now, compare); ok {
		for _, i := range changed {
			gone, come = append(gone, old.At(i)), append(come, now.At(i))
		}
		return gone, come
	}
	was, is := old.Slice(), now.Slice()
	Walk(was, is, compare, func(i, j, _ int) {
		switch {
		case j < 0:
			gone = append(gone, was[i])
		case i < 0:
			come = append(come, is[j])
		}
	})
	return gone, come
}
