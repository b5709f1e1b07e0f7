package announce

import (
	"maps"
	"time"
)

const (
	// A node that has come back restTimes within restWithin rests until it has answered for restUntil on end: it would
	// move addresses each time.
	restTimes  = 3
	restWithin = time.Minute
	restUntil  = 5 * time.Second
	// lateLook is the time between two looks from which on it was this node that stood still.
	lateLook = 4 * AskEvery
)

// Record is what is remembered of how a node answered. The zero value is for one of which nothing is known.
type Record struct {
	// Rests is set while the node gets no addresses, whether or not it answers.
	Rests bool
	// since is when it began to answer without a break, gone when it was first seen not to answer any more. One of them
	// is zero, or both.
	since, gone time.Time
	// back has the times at which it has come back, the latest at the end; zero before that.
	back [restTimes]time.Time
}

// Next returns the Record after it was seen at a time whether the node answers. That it came back does not count when
// this node was alone at excused, and the node silent.
func (r Record) Next(answers bool, excused, now time.Time) Record {
	switch {
	case answers && r.since.IsZero():
		if !r.gone.IsZero() && r.gone.After(excused) {
			copy(r.back[:], r.back[1:])
			r.back[restTimes-1] = now
			r.Rests = r.Rests || !r.back[0].IsZero() && now.Sub(r.back[0]) < restWithin
		}
		r.since, r.gone = now, time.Time{}
	case !answers && !r.since.IsZero():
		r.since, r.gone = time.Time{}, now
	}
	if r.Rests && answers && now.Sub(r.since) >= restUntil {
		r.Rests = false
	}
	return r
}

// Records are those of the nodes that this node asks. The zero value is ready. They take no address from a node that
// answers and does not rest, and give none to one that does not answer: one that dies is passed over as soon as without
// them.
type Records struct {
	nodes  map[string]Record
	looked time.Time
	alone  time.Time // when this node stood still or was cut off last
}

// Look notes what was heard at a time, and sets Rests in it of the nodes that rest. Those that this node may not have
// rest (see Plan.MayRest) do not.
func (r *Records) Look(heard Answers, may func(node string) bool, now time.Time) {
	answer, silent := 0, 0
	for node, a := range heard {
		switch was := r.nodes[node]; {
		case a.Expected:
		case a.Answers:
			answer++
		case !was.since.IsZero() || !was.gone.IsZero() && now.Sub(was.gone) < restWithin:
			silent++
		}
	}
	// When most of several are silent at a time it is this node that is cut off.
	if silent > 1 && silent > answer || !r.looked.IsZero() && now.Sub(r.looked) > lateLook {
		r.alone = now
	}
	r.looked = now
	if r.nodes == nil {
		r.nodes = make(map[string]Record, len(heard))
	}
	for node, a := range heard {
		was := r.nodes[node]
		is := was.Next(a.Answers && !a.Expected, r.alone, now)
		is.Rests = is.Rests && may(node)
		if is != was {
			r.nodes[node] = is
		}
		if is.Rests {
			a.Rests = true
			heard[node] = a
		}
	}
	if len(r.nodes) > len(heard) {
		maps.DeleteFunc(r.nodes, func(node string, _ Record) bool { _, asked := heard[node]; return !asked })
	}
}
