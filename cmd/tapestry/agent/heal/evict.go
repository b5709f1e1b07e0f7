package heal

import (
	"time"

	"tapestry.dev/tapestry/kube"
)

const (
	// evictEvery is the least time between two evictions. Nodes that break at the same time empty each other's pods no
	// faster than pods can be made.
	evictEvery = 5 * time.Second
	// refusedRest is how long a pod is left alone whose eviction was refused.
	refusedRest = 30 * time.Second
)

// patient is who may be evicted.
type patient struct {
	pod   kube.Ref
	uid   string
	since time.Time // broken without a break since then
	own   bool      // it is the agent's own pod
}

// history is what was done.
type history struct {
	after time.Duration        // how long somebody must have been broken to be evicted
	last  time.Time            // the last eviction that was asked for
	until map[string]time.Time // by UID: left alone until then
}

// next returns who is to be evicted now. The agent's own pod goes first: until its init steps have run again, pods that
// are made anew on this node fail their probes.
func (h *history) next(list []patient, now time.Time) (patient, bool) {
	if !h.last.IsZero() && now.Sub(h.last) < evictEvery {
		return patient{}, false
	}
	best, waits := -1, false
	for i, p := range list {
		if p.uid == "" || now.Before(h.until[p.uid]) {
			continue
		}
		young := now.Sub(p.since) < h.after
		switch {
		case p.own && !young:
			return p, true
		case p.own:
			waits = true
		case !young && (best < 0 || p.since.Before(list[best].since)):
			best = i
		}
	}
	if best < 0 || waits {
		return patient{}, false
	}
	return list[best], true
}

// note remembers that p's eviction was asked for.
func (h *history) note(p patient, now time.Time) {
	h.last = now
	if h.until == nil {
		h.until = map[string]time.Time{}
	}
	h.until[p.uid] = now.Add(refusedRest) // one that was evicted is gone by then
	for uid, t := range h.until {
		if now.After(t) {
			delete(h.until, uid)
		}
	}
}
