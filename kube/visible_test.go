package kube

import (
	"testing"

	"tapestry.dev/tapestry/visible/visibletest"
)

// A Problem quotes objects that others wrote, and kubectl prints the annotation as it is.
func TestHostile(t *testing.T) {
	var p Problem
	visibletest.Fill(&p)
	visibletest.Check(t, "a Problem", p.String())
	visibletest.Check(t, "a Problem as an error", p.Error())
	s := NodeStatus{Problems: []Problem{p}}
	visibletest.Check(t, "the annotation", s.Annotations()[ProblemsAnnotation])
}
