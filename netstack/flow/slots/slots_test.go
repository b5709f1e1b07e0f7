package slots

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"tapestry.dev/tapestry/share"
)

const own = 1 // the owner with a reserve in the tests

// twin is the slow, obviously right Slots.
type twin struct {
	capacity, reserve int
	of                map[uint32]uint64
	client            map[uint32]Client
	settled           map[uint32]bool
}

func (w *twin) charge(id uint64) (n int) {
	for _, o := range w.of {
		if o == id {
			n++
		}
	}
	if id == own {
		n = max(0, n-w.reserve)
	}
	return n
}

func (w *twin) held(id uint64) (n int) {
	for _, o := range w.of {
		if o == id {
			n++
		}
	}
	return n
}

func (w *twin) most() (ids []uint64, most int) {
	for _, id := range w.of {
		switch n := w.charge(id); {
		case n > most:
			ids, most = []uint64{id}, n
		case n == most && !slices.Contains(ids, id):
			ids = append(ids, id)
		}
	}
	return ids, most
}

func (w *twin) decide(id uint64) share.Decision {
	free := w.capacity - len(w.of)
	if id == own && free == 0 && w.held(id) < w.reserve {
		return share.Most
	}
	_, most := w.most()
	return share.Decide(w.charge(id), most, free)
}

// candidates returns the slots of one owner that may be nominated: settled ones only where there are no others.
func (w *twin) candidates(id uint64) []uint32 {
	var list [2][]uint32
	for slot, o := range w.of {
		if o == id {
			which := 0
			if w.settled[slot] {
				which = 1
			}
			list[which] = append(list[which], slot)
		}
	}
	if len(list[0]) == 0 {
		return list[1]
	}
	return list[0]
}

func (w *twin) many(c Client) (n int) {
	for slot := range w.of {
		if w.client[slot] == c {
			n++
		}
	}
	return n
}

func (w *twin) give(slot uint32, id uint64, client Client) {
	w.of[slot], w.client[slot] = id, client
}

func (w *twin) release(slot uint32) {
	delete(w.of, slot)
	delete(w.settled, slot)
}

// take compares one call of Take, and what follows from it, with the twin.
func (w *twin) take(t *testing.T, s *Slots, id uint64, client Client, random *rand.Rand) {
	t.Helper()
	var c Candidates
	for {
		want := w.decide(id)
		slot, from := s.Take(id, client, &c)
		if from != want {
			t.Fatalf("Take(%d): %v, want %v", id, from, want)
		}
		switch from {
		case share.Free:
			if _, used := w.of[slot]; used || int(slot) >= w.capacity {
				t.Fatalf("Take(%d) gave slot %d, which is not free", id, slot)
			}
			w.give(slot, id, client)
			return
		case share.Refuse:
			return
		case share.Most, share.Own:
		}
		whose := w.of[c.List()[0]]
		if ids, _ := w.most(); from == share.Most && !slices.Contains(ids, whose) || from == share.Own && whose != id {
			t.Fatalf("Take(%d): %v, and the candidates are those of %d", id, from, whose)
		}
		may := w.candidates(whose)
		if n := min(len(may), len(c.list)); len(c.List()) != n {
			t.Fatalf("Take(%d): %d candidates of %d, want %d", id, len(c.List()), whose, n)
		}
		for _, slot := range c.List() {
			if !slices.Contains(may, slot) {
				t.Fatalf("Take(%d): slot %d is no candidate, want some of %v", id, slot, may)
			}
		}
		if want := w.settled[c.List()[0]]; c.Last() != want {
			t.Fatalf("Take(%d): the last candidates: %v, want %v", id, c.Last(), want)
		}
		for number, slot := range c.List() {
			if c.Many(number) != w.many(w.client[slot]) {
				t.Fatalf("Take(%d): the client of slot %d has %d, want %d", id, slot, c.Many(number), w.many(w.client[slot]))
			}
		}
		list := slices.Clone(c.List())
		for number, slot := range list {
			if random.IntN(4) == 0 {
				c.Keep(number)
				w.settled[slot] = true
			}
		}
		if random.IntN(3) > 0 {
			victim := list[random.IntN(len(list))]
			w.release(victim)
			if !s.Still(victim, &c) {
				t.Fatalf("Take(%d): slot %d is not its owner's", id, victim)
			}
			if random.IntN(2) == 0 {
				s.Move(victim, id, client, &c)
				w.give(victim, id, client)
				return
			}
			s.Release(victim)
		}
	}
}

func TestTwin(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 3))
		w := &twin{capacity: 2 + random.IntN(60), of: map[uint32]uint64{}, client: map[uint32]Client{}, settled: map[uint32]bool{}}
		w.reserve = random.IntN(w.capacity)
		s := New(w.capacity, w.reserve, own)
		for slot := range uint32(random.IntN(w.capacity)) {
			if random.IntN(2) == 0 {
				s.LeaveOut(slot)
				continue
			}
			id, client := uint64(random.IntN(4)), Client(random.IntN(5))
			s.Adopt(slot, id, client)
			w.give(slot, id, client)
		}
		owners := 1 + random.IntN(6)
		for range 150 {
			if slots := slices.Sorted(maps.Keys(w.of)); random.IntN(4) == 0 && len(slots) > 0 {
				slot := slots[random.IntN(len(slots))]
				s.Release(slot)
				w.release(slot)
			} else {
				w.take(t, s, uint64(random.IntN(owners)), Client(random.IntN(5)), random)
			}
			ids := map[uint64]bool{}
			for slot, id := range w.of {
				ids[id] = true
				if s.Charge(slot) != w.charge(id) || s.Charged(id) != w.charge(id) {
					t.Fatalf("seed %d: owner %d is charged %d, want %d", seed, id, s.Charged(id), w.charge(id))
				}
			}
			n, most := s.Stats()
			if _, want := w.most(); most != want || n != len(ids) || s.Fair() != w.capacity/max(1, n) {
				t.Fatalf("seed %d: %d owners, at most %d; want %d and %d", seed, n, most, len(ids), want)
			}
		}
	}
}

func TestChargeOfFreeSlot(t *testing.T) {
	s := New(2, 0)
	var c Candidates
	slot, _ := s.Take(7, 0, &c)
	if s.Charge(slot) != 1 || s.Charge(1-slot) != 0 || s.Charged(8) != 0 {
		t.Errorf("charged %d, %d, %d", s.Charge(slot), s.Charge(1-slot), s.Charged(8))
	}
}

func TestClientOf(t *testing.T) {
	if c := ClientOf(^uint64(0)); c != 1<<clientBits-1 || ClientOf(0) != 0 {
		t.Errorf("the last client is %d", c)
	}
}

func TestAllocs(t *testing.T) {
	s := New(10, 0)
	n := uint64(0)
	take := func() {
		var c Candidates
		if _, from := s.Take(n%3, 0, &c); from != share.Free {
			s.Move(c.List()[0], n%3, 0, &c)
		}
		n++
	}
	for range 100 {
		take()
	}
	if a := testing.AllocsPerRun(100, take); a != 0 {
		t.Errorf("%v allocations", a)
	}
}

func BenchmarkTakeRelease(b *testing.B) {
	s := New(1<<16, 0)
	b.ReportAllocs()
	n := uint64(0)
	for b.Loop() {
		var c Candidates
		slot, _ := s.Take(n&63, 0, &c)
		s.Release(slot)
		n++
	}
}

// TestStill: a search is told when another one moved a candidate.
func TestStill(t *testing.T) {
	s := New(1, 0)
	var mine, others Candidates
	s.Take(1, 0, &mine)
	s.Take(1, 0, &mine)
	s.Take(1, 0, &others)
	if !s.Still(0, &mine) {
		t.Error("the candidate's owner has changed")
	}
	s.Move(0, 2, 0, &others)
	if s.Still(0, &mine) {
		t.Error("another owner's slot is taken for the candidates' owner's")
	}
	s.Release(0)
	if s.Still(0, &mine) {
		t.Error("a free slot is taken for the candidates' owner's")
	}
}

// TestRandom: the candidates are a fair sample, wherever in an owner's list they are.
func TestRandom(t *testing.T) {
	const n, times = 256, 4000
	s := New(n, 0)
	var c Candidates
	for range n {
		s.Take(1, 0, &c)
	}
	var seen [n]int
	for range times {
		s.Take(1, 0, &c)
		for _, slot := range c.List() {
			seen[slot]++
		}
	}
	for slot, got := range seen { // 250 each, with a standard deviation of 16
		if got < 100 || got > 400 {
			t.Errorf("slot %d was a candidate %d times of %d, want about %d", slot, got, times, times*len(c.list)/n)
		}
	}
}

// TestRoomGivenBack: the list of an owner that had many slots gives its memory back.
func TestRoomGivenBack(t *testing.T) {
	s := New(2*muchRoom, 0)
	var slots []uint32
	for range 2 * muchRoom {
		var c Candidates
		slot, _ := s.Take(1, 0, &c)
		slots = append(slots, slot)
	}
	for _, slot := range slots {
		s.Release(slot)
	}
	if len(s.spare) != 1 || cap(s.spare[0].lists[settling]) != 0 {
		t.Errorf("%d owners to be used again, the first with room for %d slots", len(s.spare), cap(s.spare[0].lists[settling]))
	}
}

// TestManyOwners: more owners than can be told apart are served too; the last of them count as one.
func TestManyOwners(t *testing.T) {
	const n = maxOwners + 5000
	s := New(n, 0)
	var slots []uint32
	for id := range uint64(n) {
		var c Candidates
		slot, from := s.Take(id, 0, &c)
		if from != share.Free {
			t.Fatalf("owner %d: %v", id, from)
		}
		slots = append(slots, slot)
	}
	if owners, most := s.Stats(); owners != maxOwners+1 || most != 5000 || s.Charged(n-1) != 5000 || s.Charged(0) != 1 {
		t.Errorf("%d owners, at most %d", owners, most)
	}
	for _, slot := range slots {
		s.Release(slot)
	}
	if owners, _ := s.Stats(); owners != 0 || s.inUse != 0 {
		t.Errorf("%d owners and %d slots are left", owners, s.inUse)
	}
}
