// Package roll has lists and maps for successive snapshots of something large. Each is made from the one before, shares
// nearly all memory with it, and tells cheaply what differs. So a change costs what has changed, and not what there is.
//
// A List has blocks of a fixed number of elements. A list of which an element is replaced has a block of its own, and
// the others are the same memory. A Map is a tree by the bits of the keys' hashes.
package roll

import (
	"iter"
	"slices"
	"sort"
)

// block is how many elements a block of a List has. A replaced element costs the copy of a block and of the list of
// blocks, which are about as long in a list of 65,536.
const (
	bits  = 8
	block = 1 << bits
)

// List is a list that never changes. The zero value is empty.
type List[T comparable] struct {
	blocks [][]T // all are full but the last
	n      int
}

// Of returns a List of elements.
func Of[T comparable](elements ...T) List[T] { return From(elements) }

// From returns a List with a copy of elements.
func From[T comparable](elements []T) List[T] {
	l := List[T]{n: len(elements)}
	for part := range slices.Chunk(elements, block) {
		l.blocks = append(l.blocks, slices.Clone(part)) // one by one: a block that is replaced is garbage by itself
	}
	return l
}

// Len returns the number of elements.
func (l List[T]) Len() int { return l.n }

// At returns element number i, from 0 on.
func (l List[T]) At(i int) T { return l.blocks[i>>bits][i&(block-1)] }

// All yields all elements with their numbers.
func (l List[T]) All() iter.Seq2[int, T] {
	return func(yield func(int, T) bool) {
		for b, part := range l.blocks {
			for i, x := range part {
				if !yield(b<<bits+i, x) {
					return
				}
			}
		}
	}
}

// Slice returns a new slice of all elements, nil for none.
func (l List[T]) Slice() []T { return slices.Concat(l.blocks...) }

// Search returns the number of the first element for which compare returns no negative number, and whether it returns 0
// for that one. compare must grow along the List.
func (l List[T]) Search(compare func(T) int) (int, bool) {
	i := sort.Search(l.n, func(i int) bool { return compare(l.At(i)) >= 0 })
	return i, i < l.n && compare(l.At(i)) == 0
}

// Append returns l with one more element. It costs the list of blocks, so many elements are better given to From.
func (l List[T]) Append(x T) List[T] {
	out := List[T]{slices.Clone(l.blocks), l.n + 1}
	if last := len(out.blocks) - 1; l.n&(block-1) != 0 {
		out.blocks[last] = append(slices.Clone(out.blocks[last]), x)
	} else {
		out.blocks = append(out.blocks, []T{x})
	}
	return out
}

// Edit is a replaced element: number At becomes To.
type Edit[T comparable] struct {
	At int
	To T
}

// With returns l with some elements replaced. It returns l itself when they are the same.
func (l List[T]) With(edits ...Edit[T]) List[T] {
	out := l
	for _, e := range edits {
		b, i := e.At>>bits, e.At&(block-1)
		if out.blocks[b][i] == e.To {
			continue
		}
		if same(out.blocks, l.blocks) {
			out.blocks = slices.Clone(l.blocks)
		}
		if same(out.blocks[b], l.blocks[b]) {
			out.blocks[b] = slices.Clone(l.blocks[b])
		}
		out.blocks[b][i] = e.To
	}
	return out
}

// Same reports whether two Lists are the same memory, without comparing elements. All empty Lists are the same.
func (l List[T]) Same(m List[T]) bool { return l.n == m.n && same(l.blocks, m.blocks) }

func same[T any](a, b []T) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// Replaced returns the numbers of the elements that differ in two Lists of the same length, in order. It returns false
// when the lengths differ. Blocks that are the same memory are not compared.
func Replaced[T comparable](old, now List[T]) (list []int, ok bool) {
	if old.n != now.n {
		return nil, false
	}
	if old.Same(now) {
		return nil, true
	}
	for b, part := range now.blocks {
		was := old.blocks[b]
		if same(part, was) {
			continue
		}
		for i, x := range part {
			if x != was[i] {
				list = append(list, b<<bits+i)
			}
		}
	}
	return list, true
}
