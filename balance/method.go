package balance

import "strings"

// Method says how one of several servers is chosen.
type Method uint8

// The methods. Hash is the caller's own choice by a hash of the client, and Maglev is the same by a Maglev table; both
// give the same server on every node, and no Picker is made for them.
const (
	Hash Method = iota
	Random
	RoundRobin
	LeastConnections
	EWMA
	Maglev
)

var names = [...]string{"hash", "random", "round-robin", "least-connections", "ewma", "maglev"}

func (m Method) String() string {
	if int(m) < len(names) {
		return names[m]
	}
	return "invalid"
}

// Parse returns the method with that name.
func Parse(name string) (m Method, ok bool) {
	for i, n := range names {
		if n == name {
			return Method(i), true
		}
	}
	return Hash, false
}

// Names returns the names of all methods, for messages.
func Names() string { return strings.Join(names[:], ", ") }

// Stateless reports whether the choice is a function of the client and the servers alone.
func (m Method) Stateless() bool { return m == Hash || m == Maglev }

// Counts reports whether the choice depends on Loads.
func (m Method) Counts() bool { return m == LeastConnections || m == EWMA }
