package memo_test

import (
	"errors"
	"math/rand/v2"
	"testing"
	"unsafe"

	"tapestry.dev/tapestry/netstack/memo"
)

// memory returns zeroed memory that is aligned as a mapping is.
func memory(size int) []byte {
	w := make([]uint64, (size+7)/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), size)
}

func open(t *testing.T, mem []byte, kind uint64) *memo.Memo {
	t.Helper()
	m, err := memo.Open(mem, kind)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The next process finds what was put, as the live words were last.
func TestSurvives(t *testing.T) {
	mem := memory(memo.Size(3))
	m := open(t, mem, 7)
	if m.Len() != 3 {
		t.Fatalf("%d slots, want 3", m.Len())
	}
	f, live := memo.Fixed{1, 2, 3}, [memo.Live]uint64{10, 11}
	m.Put(1, &f, &live)
	m.Set(1, 1, 99)
	m.Put(2, &f, &live)
	m.Clear(2)
	m = open(t, mem, 7)
	for i := range uint32(3) {
		got, gotLive, ok := m.Get(i)
		if ok != (i == 1) {
			t.Errorf("slot %d: %v", i, ok)
		}
		if i == 1 && (got != f || gotLive != [memo.Live]uint64{10, 99}) {
			t.Errorf("got %v, %v", got, gotLive)
		}
	}
	var used []uint32
	m.Used(func(i uint32) { used = append(used, i) })
	if len(used) != 1 || used[0] != 1 {
		t.Errorf("%v are used, want 1", used)
	}
}

// Memory of another kind, another version or a wrong size is refused and stays as it is.
func TestForeign(t *testing.T) {
	for name, spoil := range map[string]func([]byte){
		"kind":    func([]byte) {},
		"magic":   func(b []byte) { b[0]++ },
		"version": func(b []byte) { b[8]++ },
		"slots":   func(b []byte) { b[13] = 1 },
	} {
		mem := memory(memo.Size(2))
		open(t, mem, 7)
		spoil(mem)
		kind := uint64(7)
		if name == "kind" {
			kind = 8
		}
		if _, err := memo.Open(mem, kind); !errors.Is(err, memo.ErrForeign) {
			t.Errorf("%s: %v, want ErrForeign", name, err)
		}
	}
	if _, err := memo.Open(memory(100), 7); err == nil {
		t.Error("memory without room for a slot was accepted")
	}
}

// A slot that was written only in part, whichever part, is not reported.
func TestTorn(t *testing.T) {
	const at = 4096 // of slot 0
	mem := memory(memo.Size(1))
	m := open(t, mem, 7)
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var old, now memo.Fixed
		for i := range old {
			old[i], now[i] = r.Uint64(), r.Uint64()
		}
		var live [memo.Live]uint64
		m.Put(0, &now, &live)
		whole := append([]byte(nil), mem[at:at+128]...)
		m.Put(0, &old, &live)
		// Some words are those of now, and not all.
		n := 1 + r.IntN(memo.Words-1)
		for _, w := range r.Perm(memo.Words)[:n] {
			copy(mem[at+8+8*w:][:8], whole[8+8*w:][:8])
		}
		if f, _, ok := m.Get(0); ok && f != old && f != now {
			t.Fatalf("a torn slot was reported: %v", f)
		}
	}
}
