package kube

import (
	"cmp"
	"slices"
	"strings"

	"tapestry.dev/tapestry/visible"
)

// Severity says whether something cannot work as written or only looks wrong.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// PortNotServed is the Reason of a Problem of a Service: a node cannot listen on a port of it, or on the one for its
// health checks.
const PortNotServed = "PortNotServed"

// SessionFault is the Reason of a Problem of a BGPPeer: a node has no session with the router, or one that does not do
// all that it should.
const SessionFault = "SessionFault"

// Problem is something wrong with one object.
type Problem struct {
	Severity Severity `json:"severity"`
	// Object is the object with the problem.
	Object Ref `json:"object"`
	// Origin says where the object was written, "file:line", or is "".
	Origin string `json:"origin,omitempty"`
	// Field is the path of the field in the object, or "".
	Field string `json:"field,omitempty"`
	// Message is one sentence: what was found, what was expected, what to do.
	Message string `json:"message"`
	// Reason says for programs what the problem is, where one looks for it: PortNotServed, SessionFault, or "".
	Reason string `json:"reason,omitempty"`
}

// String returns "lab.yaml:14: Pod default/web: spec.nodeName: message" on one line, passed through visible.Text.
func (p Problem) String() string {
	var b strings.Builder
	for _, part := range []string{p.Origin, p.Object.String(), p.Field} {
		if part != "" {
			b.WriteString(part)
			b.WriteString(": ")
		}
	}
	b.WriteString(p.Message)
	return visible.Text(b.String())
}

// Error returns String, so that a Problem can be returned as an error.
func (p Problem) Error() string { return p.String() }

// Visible returns the Problem without characters that a terminal obeys. It quotes objects that others wrote.
func (p Problem) Visible() Problem {
	for _, s := range []*string{&p.Object.Kind, &p.Object.Namespace, &p.Object.Name, &p.Origin, &p.Field, &p.Message, &p.Reason} {
		*s = visible.Text(*s)
	}
	p.Severity = Severity(visible.Text(string(p.Severity)))
	return p
}

// SortProblems orders errors before warnings, then by object and field.
func SortProblems(list []Problem) {
	slices.SortStableFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), a.Object.Compare(b.Object),
			cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
	})
}
