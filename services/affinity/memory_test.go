package affinity

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// client returns the key of a client at Service port 1.
func client(addr string) *Key {
	return &Key{Client: packet.AddrFrom(netip.MustParseAddr(addr)), Port: 1}
}

// ask asks for a client's session as a Table does that would give it a certain backend.
func ask(m *Memory, k *Key, backend uint64, timeout time.Duration) (got uint64) {
	s := m.Find(k, timeout)
	if s.Backend == 0 {
		s.Backend = backend
		m.Keep(k, s, timeout)
	}
	return s.Backend
}

// The timeout counts from the last connection. The sessions that ended in time are counted.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, k := New(nil), client("10.0.0.1")
		ask(m, k, 7, time.Hour)
		for range 5 {
			time.Sleep(time.Hour)
			if got := m.Find(k, time.Hour); got != (Session{Backend: 7}) {
				t.Fatalf("within the timeout: %+v", got)
			}
		}
		time.Sleep(time.Hour + 1)
		if got := m.Find(k, time.Hour); got != (Session{Turn: 1}) {
			t.Errorf("after the timeout: %+v", got)
		}
		if n := m.Stats().Sessions; n != 0 {
			t.Errorf("%d sessions are counted, want 0", n)
		}
		m.Keep(k, Session{Backend: 8, Turn: 1}, time.Hour)
		time.Sleep(time.Minute)
		if got := m.Find(k, time.Second); got != (Session{Turn: 2}) {
			t.Errorf("the Service's timeout is shorter now: %+v", got)
		}
	})
}

// Service ports, sides and clients are apart.
func TestKeys(t *testing.T) {
	m := New(nil)
	keys := []*Key{client("10.0.0.1"), client("10.0.0.2"), client("fd00::1"), client("10.0.0.1"), client("10.0.0.1")}
	keys[3].Port, keys[4].Inside = 2, true
	for i, k := range keys {
		ask(m, k, uint64(i+1), time.Hour)
	}
	for i, k := range keys {
		if got := m.Find(k, time.Hour).Backend; got != uint64(i+1) {
			t.Errorf("%+v: %d, want %d", k, got, i+1)
		}
	}
}

func TestForget(t *testing.T) {
	m := New(nil)
	for i := range 1000 {
		ask(m, &Key{Client: packet.Addr{byte(i), byte(i >> 8)}, Inside: true}, uint64(i%10+1), time.Hour)
	}
	m.Forget(map[uint64]struct{}{3: {}, 5: {}, 77: {}})
	if n := m.Stats().Sessions; n != 800 {
		t.Errorf("%d sessions, want 800", n)
	}
	for i := range 1000 {
		b := uint64(i%10 + 1)
		got := m.Find(&Key{Client: packet.Addr{byte(i), byte(i >> 8)}, Inside: true}, time.Hour)
		if gone := b == 3 || b == 5; gone && got != (Session{}) || !gone && got.Backend != b {
			t.Errorf("client %d of %d has %+v", i, b, got)
		}
	}
}

// The memory has a bound, and a client that has it all to itself can fill it.
func TestBound(t *testing.T) {
	m := New(nil)
	for i := range uint64(2 * shards * perShard) {
		ask(m, &Key{Client: packet.Addr{1}, Port: i}, 1, time.Hour)
	}
	if got := m.Stats(); got.Sessions != shards*perShard || got.Replaced != shards*perShard || got.Refused != 0 {
		t.Errorf("%+v, want %d sessions", got, shards*perShard)
	}
	before := allocated()
	for i := range uint64(shards * perShard) {
		ask(m, &Key{Client: packet.Addr{1}, Port: 1<<32 + i}, 1, time.Hour)
	}
	if n := allocated() - before; n > 100 {
		t.Errorf("%d allocations in a full memory", n)
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// crowd takes the addresses of one IPv6 /64 in turn.
func crowd(i uint64) *Key {
	k := client("2001:db8:bad::")
	binary.BigEndian.PutUint64(k.Client[8:], i)
	return k
}

// A client with any number of addresses takes no sessions of others, whoever came first.
func TestFairness(t *testing.T) {
	honest := func(i int) *Key {
		k := client(fmt.Sprintf("203.0.%d.%d", i/250, i%250))
		k.Inside = i%2 == 0
		return k
	}
	const few, flood = 2000, 2 * shards * perShard
	for _, first := range []bool{true, false} {
		m := New(nil)
		if first {
			for i := range few {
				ask(m, honest(i), uint64(i+1), time.Hour)
			}
		}
		for i := range uint64(flood) {
			ask(m, crowd(i), 1, time.Hour)
		}
		if !first {
			for i := range few {
				ask(m, honest(i), uint64(i+1), time.Hour)
			}
			for i := range uint64(flood) {
				ask(m, crowd(flood+i), 1, time.Hour)
			}
		}
		for i := range few {
			if got := m.Find(honest(i), time.Hour).Backend; got != uint64(i+1) {
				t.Fatalf("first %v: client %d has %d, want %d", first, i, got, i+1)
			}
		}
	}
}

// Many clients with one session each keep theirs. The clients for whom there is no room get one when sessions have
// ended.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(nil)
		key := func(i uint64) *Key {
			k := &Key{Client: packet.Addr{10: 0xff, 11: 0xff}}
			binary.BigEndian.PutUint32(k.Client[12:], uint32(i))
			return k
		}
		const many = 2 * shards * perShard
		had := map[uint64]bool{}
		for i := range uint64(many) {
			ask(m, key(i), 5, time.Hour)
			had[i] = m.Find(key(i), time.Hour).Backend != 0
		}
		for i := range uint64(many) {
			if has := m.Find(key(i), time.Hour).Backend != 0; has != had[i] {
				t.Fatalf("client %d: has a session: %v, had one: %v", i, has, had[i])
			}
		}
		if s := m.Stats(); s.Sessions != shards*perShard || s.Refused != shards*perShard || s.Replaced != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(2 * time.Hour)
		for i := range uint64(1000) {
			ask(m, key(many+i), 6, time.Hour)
			if m.Find(key(many+i), time.Hour).Backend != 6 {
				t.Fatal("a session that has ended keeps its room")
			}
		}
	})
}

// twin is the slow, obviously right Memory of sessions while there is room for all.
type twin map[Key]*remembered

type remembered struct {
	Session
	last time.Time
}

func (w twin) ask(k Key, backend uint64, timeout time.Duration) Session {
	r := w[k]
	switch {
	case r == nil:
		r = &remembered{Session: Session{Backend: backend}}
		w[k] = r
	case time.Since(r.last) > timeout:
		r.Backend, r.Turn = backend, r.Turn+1
	}
	r.last = time.Now()
	return r.Session
}

func (w twin) forget(backends map[uint64]struct{}) {
	for k, r := range w {
		if _, gone := backends[r.Backend]; gone {
			delete(w, k)
		}
	}
}

func FuzzTwin(f *testing.F) {
	for i := range uint64(100) {
		f.Add(i, i*3)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(a, b))
			m, w := New(nil), twin{}
			for range 500 {
				switch r.IntN(20) {
				case 0:
					time.Sleep(time.Duration(r.IntN(20)) * time.Second)
				case 1:
					gone := map[uint64]struct{}{r.Uint64N(5) + 1: {}, r.Uint64N(5) + 1: {}}
					m.Forget(gone)
					w.forget(gone)
				}
				k := Key{Client: packet.Addr{byte(r.IntN(20))}, Port: r.Uint64N(3), Inside: r.IntN(2) == 0}
				timeout, backend := time.Duration(10+r.IntN(20))*time.Second, r.Uint64N(5)+1
				want := w.ask(k, backend, timeout)
				got := m.Find(&k, timeout)
				if got.Backend == 0 {
					got.Backend = backend
					m.Keep(&k, got, timeout)
				}
				if got != want {
					t.Fatalf("%+v: got %+v, want %+v", k, got, want)
				}
				live := 0
				for i := range m.shards {
					live += m.shards[i].held
				}
				if live != len(w) {
					t.Fatalf("%d sessions are held, want %d", live, len(w))
				}
			}
		})
	})
}

// A full memory under random load keeps its books: what is held is in the chains, and is charged.
func TestBooks(t *testing.T) {
	m := New(func(a netip.Addr) netip.Prefix {
		return addressing.Whole(netip.AddrFrom4([4]byte{10, 0, 0, a.As16()[0] % 7}))
	})
	var all sync.WaitGroup
	for g := range uint64(4) {
		all.Go(func() {
			r := rand.New(rand.NewPCG(g, 1))
			for range 60_000 {
				k := Key{Client: packet.Addr{byte(r.IntN(70))}, Port: r.Uint64N(5000), Inside: r.IntN(2) == 0}
				if b := ask(m, &k, r.Uint64N(50)+1, time.Hour); b == 0 || b > 50 {
					t.Errorf("backend %d", b)
				}
				if r.IntN(2000) == 0 {
					m.Forget(map[uint64]struct{}{r.Uint64N(50) + 1: {}})
				}
			}
		})
	}
	all.Wait()
	for i := range m.shards {
		s, chained := &m.shards[i], 0
		s.each(func(*entry) { chained++ })
		if held := s.places.Stats().Held; chained != s.held || held != s.held {
			t.Errorf("shard %d: %d in chains, %d charged, %d held", i, chained, held, s.held)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	m := New(nil)
	var keys [4096]*Key
	for i := range keys {
		keys[i] = client(fmt.Sprintf("203.%d.%d.1", i/250, i%250))
		ask(m, keys[i], 1, time.Hour)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := rand.Int(); pb.Next(); i++ {
			m.Find(keys[i%len(keys)], time.Hour)
		}
	})
}

// BenchmarkCrowd measures what somebody costs who has a new address for each connection, in a full memory.
func BenchmarkCrowd(b *testing.B) {
	m := New(nil)
	for i := range uint64(2 * shards * perShard) {
		ask(m, crowd(i), 1, time.Hour)
	}
	b.ReportAllocs()
	for i := uint64(1 << 32); b.Loop(); i++ {
		ask(m, crowd(i), 1, time.Hour)
	}
}
