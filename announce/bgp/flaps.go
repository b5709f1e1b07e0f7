package bgp

import (
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
)

const (
	// short is how long a session lasts at most that counts as a flap: what is wrong with a router's configuration or
	// with the path to it ends sessions within their first exchange, or within a hold time of usual length.
	short = 30 * time.Second
	// mostFlaps is how many flaps within calm are told. They are told until there has been none for as long.
	mostFlaps = 3
	calm      = 5 * time.Minute
)

// flaps knows how often a session began, and whether it ends again and again soon after. Its methods may be called
// concurrently. The zero value is a session that never was.
type flaps struct {
	mu      sync.Mutex
	ups     uint64
	began   time.Time   // zero while there is no session
	changed time.Time   // when a session began or ended last
	ends    []time.Time // of the last flaps, mostFlaps at most
	told    string      // why sessions end, "" while that is not to be told
}

// begin notes that the session is established.
func (f *flaps) begin(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ups++
	f.began, f.changed = now, now
}

// end notes that there is no session, and why. It may be noted more than once.
func (f *flaps) end(why string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.began.IsZero() {
		return
	}
	lasted := now.Sub(f.began)
	f.began, f.changed = time.Time{}, now
	if lasted >= short {
		return
	}
	f.forget(now)
	f.ends = append(f.ends[max(0, len(f.ends)-mostFlaps+1):], now)
	if f.told == "" && len(f.ends) == mostFlaps && now.Sub(f.ends[0]) < calm {
		f.told = why // it stays the same for as long as it is told
	}
}

// forget ends what is told after a calm.
func (f *flaps) forget(now time.Time) {
	if n := len(f.ends); n > 0 && now.Sub(f.ends[n-1]) >= calm {
		f.ends, f.told = nil, ""
	}
}

// seen is what is known of a session.
type seen struct {
	up    bool
	since time.Time // zero while there never was one
	ups   uint64
	why   string // it ends again and again, "" when it does not
}

// state returns what is known now.
func (f *flaps) state(now time.Time) seen {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.forget(now)
	return seen{up: !f.began.IsZero(), since: f.changed, ups: f.ups, why: f.told}
}

// whyOf says in words why a session ended.
func whyOf(r api.PeerState_DisconnectReason) string {
	switch r {
	case api.PeerState_DISCONNECT_REASON_NOTIFICATION_RECEIVED, api.PeerState_DISCONNECT_REASON_HARD_RESET:
		return "the router ends it by a NOTIFICATION"
	case api.PeerState_DISCONNECT_REASON_READ_FAILED, api.PeerState_DISCONNECT_REASON_WRITE_FAILED:
		return "its connection breaks"
	case api.PeerState_DISCONNECT_REASON_HOLD_TIMER_EXPIRED:
		return "nothing is heard of the router for the hold time"
	}
	return "the reason is " + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(r.String(), "DISCONNECT_REASON_"), "_", " "))
}
