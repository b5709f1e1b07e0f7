package share

import (
	"sync"
	"time"
)

// Lobby lets each owner have a few things under way at once, and lets him begin more at a pace that all owners share.
// Nothing is refused: who comes too fast waits in a Line, as a value and without a goroutine. So an owner who begins
// thousands at once has the processors for a small part of the time, and the others for the rest. Its methods are safe
// for concurrent use.
type Lobby[K comparable, V any] struct {
	free  int
	every time.Duration
	admit func(V) bool

	mu     sync.Mutex // guards what follows, and every Stay except Value
	inside map[K]int
	line   Line[K, *Stay[K, V]]
	timer  *time.Timer // runs while somebody waits
	open   bool
}

// Stay is a thing of one owner: outside at first, then in the line, inside, or both one after the other, and outside in
// the end, for good. One that enters after it has left, or when the Lobby is open, stays outside. It must not be
// copied.
type Stay[K comparable, V any] struct {
	// Value belongs to the caller, who sets it before Enter.
	Value V

	key    K
	place  Place[K, *Stay[K, V]]
	inside bool // counted in the Lobby's inside
	comes  bool // admit is called
	left   bool
}

// NewLobby returns a Lobby that lets owners in at once who have fewer than free inside, and the others one by one after
// every. It calls admit for each who waited and may go in now, without a lock, so admit may call the Lobby. admit
// reports whether the one goes in: who does not has left, and the next one comes in the same turn.
func NewLobby[K comparable, V any](free int, every time.Duration, admit func(V) bool) *Lobby[K, V] {
	return &Lobby[K, V]{free: free, every: every, admit: admit, inside: map[K]int{}}
}

// Enter reports whether s of the owner key goes in at once. When it does not, it waits, and is let in by a call of
// admit, unless it leaves before. One that has left already goes in, and does not count. It is called once for a Stay.
func (l *Lobby[K, V]) Enter(s *Stay[K, V], key K) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.key, s.place.Value = key, s
	switch {
	case s.left, l.open:
		return true
	case l.inside[key] < l.free: // nobody of the owner waits then
		l.let(s)
		return true
	}
	l.line.Add(&s.place, key)
	if l.line.Len() == 1 {
		l.arm()
	}
	return false
}

// Leave ends the waiting of s, or its time inside. When fewer than free of its owner are inside then, the next one of
// the owner who waits goes in. Further calls do nothing.
func (l *Lobby[K, V]) Leave(s *Stay[K, V]) {
	l.mu.Lock()
	s.left = true
	l.line.Remove(&s.place)
	ends, key := s.inside && !s.comes, s.key // bring counts out who comes
	if ends {
		l.out(s)
	}
	l.mu.Unlock()
	if ends {
		l.fill(key)
	}
}

// Waits reports whether s is in the line.
func (l *Lobby[K, V]) Waits(s *Stay[K, V]) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return s.place.turn != nil
}

// Open lets everybody in who waits, and whoever comes from now on.
func (l *Lobby[K, V]) Open() {
	l.mu.Lock()
	l.open = true
	l.mu.Unlock()
	for l.next() {
	}
}

// let counts s as inside. The mutex is held.
func (l *Lobby[K, V]) let(s *Stay[K, V]) {
	s.inside = true
	l.inside[s.key]++
}

// out no longer counts s. The mutex is held.
func (l *Lobby[K, V]) out(s *Stay[K, V]) {
	s.inside = false
	if l.inside[s.key]--; l.inside[s.key] == 0 {
		delete(l.inside, s.key)
	}
}

// bring takes the one out of the line whom call returns, and has it admitted. It reports whether there was one, and
// whether it went in. call is called with the mutex held.
func (l *Lobby[K, V]) bring(call func() *Place[K, *Stay[K, V]]) (key K, there, in bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := call()
	if p == nil {
		return key, false, false
	}
	s := p.Value
	l.let(s)
	s.comes = true
	l.mu.Unlock()
	in = l.admit(s.Value)
	l.mu.Lock()
	s.comes = false
	if s.left = s.left || !in; s.left {
		l.out(s)
	}
	return s.key, true, in
}

// fill lets those of an owner in who wait, while fewer than free are inside.
func (l *Lobby[K, V]) fill(key K) {
	for there := true; there; {
		_, there, _ = l.bring(func() *Place[K, *Stay[K, V]] {
			if l.inside[key] >= l.free {
				return nil
			}
			return l.line.NextOf(key)
		})
	}
}

// next lets the one in whose turn it is, and reports whether there was one.
func (l *Lobby[K, V]) next() bool {
	for {
		key, there, in := l.bring(l.line.Next)
		if !there {
			return false
		}
		l.fill(key) // one may have left while the other came
		if in {
			return true
		}
	}
}

// arm begins the wait for the next one. The mutex is held.
func (l *Lobby[K, V]) arm() {
	if l.timer == nil {
		l.timer = time.AfterFunc(l.every, l.tick)
		return
	}
	l.timer.Reset(l.every)
}

// tick lets one in, and goes on while somebody waits. A timer that is late makes the pace slower, and never faster.
func (l *Lobby[K, V]) tick() {
	l.next()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.line.Len() > 0 {
		l.arm()
	}
}
