package share

// Decision is who gives a unit to an owner that asks for one.
type Decision uint8

// The decisions.
const (
	Free   Decision = iota // nobody: one is free
	Most                   // the owner who holds the most
	Own                    // the one who asks: it replaces one of its own
	Refuse                 // nobody: there is none to be had
)

func (d Decision) String() string { return [...]string{"free", "most", "own", "refuse"}[d&3] }

// Decide applies the rule of the package to an owner that holds held units, where most is what the owner with the most
// holds (held itself when that is the one who asks) and free is the number of units that nobody holds.
func Decide(held, most, free int) Decision {
	switch {
	case free > 0:
		return Free
	case most > held+1:
		return Most
	case held > 0:
		return Own
	}
	return Refuse
}

// DecideKept is Decide where nothing that is held can be taken away: an owner gets no more than are free.
func DecideKept(held, free int) Decision {
	if held < free {
		return Free
	}
	return Refuse
}
