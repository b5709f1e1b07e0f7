package balance

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Loads keeps the Loads of servers that are known by numbers. A Load stays as long as somebody holds it, and as long as
// it has open connections, so that their ends are counted where their beginnings were. Find may be called concurrently
// with everything; it takes no lock and allocates nothing.
type Loads struct {
	Source

	mu    sync.Mutex // held by those that change the parts
	parts [parts]atomic.Pointer[map[uint64]*Load]
	known atomic.Int64
	// idle are Loads that nobody holds.
	idle map[uint64]struct{}
}

// parts is the number of maps. A change copies one of them.
const parts = 256

func part(id uint64) int { return int((id ^ id>>32) % parts) }

// Find returns the Load of a server; nil if it has none.
func (l *Loads) Find(id uint64) *Load {
	if l.known.Load() == 0 {
		return nil
	}
	m := l.parts[part(id)].Load()
	if m == nil {
		return nil
	}
	return (*m)[id]
}

// FindOrMake returns the Load of a server, which need not be held. It allocates where there is none.
func (l *Loads) FindOrMake(id uint64) *Load {
	if found := l.Find(id); found != nil {
		return found
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	made := l.make([]uint64{id})
	if load := made[id]; load.holders == 0 {
		l.rest(id)
	}
	return made[id]
}

// Hold returns the Loads of servers, by id, and holds each once for every time that it stands in the list.
func (l *Loads) Hold(ids []uint64) map[uint64]*Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := l.make(ids)
	for _, id := range ids {
		held[id].holders++
		delete(l.idle, id)
	}
	return held
}

// Release undoes Hold. A Load that nobody holds goes once it has no open connections, which is looked for at the next
// Release.
func (l *Loads) Release(ids []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if load := l.Find(id); load != nil && load.holders > 0 {
			if load.holders--; load.holders == 0 {
				l.rest(id)
			}
		}
	}
	var gone []uint64
	for id := range l.idle {
		if load := l.Find(id); load == nil || load.open.Load() <= 0 {
			gone = append(gone, id)
		}
	}
	l.change(gone, func(m map[uint64]*Load, id uint64) {
		if _, there := m[id]; there {
			delete(m, id)
			l.known.Add(-1)
		}
		delete(l.idle, id)
	})
}

func (l *Loads) rest(id uint64) {
	if l.idle == nil {
		l.idle = map[uint64]struct{}{}
	}
	l.idle[id] = struct{}{}
}

// make returns the Loads of ids, and makes those that are missing. l.mu is held.
func (l *Loads) make(ids []uint64) map[uint64]*Load {
	found := make(map[uint64]*Load, len(ids))
	var missing []uint64
	for _, id := range ids {
		if load := l.Find(id); load != nil {
			found[id] = load
		} else {
			missing = append(missing, id)
		}
	}
	l.change(missing, func(m map[uint64]*Load, id uint64) {
		if m[id] == nil {
			m[id] = new(Load)
			l.known.Add(1)
		}
		found[id] = m[id]
	})
	return found
}

// change changes copies of the parts that have ids, and then puts them in place. l.mu is held.
func (l *Loads) change(ids []uint64, f func(m map[uint64]*Load, id uint64)) {
	copies := map[int]map[uint64]*Load{}
	for _, id := range ids {
		n := part(id)
		m := copies[n]
		if m == nil {
			if old := l.parts[n].Load(); old != nil {
				m = maps.Clone(*old)
			} else {
				m = map[uint64]*Load{}
			}
			copies[n] = m
		}
		f(m, id)
	}
	for n, m := range copies {
		l.parts[n].Store(&m)
	}
}

// Len returns the number of Loads.
func (l *Loads) Len() int { return int(l.known.Load()) }
