package share

// Decision says whose unit an owner gets who asks for one.
type Decision uint8

// The decisions.
const (
	Free   Decision = iota // nobody's: a unit is free
	Most                   // one of the owner who holds the most
	Own                    // one of its own, which it replaces
	Refuse                 // none: there is none to be had
)

func (d Decision) String() string { return [...]string{"free", "most", "own", "refuse"}[d&3] }

// Decide applies the rule of the package to an owner that holds held units. most is the number of units of the owner
// with the most (held if that is the one who asks), and free the number of units that nobody holds.
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

// DecideKept is Decide where no unit that is held can be taken away: an owner may hold no more units than are free.
func DecideKept(held, free int) Decision {
	if held < free {
		return Free
	}
	return Refuse
}
