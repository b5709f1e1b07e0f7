package supervise

import "time"

const (
	// soon is how long a run must last that counts as none of the quick ones.
	soon = 10 * time.Second
	// quickRuns is how many quick runs in a row are followed by the next one at once, provided they served.
	quickRuns = 5
	// firstPause is the first pause. Each pause is twice as long as the one before, up to lastPause.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// streak counts the runs in a row, up to the last one, that were of little use.
type streak struct {
	unserved int // ended before they served
	quick    int // ended sooner than soon
}

// add adds a run.
func (s streak) add(served bool, lasted time.Duration) streak {
	s.unserved++
	s.quick++
	if served {
		s.unserved = 0
	}
	if lasted >= soon {
		s.quick = 0
	}
	return s
}

// pause returns how long to wait before the next run. A run that served is followed at once, so that several deaths
// within seconds cost no more than one each. Without the limit on quick runs, an agent that dies of what it has just
// read would use a whole processor.
func (s streak) pause() time.Duration {
	n := max(s.unserved, s.quick-quickRuns)
	if n <= 0 {
		return 0
	}
	p := firstPause
	for ; n > 1 && p < lastPause; n-- {
		p *= 2
	}
	return min(p, lastPause)
}
