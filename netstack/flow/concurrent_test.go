package flow

import (
	"bufio"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// churnEntry returns a flow all of whose fields follow from n, so that a mixture of two flows is recognised.
func churnEntry(n uint64) Entry {
	tp := packet.Tuple{Proto: packet.UDP, SrcPort: uint16(n), DstPort: 80, Space: uint32(n % 3)}
	tp.Src, tp.Dst = packet.Addr{0: 0xfd, 14: byte(n >> 8), 15: byte(n)}, packet.Addr{0: 0xfd, 1: 1, 15: byte(n)}
	e := Entry{Orig: tp, Reply: tp.Reverse(), Backend: n * 3, Via: n * 5, Kind: uint8(n)}
	e.Reply.Src[2], e.Reply.SrcPort = 2, 8080
	return e
}

func (e *Entry) sameChurn(o *Entry) bool {
	return e.Orig == o.Orig && e.Reply == o.Reply && e.Backend == o.Backend && e.Via == o.Via && e.Kind == o.Kind
}

// TestConcurrent lets readers and writers compete for few flows and fewer slots; every result must be whole.
func TestConcurrent(t *testing.T) {
	t.Run("many", func(t *testing.T) { testConcurrent(t, 64, 48) })
	t.Run("few", func(t *testing.T) { testConcurrent(t, 8, 2) })
}

func testConcurrent(t *testing.T, flows uint64, capacity int) {
	table, clock, _ := newTable(t, capacity)
	var seconds atomic.Uint32
	table.clock = func() uint32 { return clock.now + seconds.Load() }
	var done atomic.Bool
	var hits atomic.Int64
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			var hit Hit
			for !done.Load() {
				e := churnEntry(r.Uint64N(flows))
				tp, to := e.Orig, e.Reply.Reverse()
				if r.Uint32N(2) == 0 {
					tp, to = e.Reply, e.Orig.Reverse()
				}
				table.prefetch([]packet.Packet{{Tuple: tp}}) // must not fail, whatever the index holds
				if !table.Lookup(&tp, tcp(0), &hit) {
					continue
				}
				hits.Add(1)
				if hit.To != to || hit.Backend != e.Backend || hit.Via != e.Via || hit.Kind != e.Kind {
					t.Errorf("%v: torn hit %+v", tp, hit)
					return
				}
				table.SetChecked(hit.Ref, 1)
			}
		})
	}
	wg.Go(func() {
		for !done.Load() {
			seconds.Add(1)
			table.Sweep()
			table.Range(func(e *Entry, _ Info) bool {
				if want := churnEntry(e.Backend / 3); !e.sameChurn(&want) {
					t.Errorf("torn entry %+v", *e)
				}
				return true
			})
		}
	})
	var writers sync.WaitGroup
	for g := range 3 {
		writers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 2))
			// On few cores the writers might end before a reader has run at all.
			for i := 0; i < 8000 || hits.Load() == 0 && !t.Failed(); i++ {
				e := churnEntry(r.Uint64N(flows))
				want := e
				ref, res := table.Insert(&e)
				if res == Inserted && e != want {
					t.Errorf("reply of %v was changed", e.Orig)
				}
				switch r.Uint32N(4) {
				case 0, 1:
					table.Delete(ref, &e.Orig)
				case 2:
					table.SetVia(ref, &e.Orig, e.Via)
				}
			}
		})
	}
	writers.Wait()
	done.Store(true)
	wg.Wait()
	checkWhole(t, table)
	table.Range(func(e *Entry, info Info) bool { return table.Delete(info.Ref, &e.Orig) })
	seconds.Add(1 << 20)
	for range sweepParts {
		table.Sweep()
	}
	if n := table.Stats().Len; n != 0 {
		t.Errorf("%d flows are left", n)
	}
	checkIndexEmpty(t, table)
}

// checkIndexEmpty asserts that the index holds nothing: no key, no tag and no count.
func checkIndexEmpty(t *testing.T, table *Table) {
	t.Helper()
	for i := range table.index {
		b := &table.index[i]
		for j := range b.tags {
			if w := b.tags[j].Load(); w != 0 {
				t.Fatalf("tags %d of bucket %d are %#x, want 0", j, i, w)
			}
		}
		for j := range b.keys {
			if k := b.keys[j].Load(); k != 0 {
				t.Fatalf("key %d of bucket %d is %#x, want 0", j, i, k)
			}
		}
	}
}

// checkWhole asserts that every flow is found by both tuples and that all its fields follow from its number.
func checkWhole(t *testing.T, table *Table) (n int) {
	t.Helper()
	table.Range(func(e *Entry, info Info) bool {
		n++
		if want := churnEntry(e.Backend / 3); !e.sameChurn(&want) {
			t.Errorf("entry %+v, want %+v", *e, want)
		}
		for d, tp := range [2]packet.Tuple{e.Orig, e.Reply} {
			var hit Hit
			if !table.Peek(&tp, &hit) || hit.Dir != Dir(d) || hit.Ref != info.Ref {
				t.Errorf("%v: not found in direction %d", e.Orig, d)
			}
		}
		return true
	})
	return n
}

// TestConcurrentFlood: several owners keep beginning flows at once, all of which are answered, in a table that is full.
// Nobody is refused, since whoever evicts a flow has its slot.
func TestConcurrentFlood(t *testing.T) {
	table, _, _ := newTable(t, 256)
	const greedy, each = 4, 20000
	var done atomic.Bool
	var wg, client sync.WaitGroup
	for owner := range uint64(greedy) {
		wg.Go(func() {
			f := flood{owner: 100 + owner, client: packet.Addr{15: byte(owner + 1)}}
			for range each {
				e := f.next(packet.UDP)
				if _, res := table.Insert(&e); res != Inserted {
					t.Errorf("owner %d: %v", e.Owner, res)
					return
				}
				var hit Hit
				table.Lookup(&e.Reply, packet.Segment{}, &hit) // the answer; the flow may be gone already
			}
		})
	}
	client.Go(func() {
		for f := (flood{owner: 7, client: packet.Addr{14: 1}}); !done.Load(); {
			e := f.next(packet.UDP)
			if ref, res := table.Insert(&e); res != Inserted || !table.Delete(ref, &e.Orig) {
				t.Errorf("the client's flow: %v", res)
				return
			}
		}
	})
	wg.Wait()
	done.Store(true)
	client.Wait()
	if n := table.Stats().Full; n != 0 {
		t.Errorf("%d flows found no slot", n)
	}

}

// TestOneWinner: of many goroutines that insert one tuple at once exactly one is first, and none gets another's reply
// tuple.
func TestOneWinner(t *testing.T) {
	table, _, _ := newTable(t, 4096)
	for round := range 100 {
		var inserted atomic.Int32
		var replies sync.Map
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Go(func() {
				same := churnEntry(uint64(round))
				if _, res := table.Insert(&same); res == Inserted {
					inserted.Add(1)
				} else if res != Exists {
					t.Errorf("got %v", res)
				}
				// The originals differ, the reply is the same.
				e := churnEntry(uint64(round))
				e.Orig.Space, e.Reply.Space = uint32(10+g), 9
				if _, res := table.Insert(&e); res != Inserted {
					t.Errorf("got %v", res)
				}
				if _, twice := replies.LoadOrStore(e.Reply, true); twice {
					t.Errorf("reply %v was given twice", e.Reply)
				}
			})
		}
		wg.Wait()
		if n := inserted.Load(); n != 1 {
			t.Fatalf("%d goroutines were first, want 1", n)
		}
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		table, err := Open(newMem(10), Options{Clock: func() uint32 { return uint32(time.Since(start) / time.Second) }})
		if err != nil {
			t.Fatal(err)
		}
		e := churnEntry(1)
		mustInsert(t, table, &e)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { table.Run(ctx); close(done) }()
		time.Sleep(30500 * time.Millisecond) // of the bubble's fake clock
		if n := table.Stats().Len; n != 1 {
			t.Errorf("after 30 s: %d flows", n)
		}
		time.Sleep(61 * time.Second)
		if s := table.Stats(); s.Len != 0 || s.Expired != 1 {
			t.Errorf("after 91 s: %+v", s)
		}
		cancel()
		<-done
	})
}

func TestAttach(t *testing.T) {
	table, clock, mem := newTable(t, 100)
	for n := range uint64(50) {
		e := churnEntry(n)
		e.Checked = 9
		mustInsert(t, table, &e)
	}
	gone := churnEntry(7)
	var hit Hit
	table.Peek(&gone.Orig, &hit)
	table.Delete(hit.Ref, &gone.Orig)

	// A kill leaves slots in the middle of writing, in the middle of emptying, and with nonsense.
	table.slots[1].seq.Add(1)
	table.slots[2].live.Store(0)
	table.slots[2].seq.Add(1)
	table.slots[3].tuple[0][2]++
	table.slots[4].live.Store(uint64(table.slots[4].loadLive().with(200)))
	table.slots[5].backend++
	table.slots[6].seen.Store(clock.now + 500)

	clock.now += 5
	again, err := Open(mem, Options{Capacity: 100, Clock: clock.read, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	if s := again.Stats(); s.Len != 44 || s.Kept != 44 || s.Discarded != 5 || s.Reformatted {
		t.Fatalf("stats %+v", s)
	}
	if n := checkWhole(t, again); n != 44 {
		t.Errorf("%d flows are shown", n)
	}
	again.Range(func(e *Entry, info Info) bool {
		if e.Checked != 0 {
			t.Errorf("%v is still checked in generation %d", e.Orig, e.Checked)
		}
		if want := uint32(5); info.Idle != want && info.Ref&0xffffff != 6 {
			t.Errorf("%v is idle for %d s, want %d", e.Orig, info.Idle, want)
		}
		return true
	})
	// All discarded slots can be used again.
	for n := range uint64(56) {
		e := churnEntry(1000 + n)
		mustInsert(t, again, &e)
	}
	if s := again.Stats(); s.Len != 100 || s.Evicted != (Evicted{}) {
		t.Errorf("stats %+v", s)
	}

	for name, spoil := range map[string]func(*header){
		"version":  func(h *header) { h.version.Store(version + 1) },
		"magic":    func(h *header) { h.magic.Store(12345) },
		"slots":    func(h *header) { h.slotSize.Store(64) },
		"capacity": func(h *header) { h.capacity.Store(99) },
	} {
		spoil(again.head)
		fresh, err := Open(mem, Options{Capacity: 100, Clock: clock.read})
		if err != nil {
			t.Fatal(err)
		}
		if s := fresh.Stats(); !s.Reformatted || s.Len != 0 || s.Kept != 0 {
			t.Errorf("%s: stats %+v", name, s)
		}
		for n := range uint64(100) {
			e := churnEntry(n)
			mustInsert(t, fresh, &e)
		}
		again = fresh
	}
	again.head.used.Store(1 << 60) // nonsense, which must not be believed
	if last, err := Open(mem, Options{Capacity: 100, Clock: clock.read}); err != nil || last.Stats().Kept != 100 {
		t.Errorf("got %+v, %v", last.Stats(), err)
	}
}

const (
	crashCapacity = 300
	crashEnv      = "FLOW_TEST_CRASH_CHILD"
)

// TestMain also runs the processes that get killed.
func TestMain(m *testing.M) {
	if os.Getenv(crashEnv) != "" {
		crashChild()
	}
	if os.Getenv(convertEnv) != "" {
		convertChild()
	}
	os.Exit(m.Run())
}

func crashChild() {
	mem, err := unix.Mmap(3, 0, Size(crashCapacity), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		panic(err)
	}
	table, err := Open(mem, Options{Capacity: crashCapacity})
	if err != nil {
		panic(err)
	}
	for g := range 2 {
		go func() {
			r := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(g)))
			var hit Hit
			for {
				e := churnEntry(r.Uint64N(crashCapacity * 2 / 3))
				switch ref, _ := table.Insert(&e); r.Uint32N(4) {
				case 0, 1, 2:
					table.Delete(ref, &e.Orig)
				case 3:
					table.Lookup(&e.Reply, tcp(0), &hit)
				}
			}
		}()
	}
	os.Stdout.WriteString("writing\n")
	select {}
}

// TestSIGKILL kills a writer at random moments again and again, and opens its memory each time.
func TestSIGKILL(t *testing.T) {
	fd, err := unix.MemfdCreate("flow-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "flow-test")
	defer f.Close()
	if err := f.Truncate(int64(Size(crashCapacity))); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, Size(crashCapacity), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	kept, discarded := 0, 0
	for range 40 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), crashEnv+"=1")
		child.ExtraFiles = []*os.File{f}
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Duration(rand.IntN(2_000_000))); time.Now().Before(end); { // finer than a timer
		}
		child.Process.Kill()
		child.Wait()
		table, err := Open(mem, Options{Capacity: crashCapacity})
		if err != nil {
			t.Fatal(err)
		}
		s := table.Stats()
		if n := checkWhole(t, table); n != s.Kept || s.Len != n || s.Reformatted {
			t.Fatalf("%d flows are whole, stats %+v", n, s)
		}
		kept, discarded = kept+s.Kept, discarded+s.Discarded
	}
	t.Logf("kept %d, discarded %d", kept, discarded)
	if kept == 0 {
		t.Error("nothing ever survived")
	}
}
