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
	admit func(V)

	mu     sync.Mutex // guards what follows, and every Stay except Value
	inside map[K]int
	line   Line[K, *Stay[K, V]]
	timer  *time.Timer // runs while somebody waits
	open   bool
}

// Stay is a thing of one owner: outside at first, then in the line or inside, and outside in the end, for good. It must
// not be copied.
type Stay[K comparable, V any] struct {
	// Value belongs to the caller, who sets it before Enter.
	Value V

	key    K
	place  Place[K, *Stay[K, V]]
	inside bool
	left   bool
}

// NewLobby returns a Lobby that lets owners in at once who have fewer than free inside, and the others one by one after
// every. It calls admit for each who waited and goes in now, without a lock, so admit may call the Lobby.
func NewLobby[K comparable, V any](free int, every time.Duration, admit func(V)) *Lobby[K, V] {
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

// Leave ends the waiting of s, or its time inside. When one of its owner waits, that one goes in instead. Further calls
// do nothing.
func (l *Lobby[K, V]) Leave(s *Stay[K, V]) {
	l.mu.Lock()
	if s.left {
		l.mu.Unlock()
		return
	}
	s.left = true
	l.line.Remove(&s.place)
	var next *Stay[K, V]
	if s.inside {
		if l.inside[s.key]--; l.inside[s.key] == 0 {
			delete(l.inside, s.key)
		}
		if l.inside[s.key] < l.free {
			if p := l.line.NextOf(s.key); p != nil {
				next = p.Value
				l.let(next)
			}
		}
	}
	l.mu.Unlock()
	if next != nil {
		l.admit(next.Value)
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

// next lets the one in whose turn it is, and reports whether there was one.
func (l *Lobby[K, V]) next() bool {
	l.mu.Lock()
	p := l.line.Next()
	if p != nil {
		l.let(p.Value)
	}
	l.mu.Unlock()
	if p == nil {
		return false
	}
	l.admit(p.Value.Value)
	return true
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
