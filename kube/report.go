package kube

import (
	"fmt"
	"slices"
)

// Report collects the problems of objects. The zero value is empty and ready.
type Report struct {
	// Problems are the problems reported so far, without their Origin.
	Problems []Problem
}

// Errorf adds an error: something cannot work as written. field is the path of the field, or "".
func (r *Report) Errorf(ref Ref, field, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{Severity: Error, Object: ref, Field: field, Message: fmt.Sprintf(format, args...)})
}

// Warnf adds a warning: something looks wrong.
func (r *Report) Warnf(ref Ref, field, format string, args ...any) {
	r.Problems = append(r.Problems, Problem{Severity: Warning, Object: ref, Field: field, Message: fmt.Sprintf(format, args...)})
}

// Sorted returns the problems, each once and with its Origin filled in, in the order of SortProblems.
func (r *Report) Sorted(origin map[Ref]string) []Problem {
	list := slices.Clone(r.Problems)
	for i := range list {
		list[i].Origin = origin[list[i].Object]
	}
	SortProblems(list)
	return slices.Compact(list)
}
