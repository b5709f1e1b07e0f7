package audit

import (
	"slices"
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/policy"
	"tapestry.dev/tapestry/netstack/policy/law"
)

// Most is how many Findings are kept. Of more, those that were seen last are.
const Most = 256

// Finding is flows between two ends to one port that would fare otherwise if the staged policies were in force.
type Finding struct {
	Src, Dst     packet.Addr
	Proto        packet.Proto
	Port         uint16
	From, Toward policy.End
	// Would is what would become of them: Permit, while they are denied, or Deny or Drop, while they are permitted.
	Would policy.Verdict
	// By is the policy that would decide, the zero One for none, and Rule which rule of it.
	By   policy.One
	Rule law.ID
}

// Found is a Finding, and how often it was made.
type Found struct {
	Finding
	// Begun counts flows that began, Standing how often one that stood was judged after who may talk to whom had
	// changed. A flow that is denied begins with each packet that tries.
	Begun, Standing uint64
	First, Last     time.Time
}

// Findings are what Tables found. The methods are safe for concurrent use. Make it with NewFindings.
type Findings struct {
	now func() time.Time

	mu sync.Mutex
	// mu guards the rest. list has room for Most from the beginning, in any order.
	list   []Found
	totals Totals
}

// Totals count what was found, by what would become of the flow, in the units of Found.
type Totals struct {
	WouldPermit, WouldDeny, WouldCut uint64
}

// NewFindings returns none. now tells the time.
func NewFindings(now func() time.Time) *Findings { return &Findings{now: now} }

// add writes down what was found about a flow.
func (x *Findings) add(f *policy.Flow, would policy.Ruling, by policy.One, begins bool) {
	one := Finding{f.Src, f.Dst, f.Proto, f.Port, f.From, f.Toward, would.Verdict, by, law.ID(would.Rule)}
	if one.Proto != packet.TCP && one.Proto != packet.UDP && one.Proto != packet.SCTP {
		one.Port = 0
	}
	now := x.now()
	x.mu.Lock()
	defer x.mu.Unlock()
	at := x.placeOf(&one)
	found := &x.list[at]
	if found.First.IsZero() {
		*found = Found{Finding: one, First: now}
	}
	found.Last = now
	switch {
	case would.Verdict == policy.Permit:
		x.totals.WouldPermit++
	case begins:
		x.totals.WouldDeny++
	default:
		x.totals.WouldCut++
	}
	if begins {
		found.Begun++
	} else {
		found.Standing++
	}
}

// placeOf returns the index of a Finding, or of a zero one that takes its place.
func (x *Findings) placeOf(one *Finding) int {
	oldest := 0
	for i := range x.list {
		if x.list[i].Finding == *one {
			return i
		}
		if x.list[i].Last.Before(x.list[oldest].Last) {
			oldest = i
		}
	}
	if len(x.list) < Most {
		if x.list == nil {
			x.list = make([]Found, 0, Most)
		}
		x.list = append(x.list, Found{})
		return len(x.list) - 1
	}
	x.list[oldest] = Found{}
	return oldest
}

// List returns what was found, the latest first, but for what would be by policies that have gone or changed since. in
// are the Tables that judge, nil for none.
func (x *Findings) List(in *Tables) []Found {
	if in == nil || in.Staged == nil {
		return nil
	}
	there := map[policy.One]bool{{}: true} // what no policy decides
	for _, one := range in.policies {
		there[one] = true
	}
	x.mu.Lock()
	list := slices.Clone(x.list)
	x.mu.Unlock()
	list = slices.DeleteFunc(list, func(f Found) bool { return !there[f.By] })
	slices.SortStableFunc(list, func(a, b Found) int { return b.Last.Compare(a.Last) })
	return list
}

// Totals returns what was found since the Findings were made.
func (x *Findings) Totals() Totals {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.totals
}
